//! Builds the libraries that are preloaded, and the programs that they are preloaded to.

use crate::builder::{cargo, fail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A library to preload: its name, and its path.
pub fn contestants(folder: &Path) -> [(&'static str, PathBuf); 4] {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/programs/Cargo.toml");
    let bare = cargo(&["build", "--release", "--manifest-path", manifest, "--bin", "bare"]);
    let ours_of = |features| ["build", "--release", "--lib", "--features", features];
    let ours = cargo(&ours_of("interpose"));
    let copied = |messages: &[serde_json::Value], name: &str| {
        let library = messages
            .iter()
            .filter_map(|message| message["filenames"].as_array())
            .flatten()
            .filter_map(serde_json::Value::as_str)
            .find(|file| file.ends_with("libdogtag_c.so"));
        let library = library.unwrap_or_else(|| fail("cargo named no library"));
        let copy = folder.join(name);
        fs::copy(library, &copy).unwrap_or_else(|error| fail(&format!("{library}: {error}")));
        copy
    };
    let dogtag = copied(&ours, "libdogtag_c.so");
    let checked = copied(&cargo(&ours_of("interpose,memory-check")), "checked.so");
    [
        ("jemalloc", shared(&bare, &folder.join("jemalloc.so"))),
        ("jemalloc, statistics", shared(&ours, &folder.join("jemalloc-statistics.so"))),
        ("dogtag", dogtag),
        ("dogtag, memory-check", checked),
    ]
}

/// Makes a shared library of the jemalloc that Cargo says it has built, under the C
/// library's names.
fn shared(messages: &[serde_json::Value], library: &Path) -> PathBuf {
    let out = messages
        .iter()
        .filter(|message| message["package_id"].as_str().is_some_and(|id| id.contains("tikv-jemalloc-sys")))
        .find_map(|message| message["out_dir"].as_str());
    let out = out.unwrap_or_else(|| fail("cargo named no jemalloc"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-o"]).arg(library).arg("-Wl,--whole-archive");
    cc.arg(Path::new(out).join("lib/libjemalloc_pic.a")).arg("-Wl,--no-whole-archive");
    let names = "malloc calloc realloc free memalign aligned_alloc posix_memalign valloc malloc_usable_size";
    cc.args(names.split(' ').map(|name| format!("-Wl,--defsym={name}=_rjem_{name}")));
    cc.args(["-lpthread", "-ldl", "-lm"]);
    succeed(cc);
    library.to_owned()
}

pub fn compile(folder: &Path, source: &Path) -> PathBuf {
    let program = folder.join(source.file_stem().unwrap_or_else(|| fail("a source has a name")));
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-pthread", "-o"]).arg(&program).arg(source);
    succeed(cc);
    program
}

fn succeed(mut command: Command) {
    match command.status() {
        Ok(status) if status.success() => {}
        other => fail(&format!("{command:?}: {other:?}")),
    }
}

//! Builds the two libraries that `dogtag` preloads, so that the program has them inside.
//!
//! A library has to be a shared one of its own, with features that exclude each other, so Cargo is
//! called once for each, into this build's own folder: the sources are those beside this package, or
//! else the registry's. `DOGTAG_CLI_LIBRARIES` names a folder that has them already
//! (`libdogtag_c.so` and `checked.so`); `none` leaves them out, for checks of the code alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const VARIABLE: &str = "DOGTAG_CLI_LIBRARIES";

/// The name under which the program includes a library, its file in a folder of ready ones, and the
/// features that it is built with.
const LIBRARIES: [(&str, &str, &str); 2] = [
    ("PLAIN", "libdogtag_c.so", "interpose,profile"),
    ("CHECKED", "checked.so", "interpose,profile,memory-check"),
];

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo says where"));
    let ready = env::var_os(VARIABLE).filter(|folder| !folder.is_empty());
    if ready.is_none() {
        println!("cargo::rerun-if-changed=build.rs");
        // The core is beside it in the repository.
        for part in ["src", "Cargo.toml", "../../src", "../../Cargo.toml", "../../Cargo.lock"] {
            sources().iter().for_each(|sources| watch(&sources.join(part)));
        }
    }
    for (name, file, features) in LIBRARIES {
        let bytes = match &ready {
            Some(none) if none == "none" => Vec::new(),
            Some(folder) => {
                let path = workspace_path(folder.as_ref()).join(file);
                watch(&path);
                read(&path)
            }
            None => read(&build(&out, features)),
        };
        println!("cargo::rustc-env=DOGTAG_{name}_HASH={:016x}", hash(&bytes));
        let path = out.join(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// The package `dogtag-c`, where it is beside this one: in the repository, or in a copy of it.
fn sources() -> Option<PathBuf> {
    let own = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("Cargo says where"));
    let names = ["../dogtag-c", concat!("../dogtag-c-", env!("CARGO_PKG_VERSION"))];
    names.iter().map(|name| own.join(name)).find(|path| path.join("Cargo.toml").is_file())
}

fn build(out: &Path, features: &str) -> PathBuf {
    let (manifest, library) = match sources() {
        Some(sources) => (sources.join("Cargo.toml"), "libdogtag_c.so"),
        None => (package(out, features), "libdogtag_preload.so"),
    };
    let target = env::var("TARGET").expect("Cargo says which");
    let mut cargo = Command::new(env::var_os("CARGO").expect("Cargo says which"));
    cargo.args(["build", "--release", "--lib", "--target", &target]);
    cargo.args(["--features", features]).arg("--manifest-path").arg(manifest);
    cargo.arg("--target-dir").arg(out.join("target"));
    // `cargo clippy` would have these checked by way of a wrapper, too.
    cargo.env_remove("RUSTC_WORKSPACE_WRAPPER").env_remove("CLIPPY_ARGS");
    let status = cargo.status().expect("Cargo is there");
    assert!(
        status.success(),
        "dogtag-c with the features {features} does not build ({status}); {VARIABLE} names a folder with \
         libraries that are built already",
    );
    out.join("target").join(target).join("release").join(library)
}

/// Makes a package that is nothing but the registry's `dogtag-c` as a shared library, and returns its
/// manifest.
fn package(out: &Path, features: &str) -> PathBuf {
    let folder = out.join("package");
    let version = env!("CARGO_PKG_VERSION");
    let passed_on: String =
        features.split(',').map(|name| format!("{name} = [\"dogtag-c/{name}\"]\n")).collect();
    let manifest = format!(
        "[package]\nname = \"dogtag-preload\"\nversion = \"{version}\"\nedition = \"2024\"\n\
         [lib]\npath = \"lib.rs\"\ncrate-type = [\"cdylib\"]\n\
         [features]\n{passed_on}[dependencies]\ndogtag-c = \"={version}\"\n[workspace]\n"
    );
    fs::create_dir_all(&folder).expect("there is a folder for what is built");
    fs::write(folder.join("lib.rs"), "pub use dogtag_c as _;\n").expect("a file can be written there");
    fs::write(folder.join("Cargo.toml"), manifest).expect("a file can be written there");
    folder.join("Cargo.toml")
}

/// Of a relative path: from where Cargo is called in this repository.
fn workspace_path(folder: &Path) -> PathBuf {
    Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("Cargo says where")).join("../..").join(folder)
}

fn watch(path: &Path) {
    if path.exists() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Tells the libraries of different builds apart (FNV-1a).
fn hash(bytes: &[u8]) -> u64 {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, hash)
}

//! The example `services` with a window of mapped memory as its global allocator, and jemalloc for
//! what does not fit in the window: it must not notice.
#![cfg(not(feature = "memory-check"))]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// A program of the example's source.
fn build(name: &str, source: &str) -> Command {
    let package = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(package.join("src")).unwrap();
    // Built as the crate is, and so not again.
    let own = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let profiles = own.split("\n[").filter(|table| table.starts_with("profile.dev"));
    let profiles: String = profiles.map(|table| format!("[{table}\n")).collect();
    let manifest = format!(
        "[package]\nname = \"{name}\"\nedition = \"2024\"\n[workspace]\n{profiles}\
         [dependencies]\ndogtag = {{ path = {ROOT:?} }}\n\
         dogtag-mapped = {{ path = {CRATE:?} }}\n\
         tokio = {{ version = \"1.38\", features = [\"rt-multi-thread\", \"sync\", \"time\"] }}\n"
    );
    fs::write(package.join("Cargo.toml"), manifest).unwrap();
    fs::write(package.join("src/main.rs"), source).unwrap();
    // The same versions as everywhere.
    fs::copy(Path::new(ROOT).join("Cargo.lock"), package.join("Cargo.lock")).unwrap();
    // Where the dependencies are built already.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut program = Command::new(target.join("debug").join(name));
    program.args(["src", "README.md"]).current_dir(ROOT);
    program
}

/// What it says that does not depend on time.
fn findings(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("The books balance"), "{text}");
    let has = |line: &str| {
        ["different words", "searches found", "most have"].iter().any(|part| line.contains(part))
    };
    let lines = text.lines().filter(|line| has(line));
    lines.map(|line| line.split(", indexed in").next().unwrap().to_owned()).collect()
}

#[test]
fn a_window_that_is_too_small_goes_unnoticed() {
    let source = fs::read_to_string(Path::new(ROOT).join("examples/services.rs")).unwrap();
    let allocator = "static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();";
    assert!(source.contains(allocator) && source.contains("fn main() -> ExitCode {"));
    let in_window = source
        .replace(
            allocator,
            "static ALLOC: dogtag::Dogtag<Fallback<MappedRegion, dogtag::Jemalloc>> = \
             dogtag::Dogtag::with_backend(Fallback::new(MappedRegion::deferred(1 << 20), dogtag::Jemalloc));\n\
             use dogtag_mapped::{Fallback, MappedRegion};",
        )
        .replace(
            "fn main() -> ExitCode {",
            "fn main() -> ExitCode {\n    let status = real_main();\n    \
             let (near, far) = (ALLOC.backend().primary().stats(), ALLOC.backend().stats());\n    \
             println!(\"peak {} elsewhere {}\", near.peak, far.secondary_blocks);\n    status\n}\n\n\
             fn real_main() -> ExitCode {",
        );
    let usual = build("services-as-usual", &source).output().unwrap();
    let window = build("services-in-a-window", &in_window).output().unwrap();
    assert_eq!(findings(&window), findings(&usual));
    assert_eq!(findings(&usual).len(), 3);
    // The window was full, and jemalloc had the rest.
    let text = String::from_utf8_lossy(&window.stdout);
    let line = text.lines().find(|line| line.starts_with("peak ")).unwrap();
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] > 900_000 && numbers[0] <= 1 << 20 && numbers[1] > 1000, "{line}");
    // The head of the table of regions, and a row: it has no other name.
    assert!(text.lines().filter(|line| line.starts_with("region ")).count() >= 2, "{text}");
}

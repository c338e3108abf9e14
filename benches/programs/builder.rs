//! Builds the programs, for the benches that run them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds programs and says where they are.
pub fn build(choice: &[&str]) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/programs/Cargo.toml");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--message-format=json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(&manifest)
        .args(choice)
        .stderr(std::process::Stdio::inherit())
        .output()
        .unwrap_or_else(|error| fail(&format!("cargo cannot be started: {error}")));
    if !built.status.success() {
        fail("the programs do not build");
    }
    // Cargo names each executable it built, wherever the target folder is.
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| Some(Path::new(message["executable"].as_str()?).parent()?.to_owned()))
        .unwrap_or_else(|| fail("cargo named no program"))
}

pub fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(2)
}

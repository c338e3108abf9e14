//! Builds the programs, for the benches that run them.
#![allow(dead_code, reason = "each bench uses the part that it needs")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds programs and says where they are.
pub fn build(choice: &[&str]) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/programs/Cargo.toml");
    let manifest = manifest.to_str().unwrap_or_else(|| fail("the path of this folder is no UTF-8"));
    let arguments = [&["build", "--release", "--manifest-path", manifest], choice].concat();
    // Cargo names each executable it built, wherever the target folder is.
    cargo(&arguments)
        .iter()
        .find_map(|message| Some(Path::new(message["executable"].as_str()?).parent()?.to_owned()))
        .unwrap_or_else(|| fail("cargo named no program"))
}

/// Runs Cargo, and returns what it tells.
pub fn cargo(arguments: &[&str]) -> Vec<serde_json::Value> {
    let built = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .unwrap_or_else(|error| fail(&format!("cargo cannot be started: {error}")));
    if !built.status.success() {
        fail(&format!("this does not build: cargo {}", arguments.join(" ")));
    }
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

pub fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(2)
}

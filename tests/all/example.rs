//! The main job, as its users start it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs the example, which `cargo test` has built beside this test.
fn services(arguments: &[&str]) -> Output {
    let mut program = PathBuf::from(std::env::current_exe().unwrap().parent().unwrap().parent().unwrap());
    program.push("examples/services");
    // `cargo test --test all` alone builds no example.
    let built = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let source = built(Path::new("examples/services.rs"));
    assert!(built(&program) > source, "the example is not built: cargo build --example services");
    Command::new(program).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn it_shows_two_tables_and_balances() {
    let output = services(&[]);
    let (shown, progress) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{shown}{progress}");
    assert!(progress.contains("indexed"), "{progress}");
    assert!(shown.contains("The books balance"), "{shown}");
    let rows: Vec<&str> = shown.lines().filter(|line| line.starts_with("index ")).collect();
    assert_eq!(rows.len(), 2, "{shown}");
    assert!(rows[0].contains("iB") && !rows[0].contains(" 0 B "), "{shown}");
    assert!(rows[1].contains(" 0 B "), "{shown}");
}

#[test]
fn a_missing_path_is_named() {
    let output = services(&["Cargo.toml", "no/such/folder"]);
    assert_eq!(output.status.code(), Some(2));
    let problem = text(&output.stderr);
    assert!(problem.contains("no/such/folder"), "{problem}");
}

/// A file that is there but that nobody, not even root, can read from its start.
#[cfg(target_os = "linux")]
#[test]
fn an_unreadable_file_is_named() {
    let output = services(&["Cargo.toml", "/proc/self/mem"]);
    assert_eq!(output.status.code(), Some(2));
    let problem = text(&output.stderr);
    assert!(problem.contains("/proc/self/mem"), "{problem}");
}

#[test]
fn a_folder_without_text_is_a_problem() {
    let folder = std::env::temp_dir().join(format!("dogtag-empty-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let empty = services(&[folder.to_str().unwrap()]);
    std::fs::write(folder.join("noise"), [0xff, 0xfe, 0x00]).unwrap();
    let noise = services(&[folder.to_str().unwrap()]);
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(empty.status.code(), Some(2));
    assert!(text(&empty.stderr).contains("no files"), "{}", text(&empty.stderr));
    assert_eq!(noise.status.code(), Some(2));
    assert!(text(&noise.stderr).contains("none of the files is text"), "{}", text(&noise.stderr));
}

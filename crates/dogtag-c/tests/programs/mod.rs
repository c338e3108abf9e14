//! Builds the libraries and programs of `tests/c`, and runs them.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

#[path = "../../../../tests/watch/mod.rs"]
pub mod watch;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::{env, fs};

/// How the libraries are built.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    pub features: &'static str,
    pub defines: &'static [&'static str],
    /// How many times slower programs are.
    pub slowness: u64,
}

pub enum Link {
    /// The static library takes the place of the C library's functions.
    Static,
    /// So does the shared one, as if it were preloaded.
    Shared,
    /// As skynet does: static, and the program's own functions can be found.
    Host,
}

/// Builds a program of `tests/c`, once for all tests, and returns its path. (Another test may run it by
/// then, or it may read its own debug information.)
pub fn compile(name: &str, kind: Kind, link: Link) -> PathBuf {
    static BUILT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

    let library = library(kind);
    let (suffix, linked) = match link {
        Link::Static | Link::Host => ("static", library.join("libdogtag_c.a")),
        Link::Shared => ("shared", library.join("libdogtag_c.so")),
    };
    let program = folder(kind).join(format!("{name}-{suffix}"));
    let mut built = BUILT.lock().unwrap_or_else(|error| panic!("a program could not be built: {error}"));
    if built.contains(&program) {
        return program;
    }
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-O1", "-g", "-pthread", "-rdynamic", "-Wall", "-Wextra", "-Werror"]);
    cc.arg("-I").arg(root().join("include")).args(kind.defines);
    if matches!(link, Link::Host) {
        cc.arg("-DDOGTAG_SKYNET");
    }
    cc.arg("-o").arg(&program).arg(source(name)).arg(linked).args(["-lgcc_s", "-lm", "-ldl"]);
    cc.arg(format!("-Wl,-rpath,{}", library.display()));
    run(cc).success();
    built.push(program.clone());
    program
}

/// Builds the libraries, once for all tests, and returns their folder.
pub fn library(kind: Kind) -> PathBuf {
    static BUILT: Mutex<Vec<&str>> = Mutex::new(Vec::new());

    let mut built = BUILT.lock().unwrap_or_else(|error| panic!("a library could not be built: {error}"));
    let folder = folder(kind);
    if built.contains(&kind.name) {
        return folder;
    }
    // Cargo has one place for the libraries, whatever their features, and would take one of other
    // features that is there.
    let target = target();
    let libraries = ["libdogtag_c.a", "libdogtag_c.so"];
    for library in libraries {
        let _ = fs::remove_file(target.join("debug/deps").join(library));
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["build", "--lib", "--features", kind.features]);
    cargo.arg("--target-dir").arg(&target);
    // Without a limit of time: it may have to wait for another cargo.
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{cargo:?}: {}", String::from_utf8_lossy(&output.stderr));
    for library in libraries {
        fs::copy(target.join("debug").join(library), folder.join(library)).unwrap();
    }
    built.push(kind.name);
    folder
}

/// Makes the folder for a kind's libraries and programs.
pub fn folder(kind: Kind) -> PathBuf {
    let folder = target().join("c").join(kind.name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Returns the target folder that this test was built in.
fn target() -> PathBuf {
    // The test is in its `debug/deps`.
    let program = env::current_exe().unwrap();
    program.ancestors().nth(3).unwrap().to_owned()
}

pub fn source(name: &str) -> PathBuf {
    root().join("tests/c").join(name).with_extension("c")
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// How a program ended.
pub struct Ended {
    command: String,
    pub output: Output,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program, which is killed if it hangs.
pub fn run(mut command: Command) -> Ended {
    let output = watch::output(&mut command);
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    Ended { command: format!("{command:?}"), output, stdout, stderr }
}

impl Ended {
    /// Asserts that it succeeded; returns what it printed.
    pub fn success(self) -> String {
        let Self { command, output, stdout, stderr } = self;
        assert!(output.status.success(), "{command}: {}\n{stdout}\n{stderr}", output.status);
        stdout
    }

    /// Asserts that it found everything right, and printed no error.
    pub fn ok(self) {
        assert_eq!(self.stderr, "", "{}", self.command);
        let command = self.command.clone();
        assert_eq!(self.success(), "ok\n", "{command}");
    }

    /// Asserts that it aborted, and printed why.
    pub fn aborted(self, why: &[&str]) {
        use std::os::unix::process::ExitStatusExt;

        let Self { command, output, stdout, stderr } = self;
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGABRT),
            "{command}: {}\n{stdout}\n{stderr}",
            output.status
        );
        for text in why {
            assert!(stderr.contains(text), "{command}: {text} is missing:\n{stderr}");
        }
    }
}

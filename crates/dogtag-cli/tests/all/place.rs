//! A folder of a test's own, and what runs there.

use std::ffi::OsStr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs};

/// A folder that goes at the end of the test.
pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);

        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("dogtag-cli-{}-{number}", std::process::id()));
        // Where a group may write, no library is put.
        fs::DirBuilder::new().mode(0o755).create(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "cache");
        names.sort();
        names
    }

    /// Compiles a program of C.
    pub fn compile(&self, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        let file = self.path(&format!("{name}.c"));
        fs::write(&file, source).unwrap();
        let program = self.path(name);
        let done =
            Command::new("cc").arg("-g").arg("-o").arg(&program).arg(&file).args(flags).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::remove_file(file).unwrap();
        program
    }

    /// Makes a command with the words of a line.
    pub fn command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dogtag"));
        command.args(words).current_dir(&self.0).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", self.path("cache")).env("TMPDIR", &self.0);
        command.env_remove("LD_PRELOAD").env_remove("XDG_RUNTIME_DIR");
        command
    }

    /// Runs `dogtag`.
    pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Done {
        Done::of(self.command(words).output().unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Done {
    pub status: Option<i32>,
    pub signal: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    pub fn of(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;

        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            status: output.status.code(),
            signal: output.status.signal(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// Checks that standard error has all of these.
    #[track_caller]
    pub fn says(&self, parts: &[&str]) -> &Self {
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in {self:#?}");
        }
        self
    }

    #[track_caller]
    pub fn has_status(&self, status: i32) -> &Self {
        assert_eq!((self.status, self.signal), (Some(status), None), "{self:#?}");
        self
    }
}

/// A path as a word of a command.
pub fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

//! What memory-check found, as the checked library writes it: a line of JSON for each process that it
//! is in, and one for each violation.

use crate::failure::{Context, Failure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A file for the library, which goes when this is dropped.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Found {
    /// How many processes were checked.
    pub processes: usize,
    pub violations: Vec<Violation>,
    /// How many lines are not whole, of a process that ended while it wrote, or on a full disk.
    pub lines_cut_off: usize,
}

/// One violation.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Violation {
    pub pid: u32,
    pub program: String,
    /// Such as `overrun` or `double free`.
    pub kind: String,
    /// What the program was doing when it was found.
    pub operation: String,
    /// The service, such as a thread's name, that owns the block.
    pub service: Option<String>,
    pub size: Option<u64>,
    /// As on standard error, with call stacks.
    pub report: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Violation(Violation),
    Process {
        #[serde(rename = "pid")]
        _pid: u32,
    },
}

impl Log {
    pub fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join("dogtag-check-XXXXXX");
        let path = CString::new(path.into_os_string().into_vec()).context("the temporary folder")?;
        let place = path.into_raw();
        // SAFETY: the place is a C string of ours that the call may change but not lengthen, and comes
        // from `into_raw`.
        let (descriptor, path) = unsafe {
            let descriptor = libc::mkostemp(place, libc::O_CLOEXEC);
            (descriptor, CString::from_raw(place))
        };
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(path.as_bytes()));
        if descriptor < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Failure::new(format!("{}: {error}", path.display())));
        }
        // SAFETY: the descriptor was opened above, and nobody else knows it.
        unsafe { libc::close(descriptor) };
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what was found so far.
    pub fn read(&self) -> Result<Found, Failure> {
        let content = fs::read(&self.path).context(self.path.display())?;
        Ok(Found::parse(&String::from_utf8_lossy(&content)))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Found {
    fn parse(content: &str) -> Self {
        let mut found = Self::default();
        for line in content.lines() {
            match serde_json::from_str(line) {
                Ok(Line::Violation(violation)) => found.violations.push(violation),
                Ok(Line::Process { .. }) => found.processes += 1,
                Err(_) => found.lines_cut_off += 1,
            }
        }
        found
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let processes = match self.processes {
            1 => "one process".to_owned(),
            number => format!("{number} processes"),
        };
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for violation in &self.violations {
            *kinds.entry(&violation.kind).or_default() += 1;
        }
        let list: Vec<String> = kinds.iter().map(|(kind, number)| format!("{number} × {kind}")).collect();
        match self.violations.len() {
            0 => write!(f, "no violations in {processes}")?,
            1 => write!(f, "one violation in {processes}: {}", list.join(", "))?,
            number => write!(f, "{number} violations in {processes}: {}", list.join(", "))?,
        }
        match self.lines_cut_off {
            0 => Ok(()),
            1 => f.write_str("; one line of what was found is cut off"),
            number => write!(f, "; {number} lines of what was found are cut off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted() {
        let violation = r#"{"pid":1,"program":"a","kind":"overrun","operation":"dealloc","service":null,"size":3,"report":"r"}"#;
        let found = Found::parse(&format!("{{\"pid\":1,\"program\":\"a\"}}\n{violation}\n{violation}\n"));
        assert_eq!((found.processes, found.violations.len()), (1, 2));
        assert_eq!(found.to_string(), "2 violations in one process: 2 × overrun");
        assert_eq!(Found::parse("{\"pid\":1}\n").to_string(), "no violations in one process");
    }

    #[test]
    fn lines_that_are_cut_off_leave_the_others() {
        let found = Found::parse("{\"pid\":1}\n{\"pid\":2,\"prog");
        assert_eq!((found.processes, found.violations.len(), found.lines_cut_off), (1, 0, 1));
        assert_eq!(found.to_string(), "no violations in one process; one line of what was found is cut off");
        assert_eq!(Found::parse("{\"pi{\"pid\":1}\n{\"pid\":1}\n{").lines_cut_off, 2);
    }

    #[test]
    fn a_log_is_there_while_it_is_needed() {
        let log = Log::new().unwrap();
        let path = log.path().to_owned();
        assert_eq!(log.read().unwrap().processes, 0);
        drop(log);
        assert!(!path.exists());
    }
}

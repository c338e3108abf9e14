//! The violations' file, with memory-check on.

use dogtag::__private::report::variable;
use dogtag::__private::service::unattributed;
use dogtag::__private::sys::{self, spawn};
use dogtag::check::{self, Violation};
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Has each violation written to the file that `DOGTAG_CHECK_LOG` names, too.
pub(in crate::preload) fn begin() {
    let Some(path) = variable("DOGTAG_CHECK_LOG").filter(|path| !path.is_empty()) else { return };
    unattributed(|| {
        let path = PathBuf::from(OsString::from_vec(path));
        // The program may change its working directory.
        let path = std::path::absolute(&path).unwrap_or(path);
        let mut line = String::new();
        // A string takes all that is written.
        let _ = writeln!(line, "{{{}}}", Process);
        if let Err(error) = append(&path, &line) {
            sys::print(format_args!("dogtag: DOGTAG_CHECK_LOG: {}: {error}\n", path.display()));
            return;
        }
        check::set_handler(move |violation| {
            let reaction = check::report(violation);
            unattributed(|| log(&path, violation));
            reaction
        });
    });
}

fn log(path: &Path, violation: &Violation) {
    /// One report at a time has the functions' names: the thread that looks them up may find another one.
    static IS_BUSY: AtomicBool = AtomicBool::new(false);

    let described = if IS_BUSY.swap(true, Ordering::SeqCst) {
        None
    } else {
        let described = describe(violation);
        IS_BUSY.store(false, Ordering::SeqCst);
        described
    };
    let report = described.unwrap_or_else(|| violation.to_string());
    let mut line = String::new();
    let _ = write!(
        line,
        "{{{Process},\"kind\":{},\"operation\":{},\"service\":",
        Quoted(&violation.kind().to_string()),
        Quoted(&violation.operation().to_string()),
    );
    let _ = match violation.allocated() {
        Some(owner) => write!(line, "{}", Quoted(owner.service())),
        None => line.write_str("null"),
    };
    let _ = match violation.layout() {
        Some(layout) => write!(line, ",\"size\":{}", layout.size()),
        None => line.write_str(",\"size\":null"),
    };
    let _ = writeln!(line, ",\"report\":{}}}", Quoted(&report));
    // There is a report on standard error.
    let _ = append(path, &line);
}

/// Returns the report with the functions' names, for which locks are needed that the program may hold:
/// a thread of its own looks them up, for which nobody waits for ever.
fn describe(violation: &Violation) -> Option<String> {
    const PATIENCE: Duration = Duration::from_secs(10);

    let (sender, receiver) = mpsc::channel();
    let violation = *violation;
    spawn(move || drop(sender.send(format!("{violation:#}"))));
    receiver.recv_timeout(PATIENCE).ok()
}

/// In one piece, since other processes write to the file, too.
fn append(path: &Path, line: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(line.as_bytes())
}

/// Writes which process this is, as fields of an object.
struct Process;

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = std::env::args_os().next().unwrap_or_default();
        write!(f, "\"pid\":{},\"program\":{}", std::process::id(), Quoted(&program.to_string_lossy()))
    }
}

/// Writes a text as a JSON string.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\0'..='\u{1f}' => write!(f, "\\u{:04x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

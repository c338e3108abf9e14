//! Heap profiles of a program that knows nothing of the library.

use crate::profile::heap;
use dogtag::__private::report::{at_exit_and_signal, check, numbered, variable};
use dogtag::__private::service::unattributed;
use dogtag::__private::sys;
use dogtag::profile::{ProfileError, Profiler};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The path of the files, with `%p` and `%n`.
static FILE: OnceLock<OsString> = OnceLock::new();

/// Where no path is set, in the directory in which the program was started.
const DEFAULT_FILE: &str = "heap.%p.%n.pb.gz";

/// Starts the profiler if `DOGTAG_PROFILE` says so. A profile is written at the exit, after a report,
/// and at each SIGUSR2.
pub(super) fn begin() {
    let Some(text) = variable("DOGTAG_PROFILE") else { return };
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut file = DEFAULT_FILE;
    let mut settings = Vec::new();
    for part in text.split(',').map(str::trim) {
        match part.strip_prefix("file=") {
            Some(path) if !path.is_empty() => file = path,
            _ => settings.push(part),
        }
    }
    // A file alone asks for a profile, too.
    let settings = if settings.is_empty() { "1".to_owned() } else { settings.join(",") };
    // The program may change its working directory.
    let file: OsString = std::path::absolute(file).map_or_else(|_| file.into(), Into::into);
    let started = unattributed(|| {
        let started = Profiler::from_settings(&settings)?;
        let Some(profiler) = started else { return Ok(false) };
        // At its end a program may have closed its standard error.
        if let Err(error) = check(&path_of(&file, 0)) {
            complain(&path_of(&file, 0), &error);
            profiler.stop();
            return Ok(false);
        }
        let _ = FILE.set(file);
        Ok::<_, ProfileError>(true)
    });
    match started {
        Ok(true) => {
            if let Err(error) = at_exit_and_signal(libc::SIGUSR2, write) {
                sys::print(format_args!("dogtag: DOGTAG_PROFILE: {error}\n"));
            }
        }
        Ok(false) => {}
        Err(error) => {
            sys::print(format_args!("dogtag: DOGTAG_PROFILE: {error}; and file=PATH. It is ignored\n"));
        }
    }
}

/// Writes a profile.
fn write() {
    static NUMBER: AtomicU32 = AtomicU32::new(0);

    let Some(file) = FILE.get() else { return };
    unattributed(|| {
        let path = path_of(file, NUMBER.fetch_add(1, Ordering::Relaxed));
        if let Err(error) = heap::write(&path) {
            complain(&path, &error);
        }
    });
}

fn path_of(file: &OsStr, number: u32) -> PathBuf {
    numbered(file, &[(b'p', std::process::id()), (b'n', number)])
}

fn complain(path: &Path, error: &io::Error) {
    let path = path.as_os_str().as_bytes().escape_ascii();
    sys::print(format_args!("dogtag: no heap profile in {path}: {error}\n"));
}

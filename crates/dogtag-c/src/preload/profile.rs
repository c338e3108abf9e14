//! Heap profiles of a program that knows nothing of the library.

use super::{numbered, variable};
use crate::profile::heap;
use dogtag::__private::service::unattributed;
use dogtag::__private::sys;
use dogtag::profile::{ProfileError, Profiler};
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io};

/// The path of the files, with `%p` and `%n`.
static FILE: OnceLock<OsString> = OnceLock::new();

/// Where no path is set, in the directory in which the program was started.
const DEFAULT_FILE: &str = "heap.%p.%n.pb.gz";

/// Starts the profiler if `DOGTAG_PROFILE` says so, and returns whether it did.
pub(super) fn begin() -> bool {
    let Some(text) = variable("DOGTAG_PROFILE") else { return false };
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
        Ok(is_on) => is_on,
        Err(error) => {
            sys::print(format_args!("dogtag: DOGTAG_PROFILE: {error}; and file=PATH. It is ignored\n"));
            false
        }
    }
}

/// Writes a profile.
pub(super) fn write() {
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

/// Returns why a file cannot be written, as far as can be known before.
fn check(path: &Path) -> io::Result<()> {
    let written = match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
        Ok(_) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.parent().unwrap_or(path),
        Err(error) => return Err(error),
    };
    let written = CString::new(written.as_os_str().as_bytes())?;
    // SAFETY: gets a C string, and only looks the file up.
    match unsafe { libc::access(written.as_ptr(), libc::W_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn complain(path: &Path, error: &io::Error) {
    let path = path.as_os_str().as_bytes().escape_ascii();
    sys::print(format_args!("dogtag: no heap profile in {path}: {error}\n"));
}

//! The heap profiler for C, and for the preload tool.

use crate::errno;
use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[unsafe(no_mangle)]
extern "C" fn dogtag_profile_start(interval: u64) -> bool {
    succeeded(heap::start(interval))
}

#[unsafe(no_mangle)]
extern "C" fn dogtag_profile_stop() {
    heap::stop();
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_profile_write(path: *const c_char) -> bool {
    if path.is_null() {
        return succeeded(Err(libc::EINVAL));
    }
    // SAFETY: C's caller passes a C string, if it is not null.
    let path = unsafe { CStr::from_ptr(path) };
    let written = heap::write(Path::new(OsStr::from_bytes(path.to_bytes())));
    succeeded(written.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO)))
}

fn succeeded(result: Result<(), c_int>) -> bool {
    result.map_err(errno::set).is_ok()
}

#[cfg(feature = "profile")]
pub(crate) mod heap {
    use dogtag::__private::service::unattributed;
    use dogtag::profile::{self, ProfileError, Profiler};
    use std::ffi::c_int;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::{fs, io, process};

    pub(super) fn start(interval: u64) -> Result<(), c_int> {
        let started = unattributed(|| Profiler::builder().interval(interval).start());
        started.map(drop).map_err(|error| match error {
            ProfileError::Running => libc::EALREADY,
            _ => libc::EINVAL,
        })
    }

    pub(super) fn stop() {
        if let Some(profiler) = Profiler::running() {
            unattributed(|| profiler.stop());
        }
    }

    /// Writes what is live and what was allocated to a file, in place of what it held.
    pub(crate) fn write(path: &Path) -> io::Result<()> {
        unattributed(|| {
            let mut profile = Vec::new();
            profile::live().pprof().with(&profile::allocated()).write(&mut profile)?;
            replace(path, &profile)
        })
    }

    /// Writes a file of which nobody sees a part, unless its directory allows no other file or it is
    /// a device or alike.
    fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);

        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return fs::write(path, content);
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        if fs::write(&beside, content).and_then(|()| fs::rename(&beside, path)).is_ok() {
            return Ok(());
        }
        let _ = fs::remove_file(&beside);
        fs::write(path, content)
    }
}

#[cfg(not(feature = "profile"))]
mod heap {
    use std::ffi::c_int;
    use std::io;
    use std::path::Path;

    pub(super) fn start(_: u64) -> Result<(), c_int> {
        Err(libc::ENOTSUP)
    }

    pub(super) fn stop() {}

    pub(super) fn write(_: &Path) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOTSUP))
    }
}

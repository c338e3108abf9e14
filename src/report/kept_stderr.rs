//! Standard error as it was when reports were asked for: many programs close theirs before they end.

use std::ffi::c_int;
use std::mem::MaybeUninit;

/// A duplicate of the descriptor, with what tells that it is still the same file's.
#[derive(Debug)]
pub(super) struct KeptStderr {
    descriptor: c_int,
    file: Option<(libc::dev_t, libc::ino_t)>,
}

impl KeptStderr {
    /// The least number for it, above those that programs count on.
    const LEAST: c_int = 500;

    /// Duplicates the descriptor.
    pub(super) fn keep() -> Self {
        // SAFETY: makes a new descriptor, which is nobody else's; executed programs do not inherit it.
        let descriptor = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, Self::LEAST) };
        Self { descriptor, file: file_of(libc::STDERR_FILENO) }
    }

    /// Notes which file it is, and keeps nothing open.
    pub(super) fn note() -> Self {
        Self { descriptor: libc::STDERR_FILENO, file: file_of(libc::STDERR_FILENO) }
    }

    /// Returns a descriptor of it; `None` if the program has closed both, and perhaps given their
    /// numbers to files of its own.
    pub(super) fn get(&self) -> Option<c_int> {
        let descriptors = [self.descriptor, libc::STDERR_FILENO];
        descriptors.into_iter().find(|&descriptor| self.file.is_some() && file_of(descriptor) == self.file)
    }
}

/// Identifies the file of a descriptor.
fn file_of(descriptor: c_int) -> Option<(libc::dev_t, libc::ino_t)> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `status` is a place for the result, and initialised if the call returns 0.
    unsafe {
        let is_there = libc::fstat(descriptor, status.as_mut_ptr()) == 0;
        is_there.then(|| (status.assume_init_ref().st_dev, status.assume_init_ref().st_ino))
    }
}

//! C's `errno`, which is the calling thread's.

use std::ffi::c_int;

/// Returns `errno`.
#[allow(dead_code, reason = "memory-check asks for it")]
#[inline]
pub(crate) fn get() -> c_int {
    // SAFETY: the C library returns a pointer to the calling thread's own, which is valid.
    unsafe { *libc::__errno_location() }
}

/// Sets `errno`.
#[inline]
pub(crate) fn set(error: c_int) {
    // SAFETY: the C library returns a pointer to the calling thread's own, which is valid.
    unsafe { *libc::__errno_location() = error };
}

/// Calls `work`, and restores `errno`.
#[inline(always)]
pub(crate) fn kept(work: impl FnOnce()) {
    // SAFETY: the C library returns a pointer to the calling thread's own, which is valid.
    let errno = unsafe { *libc::__errno_location() };
    work();
    set(errno);
}

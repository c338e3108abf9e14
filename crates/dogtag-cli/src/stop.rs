//! Signals that ask this program to end, for commands that have something to put in order before.

use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, Ordering};

static CAME: AtomicI32 = AtomicI32::new(0);

/// From now on the signals that end a program only set what [`signal`] returns.
pub fn heed() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: zeros are a valid action; the handler only stores.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as extern "C" fn(c_int) as usize;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

extern "C" fn note(signal: c_int) {
    CAME.store(signal, Ordering::SeqCst);
}

/// Returns the signal that came, if one did.
pub fn signal() -> Option<i32> {
    Some(CAME.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

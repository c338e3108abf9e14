//! A nudge for a thread that watches memory, from the slow path: so much was allocated that it should look
//! again before its time.

use crate::sync::{AtomicBool, AtomicU64, Ordering, shared};
use crate::sys::Parker;

/// Wakes the thread that watches.
pub(crate) static PARKER: Parker = Parker::new();

shared! {
    static IS_ARMED: AtomicBool = AtomicBool::new(false);
    /// Bytes until then. What is below 0 wraps around.
    static LEFT: AtomicU64 = AtomicU64::new(0);
}

/// Has the thread woken once `bytes` more have been allocated, or granted to those who allocate.
pub(crate) fn arm(bytes: u64) {
    LEFT.store(bytes, Ordering::Relaxed);
    IS_ARMED.store(true, Ordering::Release);
}

/// From here on nobody wakes it.
pub(crate) fn disarm() {
    IS_ARMED.store(false, Ordering::Relaxed);
}

#[cfg(test)]
pub(crate) fn is_armed() -> bool {
    IS_ARMED.load(Ordering::Acquire)
}

/// So much is allocated next. Inside an allocation; while nobody watches, one load.
#[inline]
pub(super) fn note(bytes: u64) {
    if IS_ARMED.load(Ordering::Acquire) {
        note_armed(bytes);
    }
}

#[cold]
fn note_armed(bytes: u64) {
    let left = LEFT.fetch_sub(bytes, Ordering::Relaxed);
    // One thread's bytes are the last ones.
    if left <= bytes && left != 0 {
        disarm();
        PARKER.unpark();
    }
}

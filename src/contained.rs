//! Calls of what is the program's (callbacks, subscribers, cleanups, and drops of what it has given
//! to this crate) where a panic of it must not go any further.
//!
//! A panic leaves a payload behind, which is the program's too: to drop it may panic again,
//! with a payload of which the same is true.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a panic leaves behind.
pub type Payload = Box<dyn Any + Send>;

/// Calls, and returns what a panic left behind, for the caller to go on with or to
/// [`discard`]. What `work` owns is dropped by that panic, and must not panic again: that
/// would end the process.
pub fn call<R>(work: impl FnOnce() -> R) -> Result<R, Payload> {
    // Whatever is half done then, nobody here looks at it.
    catch_unwind(AssertUnwindSafe(work))
}

/// Calls; a panic ends here. `None` if there was one.
pub(crate) fn contain<R>(work: impl FnOnce() -> R) -> Option<R> {
    call(work).map_err(discard).ok()
}

/// Drops what is the program's; a panic ends here.
pub(crate) fn drop_contained<T>(value: T) {
    if let Err(payload) = call(|| drop(value)) {
        discard(payload);
    }
}

/// Drops what a panic left behind. Should that panic, what this leaves behind is never dropped.
pub fn discard(payload: Payload) {
    if let Err(payload) = call(|| drop(payload)) {
        std::mem::forget(payload);
    }
}

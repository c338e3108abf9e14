//! What is done when a violation was reported.

#[cfg(not(feature = "memory-check"))]
use crate::sync::{AtomicBool, Ordering};

/// Selects what is done when a violation was reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reaction {
    /// The process aborts.
    #[default]
    Abort,
    /// The process goes on. The access is let through, to memory that is never used again; a second free
    /// does nothing, and is not told of either if an access to the block was let through before, such as an overrun.
    ///
    /// The process aborts nevertheless if the thread that writes reports is stuck within one.
    Continue,
}

/// Whether the process goes on over a violation.
#[cfg(not(feature = "memory-check"))]
static GOES_ON: AtomicBool = AtomicBool::new(false);

#[cfg(not(feature = "memory-check"))]
pub(super) fn set(reaction: Reaction) {
    GOES_ON.store(reaction == Reaction::Continue, Ordering::Relaxed);
}

#[cfg(not(feature = "memory-check"))]
pub(super) fn goes_on() -> bool {
    GOES_ON.load(Ordering::Relaxed)
}

//! Whether this process has a guard.

use std::sync::atomic::{AtomicU32, Ordering};

/// The process that has one, or had it when it forked this one: a child has none. 0 for none.
static OF_PROCESS: AtomicU32 = AtomicU32::new(0);

/// Begins one. `false` if there is one already.
pub(super) fn begin() -> bool {
    let own = std::process::id();
    let begin = |of| (of != own).then_some(own);
    OF_PROCESS.fetch_update(Ordering::AcqRel, Ordering::Acquire, begin).is_ok()
}

pub(super) fn end() {
    OF_PROCESS.store(0, Ordering::Release);
}

pub(super) fn is_so() -> bool {
    OF_PROCESS.load(Ordering::Acquire) == std::process::id()
}

//! Tells of what was noticed inside an allocation, where nothing may be told:
//! afterwards, when users call for other reasons, and from a thread of its own.
//! For the caller may be a tracing subscriber, and hold its lock.

use crate::ledger;
use crate::sys;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tracing::Dispatch;
use tracing::dispatcher::{get_default, with_default};
use tracing::subscriber::NoSubscriber;

/// Has the `tracing` events emitted that are due.
#[inline]
pub(crate) fn deliver() {
    if ledger::lost().freed_blocks != TOLD.load(Ordering::Relaxed) {
        tell_of_lost_blocks();
    }
}

/// The calling thread's tracing subscriber.
pub(crate) fn subscriber() -> Subscriber {
    Subscriber(get_default(Dispatch::clone))
}

/// A tracing subscriber, for another thread.
pub(crate) struct Subscriber(Dispatch);

impl Subscriber {
    /// Lets it receive what `emit` emits; if it is none, the thread's own does.
    pub(crate) fn receives(&self, emit: impl FnOnce()) {
        if self.0.is::<NoSubscriber>() {
            emit();
        } else {
            with_default(&self.0, emit);
        }
    }
}

/// Lost blocks that were told of.
static TOLD: AtomicU64 = AtomicU64::new(0);

#[cold]
fn tell_of_lost_blocks() {
    /// Set while a thread is telling: one is enough, should it have to wait.
    static UNDER_WAY: AtomicBool = AtomicBool::new(false);

    if UNDER_WAY.swap(true, Ordering::Acquire) {
        return;
    }
    let subscriber = subscriber();
    let work = move || {
        let lost = ledger::lost();
        let new = lost.freed_blocks - TOLD.swap(lost.freed_blocks, Ordering::Relaxed);
        let _is_over = Reset(&UNDER_WAY);
        subscriber.receives(|| {
            tracing::error!(
                target: "dogtag",
                blocks = new,
                total_blocks = lost.freed_blocks,
                total_bytes = lost.freed_bytes,
                "blocks were freed whose owner had been overwritten: \
                 something writes outside of its memory",
            );
        });
    };
    if !sys::spawn(Box::new(work)) {
        // The snapshot still tells; perhaps there is a thread next time.
        UNDER_WAY.store(false, Ordering::Release);
    }
}

/// Takes a flag back, though a subscriber panics.
struct Reset(&'static AtomicBool);

impl Drop for Reset {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

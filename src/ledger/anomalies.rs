//! Counts of what went wrong inside allocations, where no event can be emitted: blocks whose owner
//! something has overwritten, and memory that the system refused the ledger, which works
//! without. `events` announces them.

use crate::ledger::pending_events;
use crate::sync::{AtomicU64, Ordering};

/// Blocks that were freed after something had written past their end and into their cookie.
/// They stay live in their services' figures.
pub(crate) static LOST: Anomaly = Anomaly::new();

/// Blocks of the unattributed service, because there was no memory to note their owner.
pub(crate) static OWNERLESS: Anomaly = Anomaly::new();

/// Threads that had to count in the cells that all such threads share.
pub(crate) static SHARING: Anomaly = Anomaly::new();

/// Whether threads have more names than there can be services of threads: 1, or 0.
pub(crate) static UNNAMED: Anomaly = Anomaly::new();

/// Spans that were entered without their service, because there was no memory to note that.
#[cfg(feature = "tracing-layer")]
pub(crate) static UNENTERED: Anomaly = Anomaly::new();

/// One kind of anomaly.
pub(crate) struct Anomaly {
    times: AtomicU64,
    bytes: AtomicU64,
    /// The number that was announced last.
    announced: AtomicU64,
}

impl Anomaly {
    const fn new() -> Self {
        Self { times: AtomicU64::new(0), bytes: AtomicU64::new(0), announced: AtomicU64::new(0) }
    }

    /// Counts one more, of a block of so many bytes.
    #[cold]
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.times.fetch_add(1, Ordering::Release);
        pending_events::ask_for_attention();
    }

    /// How often it has happened, and to how many bytes.
    pub(crate) fn so_far(&self) -> (u64, u64) {
        let times = self.times.load(Ordering::Acquire);
        (times, self.bytes.load(Ordering::Relaxed))
    }

    /// How often it has happened since this was asked last, if it has.
    pub(crate) fn take_new(&self) -> Option<u64> {
        let times = self.times.load(Ordering::Acquire);
        Some(times - self.announced.swap(times, Ordering::Relaxed)).filter(|&new| new > 0)
    }
}

//! What the guard has seen and done, as plain numbers.

use super::ceiling::Reading;
use super::running;
use std::sync::atomic::{AtomicU64, Ordering};

/// Holds what the process's guards have done so far, and what the last look has found: [`figures`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Figures {
    /// Whether a guard runs.
    pub running: bool,
    /// The ceiling in bytes, as of the last look; 0 if there never was a guard.
    pub ceiling: u64,
    /// The bytes that counted against the ceiling at the last look: the cgroup's, or the process's.
    pub used: u64,
    /// The process's own part of them: its resident set. Of a cgroup with shared memory or with pages of files
    /// it may be more than what counts.
    pub own: u64,
    /// The most bytes by which the ceiling was ever seen passed.
    pub highest_over: u64,
    /// Looks at what is used.
    pub polls: u64,
    /// Looks that failed, since a file of the system's could not be read.
    pub failed_polls: u64,
    /// How often the allocator was made to give its free pages back.
    pub purges: u64,
    /// The bytes by which that made the use fall.
    pub purged_bytes: u64,
    /// How often those who registered were asked to let go of what they can do without.
    pub pressure_calls: u64,
    /// Services that were cancelled.
    pub cancelled: u64,
    /// The bytes that those held when they were cancelled, less what they still held when they were looked at
    /// last.
    pub given_back_bytes: u64,
    /// Services that were cancelled and held more than half of their bytes when their time was over.
    pub unresponsive: u64,
    /// How often the ceiling was found passed while no service could be cancelled.
    pub helpless: u64,
}

/// Returns what the process's guards have done so far. Neither locks nor allocates.
///
/// The counters are those of all guards one after the other, and are never set back. A forked child has
/// its parent's.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// let figures = dogtag::guard::figures();
/// assert_eq!((figures.running, figures.cancelled), (false, 0));
/// # }
/// ```
#[must_use]
pub fn figures() -> Figures {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Figures {
        running: running::is_so(),
        ceiling: get(&COUNTERS.ceiling),
        used: get(&COUNTERS.used),
        own: get(&COUNTERS.own),
        highest_over: get(&COUNTERS.highest_over),
        polls: get(&COUNTERS.polls),
        failed_polls: get(&COUNTERS.failed_polls),
        purges: get(&COUNTERS.purges),
        purged_bytes: get(&COUNTERS.purged_bytes),
        pressure_calls: get(&COUNTERS.pressure_calls),
        cancelled: get(&COUNTERS.cancelled),
        given_back_bytes: get(&COUNTERS.given_back_bytes),
        unresponsive: get(&COUNTERS.unresponsive),
        helpless: get(&COUNTERS.helpless),
    }
}

/// Written by the guard's threads.
pub(super) struct Counters {
    pub(super) ceiling: AtomicU64,
    pub(super) used: AtomicU64,
    pub(super) own: AtomicU64,
    pub(super) highest_over: AtomicU64,
    pub(super) polls: AtomicU64,
    pub(super) failed_polls: AtomicU64,
    pub(super) purges: AtomicU64,
    pub(super) purged_bytes: AtomicU64,
    pub(super) pressure_calls: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) given_back_bytes: AtomicU64,
    pub(super) unresponsive: AtomicU64,
    pub(super) helpless: AtomicU64,
}

pub(super) static COUNTERS: Counters = Counters {
    ceiling: AtomicU64::new(0),
    used: AtomicU64::new(0),
    own: AtomicU64::new(0),
    highest_over: AtomicU64::new(0),
    polls: AtomicU64::new(0),
    failed_polls: AtomicU64::new(0),
    purges: AtomicU64::new(0),
    purged_bytes: AtomicU64::new(0),
    pressure_calls: AtomicU64::new(0),
    cancelled: AtomicU64::new(0),
    given_back_bytes: AtomicU64::new(0),
    unresponsive: AtomicU64::new(0),
    helpless: AtomicU64::new(0),
};

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Notes what a look has found.
pub(super) fn note(reading: Reading) {
    let Reading { used, ceiling, own } = reading;
    COUNTERS.used.store(used, Ordering::Relaxed);
    COUNTERS.ceiling.store(ceiling, Ordering::Relaxed);
    COUNTERS.own.store(own, Ordering::Relaxed);
    COUNTERS.highest_over.fetch_max(used.saturating_sub(ceiling), Ordering::Relaxed);
}

//! What is known of services that were cancelled: why and when, and when they had let go of all that
//! they held.
//!
//! No free tells that a service holds nothing any more. So it is looked for where somebody passes by
//! anyway: where [`or_cancelled`](super::InService::or_cancelled) has dropped a future, where a service
//! ends, and at each snapshot. What is noted is never too short.

use super::fork;
use super::retirement::{self, AtEnd};
use super::scope::Scope;
use crate::format::Bytes;
use crate::ledger::slots::{self, Record};
use crate::ledger::tree::{self, Tree};
use crate::ledger::{self, threshold};
use crate::owner::Slot;
use dashmap::DashMap;
use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Says why a service was cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// The program said so: [`Service::cancel`](crate::Service::cancel).
    Program(Cow<'static, str>),
    /// It got past its budget: [`ServiceBuilder::cancel_at`](crate::ServiceBuilder::cancel_at).
    #[non_exhaustive]
    Budget {
        /// The budget, in bytes.
        bytes: u64,
    },
    /// The process was at its ceiling, and this service was chosen.
    #[non_exhaustive]
    Ceiling {
        /// The bytes that counted against the ceiling.
        used: u64,
        /// The ceiling, in bytes.
        ceiling: u64,
    },
}

impl CancelReason {
    /// Returns who cancelled the service, as snapshots and metrics name it: `program`, `budget` or `guard`.
    #[must_use]
    pub const fn by(&self) -> &'static str {
        match self {
            Self::Program(_) => "program",
            Self::Budget { .. } => "budget",
            Self::Ceiling { .. } => "guard",
        }
    }

    fn count(&self) -> &'static AtomicU64 {
        match self {
            Self::Program(_) => &TOTALS.by_program,
            Self::Budget { .. } => &TOTALS.by_budget,
            Self::Ceiling { .. } => &TOTALS.by_guard,
        }
    }
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(reason) => f.write_str(reason),
            Self::Budget { bytes } => write!(f, "it got past its budget of {}", Bytes(*bytes)),
            Self::Ceiling { used, ceiling } => {
                write!(f, "{} of memory were used, and {} are the ceiling", Bytes(*used), Bytes(*ceiling))
            }
        }
    }
}

/// What is known of one service that was cancelled: not of those that were with one above them.
#[derive(Clone, Debug)]
pub(crate) struct Cancellation {
    pub(crate) reason: CancelReason,
    pub(crate) at: Instant,
    /// What it held then, with its descendants.
    pub(crate) bytes: u64,
    /// How long after that they were first seen with nothing.
    pub(crate) released_after: Option<Duration>,
    generation: u64,
}

impl Cancellation {
    /// Notes that there is nothing left now, `after` it was cancelled.
    fn note_release(&mut self, after: Duration) {
        if self.released_after.is_none() {
            self.released_after = Some(after);
            TOTALS.add_release(after);
        }
    }
}

/// By the services' slots.
static KNOWN: OnceLock<DashMap<u32, Cancellation>> = OnceLock::new();

/// Notes that a service, which the caller holds, is cancelled from now on; `bytes` is what its family
/// holds. The caller has the gate and the lock of families.
pub(super) fn note(record: &'static Record, reason: CancelReason, bytes: u64) {
    retirement::at_end(&FORGET);
    reason.count().fetch_add(1, Ordering::Relaxed);
    let (at, generation) = (Instant::now(), record.generation());
    let mut cancellation = Cancellation { reason, at, bytes, released_after: None, generation };
    if bytes == 0 {
        cancellation.note_release(Duration::ZERO);
    }
    KNOWN.get_or_init(DashMap::new).insert(record.index(), cancellation);
}

/// Why a service, which the caller holds, is cancelled.
pub(super) fn reason(record: &'static Record) -> CancelReason {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let _gate = fork::gate();
    tree::ancestors(record)
        .find_map(|record| KNOWN.get()?.get(&record.index()).map(|known| known.reason.clone()))
        .unwrap_or(CancelReason::Program(Cow::Borrowed("it was")))
}

/// What is known of the service with that [identity](Record::identity).
pub(crate) fn of((slot, generation): (u32, u64)) -> Option<Cancellation> {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let _gate = fork::gate();
    KNOWN.get()?.get(&slot).filter(|known| known.generation == generation).map(|known| known.clone())
}

/// Looks whether a service, which the caller holds, was cancelled and has let go of everything.
pub(super) fn look_at(record: &'static Record) {
    let Some(known) = KNOWN.get() else { return };
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let _gate = fork::gate();
    let families = Tree::lock();
    if let Some(mut known) = known.get_mut(&record.index())
        && known.released_after.is_none()
        && held(record, &families) == 0
    {
        let after = known.at.elapsed();
        known.note_release(after);
    }
}

/// Looks which cancelled services have let go of everything, and returns how many have not, and what
/// they hold.
pub(crate) fn look() -> (u64, u64) {
    let Some(known) = KNOWN.get() else { return (0, 0) };
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let _gate = fork::gate();
    let families = Tree::lock();
    let (mut services, mut bytes) = (0, 0);
    for mut known in known.iter_mut() {
        // Who has the slot is forgotten before the next one gets it.
        let Some(record) = Slot::new(*known.key()).and_then(slots::any_record) else { continue };
        let held = record.lifecycle().pinned(|| held(record, &families)).unwrap_or(0);
        if held == 0 {
            let after = known.at.elapsed();
            known.note_release(after);
        } else {
            services += 1;
            bytes += held;
        }
    }
    (services, bytes)
}

/// What a service and its descendants hold.
pub(super) fn held(record: &'static Record, families: &Tree) -> u64 {
    let mut bytes = 0;
    tree::descendants(record, Some(families), |member| bytes += ledger::usage(member).bytes());
    bytes
}

static FORGET: AtEnd = AtEnd(forget);

/// Drops what is known of a service that has ended.
fn forget(record: &'static Record) {
    if !record.family().is_cancelled() {
        return;
    }
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let known = {
        let _gate = fork::gate();
        KNOWN.get().and_then(|known| known.remove(&record.index()))
    };
    if let Some((_, mut known)) = known {
        let after = known.at.elapsed();
        known.note_release(after);
    }
}

/// Counts of the process, which stay when the services have ended.
pub(crate) struct Totals {
    pub(crate) by_program: AtomicU64,
    pub(crate) by_budget: AtomicU64,
    pub(crate) by_guard: AtomicU64,
    releases: AtomicU64,
    /// In nanoseconds.
    last_release: AtomicU64,
    longest_release: AtomicU64,
}

pub(crate) static TOTALS: Totals = Totals {
    by_program: AtomicU64::new(0),
    by_budget: AtomicU64::new(0),
    by_guard: AtomicU64::new(0),
    releases: AtomicU64::new(0),
    last_release: AtomicU64::new(0),
    longest_release: AtomicU64::new(0),
};

impl Totals {
    fn add_release(&self, after: Duration) {
        let nanos = after.as_nanos().try_into().unwrap_or(u64::MAX);
        self.last_release.store(nanos, Ordering::Relaxed);
        self.longest_release.fetch_max(nanos, Ordering::Relaxed);
        self.releases.fetch_add(1, Ordering::Release);
    }

    /// How many services have let go of everything, how long the last one took, and the longest.
    pub(crate) fn releases(&self) -> (u64, Option<(Duration, Duration)>) {
        let releases = self.releases.load(Ordering::Acquire);
        let nanos = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Ordering::Relaxed));
        (releases, (releases > 0).then(|| (nanos(&self.last_release), nanos(&self.longest_release))))
    }
}

/// Allocations that failed since they may, and their service was cancelled.
pub(crate) fn refused() -> u64 {
    threshold::refused()
}

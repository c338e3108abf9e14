//! Cancelled services, as snapshots have them.

use crate::format::{Bytes, Grouped, printable_up_to};
use std::fmt;
use std::time::Duration;

/// Says why a service was cancelled, and what has become of it since.
///
/// It is the [`Row`](super::Row)'s whose service was cancelled itself, as long as that holds something or
/// somebody holds it. The counts of all are [`Cancellations`].
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # #[cfg(not(feature = "guard"))]
/// # fn main() {}
/// # #[cfg(feature = "guard")]
/// # fn main() -> Result<(), dogtag::RegisterError> {
/// let query = dogtag::Service::register("query-17")?;
/// let rows = query.run(|| vec![0_u8; 1000]);
/// query.cancel("the client is gone");
///
/// let snapshot = dogtag::snapshot();
/// let row = snapshot.rows.iter().find(|row| row.is_cancelled).unwrap();
/// let cancellation = row.cancellation.as_ref().unwrap();
/// assert_eq!((&*cancellation.by, &*cancellation.reason), ("program", "the client is gone"));
/// assert_eq!((cancellation.bytes, cancellation.released_after), (1000, None));
///
/// drop(rows);
/// let released = dogtag::snapshot().cancellations.unwrap().longest_release;
/// println!("it took {released:?} to let go");
/// # assert!(released.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Cancellation {
    /// Who cancelled it: `program`, `budget` or `guard`.
    pub by: String,
    /// Why, in words.
    pub reason: String,
    /// Bytes that the service and its descendants held when it was cancelled.
    pub bytes: u64,
    /// How long ago that was.
    pub ago: Duration,
    /// How long after it they held nothing any more; `None` if they still hold something.
    ///
    /// A free does not tell that it was the last one. So this is the time at which they were first seen with
    /// nothing: where a future that [`or_cancelled`] has given up is dropped, if it ran in the cancelled
    /// service itself, where the service ends, or at a snapshot. It is never too short.
    ///
    /// [`or_cancelled`]: crate::InService
    pub released_after: Option<Duration>,
}

/// Counts the services of the process that were cancelled, and stays when they have ended (feature
/// `guard`).
///
/// Descendants that were cancelled with a service are not counted beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Cancellations {
    /// Services that the program cancelled.
    pub by_program: u64,
    /// Services that got past their budgets.
    pub by_budget: u64,
    /// Services that the guard cancelled.
    pub by_guard: u64,
    /// Allocations of cancelled services that failed, since their callers had said that they may.
    /// [`Usage::denied`](crate::Usage::denied) has them, too.
    pub refused: u64,
    /// Cancelled services that have let go of everything.
    pub released: u64,
    /// Cancelled services that hold something still.
    pub holding: u64,
    /// What these and their descendants hold, in bytes.
    pub holding_bytes: u64,
    /// How long the last one that let go of everything took for it: see
    /// [`Cancellation::released_after`].
    pub last_release: Option<Duration>,
    /// How long the slowest one took.
    pub longest_release: Option<Duration>,
}

impl Cancellations {
    /// Returns how many services were cancelled, by whomever.
    #[must_use]
    pub fn services(&self) -> u64 {
        self.by_program.saturating_add(self.by_budget).saturating_add(self.by_guard)
    }
}

impl fmt::Display for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, bytes, ago, released_after, .. } = self;
        let (reason, bytes) = (printable_up_to(reason, 60), Bytes(*bytes));
        write!(f, "cancelled {ago:.1?} ago with {bytes}: {reason}; ")?;
        match released_after {
            Some(after) => write!(f, "let go of all within {after:.1?}"),
            None => f.write_str("holds something still"),
        }
    }
}

impl fmt::Display for Cancellations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by_program, by_budget, by_guard, refused, released, holding, .. } = *self;
        write!(
            f,
            "cancelled: {} by the program, {} by their budgets, {} by the guard",
            Grouped(by_program),
            Grouped(by_budget),
            Grouped(by_guard),
        )?;
        if refused > 0 {
            write!(f, "; {} allocations were refused", Grouped(refused))?;
        }
        write!(f, "\n  {} let go of all", Grouped(released))?;
        if let Some(longest) = self.longest_release {
            write!(f, " (the slowest within {longest:.1?})")?;
        }
        write!(f, ", {} hold {} still", Grouped(holding), Bytes(self.holding_bytes))
    }
}

#[cfg(feature = "guard")]
mod taken {
    use super::{Cancellation, Cancellations};
    use crate::service::cancellations::{self, TOTALS};
    use std::sync::atomic::Ordering::Relaxed;

    pub(in super::super) fn cancellation(identity: (u32, u64)) -> Option<Cancellation> {
        let known = cancellations::of(identity)?;
        Some(Cancellation {
            by: known.reason.by().to_owned(),
            reason: known.reason.to_string(),
            bytes: known.bytes,
            ago: known.at.elapsed(),
            released_after: known.released_after,
        })
    }

    /// Looks first which services have let go.
    pub(in super::super) fn cancellations() -> Option<Cancellations> {
        let (holding, holding_bytes) = cancellations::look();
        let (released, times) = TOTALS.releases();
        Some(Cancellations {
            by_program: TOTALS.by_program.load(Relaxed),
            by_budget: TOTALS.by_budget.load(Relaxed),
            by_guard: TOTALS.by_guard.load(Relaxed),
            refused: cancellations::refused(),
            released,
            holding,
            holding_bytes,
            last_release: times.map(|(last, _)| last),
            longest_release: times.map(|(_, longest)| longest),
        })
    }
}

#[cfg(not(feature = "guard"))]
mod taken {
    use super::{Cancellation, Cancellations};

    pub(in super::super) fn cancellation(_: (u32, u64)) -> Option<Cancellation> {
        None
    }

    pub(in super::super) fn cancellations() -> Option<Cancellations> {
        None
    }
}

pub(super) use taken::{cancellation, cancellations};

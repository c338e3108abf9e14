//! All services at one glance, as data and as a table.

mod display;
mod regions;
#[cfg(test)]
mod tests;

use crate::arenas::{self, Region};
use crate::backend::JemallocStats;
use crate::balance::{Balance, balance};
use crate::events;
use crate::ledger::{self, anomalies};
use crate::service;
use crate::usage::Usage;
use std::collections::HashMap;
use std::hash::Hash;

/// What all services of the process have allocated and freed, in sum, those
/// that have ended among them.
///
/// Reads every service's cells: for one service [`Service::usage`] is cheaper. Takes no
/// lock and allocates nothing: also for [signal handlers](crate#signals).
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// let before = dogtag::totals();
/// let block = vec![0_u8; 100];
/// assert_eq!(dogtag::totals().since(&before).bytes(), 100);
/// # drop(block);
/// # }
/// ```
///
/// [`Service::usage`]: crate::Service::usage
#[must_use]
pub fn totals() -> Usage {
    ledger::usages(|_, _| {})
}

/// Who holds what, now.
///
/// Stops nobody: while other threads allocate, each service's figures are of a
/// slightly different moment, but none is ever negative and the totals are the
/// sum of the rows and of what has ended. Reads a cell for each service and thread.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::RegisterError> {
/// let cache = dogtag::Service::register("cache")?;
/// let entries = cache.run(|| vec![0_u8; 1 << 20]);
///
/// let snapshot = dogtag::snapshot();
/// assert_eq!(snapshot.rows[0].name, "cache");
/// assert_eq!(snapshot.rows[0].usage.bytes(), 1 << 20);
/// println!("{snapshot}");
/// # drop(entries);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn snapshot() -> Snapshot {
    events::deliver();
    service::end_retired();
    let mut found = Vec::new();
    let totals = ledger::usages(|record, usage| {
        let (hard_limit, soft_limit) = service::limits(record);
        let row = Row {
            name: record.name().to_owned(),
            handle: record.handle(),
            is_retired: record.lifecycle().is_retired(),
            usage,
            parent: None,
            usage_with_children: usage.and(record.family().past()),
            hard_limit,
            soft_limit,
        };
        found.push((row, record.identity(), record.family().parent_identity()));
    });
    let rows = arrange(found);
    let rows_in_sum = rows.iter().map(|row| row.usage).fold(Usage::default(), Usage::and);
    let (lost_blocks, lost_bytes) = anomalies::LOST.so_far();
    Snapshot {
        ended: Usage { peak_bytes: 0, ..totals.since(&rows_in_sum) },
        rows,
        totals,
        lost: Lost { bytes: lost_bytes, blocks: lost_blocks },
        quarantine: quarantine(),
        jemalloc: JemallocStats::read(),
        regions: arenas::all().map(|arena| arena.region).collect(),
        balance: None,
    }
}

/// Sorts rows, which come with who they are and who is their parent, and adds up
/// what families hold.
fn arrange<Id: Eq + Hash>(mut found: Vec<(Row, Id, Option<Id>)>) -> Vec<Row> {
    found.sort_by(|(a, ..), (b, ..)| b.usage.bytes().cmp(&a.usage.bytes()).then_with(|| a.name.cmp(&b.name)));
    let places: HashMap<&Id, usize> = found.iter().zip(0..).map(|((_, id, _), place)| (id, place)).collect();
    let parents: Vec<Option<usize>> =
        found.iter().map(|(.., parent)| places.get(parent.as_ref()?).copied()).collect();
    let mut rows: Vec<Row> = found.into_iter().map(|(row, ..)| row).collect();
    // From below: a row is added to its parent's when it has all that its children have.
    let mut children = vec![0_usize; rows.len()];
    parents.iter().flatten().for_each(|parent| children[*parent] += 1);
    let mut complete: Vec<usize> = (0..rows.len()).filter(|row| children[*row] == 0).collect();
    while let Some(row) = complete.pop() {
        rows[row].parent = parents[row];
        let Some(parent) = parents[row] else { continue };
        rows[parent].usage_with_children =
            rows[parent].usage_with_children.and(rows[row].usage_with_children);
        children[parent] -= 1;
        if children[parent] == 0 {
            complete.push(parent);
        }
    }
    rows
}

/// All services and their sum: [`snapshot`].
///
/// Its `Display` is a table, the largest service first. A precision bounds the
/// number of services shown, and the others are summed up in one row:
/// `format!("{snapshot:.10}")` shows the ten largest. The alternate form (`{:#}`) is
/// a tree of all services: children below their parents, with what they hold
/// together, peaks, limits, and what these have denied. (What is more than 16 steps below the
/// head of its family is indented no more, and has the number of steps in front of its name.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Snapshot {
    /// A row for each service, those with the most live bytes first.
    pub rows: Vec<Row>,
    /// What services have allocated and freed that have ended; without a peak.
    pub ended: Usage,
    /// The sum of all rows and of what has ended: what the process has allocated
    /// and freed since it began.
    pub totals: Usage,
    /// Blocks that were freed with an overwritten cookie. Whose they were
    /// cannot be told, so they are still live in some row.
    pub lost: Lost,
    /// Freed blocks that memory-check keeps back (feature `memory-check`). They
    /// are in no row.
    pub quarantine: Option<Quarantine>,
    /// jemalloc's own figures, where jemalloc holds the memory (feature
    /// `jemalloc-stats`).
    pub jemalloc: Option<JemallocStats>,
    /// Mapped regions (crate `dogtag-mapped`), the youngest first.
    pub regions: Vec<Region>,
    /// The process's books, if they were [asked for](Self::with_balance).
    pub balance: Option<Balance>,
}

/// One service in a [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Row {
    /// The service's name.
    pub name: String,
    /// The service's handle.
    pub handle: u32,
    /// Whether it was dropped, and lives on because of blocks or scopes that were
    /// not.
    pub is_retired: bool,
    /// What it has allocated and freed.
    pub usage: Usage,
    /// Its parent's place in [`Snapshot::rows`], as they were taken, if it has one.
    pub parent: Option<usize>,
    /// The same with all below it, as in
    /// [`Service::usage_with_children`](crate::Service::usage_with_children).
    pub usage_with_children: Usage,
    /// The most bytes that it and all below it may hold, if there is a limit.
    pub hard_limit: Option<u64>,
    /// The bytes from which on it is announced that they hold much.
    pub soft_limit: Option<u64>,
}

/// Blocks whose owner can no longer be told.
///
/// Something wrote past the end of each of them, a bug in `unsafe` code or in a
/// foreign library: the first bytes behind a block are its cookie. (With
/// `memory-check`, in front of them.) A number
/// other than 0 is worth an alarm; a `tracing` event (target `dogtag`, level
/// error) raises it. The feature `memory-check` says who did it, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Lost {
    /// Their requested bytes.
    pub bytes: u64,
    /// Their number.
    pub blocks: u64,
}

/// Freed blocks whose memory is not used again yet, so that a second free and
/// late writes are found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Quarantine {
    /// The bytes that they hold, with what surrounds them.
    pub bytes: u64,
    /// Their number.
    pub blocks: u64,
}

fn quarantine() -> Option<Quarantine> {
    #[cfg(feature = "memory-check")]
    {
        let (bytes, blocks) = crate::check::quarantined();
        Some(Quarantine { bytes, blocks })
    }
    #[cfg(not(feature = "memory-check"))]
    None
}

impl Snapshot {
    /// Adds the process's books, as they are now; they are shown below the table.
    /// [`balance`](crate::balance) says what that costs.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() {
    /// println!("{}", dogtag::snapshot().with_balance());
    /// # }
    /// ```
    #[must_use]
    pub fn with_balance(self) -> Self {
        Self { balance: Some(balance()), ..self }
    }
}

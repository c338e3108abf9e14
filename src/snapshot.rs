//! All services at one moment, as data.

mod cancelled;
mod display;
mod regions;
#[cfg(test)]
mod tests;

pub use cancelled::{Cancellation, Cancellations};

use crate::arenas::{self, Region};
use crate::backend::JemallocStats;
use crate::balance::{Balance, balance};
use crate::events;
#[cfg(feature = "guard")]
use crate::guard;
use crate::ledger::{self, anomalies};
#[cfg(feature = "sampled-guard")]
use crate::sampled_guard;
use crate::service;
use crate::usage::Usage;
use std::collections::HashMap;
use std::hash::Hash;

/// Returns the sum of what all services of the process have allocated and freed, including those
/// that have ended.
///
/// It reads the cells of every service; for one service [`Service::usage`] is cheaper. It takes no
/// lock and allocates nothing, so that [signal handlers](crate#signals) may call it.
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

/// Takes a snapshot of all services: their names, figures, families and limits.
///
/// It reads a cell for each service and thread, and stops no thread. While other threads allocate,
/// each service's figures are of a slightly different moment. No figure is ever negative, and the
/// totals are the sum of the rows and of what has ended.
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
    service::publish();
    service::end_retired();
    let cancellations = cancelled::cancellations();
    let mut found = Vec::new();
    let totals = ledger::usages(|record, usage| {
        let (hard_limit, soft_limit) = service::limits(record);
        let row = Row {
            name: record.name().to_owned(),
            handle: record.handle(),
            is_retired: record.lifecycle().is_retired(),
            is_cancelled: record.family().is_cancelled(),
            cancellation: None,
            usage,
            parent: None,
            usage_with_children: usage.and(record.family().past()),
            hard_limit,
            soft_limit,
        };
        found.push((row, record.identity(), record.family().parent_identity()));
    });
    for (row, identity, _) in &mut found {
        if row.is_cancelled {
            row.cancellation = cancelled::cancellation(*identity);
        }
    }
    let rows = arrange(found);
    let rows_in_sum = rows.iter().map(|row| row.usage).fold(Usage::default(), Usage::and);
    let (lost_blocks, lost_bytes) = anomalies::LOST.so_far();
    Snapshot {
        ended: Usage { peak_bytes: 0, ..totals.since(&rows_in_sum) },
        rows,
        totals,
        lost: Lost { bytes: lost_bytes, blocks: lost_blocks },
        quarantine: quarantine(),
        cancellations,
        #[cfg(feature = "guard")]
        guard: Some(guard::figures()).filter(|figures| figures.ceiling > 0),
        #[cfg(feature = "sampled-guard")]
        sampled_guard: Some(sampled_guard::figures()).filter(|figures| figures.slots > 0),
        jemalloc: JemallocStats::read(),
        regions: arenas::all().map(|arena| arena.region).collect(),
        balance: None,
    }
}

/// Sorts rows, which come with their identities and those of their parents, and adds up families.
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

/// Holds the figures of all services and their sum, as [`snapshot`] took them.
///
/// `Display` writes a table, the largest service first. A precision bounds the
/// number of services shown, and sums up the others in one row:
/// `format!("{snapshot:.10}")` shows the ten largest. The alternate form (`{:#}`) is
/// a tree of all services: children below their parents, with the sums of families, peaks, limits,
/// and denied allocations. (Indentation ends at 16 levels; deeper rows have their level in front of
/// their name.)
///
/// With the feature `serde` it is read from JSON that lacks fields, as an older dogtag wrote it,
/// which are then as in `Snapshot::default()`, and from JSON that has more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Snapshot {
    /// A row for each service, the one with the most live bytes first.
    pub rows: Vec<Row>,
    /// The sum of what services that have ended have allocated and freed; its peak is 0.
    pub ended: Usage,
    /// The sum of all rows and of what has ended: what the process has allocated
    /// and freed since it began.
    pub totals: Usage,
    /// Blocks that were freed with an overwritten cookie. Their owners are unknown, so they still
    /// count as live in some row.
    pub lost: Lost,
    /// Freed blocks in memory-check's quarantine (feature `memory-check`). They
    /// are in no row.
    pub quarantine: Option<Quarantine>,
    /// Counts of cancelled services, with those that have ended (feature `guard`).
    pub cancellations: Option<Cancellations>,
    /// What the guard has seen and done, if one was ever started.
    #[cfg(feature = "guard")]
    pub guard: Option<guard::Figures>,
    /// What the sampled guard has done, if it was ever started.
    #[cfg(feature = "sampled-guard")]
    pub sampled_guard: Option<sampled_guard::Figures>,
    /// jemalloc's own figures, if jemalloc is a backend (feature `jemalloc-stats`).
    pub jemalloc: Option<JemallocStats>,
    /// Mapped regions (crate `dogtag-mapped`), the youngest first.
    pub regions: Vec<Region>,
    /// The process's balance, if it was [added](Self::with_balance).
    pub balance: Option<Balance>,
}

/// Holds the figures of one service in a [`Snapshot`].
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::RegisterError> {
/// use dogtag::Service;
///
/// let tenant = Service::builder("tenant").hard_limit(1 << 20).register()?;
/// let query = Service::builder("query-17").parent(&tenant).register()?;
/// let rows = query.run(|| vec![0_u8; 1 << 19]);
///
/// let snapshot = dogtag::snapshot();
/// let row = snapshot.rows.iter().find(|row| row.name == "query-17").unwrap();
/// let parent = &snapshot.rows[row.parent.unwrap()];
/// assert_eq!((row.usage.bytes(), parent.usage.bytes()), (1 << 19, 0));
/// assert_eq!((parent.usage_with_children.bytes(), parent.hard_limit), (1 << 19, Some(1 << 20)));
/// # drop(rows);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Row {
    /// The service's name.
    pub name: String,
    /// The service's handle.
    pub handle: u32,
    /// Whether its last clone was dropped: it lives on until its blocks are freed and its scopes
    /// have ended.
    pub is_retired: bool,
    /// Whether it is cancelled, itself or with a service above it (feature `guard`).
    pub is_cancelled: bool,
    /// Why it was cancelled, and what has become of it, if it was itself.
    pub cancellation: Option<Cancellation>,
    /// What the service has allocated and freed.
    pub usage: Usage,
    /// The index of its parent's row in [`Snapshot::rows`], in the order in which they were taken.
    pub parent: Option<usize>,
    /// What the service and all its descendants have allocated and freed, as
    /// [`Service::usage_with_children`](crate::Service::usage_with_children) returns it.
    pub usage_with_children: Usage,
    /// The hard limit: the most bytes that the service and its descendants may hold.
    pub hard_limit: Option<u64>,
    /// The soft limit: an event is emitted and a callback is called when they get to hold more bytes.
    pub soft_limit: Option<u64>,
}

/// Counts freed blocks whose owner was unknown, because something had overwritten the cookie.
///
/// Something wrote past the end of each of them, a bug in `unsafe` code or in a
/// foreign library: the first bytes behind a block are its cookie. (With
/// `memory-check` the owner is in front of the block.) Any number
/// other than 0 is worth an alarm; a `tracing` event (target `dogtag`, level
/// error) raises it. The feature `memory-check` finds out who did it, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Lost {
    /// Requested bytes of these blocks.
    pub bytes: u64,
    /// Number of these blocks.
    pub blocks: u64,
}

/// Counts freed blocks in memory-check's quarantine: their memory is not used again yet, so that a
/// second free and late writes are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Quarantine {
    /// Bytes of these blocks, with their guards and headers. Some of 2 MiB or more have no memory meanwhile.
    pub bytes: u64,
    /// Number of these blocks.
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
    /// Adds the process's balance, as it is now; `Display` writes it below the table.
    /// [`balance`](crate::balance()) says what it costs.
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

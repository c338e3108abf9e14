//! All services at one glance, as data and as a table.

use crate::backend::JemallocStats;
use crate::balance::{Balance, balance};
use crate::events;
use crate::format::{Bytes, Grouped, Share, printable};
use crate::ledger::{self, anomalies};
#[cfg(feature = "mapped")]
use crate::mapped::{Region, Regions};
use crate::service;
use crate::usage::Usage;
use std::collections::HashMap;
use std::fmt;
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
        #[cfg(feature = "mapped")]
        regions: crate::mapped::all().into_iter().map(|(region, _)| region).collect(),
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
    /// Mapped regions (feature `mapped`), the youngest first.
    #[cfg(feature = "mapped")]
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

impl Row {
    fn title(&self) -> String {
        let name = printable(&self.name);
        if self.is_retired { name + " (retired)" } else { name }
    }
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

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            self.tree(f)?
        } else {
            self.table(f)?
        }
        #[cfg(feature = "mapped")]
        if !self.regions.is_empty() {
            write!(f, "\n{}", Regions(&self.regions))?;
        }
        self.footnotes(f)
    }
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

    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = f.precision().unwrap_or(usize::MAX).min(self.rows.len());
        let (shown, hidden) = self.rows.split_at(shown);
        let mut lines: Vec<(String, Usage)> = shown.iter().map(|row| (row.title(), row.usage)).collect();
        if !hidden.is_empty() {
            let sum = hidden.iter().map(|row| row.usage).sum();
            lines.push((format!("({} more)", hidden.len()), sum));
        }
        if self.ended != Usage::default() {
            lines.push(("(ended)".to_owned(), self.ended));
        }

        let total = self.totals.bytes();
        let width =
            lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max("service".len());
        writeln!(
            f,
            "{:<width$}  {:>11}  {:>7}  {:>13}  {:>11}  {:>11}",
            "service", "live", "share", "blocks", "allocated", "freed",
        )?;
        let rule = "─".repeat(width + 63);
        writeln!(f, "{rule}")?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, usage: Usage| {
            writeln!(
                f,
                "{name:<width$}  {:>11}  {:>7}  {:>13}  {:>11}  {:>11}",
                Bytes(usage.bytes()).to_string(),
                Share { part: usage.bytes(), whole: total }.to_string(),
                Grouped(usage.blocks()).to_string(),
                Bytes(usage.allocated_bytes).to_string(),
                Bytes(usage.freed_bytes).to_string(),
            )
        };
        for (name, usage) in &lines {
            line(f, name, *usage)?;
        }
        writeln!(f, "{rule}")?;
        line(f, "total", self.totals)
    }

    fn tree(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// How deep rows are shown by their indentation; for those below it is written there.
        const MOST_INDENTED: usize = 16;

        // Families by what they hold, the largest first; and so their members.
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); self.rows.len()];
        let mut open: Vec<(usize, usize)> = Vec::new();
        let mut order: Vec<usize> = (0..self.rows.len()).collect();
        order.sort_by_key(|row| self.rows[*row].usage_with_children.bytes());
        for row in order {
            match self.rows[row].parent.filter(|parent| *parent < self.rows.len()) {
                Some(parent) => children[parent].push(row),
                None => open.push((row, 0)),
            }
        }
        let mut lines = Vec::new();
        let mut is_shown = vec![false; self.rows.len()];
        // Rows that were sorted or left out since may have come to be their own ancestors.
        let mut others = (0..self.rows.len()).map(|row| (row, 0));
        while let Some((row, depth)) = open.pop().or_else(|| others.find(|(row, _)| !is_shown[*row])) {
            if std::mem::replace(&mut is_shown[row], true) {
                continue;
            }
            let title = self.rows[row].title();
            let title = match depth {
                0..=MOST_INDENTED => format!("{}{title}", "  ".repeat(depth)),
                _ => format!("{}({depth}) {title}", "  ".repeat(MOST_INDENTED)),
            };
            lines.push((title, &self.rows[row]));
            open.extend(children[row].iter().map(|child| (*child, depth + 1)));
        }

        let width =
            lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max("service".len());
        writeln!(
            f,
            "{:<width$}  {:>11}  {:>13}  {:>11}  {:>11}  {:>11}  {:>9}",
            "service", "live", "with children", "peak", "soft limit", "hard limit", "denied",
        )?;
        let rule = "─".repeat(width + 78);
        writeln!(f, "{rule}")?;
        let limit = |limit: Option<u64>| limit.map_or("–".to_owned(), |bytes| Bytes(bytes).to_string());
        for (name, row) in lines {
            writeln!(
                f,
                "{name:<width$}  {:>11}  {:>13}  {:>11}  {:>11}  {:>11}  {:>9}",
                Bytes(row.usage.bytes()).to_string(),
                Bytes(row.usage_with_children.bytes()).to_string(),
                Bytes(row.usage.peak_bytes).to_string(),
                limit(row.soft_limit),
                limit(row.hard_limit),
                Grouped(row.usage_with_children.denied).to_string(),
            )?;
        }
        writeln!(f, "{rule}")?;
        writeln!(
            f,
            "{:<width$}  {:>11}  {:>13}  {:>11}  {:>11}  {:>11}  {:>9}",
            "total",
            Bytes(self.totals.bytes()).to_string(),
            "",
            Bytes(self.totals.peak_bytes).to_string(),
            "",
            "",
            Grouped(self.totals.denied).to_string(),
        )
    }

    fn footnotes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lost.blocks > 0 {
            writeln!(
                f,
                "\n{} blocks ({}) were freed whose owner had been overwritten: \
                 something writes outside of its memory",
                Grouped(self.lost.blocks),
                Bytes(self.lost.bytes),
            )?;
        }
        if let Some(quarantine) = &self.quarantine {
            writeln!(
                f,
                "\nquarantine: {} freed blocks hold {}",
                Grouped(quarantine.blocks),
                Bytes(quarantine.bytes),
            )?;
        }
        if let Some(jemalloc) = &self.jemalloc {
            writeln!(
                f,
                "\njemalloc: allocated {}, active {}, resident {}, mapped {}, retained {}",
                Bytes(jemalloc.allocated),
                Bytes(jemalloc.active),
                Bytes(jemalloc.resident),
                Bytes(jemalloc.mapped),
                Bytes(jemalloc.retained),
            )?;
        }
        if let Some(balance) = &self.balance {
            write!(f, "\n{balance}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, live: u64, freed: u64) -> Row {
        let usage = Usage {
            allocated_bytes: live + freed,
            allocated_blocks: 2000,
            freed_bytes: freed,
            freed_blocks: 0,
            ..Usage::default()
        };
        Row { name: name.to_owned(), handle: 1, usage, ..Row::default() }
    }

    fn sample() -> Snapshot {
        let rows = vec![row("index", 3 << 20, 512), row("a\nb", 1 << 20, 0), row("idle", 0, 1023)];
        let totals = rows.iter().map(|row| row.usage).sum();
        Snapshot { rows, totals, ..Snapshot::default() }
    }

    #[test]
    fn the_table_is_aligned_and_adds_up() {
        let expected = "\
service         live    share         blocks    allocated        freed
──────────────────────────────────────────────────────────────────────
index        3.0 MiB   75.0 %          2,000      3.0 MiB        512 B
a\\nb         1.0 MiB   25.0 %          2,000      1.0 MiB          0 B
idle             0 B    0.0 %          2,000       1023 B       1023 B
──────────────────────────────────────────────────────────────────────
total        4.0 MiB  100.0 %          6,000      4.0 MiB      1.5 KiB
";
        assert_eq!(sample().to_string(), expected);
    }

    #[test]
    fn a_precision_sums_up_the_small_ones() {
        let table = format!("{:.1}", sample());
        assert!(table.contains("index ") && !table.contains("idle"), "{table}");
        assert!(table.contains("(2 more)      1.0 MiB   25.0 %          4,000"), "{table}");
        assert!(table.contains("total         4.0 MiB  100.0 %          6,000"), "{table}");
    }

    #[test]
    fn retired_services_and_ended_ones_are_told() {
        let mut snapshot = sample();
        snapshot.rows[1].is_retired = true;
        snapshot.ended = Usage {
            allocated_bytes: 2048,
            allocated_blocks: 1,
            freed_bytes: 2048,
            freed_blocks: 1,
            ..Usage::default()
        };
        let table = snapshot.to_string();
        assert!(table.contains("\na\\nb (retired)      1.0 MiB "), "{table}");
        assert!(
            table.contains(
                "\n(ended)                 0 B    0.0 %              0      2.0 KiB      2.0 KiB\n"
            ),
            "{table}"
        );
    }

    #[test]
    fn families_are_a_tree() {
        let family = |row: Row, parent: Option<&'static str>| {
            let name = row.name.clone();
            let usage = Usage { peak_bytes: 4 << 20, ..row.usage };
            (Row { usage, usage_with_children: usage, ..row }, name, parent.map(str::to_owned))
        };
        let mut query = row("query", 2 << 20, 0);
        query.usage.denied = 1234;
        let mut tenant = row("tenant", 0, 0);
        (tenant.hard_limit, tenant.soft_limit) = (Some(8 << 20), Some(6 << 20));
        let rows = arrange(vec![
            family(row("part", 1 << 20, 0), Some("query")),
            family(row("alone", 2 << 20, 0), None),
            family(query, Some("tenant")),
            family(tenant, None),
            family(row("orphan", 10, 0), Some("who was not met")),
        ]);
        let totals = rows.iter().map(|row| row.usage).sum();
        let tree = format!("{:#}", Snapshot { rows, totals, ..Snapshot::default() });
        let expected = "\
service          live  with children         peak   soft limit   hard limit     denied
──────────────────────────────────────────────────────────────────────────────────────
tenant            0 B        3.0 MiB      4.0 MiB      6.0 MiB      8.0 MiB      1,234
  query       2.0 MiB        3.0 MiB      4.0 MiB            –            –      1,234
    part      1.0 MiB        1.0 MiB      4.0 MiB            –            –          0
alone         2.0 MiB        2.0 MiB      4.0 MiB            –            –          0
orphan           10 B           10 B      4.0 MiB            –            –          0
──────────────────────────────────────────────────────────────────────────────────────
total         5.0 MiB                    20.0 MiB                                1,234
";
        assert_eq!(tree, expected);
    }

    /// As deep as there can be services, and from whomever.
    #[test]
    fn families_of_any_depth_are_shown_in_few_columns() {
        const DEEP: usize = 100_000;

        let mut snapshot = Snapshot { rows: vec![row("query", 1, 0); DEEP], ..Snapshot::default() };
        snapshot.rows.iter_mut().zip(0..).skip(1).for_each(|(row, place)| row.parent = Some(place - 1));
        let tree = format!("{snapshot:#}");
        let lines: Vec<&str> = tree.lines().collect();
        assert_eq!(lines.len(), DEEP + 4);
        let width = lines[0].chars().count();
        assert!(width < 160 && lines.iter().all(|line| line.chars().count() == width), "{}", lines[0]);
        assert!(lines[2 + 16].starts_with(&format!("{}query ", " ".repeat(32))), "{}", lines[2 + 16]);
        for depth in [17, 99, DEEP - 1] {
            let expected = format!("{}({depth}) query ", " ".repeat(32));
            assert!(lines[2 + depth].starts_with(&expected), "{}", lines[2 + depth]);
        }
    }

    #[test]
    fn what_families_hold_is_added_up_from_below() {
        const DEEP: usize = 1_000_000;

        let found = (0..DEEP).map(|i| {
            let row = row("query", 1, 0);
            (Row { usage_with_children: row.usage, ..row }, i, i.checked_sub(1))
        });
        let rows = arrange(found.collect());
        let root = rows.iter().position(|row| row.parent.is_none()).expect("there is one");
        assert_eq!(rows[root].usage_with_children.bytes(), DEEP as u64);
        let mut held: Vec<u64> = rows.iter().map(|row| row.usage_with_children.bytes()).collect();
        held.sort_unstable();
        assert!(held.into_iter().eq(1..=DEEP as u64));
    }

    #[test]
    fn rows_that_are_their_own_ancestors_are_shown() {
        let mut snapshot = sample();
        for (row, parent) in [(0, 1), (1, 0), (2, 2)] {
            snapshot.rows[row].parent = Some(parent);
        }
        let tree = format!("{snapshot:#}");
        for name in ["\nindex ", "\n  a\\nb ", "\nidle "] {
            assert_eq!(tree.matches(name).count(), 1, "{tree}");
        }
    }

    #[test]
    fn figures_that_were_made_up_can_be_shown() {
        let mut snapshot = sample();
        for row in &mut snapshot.rows {
            let huge = u64::MAX - 1;
            row.usage = Usage { allocated_bytes: huge, allocated_blocks: huge, ..row.usage };
        }
        let table = format!("{snapshot:.0}");
        assert!(table.contains("(3 more)     16.0 EiB "), "{table}");
        assert!(table.contains(" 18,446,744,073,709,551,615 "), "{table}");
    }

    #[test]
    fn lost_blocks_are_told() {
        let lost = Lost { bytes: 2048, blocks: 2 };
        let table = Snapshot { lost, ..sample() }.to_string();
        assert!(table.contains("2 blocks (2.0 KiB) were freed whose owner had been overwritten"), "{table}");
    }
}

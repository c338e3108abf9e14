//! All services at one glance, as data and as a table.

use crate::announce;
use crate::backend::JemallocStats;
use crate::ledger;
use crate::usage::Usage;
use std::fmt;

/// What all services of the process have allocated and freed, in sum.
///
/// Reads every service's cells: for one service [`Service::usage`] is cheaper.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// let before = dogtag::totals();
/// let block = vec![0_u8; 100];
/// assert_eq!((dogtag::totals() - before).bytes(), 100);
/// # drop(block);
/// # }
/// ```
///
/// [`Service::usage`]: crate::Service::usage
#[must_use]
pub fn totals() -> Usage {
    announce::deliver();
    let mut totals = Usage::default();
    ledger::usages(|_, usage| totals += usage);
    totals
}

/// Who holds what, now.
///
/// Stops nobody: while other threads allocate, each service's figures are of a
/// slightly different moment, but none is ever negative and the totals are the
/// sum of the rows. Reads a cell for each service and thread.
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
    announce::deliver();
    let mut rows = Vec::new();
    let mut totals = Usage::default();
    ledger::usages(|record, usage| {
        totals += usage;
        rows.push(Row { name: record.name().to_owned(), handle: record.handle(), usage });
    });
    rows.sort_by(|a, b| b.usage.bytes().cmp(&a.usage.bytes()).then_with(|| a.name.cmp(&b.name)));
    let lost = ledger::lost();
    Snapshot {
        rows,
        totals,
        lost: Lost { bytes: lost.freed_bytes, blocks: lost.freed_blocks },
        quarantine: quarantine(),
        jemalloc: JemallocStats::read(),
    }
}

/// All services and their sum: [`snapshot`].
///
/// Its `Display` is a table, the largest service first. A precision bounds the
/// number of services shown, and the others are summed up in one row:
/// `format!("{snapshot:.10}")` shows the ten largest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// A row for each service, those with the most live bytes first.
    pub rows: Vec<Row>,
    /// The sum of all rows.
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
}

/// One service in a [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Row {
    /// The service's name.
    pub name: String,
    /// The service's handle.
    pub handle: u32,
    /// What it has allocated and freed.
    pub usage: Usage,
}

/// Blocks whose owner can no longer be told.
///
/// Something wrote past the end of each of them, a bug in `unsafe` code or in a
/// foreign library: the first bytes behind a block are its cookie. (With
/// `memory-check`, in front of them.) A number
/// other than 0 is worth an alarm; a `tracing` event (target `dogtag`, level
/// error) raises it. The feature `memory-check` says who did it, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
        let shown = f.precision().unwrap_or(usize::MAX).min(self.rows.len());
        let (shown, hidden) = self.rows.split_at(shown);
        let mut lines: Vec<(String, Usage)> =
            shown.iter().map(|row| (printable(&row.name), row.usage)).collect();
        if !hidden.is_empty() {
            let sum = hidden.iter().map(|row| row.usage).sum();
            lines.push((format!("({} more)", hidden.len()), sum));
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
        line(f, "total", self.totals)?;
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
        Ok(())
    }
}

/// A name that cannot break the table: control characters escaped, and cut
/// where it is longer than anybody reads.
fn printable(name: &str) -> String {
    const LONGEST: usize = 40;

    let escaped: String = name
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] })
        .collect();
    if escaped.chars().count() <= LONGEST {
        return escaped;
    }
    escaped.chars().take(LONGEST - 1).chain(['…']).collect()
}

/// Bytes as people read them.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

        let mut value = self.0 as f64;
        let mut unit = 0;
        // What would be printed as 1024.0 of a unit is 1.0 of the next.
        while value >= 1023.95 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {}", UNITS[unit]) }
    }
}

/// A whole number with its thousands apart.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

struct Share {
    part: u64,
    whole: u64,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = if self.whole == 0 { 0.0 } else { self.part as f64 / self.whole as f64 };
        write!(f, "{:.1} %", share * 100.0)
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
        };
        Row { name: name.to_owned(), handle: 1, usage }
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
    fn lost_blocks_are_told() {
        let lost = Lost { bytes: 2048, blocks: 2 };
        let table = Snapshot { lost, ..sample() }.to_string();
        assert!(table.contains("2 blocks (2.0 KiB) were freed whose owner had been overwritten"), "{table}");
    }

    #[test]
    fn bytes_change_their_unit_where_people_would() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(printable(&"x".repeat(41)), "x".repeat(39) + "…");
        assert_eq!(printable(&"x".repeat(40)), "x".repeat(40));
    }
}

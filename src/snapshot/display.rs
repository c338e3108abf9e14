//! A snapshot as text: a table, or a tree of families, with footnotes.

use super::{Row, Snapshot, regions};
use crate::format::{Bytes, Grouped, Share, printable};
use crate::usage::Usage;
use std::fmt;

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            self.tree(f)?
        } else {
            self.table(f)?
        }
        if !self.regions.is_empty() {
            write!(f, "\n{}", regions::Table(&self.regions))?;
        }
        self.footnotes(f)
    }
}

impl Snapshot {
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
        let cancelled = || self.rows.iter().filter_map(|row| Some((row, row.cancellation.as_ref()?)));
        if let Some(counts) = self.cancellations.filter(|counts| counts.services() > 0 || counts.refused > 0)
        {
            /// Others are in the data.
            const MOST: usize = 10;

            writeln!(f, "\n{counts}")?;
            for (row, cancellation) in cancelled().take(MOST) {
                writeln!(f, "  {}: {cancellation}", printable(&row.name))?;
            }
            match cancelled().count().saturating_sub(MOST) {
                0 => {}
                more => writeln!(f, "  ({more} more)")?,
            }
        }
        #[cfg(feature = "guard")]
        if let Some(guard) = &self.guard {
            writeln!(
                f,
                "\nguard: ceiling {}, used {}, at most {} above it; {} purges, {} caches asked, {} services \
                 cancelled, {} of them did not let go in time",
                Bytes(guard.ceiling),
                Bytes(guard.used),
                Bytes(guard.highest_over),
                Grouped(guard.purges),
                Grouped(guard.pressure_calls),
                Grouped(guard.cancelled),
                Grouped(guard.unresponsive),
            )?;
        }
        #[cfg(feature = "sampled-guard")]
        if let Some(guard) = &self.sampled_guard {
            writeln!(
                f,
                "\nsampled guard: {} of {} slots in use, {} blocks so far, {} refused, {} throttled; {} \
                 violations caught, {} slots retired",
                Grouped(guard.guarded),
                Grouped(guard.slots),
                Grouped(guard.ever),
                Grouped(guard.refused),
                Grouped(guard.throttled),
                Grouped(guard.caught),
                Grouped(guard.retired),
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

impl Row {
    fn title(&self) -> String {
        let name = printable(&self.name);
        match self {
            Self { is_cancelled: true, .. } => name + " (cancelled)",
            Self { is_retired: true, .. } => name + " (retired)",
            _ => name,
        }
    }
}

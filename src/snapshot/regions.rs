//! A snapshot's table of mapped regions.

use crate::arenas::Region;
use crate::format::{Bytes, Grouped, printable};
use std::fmt;

pub(super) struct Table<'a>(pub(super) &'a [Region]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(|region| printable(&region.name)).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("region".len());
        writeln!(
            f,
            "{:<width$}  {:>11}  {:>11}  {:>11}  {:>9}  {:>11}  {:>12}  {:>9}",
            "region", "size", "used", "peak", "blocks", "free ranges", "largest free", "refused",
        )?;
        writeln!(f, "{}", "─".repeat(width + 88))?;
        for (name, Region { stats, .. }) in names.iter().zip(self.0) {
            writeln!(
                f,
                "{name:<width$}  {:>11}  {:>11}  {:>11}  {:>9}  {:>11}  {:>12}  {:>9}",
                Bytes(stats.size as u64).to_string(),
                Bytes(stats.used as u64).to_string(),
                Bytes(stats.peak as u64).to_string(),
                Grouped(stats.blocks as u64).to_string(),
                Grouped(stats.free_ranges as u64).to_string(),
                Bytes(stats.largest_free as u64).to_string(),
                Grouped(stats.refused).to_string(),
            )?;
        }
        Ok(())
    }
}

//! What is said of regions.

use crate::format::{Bytes, Grouped, printable};
use std::fmt;

/// A region in a [`Snapshot`](crate::Snapshot).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Region {
    /// The region's name: its first 64 bytes.
    pub name: String,
    /// What there is of it.
    pub stats: RegionStats,
}

/// What a region has: [`MappedRegion::stats`](super::MappedRegion::stats). Of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct RegionStats {
    /// Bytes of the window.
    pub size: usize,
    /// Bytes of blocks, rounded up to granules.
    pub used: usize,
    /// Bytes of free ranges; of a region that cannot be written to, none.
    pub free: usize,
    /// Bytes of the largest free range: no larger block can be had, its cookie included.
    pub largest_free: usize,
    /// Free ranges.
    pub free_ranges: usize,
    /// Live blocks.
    pub blocks: usize,
    /// The most bytes that were used.
    pub peak: usize,
    /// Allocations that there was no room for: those that fell back, where the region is a
    /// [`Fallback`](super::Fallback)'s first allocator.
    pub refused: u64,
}

/// A table of regions.
pub(crate) struct Regions<'a>(pub(crate) &'a [Region]);

impl fmt::Display for Regions<'_> {
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

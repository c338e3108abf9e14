//! Arenas of other crates: memory outside of the heap that holds counted blocks.
//!
//! The core knows of an arena what it shows: a name, addresses, bytes. The crate that has arenas
//! registers a function that lists them; snapshots and the balance call it.

use crate::registered::Registered;
use std::ops::Range;

/// A mapped region in a [`Snapshot`](crate::Snapshot): a window of `mmap`ed memory with blocks in
/// it, of the crate `dogtag-mapped`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Region {
    /// The region's name: its first 64 bytes.
    pub name: String,
    /// The region's figures.
    pub stats: RegionStats,
}

/// The figures of a mapped region at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct RegionStats {
    /// Bytes of the window.
    pub size: usize,
    /// Bytes of blocks, rounded up to granules.
    pub used: usize,
    /// Bytes of free ranges; 0 for a region that cannot be written to.
    pub free: usize,
    /// Bytes of the largest free range. An allocation of more fails; its cookie counts.
    pub largest_free: usize,
    /// Free ranges.
    pub free_ranges: usize,
    /// Live blocks.
    pub blocks: usize,
    /// The most bytes that were used at once.
    pub peak: usize,
    /// Allocations that failed because no free range was large enough. Where the region is the
    /// first allocator of a `Fallback`, the second one got them.
    pub refused: u64,
}

/// One arena.
#[derive(Debug)]
pub struct Arena {
    /// The arena's row in a snapshot.
    pub region: Region,
    /// The addresses of its blocks, and of nothing else.
    pub addresses: Range<usize>,
    /// Bytes of blocks in it that the ledger counts, cookies and guards included.
    pub counted: usize,
}

/// The arenas of one crate.
#[derive(Debug)]
pub struct Arenas {
    /// Lists them. May allocate; is never called inside an allocation.
    pub list: fn() -> Vec<Arena>,
}

static ALL: Registered<Arenas> = Registered::new();

/// Has a crate's arenas shown in snapshots, and counted once in the balance.
///
/// Takes no lock and allocates nothing. Registering the same static again changes nothing.
pub fn register_arenas(arenas: &'static Arenas) {
    ALL.add(arenas);
}

/// All arenas of the process.
pub(crate) fn all() -> impl Iterator<Item = Arena> {
    ALL.iter().flat_map(|arenas| (arenas.list)())
}

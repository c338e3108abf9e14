//! What dogtag's other crates use of its inside. Hidden, and exempt from semver: they depend on
//! exactly this version.

// For dogtag-pool: cleanups that panic, and limits that may deny memory.
#[cfg(not(dogtag_loom))]
pub use crate::{
    contained::{Payload, call, discard},
    service::is_limited,
};

// For dogtag-mapped: arenas in snapshots, in the balance and across forks.
#[cfg(not(dogtag_loom))]
pub use crate::{
    arenas::{Arena, Arenas, register_arenas},
    ledger::thread::counts,
    sys::fork::{ForkHook, ForkOrder, prepare as prepare_forks, register_fork_hook},
};

/// Reports that a region is dropped whose first address is `start` and in which blocks are live,
/// and returns whether its memory has to stay: with memory-check, if the process goes on.
#[cfg(not(dogtag_loom))]
#[must_use]
pub fn stays_mapped(start: usize) -> bool {
    #[cfg(feature = "memory-check")]
    crate::check::region_in_use(start);
    #[cfg(not(feature = "memory-check"))]
    let _ = start;
    cfg!(feature = "memory-check")
}

//! Finds overruns and uses of freed memory in production, in a sample of all blocks (feature `sampled-guard`).
//!
//! One allocation in some thousands stands alone at the end of a page, or by turns at its beginning, between pages
//! without access. When it is freed, its own page loses access, too, for as long as there are other slots to
//! use. An access to any of them ends the process, with a report in the style of
//! memory-check's: what was done to whose block, who allocated and freed it, and the call stacks.
//! Of a mistake's occurrences one in some thousands is found, where it is made: in one process that may take long;
//! among many that run the same program it is soon. (The idea is that of GWP-ASan and Electric Fence; here each
//! block has an owner.)
//!
//! The hot path knows nothing of it. A guarded block costs two system calls that change the access to a page, and now
//! and then some more, which all threads may notice; so there are 100 a second [at most](SampledGuardBuilder::per_second), at
//! the default. One allocation for each 40 KB takes the slow path, at the default rate.
//!
//! ```
//! # #[global_allocator]
//! # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//! # #[cfg(feature = "memory-check")]
//! # fn main() {}
//! # #[cfg(not(feature = "memory-check"))]
//! # fn main() -> Result<(), dogtag::sampled_guard::SampledGuardError> {
//! use dogtag::sampled_guard::{self, SampledGuard};
//!
//! // As `DOGTAG_SAMPLED_GUARD` says; or in any case, with SampledGuard::builder().start().
//! SampledGuard::from_env()?;
//! # SampledGuard::builder().rate(1).start()?;
//! let buffer = vec![0_u8; 100];
//! if sampled_guard::is_guarded(buffer.as_ptr()) {
//!     println!("whoever writes past its end is found");
//! }
//! assert!(sampled_guard::figures().guarded <= 256);
//! # assert!(sampled_guard::is_guarded(buffer.as_ptr()));
//! # Ok(())
//! # }
//! ```
//!
//! # What is found
//!
//! | violation | of a guarded block |
//! | --- | --- |
//! | an access after the free | certain until the slot is used again, which is the one that was freed first |
//! | a write past the end | at the write, unless it is in the gap that the alignment leaves, or in the 2 bytes of a cookie: these are found at the free |
//! | a read past the end | at the read beyond that gap; not with a cookie in the page behind, which has every third slot |
//! | an access in front of the block | in every third slot at the access; elsewhere a write, at the free |
//! | a double free | certain until the slot is used again |
//! | a free of a pointer into the block | certain, where the free looks at what is no cookie |
//!
//! Blocks of C's (`dogtag-c`) and of an [owner table](crate::Dogtag::with_owner_table) have no cookies. Blocks of C's
//! are aligned to 16, and are charged with, and as large as, what was asked for.
//!
//! Which allocations are guarded does not depend on their sizes, from 8 bytes on. Those of more than a page, or
//! aligned to more, go the usual way, as do all while no slot is free ([`Figures::refused`]). Blocks that stay fill
//! the slots in time, and then that figure grows: take more [slots](SampledGuardBuilder::slots). Nor does it depend on
//! the blocks which of them go the usual way since as many were guarded in that second as
//! [may be](SampledGuardBuilder::per_second) ([`Figures::throttled`]).
//!
//! What the kernel accesses for the program, such as by a `read` into a freed buffer, is no fault: the call returns
//! `EFAULT`, and nothing is reported. Nor is a jump into a guarded block, which ends the process as it does without
//! the guard.
//!
//! # Signals
//!
//! The guard sets handlers of `SIGSEGV` and `SIGBUS` (with `SA_ONSTACK`) when it is first started. Handlers from
//! before are called for every fault that is not in the pool, as their flags and masks say, and so is the default.
//! A handler that the program sets later takes the place of the guard's: then faults in the pool are that one's,
//! unless it passes on what is not its own. So set others first. Rust's standard library sets its own before `main`,
//! and only where there is none: with a guard that was started earlier, as in a program that `dogtag-c` is preloaded
//! into, a stack overflow ends the process without the line "has overflowed its stack".
//!
//! The report is written by a thread that waits for it, since a fault may have interrupted the program anywhere. If
//! that is stuck, or not done within some [seconds](SampledGuardBuilder::patience), and in forked children, which have no such thread, the report has addresses instead of
//! functions' names. A child keeps its guarded blocks, and guards more.
//!
//! # With other features
//!
//! `memory-check` looks at every block, and wins: [`start`](SampledGuardBuilder::start) returns
//! an error. With `profile` both choose their blocks independently, and one block may be both.

#[cfg(not(feature = "memory-check"))]
pub(crate) mod blocks;
#[cfg(not(feature = "memory-check"))]
mod entry;
mod error;
#[cfg(not(feature = "memory-check"))]
mod fault;
#[cfg(not(feature = "memory-check"))]
mod pool;
mod reaction;
#[cfg(not(feature = "memory-check"))]
mod region;
#[cfg(not(feature = "memory-check"))]
mod report;
mod settings;
#[cfg(not(feature = "memory-check"))]
mod violation;
#[cfg(not(feature = "memory-check"))]
mod who;

pub use error::SampledGuardError;
pub use reaction::Reaction;
pub use settings::{SampledGuard, SampledGuardBuilder};

#[cfg(not(feature = "memory-check"))]
use crate::sync::Ordering;

/// Holds what the sampled guard has done so far: [`figures`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Figures {
    /// The share of allocations that are guarded, as one in so many; 0 while it does not run.
    pub rate: u64,
    /// The number of blocks that can be guarded at once; 0 if it was never started.
    pub slots: u64,
    /// Slots that are not used again, since an access to their pages was let through
    /// ([`Reaction::Continue`]).
    pub retired: u64,
    /// Live blocks that are guarded, each in a slot of its own.
    pub guarded: u64,
    /// Blocks that ever were.
    pub ever: u64,
    /// Blocks that were to be guarded and went the usual way, since no slot was free, or they did not fit into the one
    /// whose turn it was.
    pub refused: u64,
    /// Blocks that were to be guarded and went the usual way, since as many as
    /// [the bound](SampledGuardBuilder::per_second) allows had been guarded just before.
    pub throttled: u64,
    /// Violations that were reported.
    pub caught: u64,
}

/// Returns what the sampled guard has done so far, as [snapshots](crate::Snapshot::sampled_guard), reports and metrics
/// have it, too. Neither locks nor allocates.
///
/// Counters are never set back, also where it is stopped and started again. A forked child has its parent's.
///
/// ```
/// let figures = dogtag::sampled_guard::figures();
/// assert!(figures.guarded <= figures.ever);
/// ```
#[must_use]
pub fn figures() -> Figures {
    #[cfg(feature = "memory-check")]
    return Figures::default();
    #[cfg(not(feature = "memory-check"))]
    Figures {
        rate: crate::ledger::interval::rate(),
        slots: pool::slots_in_use() as u64,
        retired: pool::retired() as u64,
        guarded: pool::GUARDED.load(Ordering::Relaxed),
        ever: pool::EVER.load(Ordering::Relaxed),
        refused: pool::REFUSED.load(Ordering::Relaxed),
        throttled: pool::THROTTLED.load(Ordering::Relaxed),
        caught: report::CAUGHT.load(Ordering::Relaxed),
    }
}

/// Returns whether a pointer is to the beginning of a live block that is guarded.
///
/// ```
/// let block = Box::new([0_u8; 100]);
/// let _: bool = dogtag::sampled_guard::is_guarded(block.as_ptr());
/// ```
#[must_use]
pub fn is_guarded(block: *const u8) -> bool {
    #[cfg(feature = "memory-check")]
    {
        let _ = block;
        false
    }
    #[cfg(not(feature = "memory-check"))]
    pool::is_live(block)
}

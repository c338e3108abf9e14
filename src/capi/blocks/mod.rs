//! C's blocks, which are freed without their size. [`plain`] learns from jemalloc how
//! large a block is, [`checked`] has it noted (with the feature `memory-check`). They
//! are charged and refunded as Rust's are, to the same ledger.
//!
//! Null is what an allocation gets for which there is no memory, or no room under a
//! limit; `errno` is the caller's to set.

#[cfg(feature = "memory-check")]
mod checked;
#[cfg(not(feature = "memory-check"))]
mod plain;

#[cfg(all(feature = "interpose", feature = "memory-check"))]
pub(super) use checked::free_told;
#[cfg(feature = "memory-check")]
pub(super) use checked::{allocate, allocate_aligned, free, resize, size};
#[cfg(all(feature = "interpose", not(feature = "memory-check")))]
pub(super) use plain::free_told;
#[cfg(not(feature = "memory-check"))]
pub(super) use plain::{allocate, allocate_aligned, free, resize, size};

/// What every block is aligned to that is large enough: what C's largest type needs.
#[cfg(feature = "memory-check")]
const ALIGN: usize = 16;

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

#[cfg(feature = "memory-check")]
pub(super) use checked::{allocate, allocate_aligned, free, resize, size};
#[cfg(all(feature = "interpose", feature = "memory-check"))]
pub(super) use checked::{delete, free_told, new};
#[cfg(not(feature = "memory-check"))]
pub(super) use plain::{allocate, allocate_aligned, free, resize, size};
#[cfg(all(feature = "interpose", not(feature = "memory-check")))]
pub(super) use plain::{delete, free_told, new};

/// What every block is aligned to, however small it is, as glibc's are: programs keep marks in
/// the lower bits of pointers.
const ALIGN: usize = 16;

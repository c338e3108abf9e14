//! C's blocks, which are freed without their size. `plain` learns a block's size from jemalloc,
//! `checked` (with memory-check) from a note beside the block. Blocks are charged and refunded as
//! Rust's are, to the same ledger.
//!
//! An allocation returns null where there is no memory, or where a limit denies it; the caller sets
//! `errno`.

// How the core was built decides, not this crate's feature: another crate may have turned
// memory-check on.
dogtag::__memory_check! {
    on {
        mod checked;
        pub(crate) use checked::{allocate, allocate_aligned, free, resize, size};
        #[cfg(feature = "interpose")]
        pub(crate) use checked::{delete, free_told, new};
    }
    off {
        mod plain;
        pub(crate) use plain::{allocate, allocate_aligned, free, resize, size};
        #[cfg(feature = "interpose")]
        pub(crate) use plain::{delete, free_told, new};
    }
}

/// The least alignment of a block, however small it is, as in glibc: programs keep marks in the lower
/// bits of pointers.
const ALIGN: usize = 16;

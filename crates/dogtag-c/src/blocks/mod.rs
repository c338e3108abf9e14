//! C's blocks, which are freed without their size. `plain` learns from jemalloc how
//! large a block is, `checked` has it noted (with memory-check). They
//! are charged and refunded as Rust's are, to the same ledger.
//!
//! An allocation gets null where there is no memory, or where a limit denies it; `errno` is the
//! caller's to set.

// Which of them it is depends on how the core was built, not on this crate's feature: somebody else
// may have turned memory-check on.
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

/// What every block is aligned to, however small it is, as glibc's are: programs keep marks in
/// the lower bits of pointers.
const ALIGN: usize = 16;

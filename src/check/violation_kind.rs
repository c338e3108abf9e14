//! The kinds of violations, and the operations that find them.

use std::fmt;

/// Names what was done to a block, or with a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ViolationKind {
    /// Something was written past the end of a live block.
    Overrun,
    /// Something was written in front of a live block.
    Underrun,
    /// A block was freed, or reallocated, that was freed before.
    DoubleFree,
    /// Something was written to a block after it was freed.
    WriteAfterFree,
    /// A block was freed, or reallocated, with another size or alignment than
    /// it was allocated with, by C++'s sized and aligned `operator delete` among others.
    LayoutMismatch,
    /// A pointer was freed, or reallocated, that is no block of this allocator.
    InvalidFree,
    /// A mapped region was dropped while blocks in it were live (crate `dogtag-mapped`).
    RegionInUse,
    /// A block of one of C++'s `operator new`, `operator new[]` and C's `malloc` was freed by
    /// the function of another (crate `dogtag-c`, feature `interpose`).
    AllocDeallocMismatch,
    /// `malloc_usable_size` was called with a pointer to no live block of C's (crate `dogtag-c`).
    BadUsableSize,
    /// Something was read past the end of a live block, or in front of one.
    Overread,
    /// Something was read from a block after it was freed.
    ReadAfterFree,
    /// Something was written to memory of the heap that holds no block.
    WildWrite,
    /// Something was read from memory of the heap that holds no block.
    WildRead,
}

impl fmt::Display for ViolationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overrun => "overrun",
            Self::Underrun => "underrun",
            Self::DoubleFree => "double free",
            Self::WriteAfterFree => "write after free",
            Self::LayoutMismatch => "layout mismatch",
            Self::InvalidFree => "invalid free",
            Self::RegionInUse => "region in use",
            Self::AllocDeallocMismatch => "alloc-dealloc mismatch",
            Self::BadUsableSize => "bad malloc_usable_size",
            Self::Overread => "overread",
            Self::ReadAfterFree => "read after free",
            Self::WildWrite => "wild write",
            Self::WildRead => "wild read",
        })
    }
}

/// Names the operation that found a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// A block was freed.
    Dealloc,
    /// A block was resized.
    Realloc,
    /// A freed block left the quarantine, to be used again.
    Reuse,
    /// [`verify`](super::verify) was called.
    Verify,
    /// A large freed block, a block of 0 bytes, or a page that holds no block was read or written, which has no access.
    Access,
    /// The quarantine was looked at, as the setting `look` asks for.
    Look,
    /// A mapped region was dropped.
    Unmap,
    /// `malloc_usable_size` was called.
    UsableSize,
    /// A function of C's was called that reads or writes memory, such as `memcpy`: this one (crate
    /// `dogtag-c`, feature `interpose`).
    Call(&'static str),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dealloc => "dealloc",
            Self::Realloc => "realloc",
            Self::Reuse => "leaving the quarantine",
            Self::Verify => "verify",
            Self::Access => "an access",
            Self::Look => "a look at the quarantine",
            Self::Unmap => "unmapping a region",
            Self::UsableSize => "malloc_usable_size",
            Self::Call(function) => function,
        })
    }
}

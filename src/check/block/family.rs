//! What a block was allocated by, and so is to be given back by.

/// The functions that a block is allocated and given back by. Rust's are one with C's, whose
/// blocks come from an allocator of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// C's and Rust's.
    Malloc = 0,
    /// `operator new`.
    New = 1,
    /// `operator new[]`.
    NewArray = 2,
}

impl Family {
    /// Bits that it takes.
    pub(crate) const BITS: u32 = 2;

    #[inline]
    pub(crate) fn from_bits(bits: u64) -> Self {
        match bits & ((1 << Self::BITS) - 1) {
            1 => Self::New,
            2 => Self::NewArray,
            _ => Self::Malloc,
        }
    }

    /// What allocates its blocks.
    pub(crate) fn allocates(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::New => "operator new",
            Self::NewArray => "operator new[]",
        }
    }

    /// What they are given back by.
    pub(crate) fn frees(self) -> &'static str {
        match self {
            Self::Malloc => "free",
            Self::New => "operator delete",
            Self::NewArray => "operator delete[]",
        }
    }
}

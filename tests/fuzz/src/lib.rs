//! What the targets share: how large blocks are, and where they are.

#[path = "../../engine/mod.rs"]
pub mod engine;
#[path = "../../random/mod.rs"]
mod random;

use arbitrary::Arbitrary;
use std::alloc::Layout;

/// Bytes of a block: mostly few, and often close to where something changes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Size {
    Small(u8),
    Medium(u16),
    /// Some bytes more or less than a power of two.
    Edge {
        shift: u8,
        distance: i8,
    },
}

impl Size {
    pub fn bytes(self) -> usize {
        match self {
            Self::Small(bytes) => bytes.into(),
            Self::Medium(bytes) => bytes.into(),
            Self::Edge { shift, distance } => {
                (1_usize << (shift % 19)).saturating_add_signed(distance.into())
            }
        }
    }
}

/// What a block is aligned to: mostly what everything is.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Align {
    Usual,
    Power(u8),
}

impl Align {
    pub fn bytes(self) -> usize {
        match self {
            Self::Usual => 8,
            Self::Power(shift) => 1 << (shift % 15),
        }
    }
}

/// A layout of so many bytes. There is one, since none of them is nearly too large.
pub fn layout(size: Size, align: Align) -> Layout {
    Layout::from_size_align(size.bytes(), align.bytes()).expect("a small layout")
}

/// The one of so many that a number means, if there are any.
pub fn pick(number: u8, among: usize) -> Option<usize> {
    usize::from(number).checked_rem(among)
}

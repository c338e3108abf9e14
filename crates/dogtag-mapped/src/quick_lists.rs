//! Blocks that were freed a moment ago, and are still whole.
//!
//! A program that frees a block soon asks for another one of that size. So the last few of each
//! size are kept as they are; they are merged with their neighbours as soon as it makes a
//! difference: when there is no other room, and before anybody counts what is free.

use crate::tlsf::Tlsf;

/// Offsets and sizes are in granules.
pub(crate) struct QuickLists {
    /// By size.
    shelves: [Shelf; SIZES],
    /// Which shelves are not empty.
    filled: u64,
}

#[derive(Clone, Copy)]
struct Shelf {
    offsets: [u32; DEPTH],
    len: u32,
}

/// Larger ones are rare, and merging them costs little beside what is done with them.
const SIZES: usize = u64::BITS as usize;
const DEPTH: usize = 7;

impl QuickLists {
    pub(crate) const fn new() -> Self {
        Self { shelves: [Shelf { offsets: [0; DEPTH], len: 0 }; SIZES], filled: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The youngest one of that size.
    pub(crate) fn take(&mut self, len: u32) -> Option<u32> {
        let shelf = self.shelves.get_mut(len as usize - 1)?;
        shelf.len = shelf.len.checked_sub(1)?;
        self.filled ^= u64::from(shelf.len == 0) << (len - 1);
        Some(shelf.offsets[shelf.len as usize])
    }

    /// Keeps a block, if it is small and there is a place for it.
    pub(crate) fn keep(&mut self, offset: u32, len: u32) -> bool {
        let Some(shelf) = self.shelves.get_mut(len as usize - 1) else { return false };
        let Some(place) = shelf.offsets.get_mut(shelf.len as usize) else { return false };
        *place = offset;
        shelf.len += 1;
        self.filled |= 1 << (len - 1);
        true
    }

    /// Gives all of them back.
    pub(crate) fn settle(&mut self, tlsf: &mut Tlsf) {
        while self.filled != 0 {
            let size = self.filled.trailing_zeros();
            let shelf = &mut self.shelves[size as usize];
            for offset in &shelf.offsets[..shelf.len as usize] {
                tlsf.give(*offset, size + 1);
            }
            shelf.len = 0;
            self.filled &= self.filled - 1;
        }
    }
}

//! Quick lists: small blocks that were freed a moment ago, and are not merged yet.
//!
//! A program that frees a block soon asks for another one of that size. So the last few of each size
//! are kept whole. They are merged with their neighbours before it makes a difference: when an
//! allocation would fail, and before free ranges are counted.

use crate::tlsf::Tlsf;

/// Offsets and sizes are in granules.
pub(crate) struct QuickLists {
    /// One list for each size from 1 on.
    lists: [List; SIZES],
    /// Which lists are not empty: a bit for each.
    filled: u64,
}

#[derive(Clone, Copy)]
struct List {
    offsets: [u32; DEPTH],
    len: u32,
}

/// Larger ones are rare, and merging them costs little beside what is done with them.
const SIZES: usize = u64::BITS as usize;
const DEPTH: usize = 7;

impl QuickLists {
    pub(crate) const fn new() -> Self {
        Self { lists: [List { offsets: [0; DEPTH], len: 0 }; SIZES], filled: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Takes the youngest block of that size.
    pub(crate) fn take(&mut self, len: u32) -> Option<u32> {
        let list = self.lists.get_mut(len as usize - 1)?;
        list.len = list.len.checked_sub(1)?;
        self.filled ^= u64::from(list.len == 0) << (len - 1);
        Some(list.offsets[list.len as usize])
    }

    /// Keeps a block, if it is small and its list is not full. Returns whether it did.
    pub(crate) fn keep(&mut self, offset: u32, len: u32) -> bool {
        let Some(list) = self.lists.get_mut(len as usize - 1) else { return false };
        let Some(place) = list.offsets.get_mut(list.len as usize) else { return false };
        *place = offset;
        list.len += 1;
        self.filled |= 1 << (len - 1);
        true
    }

    /// Gives all blocks back to `tlsf`, which merges them with their neighbours.
    pub(crate) fn settle(&mut self, tlsf: &mut Tlsf) {
        while self.filled != 0 {
            let size = self.filled.trailing_zeros();
            let list = &mut self.lists[size as usize];
            for offset in &list.offsets[..list.len as usize] {
                tlsf.give(*offset, size + 1);
            }
            list.len = 0;
            self.filled &= self.filled - 1;
        }
    }
}

//! What the targets share: how large blocks are, and what is in them.

use arbitrary::Arbitrary;
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;

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

/// A live block: what it was allocated with, and what was written to all of it.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub start: NonNull<u8>,
    pub layout: Layout,
    value: u8,
}

impl Block {
    /// Takes a fresh block, and fills it.
    ///
    /// # Safety
    ///
    /// It must be live, and of that layout.
    pub unsafe fn fill(start: NonNull<u8>, layout: Layout, value: u8) -> Self {
        assert!(start.addr().get().is_multiple_of(layout.align()), "{start:?} is not aligned for {layout:?}");
        // SAFETY: the block is live, of that layout, and fresh, so nobody else uses it.
        unsafe { start.write_bytes(value, layout.size()) };
        Self { start, layout, value }
    }

    /// Nobody else has written to it.
    ///
    /// # Safety
    ///
    /// It must be live.
    pub unsafe fn check(&self) {
        // SAFETY: the block is live, and `fill` has written to all of it.
        unsafe { self.check_first(self.start, self.layout.size()) };
    }

    /// So many of its first bytes have moved to another place.
    ///
    /// # Safety
    ///
    /// There must be so many.
    pub unsafe fn check_first(&self, start: NonNull<u8>, len: usize) {
        // SAFETY: so many bytes are there, and were written to.
        let is_kept = unsafe { are_all(start, len, self.value) };
        assert!(is_kept, "{self:?} has not what was written to it");
    }
}

/// Whether so many bytes have that value.
///
/// # Safety
///
/// There must be so many, and something must have been written to them.
pub unsafe fn are_all(start: NonNull<u8>, len: usize, value: u8) -> bool {
    // SAFETY: so many bytes are there, and were written to.
    let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), len) };
    let (first, words, last) = {
        // SAFETY: all bytes are numbers.
        unsafe { bytes.align_to::<u64>() }
    };
    let word = u64::from_ne_bytes([value; 8]);
    first.iter().chain(last).all(|byte| *byte == value) && words.iter().all(|other| *other == word)
}

/// Which addresses are taken: no two of those who have some have the same.
#[derive(Debug, Default)]
pub struct Addresses {
    /// By where they begin: where they end.
    ranges: BTreeMap<usize, usize>,
}

impl Addresses {
    /// Takes a range, of which nobody may have a part. An empty one is nowhere.
    pub fn take(&mut self, start: NonNull<u8>, len: usize) {
        let (start, end) = (start.addr().get(), start.addr().get() + len);
        if len == 0 {
            return;
        }
        let before = self.ranges.range(..end).next_back();
        assert!(before.is_none_or(|(_, other)| *other <= start), "{start:#x}..{end:#x} is {before:x?}'s too");
        self.ranges.insert(start, end);
    }

    pub fn give_back(&mut self, start: NonNull<u8>, len: usize) {
        if len > 0 {
            let end = self.ranges.remove(&start.addr().get());
            assert_eq!(end, Some(start.addr().get() + len));
        }
    }
}

/// The one of so many that a number means, if there are any.
pub fn pick(number: u8, among: usize) -> Option<usize> {
    usize::from(number).checked_rem(among)
}

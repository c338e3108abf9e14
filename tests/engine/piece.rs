//! Memory that somebody has, and what was written to it.

use super::ensure;
use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::NonNull;

/// A piece of memory that is filled, all of it or at both ends.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub start: NonNull<u8>,
    pub layout: Layout,
    value: u8,
    /// Bytes at either end that are written and looked at.
    ends: usize,
}

// SAFETY: whoever has it has the memory.
unsafe impl Send for Piece {}

/// All bytes of a piece are written and looked at.
pub const WHOLE: usize = usize::MAX;

impl Piece {
    /// Fills a fresh piece, with another value than the thread's last one.
    ///
    /// # Safety
    ///
    /// It must be live, of that layout, and nobody else's.
    pub unsafe fn fill(start: NonNull<u8>, layout: Layout, ends: usize) -> Self {
        thread_local! {
            static NEXT: Cell<u8> = const { Cell::new(0) };
        }
        NEXT.set(NEXT.get() % u8::MAX + 1);
        // SAFETY: passed on as it is.
        unsafe { Self::fill_with(start, layout, NEXT.get(), ends) }
    }

    /// Fills a fresh piece with that value.
    ///
    /// # Safety
    ///
    /// It must be live, of that layout, and nobody else's.
    pub unsafe fn fill_with(start: NonNull<u8>, layout: Layout, value: u8, ends: usize) -> Self {
        ensure!(start.addr().get().is_multiple_of(layout.align()), "{start:?} is not aligned for {layout:?}");
        let piece = Self { start, layout, value, ends };
        let end = layout.size().min(ends);
        // SAFETY: the piece is that long, and nobody else's.
        unsafe {
            start.write_bytes(value, end);
            start.add(layout.size() - end).write_bytes(value, end);
        }
        piece
    }

    /// Nobody else has written to it.
    ///
    /// # Safety
    ///
    /// It must be live.
    pub unsafe fn check(&self) {
        // SAFETY: the piece is live, and as long as itself.
        unsafe { self.check_moved(self.start, self.layout.size()) };
    }

    /// What fits of it has moved to a piece of that size.
    ///
    /// # Safety
    ///
    /// It must be live, and that long.
    pub unsafe fn check_moved(&self, to: NonNull<u8>, size: usize) {
        let (own, kept) = (self.layout.size(), self.layout.size().min(size));
        let (head, tail) = (kept.min(self.ends), kept.min(own - own.min(self.ends)));
        // SAFETY: so much is there, and was written to before it moved.
        let is_kept =
            unsafe { are_all(to, head, self.value) && are_all(to.add(tail), kept - tail, self.value) };
        ensure!(is_kept, "{self:?} has not what was written to it, in {size} bytes at {to:?}");
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

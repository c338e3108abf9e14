//! The allocators that regions are compared with, each for one thread at a time.

use crate::WINDOW;
use linked_list_allocator::Heap;
use rlsf::Tlsf;
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;

/// An allocator over a window, for one thread at a time.
pub trait Engine: 'static {
    /// Makes an allocator of a window of [`WINDOW`] bytes.
    ///
    /// # Safety
    ///
    /// The window must be writable, and this allocator's alone for as long as it exists.
    unsafe fn over(window: NonNull<u8>) -> Self;

    /// Allocates a block of a layout that is not empty.
    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>>;

    /// Frees a block.
    ///
    /// # Safety
    ///
    /// The block must be from here, of that layout, and used no more.
    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout);

    /// Resizes a block.
    ///
    /// # Safety
    ///
    /// The block must be from here, of that layout, and used no more unless this fails.
    unsafe fn resize(&mut self, block: NonNull<u8>, layout: Layout, new: Layout) -> Option<NonNull<u8>> {
        let moved = self.take(new)?;
        // SAFETY: both blocks have the smaller size and do not overlap; the caller passes a block of that
        // layout, and uses it no more.
        unsafe {
            moved.copy_from_nonoverlapping(block, layout.size().min(new.size()));
            self.give(block, layout);
        }
        Some(moved)
    }
}

/// talc, which keeps what it knows of blocks beside them.
pub type InBand = Talc<Manual, DefaultBinning>;
/// rlsf, with two levels of free lists.
pub type Levels = Tlsf<'static, u32, u32, 20, 32>;

impl Engine for InBand {
    unsafe fn over(window: NonNull<u8>) -> Self {
        let mut this = Talc::new(Manual);
        // SAFETY: the caller passes a window of that size, which is writable and no one else's.
        unsafe { this.claim(window.as_ptr(), WINDOW) }.unwrap();
        this
    }

    #[inline(always)]
    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: layouts in this program are not empty.
        unsafe { self.allocate(layout) }
    }

    #[inline(always)]
    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller passes a block of this allocator and its layout, and uses it no more.
        unsafe { self.deallocate(block.as_ptr(), layout) };
    }

    unsafe fn resize(&mut self, block: NonNull<u8>, layout: Layout, new: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the caller passes a block of this allocator and its layout, and uses it no more if it
        // moves; both blocks have the smaller size and do not overlap.
        unsafe {
            if self.try_realloc_in_place(block.as_ptr(), layout, new.size()) {
                return Some(block);
            }
            let moved = self.allocate(new)?;
            moved.copy_from_nonoverlapping(block, layout.size().min(new.size()));
            self.deallocate(block.as_ptr(), layout);
            Some(moved)
        }
    }
}

impl Engine for Levels {
    unsafe fn over(window: NonNull<u8>) -> Self {
        let mut this = Tlsf::new();
        // SAFETY: the caller passes a window of that size, which is writable and no one else's.
        unsafe { this.insert_free_block_ptr(NonNull::slice_from_raw_parts(window, WINDOW)) }.unwrap();
        this
    }

    #[inline(always)]
    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.allocate(layout)
    }

    #[inline(always)]
    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller passes a block of this allocator and its layout, and uses it no more.
        unsafe { self.deallocate(block, layout.align()) };
    }

    unsafe fn resize(&mut self, block: NonNull<u8>, _: Layout, new: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the caller passes a block of this allocator, whose alignment does not change, and uses it
        // no more if it moves.
        unsafe { self.reallocate(block, new) }
    }
}

impl Engine for Heap {
    unsafe fn over(window: NonNull<u8>) -> Self {
        // SAFETY: the caller passes a window of that size, which is writable and no one else's.
        unsafe { Heap::new(window.as_ptr(), WINDOW) }
    }

    #[inline(always)]
    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.allocate_first_fit(layout).ok()
    }

    #[inline(always)]
    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller passes a block of this allocator and its layout, and uses it no more.
        unsafe { self.deallocate(block, layout) };
    }
}

/// First fit: takes the first free range that is large enough, by address.
pub struct FirstFit {
    window: NonNull<u8>,
    /// Lengths of free ranges, by their offsets.
    free: BTreeMap<usize, usize>,
}

// SAFETY: the pointer is to a window that is this allocator's alone, so it may move to another thread
// with it.
unsafe impl Send for FirstFit {}

impl FirstFit {
    fn rounded(layout: Layout) -> usize {
        layout.size().next_multiple_of(16)
    }
}

impl Engine for FirstFit {
    unsafe fn over(window: NonNull<u8>) -> Self {
        Self { window, free: BTreeMap::from([(0, WINDOW)]) }
    }

    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let (len, align) = (Self::rounded(layout), layout.align().max(16));
        let mut ranges =
            self.free.iter().map(|(start, len)| (*start, start.next_multiple_of(align), start + len));
        let (range, start, end) = ranges.find(|(_, start, end)| start + len <= *end)?;
        if start == range {
            self.free.remove(&range);
        } else {
            self.free.insert(range, start - range);
        }
        if start + len < end {
            self.free.insert(start + len, end - start - len);
        }
        // SAFETY: the range was free, so its offset is within the window.
        Some(unsafe { self.window.add(start) })
    }

    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout) {
        let mut start = block.addr().get() - self.window.addr().get();
        let mut end = start + Self::rounded(layout);
        let before = self.free.range(..start).next_back();
        if let Some((range, _)) = before.filter(|(range, len)| **range + **len == start) {
            start = *range;
        }
        if let Some(len) = self.free.remove(&end) {
            end += len;
        }
        self.free.insert(start, end - start);
    }
}

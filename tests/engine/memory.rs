//! Where blocks come from.

use super::piece::WHOLE;
use std::alloc::{self, GlobalAlloc, Layout};

/// What memory may refuse that no limit denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Nothing,
    /// Blocks, and that they grow.
    More,
    /// That blocks shrink, too.
    Anything,
}

/// Memory of whatever kind.
pub trait Memory {
    /// Bytes at either end of a block that are written and looked at.
    const ENDS: usize = WHOLE;

    /// Allocates a block, or returns null.
    ///
    /// # Safety
    ///
    /// The layout must not be empty, unless such blocks are allowed here.
    unsafe fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8;

    /// Resizes a block, what is new of it zeroed if it is so wanted; or returns null and leaves it as it is.
    ///
    /// # Safety
    ///
    /// The block must be live, from here, and of that layout; the new layout must be one that is
    /// allowed here.
    unsafe fn reallocate(&self, block: *mut u8, old: Layout, new: Layout, is_zeroed: bool) -> *mut u8;

    /// Frees a block.
    ///
    /// # Safety
    ///
    /// The block must be live, from here, and of that layout.
    unsafe fn free(&self, block: *mut u8, layout: Layout);

    fn may_refuse(&self) -> Refusal {
        Refusal::Nothing
    }

    /// Panics if it has refused such a block without reason, where nobody else does anything and no
    /// limit denies it.
    fn check_refusal(&self, layout: Layout) {
        assert_ne!(self.may_refuse(), Refusal::Nothing, "{layout:?} was not had, though nothing denies it");
    }
}

impl<A: GlobalAlloc + ?Sized> Memory for &A {
    unsafe fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: the layout is not empty.
        unsafe { if is_zeroed { self.alloc_zeroed(layout) } else { self.alloc(layout) } }
    }

    unsafe fn reallocate(&self, block: *mut u8, old: Layout, new: Layout, is_zeroed: bool) -> *mut u8 {
        assert!(old.align() == new.align() && !is_zeroed, "GlobalAlloc has no such function");
        // SAFETY: the block is live, of the old layout, and the new size is not 0.
        unsafe { self.realloc(block, old, new.size()) }
    }

    unsafe fn free(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is live and of that layout.
        unsafe { self.dealloc(block, layout) };
    }
}

/// The global allocator, as programs have it.
#[derive(Clone, Copy, Debug)]
pub struct Heap;

impl Memory for Heap {
    const ENDS: usize = 64;

    unsafe fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: the layout is not empty.
        unsafe { if is_zeroed { alloc::alloc_zeroed(layout) } else { alloc::alloc(layout) } }
    }

    unsafe fn reallocate(&self, block: *mut u8, old: Layout, new: Layout, is_zeroed: bool) -> *mut u8 {
        assert!(old.align() == new.align() && !is_zeroed, "GlobalAlloc has no such function");
        // SAFETY: the block is live, of the old layout, and the new size is not 0.
        unsafe { alloc::realloc(block, old, new.size()) }
    }

    unsafe fn free(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is live and of that layout.
        unsafe { alloc::dealloc(block, layout) };
    }
}

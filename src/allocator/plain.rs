//! The hot path.
//!
//! ```text
//! alloc(layout)
//! ├─ size < 4 KiB ─▶ alloc_fast      (from 4 KiB on: alloc_large, the same out of line)
//! │    ├─ allocated + size < threshold of the current cell
//! │    │    └─ backend.alloc(size + 2), write the mark behind the block, charge the cell
//! │    └─ otherwise ─▶ alloc_slow
//! │         ├─ the thread's own cell of a long slot, within its grant
//! │         │    └─ backend.alloc(size + 6), write the cookie, charge the cell
//! │         └─ otherwise ─▶ charged: find or map the cell, ask the limits and the peak,
//! │                         backend.alloc, write the owner, charge; or null
//! │
//! dealloc(block, layout)
//! └─ size < 4 KiB ─▶ dealloc_fast    (from 4 KiB on: dealloc_large, the same out of line)
//!      ├─ the thread's cell for the block's mark has that mark
//!      │    └─ refund the cell, backend.dealloc(size + 2)
//!      └─ otherwise ─▶ dealloc_slow
//!           ├─ the thread's own cell of a long slot: refund it, backend.dealloc(size + 6)
//!           ├─ a service in use: find or map the cell, refund it, backend.dealloc
//!           └─ no service: the owner was overwritten. Count the block as lost, backend.dealloc,
//!              unless long cookies exist, so that the size is unknown: then keep it
//!
//! realloc(block, layout, new_size)
//! ├─ allocated + new_size < threshold of the current cell, and the thread's cell for the block's
//! │  mark has that mark
//! │    └─ backend.realloc, refund the old cell, write the mark, charge the current cell
//! └─ otherwise ─▶ realloc_slow
//! ```
//!
//! With an owner table no block is larger, and none is large. A mark is written only where the page has
//! other owners, too; where the page has none yet, or becomes mixed, `note_and_charge` does it.
//!
//! `ledger::threshold` lists what hides behind the compare with the threshold. A mark differs from
//! its cell's where the thread has not touched that service yet, where the slot is a long one, and
//! where something overwrote the mark.
//!
//! `dealloc` and `realloc` stay out of line on purpose: inlined into a program's
//! drop glue they keep other things there from being inlined, which costs real
//! programs more than a call. `alloc` may be inlined, which spares a jump. Each slow path
//! is a tail call into a cold function that takes over the whole job.
//!
//! `alloc_zeroed` may be inlined, too: out of line, all that is left of the symbol that the
//! compiler knows it by is a jump, which is inlined everywhere and deleted; LLVM,
//! which makes calls of it out of an allocation and a `memset`, then calls what is not
//! there, and rustc 1.95 crashes.

use super::Dogtag;
use crate::ledger::thread;
use crate::owner::{OwnerPlace, Placement};
use std::alloc::{GlobalAlloc, Layout};
use std::hint::assert_unchecked;
use std::ptr::NonNull;

mod slow;

// SAFETY: a block is the first `layout.size()` bytes of one that the backend
// gave for a layout of the same alignment and no smaller, and each block is given
// back or resized with the very layout it was requested with: `Placement::layout`
// of its own layout and owner. Nothing unwinds.
unsafe impl<B: GlobalAlloc, P: OwnerPlace> GlobalAlloc for Dogtag<B, P> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::PLACEMENT.is_large(layout.size()) {
            cold_path();
            // SAFETY: the layout is a large block's, and not empty: `GlobalAlloc::alloc` requires it.
            return unsafe { self.alloc_large(layout) };
        }
        // SAFETY: the layout is not empty: `GlobalAlloc::alloc` requires it.
        unsafe { self.alloc_fast(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if thread::current().needs_slow_path(layout.size()) {
            // SAFETY: the layout is not empty: `GlobalAlloc::alloc_zeroed` requires it.
            return unsafe { self.alloc_zeroed_slow(layout) };
        }
        // SAFETY: the layout is not empty. No threshold is above `UNCHECKED_SIZES`, so neither is
        // the size.
        let block = unsafe { self.counted().alloc_zeroed(Self::PLACEMENT.short_layout(layout)) };
        if block.is_null() {
            return block;
        }
        // SAFETY: the block was allocated with `short_layout`.
        unsafe { Self::charge_current(block, layout) }
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is live and was requested here with that layout: `GlobalAlloc::dealloc`
        // requires it. An allocator without fields is anywhere.
        unsafe {
            if size_of::<Self>() != 0 {
                dealloc_of(self, block, layout);
            } else if layout.align() <= COMMON_ALIGN {
                dealloc::<B, P>(block, layout.size(), layout.align());
            } else {
                dealloc_aligned::<B, P>(block, layout.size(), layout.align());
            }
        }
    }

    /// Resizes a block. It goes to the current service: whoever grows it owns it, as in skynet. A
    /// resize without growth is never denied.
    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the block is live and was requested here with that layout: `GlobalAlloc::realloc`
        // requires it.
        let mark = unsafe { Self::PLACEMENT.read_mark(block, layout.size()) };
        let old = thread::cell(mark);
        if !old.is_own_for(mark) || thread::current().needs_slow_path(new_size) {
            // SAFETY: the block is live and was requested here with that layout, and the new size is not 0.
            return unsafe { self.realloc_slow(block, layout, new_size) };
        }
        // SAFETY: a mark that a cell has is a short slot's, so the block was requested with its
        // `short_layout`. No threshold is above `UNCHECKED_SIZES`, so neither is the new size, and
        // with the same alignment it makes a layout.
        let block = unsafe {
            let outer = Self::PLACEMENT.short_layout(layout);
            let new_layout = Layout::from_size_align_unchecked(new_size, layout.align());
            self.counted().realloc(block, outer, Self::PLACEMENT.short_layout(new_layout).size())
        };
        if block.is_null() {
            return block;
        }
        old.refund(layout.size());
        // SAFETY: the block has the new size's `short_layout` now, which is the size of a layout.
        unsafe { Self::charge_current(block, Layout::from_size_align_unchecked(new_size, layout.align())) }
    }
}

impl<B: GlobalAlloc, P: OwnerPlace> Dogtag<B, P> {
    const PLACEMENT: Placement = Placement::of::<B, P>();

    /// Allocates within the current cell's threshold.
    ///
    /// # Safety
    ///
    /// As for [`GlobalAlloc::alloc`].
    #[inline(always)]
    unsafe fn alloc_fast(&self, layout: Layout) -> *mut u8 {
        if thread::current().needs_slow_path(layout.size()) {
            // SAFETY: the layout is not empty.
            return unsafe { self.alloc_slow(layout) };
        }
        // SAFETY: the layout is not empty. No threshold is above `UNCHECKED_SIZES`, so neither is
        // the size.
        let block = unsafe { self.counted().alloc(Self::PLACEMENT.short_layout(layout)) };
        // In the table null is nobody's, which `charge_current` finds anyway.
        if !Self::PLACEMENT.is_table() && block.is_null() {
            return block;
        }
        // SAFETY: the block was allocated with `short_layout`.
        unsafe { Self::charge_current(block, layout) }
    }

    /// Charges a new block to the current cell, which the threshold has let through, and returns it.
    ///
    /// Asks the thread for its cell again, rather than to keep it over the
    /// backend's call: two loads are cheaper than a saved register.
    ///
    /// # Safety
    ///
    /// `block` must have been allocated with the layout that
    /// [`Placement::short_layout`] says for `layout`. With a table it may be null.
    #[inline(always)]
    unsafe fn charge_current(block: *mut u8, layout: Layout) -> *mut u8 {
        let (cell, size) = (thread::current(), layout.size());
        debug_assert!(block.addr().is_multiple_of(layout.align()), "the backend's block is not aligned");
        debug_assert!(thread::is_own(cell), "another thread's cell is charged");
        if Self::PLACEMENT.is_table() {
            // SAFETY: with a table it may be any address.
            let page = unsafe { Self::PLACEMENT.first_mark(block, size) };
            // In a page of the cell's own nothing is to be written.
            if !cell.is_own_for(page.mark()) && !page.write_in_mixed(block, cell.own_mark()) {
                // SAFETY: the block was allocated with `short_layout`.
                return unsafe { Self::note_and_charge(block, size) };
            }
            cell.charge(size);
            return block;
        }
        // SAFETY: the block was allocated with `short_layout`.
        unsafe { Self::write_and_charge(block, size) };
        block
    }

    /// Charges a new block whose page is nobody's yet, or another service's alone.
    ///
    /// # Safety
    ///
    /// As for [`charge_current`](Self::charge_current).
    #[cold]
    #[inline(never)]
    unsafe fn note_and_charge(block: *mut u8, size: usize) -> *mut u8 {
        if block.is_null() {
            return block;
        }
        // SAFETY: the block was allocated with `short_layout`.
        unsafe { Self::write_and_charge(block, size) };
        block
    }

    /// # Safety
    ///
    /// As for [`charge_current`](Self::charge_current).
    #[inline(always)]
    unsafe fn write_and_charge(block: *mut u8, size: usize) {
        let cell = thread::current();
        // SAFETY: `short_layout` has the bytes for a mark, where it stands behind the block.
        if unsafe { Self::PLACEMENT.write_short(block, size, cell.own_mark()) } {
            // SAFETY: the block is live from here on, and has a mark.
            debug_assert_eq!(unsafe { Self::PLACEMENT.read_mark(block, size) }, cell.mark());
            cell.charge(size);
        } else {
            thread::charge_ownerless(size);
        }
    }

    /// Allocates a block whose owner stands beside the heap, out of the way of all others.
    ///
    /// # Safety
    ///
    /// As for [`GlobalAlloc::alloc`], with a layout of a large block.
    #[inline(never)]
    unsafe fn alloc_large(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is a large block's, and not empty.
        unsafe {
            assert_unchecked(Self::PLACEMENT.is_large(layout.size()));
            self.alloc_fast(layout)
        }
    }

    /// Frees a block whose owner stands beside the heap.
    ///
    /// # Safety
    ///
    /// As for [`GlobalAlloc::dealloc`], with the layout of that size and alignment, which is a large block's: so the
    /// allocator is one without fields.
    #[inline(never)]
    unsafe fn dealloc_large(block: *mut u8, size: usize, align: usize) {
        debug_assert!(size_of::<Self>() == 0);
        // SAFETY: a value without bytes may be anywhere, and the caller has one. The block is live, is large, and
        // was requested from it with that layout.
        unsafe {
            assert_unchecked(Self::PLACEMENT.is_large(size));
            let layout = Layout::from_size_align_unchecked(size, align);
            dealloc_fast(NonNull::<Self>::dangling().as_ref(), block, layout);
        }
    }
}

/// The alignment up to which jemalloc needs no word of it. Where a program frees a block, the compiler mostly
/// knows the alignment, and compares it.
const COMMON_ALIGN: usize = 8;

/// Frees a block of an allocator without fields, of no more than the [common alignment](COMMON_ALIGN). The
/// allocator is not passed on: an argument that nobody needs is in the way of the backend's, which have the
/// same registers. And the others stand where `sdallocx` has them, whose first ones are a block and its size.
///
/// # Safety
///
/// As for [`GlobalAlloc::dealloc`], with the layout of that size and alignment, which is no more than [`COMMON_ALIGN`].
#[inline(never)]
unsafe fn dealloc<B: GlobalAlloc, P: OwnerPlace>(block: *mut u8, size: usize, align: usize) {
    debug_assert!(size_of::<Dogtag<B, P>>() == 0);
    // SAFETY: a value without bytes may be anywhere, and the caller has one. The block is live and
    // was requested from it with that layout, whose alignment the caller has compared: so the backend need not.
    unsafe {
        assert_unchecked(align <= COMMON_ALIGN);
        let layout = Layout::from_size_align_unchecked(size, align);
        dealloc_any_size(NonNull::<Dogtag<B, P>>::dangling().as_ref(), block, layout);
    }
}

/// Variant of [`dealloc`] for blocks of more than the common alignment.
///
/// # Safety
///
/// As for [`GlobalAlloc::dealloc`], with the layout of that size and alignment, which is more than [`COMMON_ALIGN`].
#[inline(never)]
unsafe fn dealloc_aligned<B: GlobalAlloc, P: OwnerPlace>(block: *mut u8, size: usize, align: usize) {
    debug_assert!(size_of::<Dogtag<B, P>>() == 0);
    // SAFETY: as in `dealloc`.
    unsafe {
        assert_unchecked(align > COMMON_ALIGN);
        let layout = Layout::from_size_align_unchecked(size, align);
        dealloc_any_size(NonNull::<Dogtag<B, P>>::dangling().as_ref(), block, layout);
    }
}

/// Frees a block of an allocator with fields.
///
/// # Safety
///
/// As for [`GlobalAlloc::dealloc`].
#[inline(never)]
unsafe fn dealloc_of<B: GlobalAlloc, P: OwnerPlace>(
    allocator: &Dogtag<B, P>,
    block: *mut u8,
    layout: Layout,
) {
    // SAFETY: the block is live and was requested from the allocator with that layout.
    unsafe { dealloc_any_size(allocator, block, layout) };
}

/// # Safety
///
/// As for [`GlobalAlloc::dealloc`].
#[inline(always)]
unsafe fn dealloc_any_size<B: GlobalAlloc, P: OwnerPlace>(
    allocator: &Dogtag<B, P>,
    block: *mut u8,
    layout: Layout,
) {
    // SAFETY: the block is live and was requested from the allocator with that layout.
    unsafe {
        if Dogtag::<B, P>::PLACEMENT.is_large(layout.size()) {
            cold_path();
            Dogtag::<B, P>::dealloc_large(block, layout.size(), layout.align());
        } else {
            dealloc_fast(allocator, block, layout);
        }
    }
}

/// Frees a block whose mark the calling thread has a cell for. Mostly that is the cell that it charges to, which is one
/// load away.
///
/// # Safety
///
/// As for [`GlobalAlloc::dealloc`].
#[inline(always)]
unsafe fn dealloc_fast<B: GlobalAlloc, P: OwnerPlace>(
    allocator: &Dogtag<B, P>,
    block: *mut u8,
    layout: Layout,
) {
    // SAFETY: the block is live and was requested here with that layout.
    let found = unsafe { Dogtag::<B, P>::PLACEMENT.first_mark(block, layout.size()) };
    let mut cell = thread::current();
    if !cell.is_own_for(found.mark()) {
        let mark = found.mark_after(block);
        cell = thread::cell(mark);
        if !cell.is_own_for(mark) {
            // SAFETY: the block is live and was requested here with that layout.
            return unsafe { Dogtag::dealloc_slow(block, layout, allocator) };
        }
    }
    debug_assert!(thread::is_own(cell), "another thread's cell is refunded");
    cell.refund(layout.size());
    // SAFETY: a mark that a cell has is a short slot's, so the block was requested with its
    // `short_layout`.
    unsafe { allocator.counted().dealloc(block, Dogtag::<B, P>::PLACEMENT.short_layout(layout)) };
}

/// Tells the compiler which way is the rarer one.
#[cold]
#[inline(always)]
fn cold_path() {}

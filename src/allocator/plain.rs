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
#[cfg(all(feature = "jemalloc", not(dogtag_loom)))]
use crate::backend::slabs;
use crate::ledger::charge::{self, Freed, Source};
use crate::ledger::samples;
use crate::ledger::slots::Record;
use crate::ledger::thread;
use crate::owner::{Named, OwnerPlace, Placement};
use crate::sampled_guard::blocks::{self, Found, Returned, Taken};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr::{self, NonNull};

// SAFETY: a block is the first `layout.size()` bytes of one that the backend
// gave for a layout of the same alignment and no smaller, and each block is given
// back or resized with the very layout it was requested with: `Placement::layout`
// of its own layout and owner. Nothing unwinds.
unsafe impl<B: GlobalAlloc, P: OwnerPlace> GlobalAlloc for Dogtag<B, P> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::PLACEMENT.is_large(layout.size()) {
            cold_path();
            // SAFETY: the layout is not empty: `GlobalAlloc::alloc` requires it.
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
            if size_of::<Self>() == 0 {
                dealloc::<B, P>(block, layout.size(), layout.align());
            } else {
                dealloc_of(self, block, layout);
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
        if old.own_mark() != mark || thread::current().needs_slow_path(new_size) {
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
            if !Self::PLACEMENT.write_short_at_once(block, cell.own_mark()) {
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
    /// As for [`GlobalAlloc::alloc`].
    #[inline(never)]
    unsafe fn alloc_large(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is not empty.
        unsafe { self.alloc_fast(layout) }
    }

    /// Frees a block whose owner stands beside the heap. The allocator comes last, so that the
    /// other arguments stay in their registers.
    ///
    /// # Safety
    ///
    /// As for [`GlobalAlloc::dealloc`], with the layout of that size and alignment.
    #[inline(never)]
    unsafe fn dealloc_large(block: *mut u8, size: usize, align: usize, allocator: &Self) {
        // SAFETY: the block is live and was requested from the allocator with that layout.
        unsafe { dealloc_fast(allocator, block, Layout::from_size_align_unchecked(size, align)) };
    }
}

/// Frees a block of an allocator without fields. The allocator is not passed on: an argument
/// that nobody needs is in the way of the backend's, which have the same registers. And the others stand
/// where `sdallocx` has them, whose first ones are a block and its size.
///
/// # Safety
///
/// As for [`GlobalAlloc::dealloc`], with the layout of that size and alignment.
#[inline(never)]
unsafe fn dealloc<B: GlobalAlloc, P: OwnerPlace>(block: *mut u8, size: usize, align: usize) {
    debug_assert!(size_of::<Dogtag<B, P>>() == 0);
    // SAFETY: a value without bytes may be anywhere, and the caller has one. The block is live and
    // was requested from it with that layout.
    unsafe {
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
            Dogtag::dealloc_large(block, layout.size(), layout.align(), allocator);
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
    let Some(found) = (unsafe { Dogtag::<B, P>::PLACEMENT.first_mark(block, layout.size()) }) else {
        // SAFETY: the block is live and was requested here with that layout.
        return unsafe { Dogtag::dealloc_slow(block, layout, allocator) };
    };
    let mut cell = thread::current();
    if cell.own_mark() != found.mark() {
        let mark = found.mark_after(block);
        cell = thread::cell(mark);
        if cell.own_mark() != mark {
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

/// The rare cases, each a whole job: a thread's first allocation or its last,
/// its first touch of a service, services beyond the short slots, limits and
/// peaks, and cookies that cannot be believed.
impl<B: GlobalAlloc, P: OwnerPlace> Dogtag<B, P> {
    /// Begins slabs of services' own, before the first of their blocks.
    #[inline]
    fn begin_slabs() {
        #[cfg(all(feature = "jemalloc", not(dogtag_loom)))]
        if Self::PLACEMENT.is_table()
            && !ptr::eq(thread::current_record(), &crate::ledger::slots::UNATTRIBUTED)
        {
            slabs::begin::<B>();
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn alloc_slow(&self, layout: Layout) -> *mut u8 {
        Self::begin_slabs();
        // The long slots' shorter way: their thresholds are never raised.
        if let Some((cell, slot)) = thread::current_long(layout.size())
            && let Some(outer) = Self::PLACEMENT.layout(layout, slot.into())
        {
            // SAFETY: the outer layout is no smaller than the block's, which is not empty, and has the bytes
            // for this slot's cookie.
            return unsafe {
                let block = self.counted().alloc(outer);
                if block.is_null() {
                    return block;
                }
                if Self::PLACEMENT.write(block, layout.size(), slot.into()) {
                    cell.charge(layout.size());
                } else {
                    thread::charge_ownerless(layout.size());
                }
                block
            };
        }
        // SAFETY: the outer layout is no smaller than the block's, which is not empty.
        unsafe { charged(Self::PLACEMENT, layout, None, |block| block, |outer| self.counted().alloc(outer)) }
    }

    #[cold]
    #[inline]
    unsafe fn alloc_zeroed_slow(&self, layout: Layout) -> *mut u8 {
        Self::begin_slabs();
        let zeroed = |block: *mut u8| {
            // SAFETY: a place for the block, which nobody else has.
            unsafe { block.write_bytes(0, layout.size()) };
            block
        };
        // SAFETY: the outer layout is no smaller than the block's, which is not empty.
        unsafe { charged(Self::PLACEMENT, layout, None, zeroed, |outer| self.counted().alloc_zeroed(outer)) }
    }

    /// The allocator comes last, so that the others stay where they are.
    #[cold]
    #[inline(never)]
    unsafe fn dealloc_slow(block: *mut u8, layout: Layout, allocator: &Self) {
        if let Some(returned) = blocks::take(block, Some(layout), Found::Dealloc) {
            if let Returned::Block(taken) = returned {
                taken.free();
            }
            return;
        }
        // The long slots' shorter way.
        // SAFETY: the block is live and came from here.
        let named = unsafe { Self::PLACEMENT.read(block, layout.size()) };
        if let Some(Named::Slot(slot)) = named.filter(|named| !named.is_short())
            && let Some(cell) = thread::long_cell(slot)
            && let Some(outer) = Self::PLACEMENT.layout(layout, slot.into())
        {
            cell.refund(layout.size());
            // SAFETY: the layout that the block was requested with.
            return unsafe { allocator.counted().dealloc(block, outer) };
        }
        // SAFETY: the block is live and came from here.
        let owner = unsafe { Owner::of(Self::PLACEMENT, block, layout) };
        owner.freed.refund();
        if let Some(outer) = owner.outer {
            // SAFETY: the layout that the block was requested with.
            unsafe { allocator.counted().dealloc(block, outer) };
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn realloc_slow(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        match Layout::from_size_align(new_size, layout.align()) {
            // SAFETY: the block is live and was requested here with that layout, and the new size
            // is not 0.
            Ok(new_layout) => unsafe { self.relayout(block, layout, new_layout) },
            Err(_) => ptr::null_mut(),
        }
    }

    /// Gives a block another layout. It goes to the current service; where the limits of that do not
    /// allow for it, it stays its former owner's, unless it grows.
    ///
    /// # Safety
    ///
    /// As for [`GlobalAlloc::realloc`], whatever the alignments.
    #[cold]
    pub(super) unsafe fn relayout(&self, block: *mut u8, layout: Layout, new_layout: Layout) -> *mut u8 {
        let guarded = match blocks::take(block, Some(layout), Found::Realloc) {
            Some(Returned::Block(taken)) => Some(taken),
            Some(Returned::Nothing) => return ptr::null_mut(),
            None => None,
        };
        // SAFETY: the block is live and came from here.
        let moved = unsafe { self.moved(block, guarded, layout, new_layout) };
        if let Some(taken) = guarded
            && moved.is_null()
        {
            taken.restore();
        }
        moved
    }

    /// # Safety
    ///
    /// As for [`relayout`](Self::relayout). The block is the sampled guard's, if `guarded` is some.
    unsafe fn moved(
        &self,
        block: *mut u8,
        guarded: Option<Taken>,
        layout: Layout,
        new_layout: Layout,
    ) -> *mut u8 {
        Self::begin_slabs();
        let owner = match guarded {
            Some(taken) => Owner { freed: taken.freed(), outer: None },
            // SAFETY: the block is live and came from here.
            None => unsafe { Owner::of(Self::PLACEMENT, block, layout) },
        };
        // What is in the block, for a new one; and the old one is freed, but for its owner's figures.
        let copied = |new: *mut u8| {
            // SAFETY: both are valid for the smaller of their sizes; the layout is the one that the block was
            // requested with, if that is known; otherwise it is left where it is.
            unsafe {
                ptr::copy_nonoverlapping(block, new, layout.size().min(new_layout.size()));
                match (guarded, owner.outer) {
                    (Some(taken), _) => taken.retire(),
                    (None, Some(outer)) => self.counted().dealloc(block, outer),
                    (None, None) => {}
                }
            }
            new
        };
        let was_asked = Cell::new(false);
        let place = |new_outer: Layout| {
            was_asked.set(true);
            // SAFETY: the layout that the block was requested with.
            unsafe {
                match owner.outer {
                    Some(outer) if outer.align() == new_outer.align() => {
                        let moved = self.counted().realloc(block, outer, new_outer.size());
                        // What is the same to the backend may stay.
                        if moved.is_null() && outer == new_outer { block } else { moved }
                    }
                    _ => {
                        let new = self.counted().alloc(new_outer);
                        if new.is_null() { new } else { copied(new) }
                    }
                }
            }
        };
        let is_growth = new_layout.size() > layout.size();
        let resized = || {
            let replaced = Some((owner.freed, !is_growth));
            // SAFETY: what `place` returns has the size that it is called with.
            unsafe { charged(Self::PLACEMENT, new_layout, replaced, copied, place) }
        };
        let moved = resized();
        if !moved.is_null() || is_growth {
            return moved;
        }
        let record = owner.freed.owner;
        let outer_of = |record: &Record| Self::PLACEMENT.layout(new_layout, record.slot().into());
        if was_asked.get() && outer_of(thread::current_record()) == outer_of(record) {
            // It was not denied, and the backend has nothing else to say.
            return moved;
        }
        // As a scope of the owner, it keeps the owner, which the block did until now.
        let current = thread::go_to(record);
        let moved = resized();
        thread::leave_for(current);
        moved
    }
}

/// A block of the current service, [charged](charge::charged); null where its limits or the
/// layout do not allow for it.
///
/// # Safety
///
/// What `allocate` returns, if not null, must be valid for writes of the layout
/// that it is given.
unsafe fn charged(
    placement: Placement,
    layout: Layout,
    replaced: Option<(Freed, bool)>,
    alone: impl FnOnce(*mut u8) -> *mut u8,
    allocate: impl FnOnce(Layout) -> *mut u8,
) -> *mut u8 {
    let allocate = |source| match source {
        Source::Heap(named) => placement.layout(layout, named).map_or(ptr::null_mut(), allocate),
        Source::Alone(block) => alone(block),
    };
    let reserve = || blocks::reserve_for(placement, layout);
    // SAFETY: the block has the layout that `named` needs.
    let note_owner = |block, named| unsafe { placement.write(block, layout.size(), named) };
    charge::charged(thread::current_account(), |_| layout.size(), reserve, replaced, allocate, note_owner)
}

/// What a block's cookie says.
#[derive(Clone, Copy)]
struct Owner {
    /// What is refunded for the block.
    freed: Freed,
    /// The layout that the block was requested with; `None` if that cannot be
    /// known, and the block must be left where it is.
    outer: Option<Layout>,
}

impl Owner {
    /// # Safety
    ///
    /// `block` must be a live block of that layout.
    unsafe fn of(placement: Placement, block: *mut u8, layout: Layout) -> Self {
        // SAFETY: the block is live, and has that layout.
        let named = unsafe { placement.read(block, layout.size()) };
        let owner = samples::owner(named, block);
        let outer = match owner.0.and(named) {
            Some(named) => placement.layout(layout, named),
            None => placement.layout_without_cookie(layout),
        };
        Self { freed: Freed::new(owner, layout.size()), outer }
    }
}

/// Tells the compiler which way is the rarer one.
#[cold]
#[inline(always)]
fn cold_path() {}

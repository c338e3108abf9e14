//! The rare cases, each a whole job: a thread's first allocation or its last,
//! its first touch of a service, services beyond the short slots, limits and
//! peaks, and cookies that cannot be believed.

use crate::allocator::Dogtag;
#[cfg(all(feature = "jemalloc", not(dogtag_loom)))]
use crate::backend::slabs;
use crate::ledger::charge::{self, Freed, Source};
use crate::ledger::samples;
use crate::ledger::slots::Record;
use crate::ledger::thread;
use crate::owner::{OwnerPlace, Placement};
use crate::sampled_guard::blocks::{self, Found, Returned, Taken};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr;

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

    /// What is rarer still has a function of its own, so that the long slots' shorter way need not save its registers.
    #[cold]
    #[inline(never)]
    pub(super) unsafe fn alloc_slow(&self, layout: Layout) -> *mut u8 {
        Self::begin_slabs();
        // The long slots' shorter way: their thresholds are never raised.
        let Some((cell, slot)) = thread::current_long(layout.size()) else {
            // SAFETY: the layout is not empty.
            return unsafe { self.alloc_charged(layout) };
        };
        // SAFETY: no grant goes beyond `UNCHECKED_SIZES`, so the size is less. The outer layout is no smaller than the
        // block's, which is not empty, and has the bytes for a long slot's cookie.
        unsafe {
            let block = self.counted().alloc(Self::PLACEMENT.long_layout(layout));
            if !block.is_null() {
                if Self::PLACEMENT.write_long(block, layout.size(), slot) {
                    cell.charge(layout.size());
                } else {
                    thread::charge_ownerless(layout.size());
                }
            }
            block
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn alloc_charged(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the outer layout is no smaller than the block's, which is not empty.
        unsafe { charged(Self::PLACEMENT, layout, None, |block| block, |outer| self.counted().alloc(outer)) }
    }

    #[cold]
    #[inline]
    pub(super) unsafe fn alloc_zeroed_slow(&self, layout: Layout) -> *mut u8 {
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
    pub(super) unsafe fn dealloc_slow(block: *mut u8, layout: Layout, allocator: &Self) {
        if let Some(returned) = blocks::take(block, Some(layout), Found::Dealloc) {
            if let Returned::Block(taken) = returned {
                taken.free();
            }
            return;
        }
        // The long slots' shorter way.
        // SAFETY: the block is live and came from here.
        if let Some(slot) = unsafe { Self::PLACEMENT.read_long(block, layout.size()) }
            && let Some(cell) = thread::long_cell(slot)
        {
            cell.refund(layout.size());
            // SAFETY: the layout that the block was requested with, which did not overflow.
            return unsafe { allocator.counted().dealloc(block, Self::PLACEMENT.long_layout(layout)) };
        }
        // SAFETY: the block is live and came from here.
        unsafe { Self::dealloc_looked_up(block, layout, allocator) };
    }

    #[cold]
    #[inline(never)]
    unsafe fn dealloc_looked_up(block: *mut u8, layout: Layout, allocator: &Self) {
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
    pub(super) unsafe fn realloc_slow(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
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
    pub(in crate::allocator) unsafe fn relayout(
        &self,
        block: *mut u8,
        layout: Layout,
        new_layout: Layout,
    ) -> *mut u8 {
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

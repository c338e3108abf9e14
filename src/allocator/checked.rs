//! The allocator with memory-check: it fetches and counts memory. The module [`check`](crate::check)
//! writes and verifies what stands around a block.

use super::{Counted, Dogtag};
use crate::check::{
    self, BlockHeader, Claim, Family, Fill, Noted, Operation, Releases, Returned, Settings, Whole,
};
use crate::ledger::samples;
use crate::ledger::sampling::Decision;
use crate::ledger::slots::{self, UNATTRIBUTED};
use crate::ledger::threshold::{self, Admitted, Replaced};
use crate::ledger::{anomalies, thread};
use crate::owner::{Named, OwnerPlace, SampleId};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{self, NonNull};

// SAFETY: a block stands within memory that the backend gave for
// `check::layout` of its own layout, and that goes back with the same layout,
// when the block has left the quarantine. Nothing unwinds.
unsafe impl<B: GlobalAlloc, P: OwnerPlace> GlobalAlloc for Dogtag<B, P> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.alloc_as(Family::Malloc, layout)
    }

    // Out of line it crashes rustc: see `plain`.
    #[inline(always)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: with its guards the layout is not empty.
        let allocate = |outer| unsafe { self.counted().alloc_zeroed(outer) };
        match self.quick(layout, Family::Malloc, Settings::get(), allocate) {
            Some(block) => {
                thread::current().charge(layout.size());
                block.as_ptr()
            }
            None => counted(self.zeroed(layout), layout.size()),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `GlobalAlloc::dealloc` requires a block that was requested here with that layout.
        unsafe { self.free(block, Claim::layout(layout)) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let new_layout = Layout::from_size_align(new_size, layout.align()).ok();
        // SAFETY: `GlobalAlloc::realloc` requires a block that was requested here with that layout.
        unsafe { self.resize(block, Claim::layout(layout), new_layout) }
    }
}

impl<B: GlobalAlloc, P: OwnerPlace> Dogtag<B, P> {
    /// Allocates a block of one of C++'s families.
    #[inline]
    pub(crate) fn alloc_as(&self, family: Family, layout: Layout) -> *mut u8 {
        let settings = Settings::get();
        // SAFETY: with its guards the layout is not empty.
        match self.quick(layout, family, settings, |outer| unsafe { self.counted().alloc(outer) }) {
            Some(block) => {
                thread::current().charge(layout.size());
                fill_fresh(block, layout.size(), settings);
                block.as_ptr()
            }
            None => counted(self.fresh(layout, family, None), layout.size()),
        }
    }

    /// Allocates a block of 0 bytes: at a page without access, or where there is none, as any other.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_zero_sized(&self, family: Family, layout: Layout) -> *mut u8 {
        let Some(asked) = Self::ask(0, None) else { return ptr::null_mut() };
        match self.checker.hand_out_zero_sized(layout, family, asked.sample()) {
            Some(block) => counted(Some((block, asked)), 0),
            None => {
                drop(asked);
                self.alloc_as(family, layout)
            }
        }
    }

    /// Frees a block, and reports it if it is not what the program says.
    ///
    /// # Safety
    ///
    /// The block must be live, and be that.
    #[inline]
    pub(crate) unsafe fn free(&self, block: *mut u8, claim: Claim) {
        match self.checker.take_whole(block, claim) {
            // SAFETY: the block came from here.
            Some(whole) => unsafe { self.retire(whole) },
            // SAFETY: the block came from this allocator, and `free_slowly` verifies everything else.
            None => unsafe { self.free_slowly(block, claim.family, claim.size, claim.alignment) },
        }
    }

    /// Resizes a block. Moves it, so that stale pointers to the old place are found. The new block goes
    /// to the current service. Fails without a new layout.
    ///
    /// What does not grow is never denied. Where the current service's limits do not allow for it, it stays
    /// its former owner's. Where there is no memory for a copy, it stays in its place, and
    /// shrinks there.
    ///
    /// # Safety
    ///
    /// As for [`free`](Self::free).
    pub(crate) unsafe fn resize(&self, block: *mut u8, claim: Claim, new_layout: Option<Layout>) -> *mut u8 {
        let returned = match self.checker.take_whole(block, claim) {
            // SAFETY: the block was taken, and came from here.
            Some(whole) => match unsafe { self.move_quickly(&whole, new_layout) } {
                Some(new) => {
                    let size = new_layout.map_or(0, |layout| layout.size());
                    // SAFETY: as above. The new block is there.
                    unsafe { self.retire(whole) };
                    thread::current().charge(size);
                    return new.as_ptr();
                }
                None => Returned::Whole(whole),
            },
            None => self.checker.take_back(block, claim, Operation::Realloc),
        };
        // What is left of the block that can be copied, if that is known, and whether
        // its service gets it back.
        let (old_size, owner) = match &returned {
            Returned::Whole(Whole { header, .. })
            | Returned::ZeroSized(Whole { header, .. })
            | Returned::Leaked(Some(header)) => (Some(header.layout().size()), header.owner()),
            Returned::Leaked(None) => (claim.size, None),
            Returned::Refused => return ptr::null_mut(),
        };
        let (Some(old_size), Some(new_layout)) = (old_size, new_layout) else {
            self.checker.keep(block, &returned);
            return ptr::null_mut();
        };
        let (new_size, is_growth) = (new_layout.size(), new_layout.size() > old_size);
        let owner = owner.and_then(slots::record).unwrap_or(&UNATTRIBUTED);
        let replaced = Some(Replaced { owner, size: old_size, stays: !is_growth });
        let move_to = |new: Uncounted, returned| {
            // SAFETY: both blocks are valid for the smaller size; the old one is
            // given up only when the new one is there.
            unsafe {
                ptr::copy_nonoverlapping(block, new.0.as_ptr(), old_size.min(new_size));
                self.finish(block, returned, claim);
            }
            counted(Some(new), new_size)
        };
        if let Some(new) = self.fresh(new_layout, Family::Malloc, replaced) {
            return move_to(new, returned);
        }
        if is_growth {
            self.checker.keep(block, &returned);
            return ptr::null_mut();
        }
        let shrink = |returned, asked: Option<Asked>| match (returned, asked) {
            // SAFETY: the block is seized, and so this thread's alone; it does not grow.
            (Returned::Whole(whole), Some(asked)) => unsafe { self.shrink(whole, claim, new_layout, asked) },
            (returned, asked) => {
                // Whatever is given back as this one will not be looked at again.
                self.checker.keep(block, &returned);
                if asked.is_some() { block } else { ptr::null_mut() }
            }
        };
        let asked = Self::ask(new_size, replaced);
        if asked.is_some() {
            // There is no memory for a copy.
            return shrink(returned, asked);
        }
        // As a scope of the owner, it keeps the owner, which the block did until now.
        let current = thread::go_to(owner);
        let resized = match self.fresh(new_layout, Family::Malloc, replaced) {
            Some(new) => move_to(new, returned),
            None => shrink(returned, Self::ask(new_size, replaced)),
        };
        thread::leave_for(current);
        resized
    }

    /// Copies a block into a new one for the current service, which is to be charged, where nothing has to be asked and
    /// there is memory. `None`, and nothing has happened, otherwise.
    ///
    /// # Safety
    ///
    /// The block must have been taken from here.
    #[inline(always)]
    unsafe fn move_quickly(&self, whole: &Whole, new_layout: Option<Layout>) -> Option<NonNull<u8>> {
        let (layout, settings) = (new_layout?, Settings::get());
        // SAFETY: with its guards the layout is not empty.
        let allocate = |outer| unsafe { self.counted().alloc(outer) };
        let new = self.quick(layout, Family::Malloc, settings, allocate)?;
        let (old, size) = (whole.header.layout().size(), layout.size());
        // SAFETY: both blocks are valid for the smaller size, and the new one, which is nobody else's, for its own.
        unsafe {
            ptr::copy_nonoverlapping(whole.block.as_ptr(), new.as_ptr(), old.min(size));
            if size > old {
                fill_fresh(new.add(old), size - old, settings);
            }
        }
        Some(new)
    }

    /// Makes a block smaller where it is, and gives it to the current service.
    ///
    /// # Safety
    ///
    /// As for [`retire`](Self::retire); the size must be no larger.
    unsafe fn shrink(&self, whole: Whole, claim: Claim, new_layout: Layout, asked: Asked) -> *mut u8 {
        let (former, at) = (whole.header, whole.block.as_ptr());
        // SAFETY: the block is seized, and so this thread's alone.
        match unsafe { self.checker.shrink(whole, claim, new_layout, asked.sample()) } {
            Some(block) => {
                refund(at, Some(&former), None);
                counted(Some((block, asked)), new_layout.size())
            }
            None => ptr::null_mut(),
        }
    }

    /// Gives a block another layout.
    ///
    /// # Safety
    ///
    /// As for `realloc`, whatever the alignments.
    #[cfg(feature = "allocator-api2")]
    pub(super) unsafe fn relayout(&self, block: *mut u8, layout: Layout, new_layout: Layout) -> *mut u8 {
        // SAFETY: `realloc` requires a block that was requested here with that layout.
        unsafe { self.resize(block, Claim::layout(layout), Some(new_layout)) }
    }

    /// Returns the size that a live block was requested with; reports a pointer to no live block, and
    /// returns `None`.
    pub(crate) fn size(&self, block: *mut u8) -> Option<usize> {
        self.checker.size(block)
    }
}

/// Bytes of a fresh block that are filled.
const MOST_FILLED: usize = 64 << 20;

/// Fills a new block.
#[inline]
fn fill_fresh(block: NonNull<u8>, size: usize, settings: &Settings) {
    // A program may well reserve more than it will ever touch.
    // SAFETY: the block is new, and as long as that.
    let fill = |byte| unsafe { check::fill::fill(block.as_ptr(), byte, size.min(MOST_FILLED)) };
    match settings.fill {
        Fill::Patterns => fill(check::FRESH),
        Fill::Zeros => fill(0),
        Fill::Nothing => {}
    }
}

impl<B: GlobalAlloc, P: OwnerPlace> Dogtag<B, P> {
    /// Obtains a block for the current service, which is to be charged, where nothing has to be asked and
    /// there is memory. `None`, and nothing has happened, otherwise: what was asked is large, and would
    /// be copied from function to function.
    #[inline(always)]
    fn quick(
        &self,
        layout: Layout,
        family: Family,
        settings: &Settings,
        allocate: impl Fn(Layout) -> *mut u8,
    ) -> Option<NonNull<u8>> {
        if thread::current().needs_slow_path(layout.size()) || !check::is_plain(layout) {
            return None;
        }
        self.hand_out(layout, check::layout(layout)?, family, None, settings, allocate)
    }

    /// Obtains a filled block for the current service.
    #[inline(never)]
    fn fresh(&self, layout: Layout, family: Family, replaced: Option<Replaced>) -> Option<Uncounted> {
        // SAFETY: the layout is not empty.
        let new = self.obtain(layout, family, replaced, |outer| unsafe { self.counted().alloc(outer) })?;
        fill_fresh(new.0, layout.size(), Settings::get());
        Some(new)
    }

    #[inline(never)]
    fn zeroed(&self, layout: Layout) -> Option<Uncounted> {
        // SAFETY: the layout is not empty.
        self.obtain(layout, Family::Malloc, None, |outer| unsafe { self.counted().alloc_zeroed(outer) })
    }

    /// Makes a block in memory that `allocate` gives.
    #[inline]
    fn obtain(
        &self,
        layout: Layout,
        family: Family,
        replaced: Option<Replaced>,
        allocate: impl Fn(Layout) -> *mut u8,
    ) -> Option<Uncounted> {
        let outer = check::layout(layout)?;
        let asked = Self::ask(layout.size(), replaced)?;
        match self.hand_out(layout, outer, family, asked.sample(), Settings::get(), &allocate) {
            Some(block) => Some((block, asked)),
            None => {
                drop(asked);
                self.obtain_in_need(layout, outer, family, replaced, &allocate)
            }
        }
    }

    /// Obtains a block where the backend has no memory left: releases blocks from the quarantine,
    /// and tries again, since other threads put more in meanwhile, or may have taken it.
    #[cold]
    #[inline(never)]
    fn obtain_in_need(
        &self,
        layout: Layout,
        outer: Layout,
        family: Family,
        replaced: Option<Replaced>,
        allocate: &dyn Fn(Layout) -> *mut u8,
    ) -> Option<Uncounted> {
        const TRIES: usize = 8;

        for _ in 0..TRIES {
            // SAFETY: that is what blocks are retired with.
            if !unsafe { self.checker.flush::<B, ToBackend>(&self.backend) } {
                break;
            }
            // Anew: a handler may have allocated, which was called for a violation.
            let asked = Self::ask(layout.size(), replaced)?;
            let settings = Settings::get();
            if let Some(block) = self.hand_out(layout, outer, family, asked.sample(), settings, allocate) {
                return Some((block, asked));
            }
        }
        None
    }

    #[inline(always)]
    fn hand_out(
        &self,
        layout: Layout,
        outer: Layout,
        family: Family,
        sample: Option<SampleId>,
        settings: &Settings,
        allocate: impl Fn(Layout) -> *mut u8,
    ) -> Option<NonNull<u8>> {
        let noted = Noted::now(family, sample);
        let base = NonNull::new(allocate(outer))?;
        // SAFETY: the memory is ours, and of that layout.
        let Some(block) = (unsafe { self.checker.hand_out(base, layout, outer, noted, settings) }) else {
            // SAFETY: the memory is ours, of that layout, and nobody has seen it.
            unsafe { self.counted().dealloc(base.as_ptr(), outer) };
            return None;
        };
        Some(block)
    }

    /// Asks whether the current service's limits allow for a block: `None` if they do
    /// not, and nothing within if the hot path would not have asked.
    #[inline]
    fn ask(size: usize, replaced: Option<Replaced>) -> Option<Asked> {
        if !thread::current().needs_slow_path(size) {
            return Some(Asked::default());
        }
        // The thread may be a new one, which has nothing from the backend yet.
        check::begin_thread::<B>();
        let (account, record) = thread::current_account();
        let decision = Decision::of(account, record, size);
        let admitted = threshold::ask(account, record, size, replaced)?;
        Some(Asked(Some((admitted, decision))))
    }

    /// Counts a block as freed, and puts it into quarantine.
    ///
    /// # Safety
    ///
    /// The block must have been given back to this allocator.
    #[inline(always)]
    unsafe fn retire(&self, whole: Whole) {
        refund(whole.block.as_ptr(), Some(&whole.header), None);
        // SAFETY: the block is seized, and was requested from this allocator's backend.
        unsafe { self.checker.retire::<B, ToBackend>(whole, &self.backend) };
    }

    /// Frees what is not simply a live block. What the program says of it is passed in parts, since a
    /// whole would be written to memory before it is known to be needed.
    ///
    /// # Safety
    ///
    /// As for [`free`](Self::free).
    #[cold]
    #[inline(never)]
    unsafe fn free_slowly(
        &self,
        block: *mut u8,
        family: Option<Family>,
        size: Option<usize>,
        alignment: Option<usize>,
    ) {
        let claim = Claim { family, size, alignment };
        let returned = self.checker.take_back(block, claim, Operation::Dealloc);
        // SAFETY: what was taken back is seized, and so this thread's alone.
        unsafe { self.finish(block, returned, claim) };
    }

    /// # Safety
    ///
    /// As for [`retire`](Self::retire).
    unsafe fn finish(&self, block: *mut u8, returned: Returned, claim: Claim) {
        match returned {
            // SAFETY: the block is seized, and was requested from this allocator's backend.
            Returned::Whole(whole) => unsafe { self.retire(whole) },
            Returned::ZeroSized(whole) => {
                refund(block, Some(&whole.header), None);
                // SAFETY: the block is seized, and was allocated here.
                unsafe { self.checker.retire_zero_sized::<B, ToBackend>(whole, &self.backend) };
            }
            Returned::Leaked(known) => refund(block, known.as_ref(), claim.size),
            Returned::Refused => {}
        }
    }
}

impl<B, P> Drop for Dogtag<B, P> {
    fn drop(&mut self) {
        self.checker.end(&self.backend);
    }
}

/// What was asked about a new block, if anything was.
#[derive(Default)]
struct Asked(Option<(Admitted, Decision)>);

impl Asked {
    /// The block's sample, if it is one that is sampled.
    #[inline]
    fn sample(&self) -> Option<SampleId> {
        self.0.as_ref().and_then(|(_, decision)| decision.sample())
    }
}

/// A new block, and what was asked about it.
type Uncounted = (NonNull<u8>, Asked);

/// Charges a new block to the current service.
#[inline]
fn counted(new: Option<Uncounted>, size: usize) -> *mut u8 {
    let Some((block, asked)) = new else { return ptr::null_mut() };
    match asked.0 {
        Some((admitted, decision)) => {
            admitted.charge(size);
            decision.finish(block.as_ptr(), size);
        }
        None => thread::current().charge(size),
    }
    block.as_ptr()
}

/// Gives a block's memory back to its backend, that was requested for it and around it.
struct ToBackend;

impl<B: GlobalAlloc> Releases<B> for ToBackend {
    #[inline]
    unsafe fn release(backend: &B, base: NonNull<u8>, outer: Layout) {
        // SAFETY: the caller's memory, which was requested with that layout.
        unsafe { Counted(backend).dealloc(base.as_ptr(), outer) };
    }
}

/// Counts a block as freed by its owner, or as lost if something has
/// overwritten who that is.
#[inline(always)]
fn refund(block: *const u8, known: Option<&BlockHeader>, claimed: Option<usize>) {
    if let Some(sample) = known.and_then(BlockHeader::sample)
        && let (_, Some(sample)) = samples::owner(Some(Named::Sample(sample)), block)
    {
        samples::release(sample);
    }
    let is_refunded = known.is_some_and(|known| {
        let size = known.layout().size();
        thread::refund_current(known.owner_index(), size)
            || known.owner().is_some_and(|owner| thread::refund(owner, size))
    });
    if !is_refunded {
        let size = known.map(|known| known.layout().size()).or(claimed);
        anomalies::LOST.add(size.unwrap_or(0));
    }
}

//! How memory is taken from a pool's blocks.
//!
//! An allocation goes down this list until something has memory for it:
//!
//! 1. the active block, if the size is not large: the fast path, [`Node::reserve_or`];
//! 2. the global allocator, if the size is large;
//! 3. the active block again, for what fits only without the fast path's slack;
//! 4. an open block;
//! 5. a new block, from the store, which then is the active one.

use super::{ALWAYS_SMALL, LEAST_BLOCK, Node, Refusal, grown};
use crate::block::{Block, GRAIN, Visit};
use crate::large::Large;
use crate::tree::InTree;
use std::alloc::Layout;
use std::num::NonZero;
use std::ptr::NonNull;

/// The number of failures after which a block is passed over.
const MOST_FAILURES: u32 = 5;
/// The least number of free bytes with which a block is tried again.
const LEAST_FREE: usize = 64;

impl Node {
    /// Allocates memory, which is valid until the pool is cleared.
    pub(crate) fn reserve(&self, layout: Layout) -> Result<NonNull<u8>, Refusal> {
        self.reserve_or(layout, || self.reserve_slow(layout))
    }

    /// Allocates memory in the active block, or else by `slow`, which is the caller's own: so no
    /// result has to be looked at where the two paths meet.
    #[inline(always)]
    pub(crate) fn reserve_or<E>(
        &self,
        layout: Layout,
        slow: impl FnOnce() -> Result<NonNull<u8>, E>,
    ) -> Result<NonNull<u8>, E> {
        self.debug_assert_active();
        if layout.align() <= GRAIN && self.is_small(layout.size()) {
            let mask = layout.align() - 1;
            let position = self.position.get().as_ptr();
            // Enough however the position is aligned; whether it would just do, the slow path
            // finds out. The position is not aligned before the comparison: then a load that is
            // folded into that would wait for the store of the last allocation.
            if layout.size() + mask <= self.end.get().addr().get() - position.addr() {
                // SAFETY: between position and end, both of the active block, are `size + mask`
                // bytes, of which aligning takes `mask` at most; so both results are in it.
                unsafe {
                    let start = position.map_addr(|address| (address + mask) & !mask);
                    debug_assert!(start >= position && start.addr().is_multiple_of(layout.align()));
                    self.position.set(NonNull::new_unchecked(start.add(layout.size())));
                    self.debug_assert_active();
                    return Ok(NonNull::new_unchecked(start));
                }
            }
        }
        slow()
    }

    /// Asserts, with debug assertions, that the position is in the active block, behind its header.
    #[inline(always)]
    fn debug_assert_active(&self) {
        debug_assert!(
            {
                let (active, position) = (self.active.get(), self.position.get());
                // SAFETY: the active block is not freed while it is the pool's.
                let end = unsafe { active.as_ref() }.end;
                position.addr().get() >= active.addr().get() + Block::HEADER
                    && position <= end
                    && end == self.end.get()
            },
            "the position is outside of the active block"
        );
    }

    /// Returns whether so many bytes are not large, without a jump for the smallest.
    #[inline(always)]
    fn is_small(&self, size: usize) -> bool {
        if size <= ALWAYS_SMALL {
            return true;
        }
        unlikely();
        size <= self.max_small
    }

    /// Returns whether such an allocation is one of the global allocator's.
    #[inline(always)]
    pub(super) fn is_large(&self, layout: Layout) -> bool {
        layout.size() > 0 && layout.size().saturating_add(padding(layout)) > self.max_small
    }

    /// Allocates zeroed memory, which is valid until the pool is cleared.
    pub(crate) fn reserve_zeroed(&self, layout: Layout) -> Result<NonNull<u8>, Refusal> {
        if self.is_large(layout) {
            return self.reserve_large(layout, true);
        }
        let memory = self.reserve(layout)?;
        // SAFETY: the memory was reserved with this size, and is nobody else's.
        unsafe { memory.write_bytes(0, layout.size()) };
        Ok(memory)
    }

    /// Allocates memory for which the fast path has none.
    #[cold]
    #[inline(never)]
    pub(crate) fn reserve_slow(&self, layout: Layout) -> Result<NonNull<u8>, Refusal> {
        if self.is_large(layout) {
            return self.reserve_large(layout, false);
        }
        if let (0, Some(align)) = (layout.size(), NonZero::new(layout.align())) {
            return Ok(NonNull::without_provenance(align));
        }
        if let Some(start) = self.reserve_in_active(layout).or_else(|| self.reserve_in_open(layout)) {
            return Ok(start);
        }
        let needed =
            (Block::HEADER + layout.size() + padding(layout)).next_multiple_of(GRAIN).max(LEAST_BLOCK);
        let most = self.allowance(needed)? & !(GRAIN - 1);
        let wanted = self.next_size.get().max(needed).min(most);
        let block = self.store().take(needed, wanted, most).ok_or(Refusal::NoMemory)?;
        // SAFETY: the block was taken out of the store for this pool, and is in no list.
        unsafe {
            self.grow_held(Block::size(block));
            self.next_size.set(grown(self.next_size.get(), self.block_size));
            self.put_aside();
            self.activate(block);
        }
        self.reserve_in_active(layout).ok_or(Refusal::NoMemory)
    }

    /// Returns how many bytes limits allow, if it is at least so many.
    pub(super) fn allowance(&self, bytes: usize) -> Result<usize, Refusal> {
        self.headroom_for(bytes).map_err(Refusal::Limit)
    }

    /// Allocates memory in the blocks that the pool already has.
    pub(super) fn reserve_in_blocks(&self, layout: Layout) -> Option<NonNull<u8>> {
        if self.is_large(layout) {
            return None;
        }
        if layout.size() == 0 {
            return self.reserve(layout).ok();
        }
        self.reserve_in_active(layout).or_else(|| self.reserve_in_open(layout))
    }

    fn reserve_in_active(&self, layout: Layout) -> Option<NonNull<u8>> {
        let start = Block::fit(self.position.get(), self.end.get(), layout)?;
        // SAFETY: the layout fits between `start` and the active block's end.
        self.position.set(unsafe { start.add(layout.size()) });
        self.debug_assert_active();
        Some(start)
    }

    /// Allocates memory in an open block. One that has more left than the active block takes its
    /// place.
    fn reserve_in_open(&self, layout: Layout) -> Option<NonNull<u8>> {
        let free_in_active = self.end.get().addr().get() - self.position.get().addr().get();
        let (mut found, mut freer) = (None, None);
        // SAFETY: blocks of a pool are not freed before it is cleared; one that is put elsewhere,
        // into the full blocks or as the active one, is removed from the list.
        unsafe {
            self.open.sift(usize::MAX, |block| {
                let Block { position, end, failures, .. } = block.as_ref();
                if let Some(start) = Block::fit(position.get(), *end, layout) {
                    found = Some(start);
                    position.set(start.add(layout.size()));
                    if end.addr().get() - position.get().addr().get() <= free_in_active {
                        return Visit::Stop;
                    }
                    freer = Some(block);
                    return Visit::RemoveAndStop;
                }
                failures.set(failures.get() + 1);
                if failures.get() < MOST_FAILURES {
                    return Visit::Keep;
                }
                self.pass_over(block);
                Visit::Remove
            });
            if let Some(block) = freer {
                self.put_aside();
                self.activate(block);
            }
        }
        found
    }

    /// Makes a block the active one.
    ///
    /// # Safety
    ///
    /// The block must be this pool's, and in no list.
    pub(super) unsafe fn activate(&self, block: NonNull<Block>) {
        // SAFETY: a block of this pool is not freed before the pool is cleared.
        let header = unsafe { block.as_ref() };
        self.position.set(header.position.get());
        self.end.set(header.end);
        self.active.set(block);
        self.debug_assert_active();
    }

    /// Puts the active block, in which something did not fit, into a list. Another block must be
    /// activated next.
    fn put_aside(&self) {
        let (block, position) = (self.active.get(), self.position.get());
        // SAFETY: the active block is the pool's, and in no list.
        unsafe {
            block.as_ref().position.set(position);
            let failures = block.as_ref().failures.get() + 1;
            block.as_ref().failures.set(failures);
            let free = self.end.get().addr().get() - position.addr().get();
            let is_open = free >= LEAST_FREE && failures < MOST_FAILURES;
            if is_open { self.open.push(block) } else { self.pass_over(block) }
        }
    }

    /// Puts a block where it is not tried any more before the pool is cleared.
    ///
    /// # Safety
    ///
    /// The block must be this pool's, and in no list.
    pub(super) unsafe fn pass_over(&self, block: NonNull<Block>) {
        if block == self.first {
            self.is_first_full.set(true);
        } else {
            // SAFETY: a block of this pool that is in no list.
            unsafe { self.full.push(block) };
        }
    }

    #[cold]
    #[inline(never)]
    fn reserve_large(&self, layout: Layout, is_zeroed: bool) -> Result<NonNull<u8>, Refusal> {
        let record = match self.larges.take_unused() {
            Some(record) => record,
            None => self.reserve(Layout::new::<Large>())?.cast(),
        };
        let memory = self
            .allowance(layout.size())
            .and_then(|_| self.store().allocate(layout, is_zeroed).ok_or(Refusal::NoMemory));
        // SAFETY: the record's memory was reserved for it, and is in no list; the store has
        // allocated the memory with this layout.
        unsafe {
            match memory {
                Ok(memory) => self.larges.add(record, memory, layout),
                Err(_) => self.larges.keep_unused(record),
            }
        }
        let memory = memory?;
        self.grow_held(layout.size());
        Ok(memory)
    }
}

/// Returns the most bytes that aligning takes.
#[inline(always)]
fn padding(layout: Layout) -> usize {
    if layout.align() <= GRAIN { 0 } else { layout.align() - GRAIN }
}

/// Tells the compiler that this branch is rarely taken.
#[cold]
#[inline(always)]
fn unlikely() {}

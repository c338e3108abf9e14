//! Where pools get their memory from and give it back to: the allocator, on behalf of one
//! service, and what was kept for reuse. A child has its parent's store, as APR's pools have
//! their parent's allocator, unless it belongs to another service or is to keep another amount.

use crate::block::{Block, GRAIN, List, Queue, Visit};
use dogtag::Service;
use std::alloc::{self, Layout};
use std::cell::Cell;
use std::ptr::NonNull;

pub(crate) struct Store {
    pub(crate) service: Service,
    /// Bytes that are kept for reuse at most.
    max_free: usize,
    spare: List,
    spare_bytes: Cell<usize>,
}

/// How many spare blocks are looked at before a new one is asked for.
const TRIES: usize = 8;

impl Store {
    pub(crate) fn new(service: Service, max_free: usize) -> Self {
        Self { service, max_free, spare: List::default(), spare_bytes: Cell::new(0) }
    }

    /// Whether memory may be denied by a limit of its service, or of one above that.
    pub(crate) fn is_limited(&self) -> bool {
        dogtag::__private::is_limited(&self.service)
    }

    pub(crate) fn max_free(&self) -> usize {
        self.max_free
    }

    pub(crate) fn spare_bytes(&self) -> usize {
        self.spare_bytes.get()
    }

    /// A block of the wanted size if there can be one, of at least one that is needed,
    /// and no larger than some other; all three multiples of the grain.
    pub(crate) fn take(&self, needed: usize, wanted: usize, most: usize) -> Option<NonNull<Block>> {
        let suits = |size| (needed..=most).contains(&size);
        // The smallest of what is wanted, or else the largest below.
        let is_better = |size: usize, best: usize| {
            if best < wanted { size > best } else { size >= wanted && size < best }
        };
        let mut best: Option<(NonNull<Block>, usize)> = None;
        // SAFETY: spare blocks are there until they are taken.
        unsafe {
            self.spare.sift(TRIES, |block| {
                let size = Block::size(block);
                if suits(size) && best.is_none_or(|(_, best)| is_better(size, best)) {
                    best = Some((block, size));
                }
                if size == wanted { Visit::Stop } else { Visit::GoOn }
            });
        }
        let Some((block, size)) = best else {
            let size = wanted.min(most);
            // As much as is asked for goes back of what does not suit, so that a loop that puts what
            // suits behind it does not have more each time.
            self.trim(self.spare_bytes().saturating_sub(size));
            return self.new_block(size);
        };
        // SAFETY: as above.
        unsafe {
            let found = |other| if other == block { Visit::TakeOutAndStop } else { Visit::GoOn };
            self.spare.sift(TRIES, found);
            Block::reset(block);
        }
        self.spare_bytes.set(self.spare_bytes.get() - size);
        Some(block)
    }

    /// Keeps a block for reuse, unless more than so many bytes would be kept.
    ///
    /// # Safety
    ///
    /// The block must come from a store, and nobody use it.
    pub(crate) unsafe fn give(&self, block: NonNull<Block>, max_free: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let spare_bytes = self.spare_bytes.get().saturating_add(Block::size(block));
            if spare_bytes > max_free {
                return free_block(block);
            }
            self.spare_bytes.set(spare_bytes);
            self.spare.push(block);
        }
    }

    /// The same of many, which have so many bytes together: in one step, if all are kept. Their
    /// headers, which nobody has looked at for long, are left alone.
    ///
    /// # Safety
    ///
    /// As for [`give`](Self::give).
    pub(crate) unsafe fn give_all(&self, blocks: &Queue, bytes: usize, max_free: usize) {
        let spare_bytes = self.spare_bytes.get().saturating_add(bytes);
        // SAFETY: the caller's promise.
        unsafe {
            if spare_bytes > max_free {
                return blocks.drain().for_each(|block| self.give(block, max_free));
            }
            self.spare_bytes.set(spare_bytes);
            blocks.move_to(&self.spare);
        }
    }

    /// Gives back what was kept for reuse beyond so many bytes.
    pub(crate) fn trim(&self, max_free: usize) {
        // SAFETY: nobody uses spare blocks.
        unsafe {
            self.spare.sift(usize::MAX, |block| {
                if self.spare_bytes.get() <= max_free {
                    return Visit::Stop;
                }
                self.spare_bytes.set(self.spare_bytes.get() - Block::size(block));
                free_block(block);
                Visit::TakeOut
            });
        }
    }

    #[cold]
    fn new_block(&self, size: usize) -> Option<NonNull<Block>> {
        let layout = Layout::from_size_align(size, GRAIN).ok()?;
        let memory = self.allocate(layout, false)?;
        // SAFETY: it is of that size and alignment.
        Some(unsafe { Block::begin(memory, size) })
    }

    /// Memory of the allocator's. The layout is not empty.
    pub(crate) fn allocate(&self, layout: Layout, is_zeroed: bool) -> Option<NonNull<u8>> {
        debug_assert!(layout.size() > 0);
        let _scope = self.service.enter();
        // SAFETY: no layout here is empty.
        NonNull::new(unsafe { if is_zeroed { alloc::alloc_zeroed(layout) } else { alloc::alloc(layout) } })
    }

    /// # Safety
    ///
    /// As for [`alloc::realloc`].
    pub(crate) unsafe fn reallocate(
        &self,
        memory: NonNull<u8>,
        layout: Layout,
        size: usize,
    ) -> Option<NonNull<u8>> {
        let _scope = self.service.enter();
        // SAFETY: the caller's promise.
        NonNull::new(unsafe { alloc::realloc(memory.as_ptr(), layout, size) })
    }
}

/// # Safety
///
/// The block must come from a store, and nobody use it.
pub(crate) unsafe fn free_block(block: NonNull<Block>) {
    // SAFETY: the caller's promise; the layout is the one that it was allocated with.
    unsafe {
        let layout = Layout::from_size_align_unchecked(Block::size(block), GRAIN);
        alloc::dealloc(block.as_ptr().cast(), layout);
    }
}

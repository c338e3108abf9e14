//! Where pools get their blocks from and return them to: the global allocator, on behalf of one
//! service, behind a list of spare blocks. A child uses its parent's store, as APR's pools use
//! their parent's allocator, unless it has another service or keeps another amount.

use crate::block::{Block, GRAIN, List, Queue, Visit};
use dogtag::Service;
use std::alloc::{self, Layout};
use std::cell::Cell;
use std::ptr::NonNull;

pub(crate) struct Store {
    pub(crate) service: Service,
    /// The largest number of bytes in spare blocks.
    max_free: usize,
    /// Blocks that were allocated here and that nobody uses.
    spare: List,
    spare_bytes: Cell<usize>,
}

/// How many spare blocks are tried before a new one is allocated.
const TRIES: usize = 8;

impl Store {
    pub(crate) fn new(service: Service, max_free: usize) -> Self {
        Self { service, max_free, spare: List::default(), spare_bytes: Cell::new(0) }
    }

    /// Returns whether a limit of the service, or of one above it, may deny memory.
    pub(crate) fn is_limited(&self) -> bool {
        dogtag::__private::is_limited(&self.service)
    }

    pub(crate) fn max_free(&self) -> usize {
        self.max_free
    }

    pub(crate) fn spare_bytes(&self) -> usize {
        self.spare_bytes.get()
    }

    /// Returns a block of `needed` to `most` bytes, of `wanted` bytes if possible. All three are
    /// multiples of [`GRAIN`].
    pub(crate) fn take(&self, needed: usize, wanted: usize, most: usize) -> Option<NonNull<Block>> {
        let suits = |size| (needed..=most).contains(&size);
        // The smallest block that is large enough, or else the largest of the others.
        let is_better = |size: usize, best: usize| {
            if best < wanted { size > best } else { size >= wanted && size < best }
        };
        let mut best: Option<(NonNull<Block>, usize)> = None;
        // SAFETY: spare blocks are freed by `trim` alone; none is removed here.
        unsafe {
            self.spare.sift(TRIES, |block| {
                let size = Block::size(block);
                if suits(size) && best.is_none_or(|(_, best)| is_better(size, best)) {
                    best = Some((block, size));
                }
                if size == wanted { Visit::Stop } else { Visit::Keep }
            });
        }
        let Some((block, size)) = best else {
            let size = wanted.min(most);
            // Spare blocks of as many bytes are freed, so that a loop in which suitable blocks
            // are behind the first `TRIES` does not hold more each time.
            self.trim(self.spare_bytes().saturating_sub(size));
            return self.new_block(size);
        };
        // SAFETY: the block is removed from the list before it is returned, and nobody uses
        // memory of a spare block.
        unsafe {
            let found = |other| if other == block { Visit::RemoveAndStop } else { Visit::Keep };
            self.spare.sift(TRIES, found);
            Block::reset(block);
        }
        self.spare_bytes.set(self.spare_bytes.get() - size);
        Some(block)
    }

    /// Keeps a block for reuse, or frees it if there would be more than `max_free` spare bytes.
    ///
    /// # Safety
    ///
    /// The block must come from a store and be in no list, and nobody may use it any more.
    pub(crate) unsafe fn give(&self, block: NonNull<Block>, max_free: usize) {
        // SAFETY: the block is not freed, is in no list, and is nobody's.
        unsafe {
            let spare_bytes = self.spare_bytes.get().saturating_add(Block::size(block));
            if spare_bytes > max_free {
                return free_block(block);
            }
            self.spare_bytes.set(spare_bytes);
            self.spare.push(block);
        }
    }

    /// Keeps or frees all blocks of a queue, of `bytes` bytes together, as [`give`](Self::give)
    /// does. If all are kept it is one step, which touches no header but the last one: the others
    /// are no longer in the cache.
    ///
    /// # Safety
    ///
    /// The blocks must come from a store, and nobody may use them any more.
    pub(crate) unsafe fn give_all(&self, blocks: &Queue, bytes: usize, max_free: usize) {
        let spare_bytes = self.spare_bytes.get().saturating_add(bytes);
        // SAFETY: the blocks are in this queue alone, and leave it before they are freed.
        unsafe {
            if spare_bytes > max_free {
                return blocks.drain().for_each(|block| self.give(block, max_free));
            }
            self.spare_bytes.set(spare_bytes);
            blocks.move_to(&self.spare);
        }
    }

    /// Frees spare blocks until there are no more than `max_free` spare bytes.
    pub(crate) fn trim(&self, max_free: usize) {
        // SAFETY: nobody uses spare blocks; those that are freed are removed from the list.
        unsafe {
            self.spare.sift(usize::MAX, |block| {
                if self.spare_bytes.get() <= max_free {
                    return Visit::Stop;
                }
                self.spare_bytes.set(self.spare_bytes.get() - Block::size(block));
                free_block(block);
                Visit::Remove
            });
        }
    }

    #[cold]
    fn new_block(&self, size: usize) -> Option<NonNull<Block>> {
        let layout = Layout::from_size_align(size, GRAIN).ok()?;
        let memory = self.allocate(layout, false)?;
        // SAFETY: the memory was allocated with this size and alignment; callers ask for no
        // fewer bytes than a node takes, and for a multiple of `GRAIN`.
        Some(unsafe { Block::begin(memory, size) })
    }

    /// Allocates memory of the global allocator on behalf of the service. The layout must not be
    /// empty.
    pub(crate) fn allocate(&self, layout: Layout, is_zeroed: bool) -> Option<NonNull<u8>> {
        debug_assert!(layout.size() > 0);
        let _scope = self.service.enter();
        // SAFETY: neither a block nor a large allocation is empty.
        NonNull::new(unsafe { if is_zeroed { alloc::alloc_zeroed(layout) } else { alloc::alloc(layout) } })
    }

    /// Changes the size of an allocation on behalf of the service.
    ///
    /// # Safety
    ///
    /// As for [`alloc::realloc`].
    pub(crate) unsafe fn reallocate(
        &self,
        memory: NonNull<u8>,
        layout: Layout,
        size: usize,
    ) -> Option<NonNull<u8>> {
        debug_assert!(size > 0);
        let _scope = self.service.enter();
        // SAFETY: the memory was allocated with this layout, and the new size is valid for it, as
        // this function demands, too.
        NonNull::new(unsafe { alloc::realloc(memory.as_ptr(), layout, size) })
    }
}

/// Frees a block.
///
/// # Safety
///
/// The block must come from a store and be in no list, and nobody may use it any more.
pub(crate) unsafe fn free_block(block: NonNull<Block>) {
    // SAFETY: stores allocate blocks with this size and alignment, which are a valid layout.
    unsafe {
        let layout = Layout::from_size_align_unchecked(Block::size(block), GRAIN);
        alloc::dealloc(block.as_ptr().cast(), layout);
    }
}

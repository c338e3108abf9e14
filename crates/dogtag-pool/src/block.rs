//! Blocks: chunks of memory that a pool hands out from the beginning to the end. A header at a
//! block's beginning holds all that is known of it.

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::NonNull;

/// The alignment of blocks and of their ends.
pub(crate) const GRAIN: usize = 16;

/// The header of a block.
#[repr(C, align(16))]
pub(crate) struct Block {
    /// The link of the list that the block is in.
    next: Cell<Option<NonNull<Block>>>,
    /// The first free byte. For a pool's active block it is out of date: the pool has its own.
    pub(crate) position: Cell<NonNull<u8>>,
    pub(crate) end: NonNull<u8>,
    /// The number of allocations that did not fit.
    pub(crate) failures: Cell<u32>,
}

impl Block {
    pub(crate) const HEADER: usize = size_of::<Self>();

    /// Writes the header of a new block.
    ///
    /// # Safety
    ///
    /// `memory` must be valid for `size` bytes, owned by the caller, and aligned to [`GRAIN`].
    /// `size` must be a multiple of [`GRAIN`], larger than the header.
    pub(crate) unsafe fn begin(memory: NonNull<u8>, size: usize) -> NonNull<Self> {
        debug_assert!(memory.addr().get().is_multiple_of(GRAIN) && size.is_multiple_of(GRAIN));
        debug_assert!(size > Self::HEADER);
        let block = memory.cast::<Self>();
        // SAFETY: the header fits into the memory, which is aligned for it; the end is one past
        // the last byte of it.
        unsafe {
            let (position, end) = (memory.add(Self::HEADER), memory.add(size));
            block.write(Self {
                next: Cell::new(None),
                position: Cell::new(position),
                end,
                failures: Cell::new(0),
            });
        }
        block
    }

    /// Returns the size of the block, its header included.
    ///
    /// # Safety
    ///
    /// The block must not have been freed.
    pub(crate) unsafe fn size(this: NonNull<Self>) -> usize {
        // SAFETY: the header of a block that is not freed is initialized, and only shared.
        unsafe { this.as_ref() }.end.addr().get() - this.addr().get()
    }

    /// Makes all memory behind the header free.
    ///
    /// # Safety
    ///
    /// The block must not have been freed, and nobody may use memory that was handed out of it.
    pub(crate) unsafe fn reset(this: NonNull<Self>) {
        // SAFETY: the header is initialized; what follows it is in the same allocation.
        unsafe {
            this.as_ref().position.set(this.cast::<u8>().add(Self::HEADER));
            this.as_ref().failures.set(0);
        }
    }

    /// Returns where an allocation would begin between these two, if it fits.
    pub(crate) fn fit(position: NonNull<u8>, end: NonNull<u8>, layout: Layout) -> Option<NonNull<u8>> {
        debug_assert!(position <= end);
        let start = position.addr().get().checked_next_multiple_of(layout.align())?;
        let fits = layout.size() <= end.addr().get().checked_sub(start)?;
        // SAFETY: `start` is between the two, which are in one block.
        fits.then(|| unsafe { position.add(start - position.addr().get()) })
    }
}

/// A singly linked list of blocks, which it does not own. Its links are in their headers, so a
/// block is in one list at most.
#[derive(Default)]
pub(crate) struct List(Cell<Option<NonNull<Block>>>);

impl List {
    /// Adds a block at the front.
    ///
    /// # Safety
    ///
    /// The block must be in no list, and must not be freed while it is in this one.
    pub(crate) unsafe fn push(&self, block: NonNull<Block>) {
        // SAFETY: the header is initialized until the block is freed.
        unsafe { block.as_ref() }.next.set(self.0.get());
        self.0.set(Some(block));
    }

    /// Empties the list, and returns its blocks. Each may be freed, or put into another list, as
    /// soon as it is returned.
    ///
    /// # Safety
    ///
    /// A block must not be freed before it is returned.
    pub(crate) unsafe fn drain(&self) -> impl Iterator<Item = NonNull<Block>> {
        let mut next = self.0.take();
        std::iter::from_fn(move || {
            let block = next?;
            // SAFETY: the block is not freed, since it is only returned now.
            next = unsafe { block.as_ref() }.next.get();
            Some(block)
        })
    }

    /// Returns the blocks in their order.
    ///
    /// # Safety
    ///
    /// The blocks must stay in the list, and must not be freed, as long as the iterator is used.
    pub(crate) unsafe fn iter(&self) -> impl Iterator<Item = NonNull<Block>> {
        let mut link = &self.0;
        std::iter::from_fn(move || {
            let block = link.get()?;
            // SAFETY: blocks of the list are not freed meanwhile.
            link = unsafe { &block.as_ref().next };
            Some(block)
        })
    }

    /// Visits the first `most` blocks, and removes those for which `visit` says so.
    ///
    /// # Safety
    ///
    /// No block of the list may have been freed. `visit` may free a block, or put it into another
    /// list, only if it says that the block is to be removed.
    pub(crate) unsafe fn sift(&self, most: usize, mut visit: impl FnMut(NonNull<Block>) -> Visit) {
        let mut link = &self.0;
        for _ in 0..most {
            let Some(block) = link.get() else { return };
            // SAFETY: blocks of the list are not freed.
            let next = unsafe { &block.as_ref().next };
            // `visit` may change the link of a block that it removes.
            let behind = next.get();
            match visit(block) {
                Visit::Keep => link = next,
                Visit::Remove => link.set(behind),
                Visit::RemoveAndStop => return link.set(behind),
                Visit::Stop => return,
            }
        }
    }
}

/// A list of blocks, the oldest first, that can be moved as a whole in constant time.
#[derive(Default)]
pub(crate) struct Queue {
    blocks: List,
    last: Cell<Option<NonNull<Block>>>,
}

impl Queue {
    /// Adds a block at the end.
    ///
    /// # Safety
    ///
    /// As for [`List::push`].
    pub(crate) unsafe fn push(&self, block: NonNull<Block>) {
        // SAFETY: neither this block nor the last one, which is in the queue, is freed.
        unsafe {
            block.as_ref().next.set(None);
            match self.last.replace(Some(block)) {
                Some(last) => last.as_ref().next.set(Some(block)),
                None => self.blocks.0.set(Some(block)),
            }
        }
    }

    /// Empties the queue, and returns its blocks, as [`List::drain`] does.
    ///
    /// # Safety
    ///
    /// As for [`List::drain`].
    pub(crate) unsafe fn drain(&self) -> impl Iterator<Item = NonNull<Block>> {
        self.last.set(None);
        // SAFETY: no block is freed before it is returned, as this function demands, too.
        unsafe { self.blocks.drain() }
    }

    /// Returns the blocks in their order, as [`List::iter`] does.
    ///
    /// # Safety
    ///
    /// As for [`List::iter`].
    pub(crate) unsafe fn iter(&self) -> impl Iterator<Item = NonNull<Block>> {
        // SAFETY: the blocks stay in the queue, as this function demands, too.
        unsafe { self.blocks.iter() }
    }

    /// Moves all blocks to the front of a list.
    ///
    /// # Safety
    ///
    /// The last block of the queue must not have been freed.
    pub(crate) unsafe fn move_to(&self, list: &List) {
        let Some(last) = self.last.take() else { return };
        let behind = list.0.replace(self.blocks.0.take());
        // SAFETY: the last block is not freed, so its header is initialized.
        unsafe { last.as_ref() }.next.set(behind);
    }
}

/// What becomes of a block that [`List::sift`] visits.
pub(crate) enum Visit {
    Keep,
    Stop,
    Remove,
    RemoveAndStop,
}

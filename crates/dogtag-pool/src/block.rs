//! A block, out of which a pool hands its memory, one piece behind the other. What is to be
//! known of a block stands at its beginning.

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::NonNull;

/// What blocks and their ends are aligned to.
pub(crate) const GRAIN: usize = 16;

#[repr(C, align(16))]
pub(crate) struct Block {
    /// In whichever list it is.
    pub(crate) next: Cell<Option<NonNull<Block>>>,
    /// Where what is free begins; of a pool's active block, where it did when it became so.
    pub(crate) position: Cell<NonNull<u8>>,
    pub(crate) end: NonNull<u8>,
    /// How often what was asked for did not fit in.
    pub(crate) failures: Cell<u32>,
}

impl Block {
    pub(crate) const HEADER: usize = size_of::<Self>();

    /// # Safety
    ///
    /// The memory must be nobody else's, aligned to [`GRAIN`], and of that size: a multiple
    /// of it, larger than the header.
    pub(crate) unsafe fn begin(memory: NonNull<u8>, size: usize) -> NonNull<Self> {
        let block = memory.cast::<Self>();
        // SAFETY: the caller's promise.
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

    /// # Safety
    ///
    /// The block must be there.
    pub(crate) unsafe fn size(this: NonNull<Self>) -> usize {
        // SAFETY: the caller's promise.
        unsafe { this.as_ref() }.end.addr().get() - this.addr().get()
    }

    /// Makes all of it free, but the header.
    ///
    /// # Safety
    ///
    /// Nobody must use what was handed out.
    pub(crate) unsafe fn reset(this: NonNull<Self>) {
        // SAFETY: the caller's promise.
        unsafe {
            this.as_ref().position.set(this.cast::<u8>().add(Self::HEADER));
            this.as_ref().failures.set(0);
        }
    }

    /// Room for so much between these two, and where it would begin.
    pub(crate) fn room(position: NonNull<u8>, end: NonNull<u8>, layout: Layout) -> Option<NonNull<u8>> {
        let start = position.addr().get().checked_next_multiple_of(layout.align())?;
        let fits = layout.size() <= end.addr().get().checked_sub(start)?;
        // SAFETY: it lies in the block.
        fits.then(|| unsafe { position.add(start - position.addr().get()) })
    }
}

/// A list of blocks, which it does not own.
#[derive(Default)]
pub(crate) struct List(Cell<Option<NonNull<Block>>>);

impl List {
    /// # Safety
    ///
    /// The block must be there, and in no list.
    pub(crate) unsafe fn push(&self, block: NonNull<Block>) {
        // SAFETY: the caller's promise.
        unsafe { block.as_ref() }.next.set(self.0.get());
        self.0.set(Some(block));
    }

    /// The blocks, of which each may be put into another list, or freed, as it comes.
    ///
    /// # Safety
    ///
    /// They must be there until they have come.
    pub(crate) unsafe fn drain(&self) -> impl Iterator<Item = NonNull<Block>> {
        let mut next = self.0.take();
        std::iter::from_fn(move || {
            let block = next?;
            // SAFETY: the caller's promise.
            next = unsafe { block.as_ref() }.next.get();
            Some(block)
        })
    }

    /// # Safety
    ///
    /// The blocks must be there and stay in the list.
    pub(crate) unsafe fn iter(&self) -> impl Iterator<Item = NonNull<Block>> {
        let mut link = &self.0;
        std::iter::from_fn(move || {
            let block = link.get()?;
            // SAFETY: the caller's promise.
            link = unsafe { &block.as_ref().next };
            Some(block)
        })
    }

    /// Goes through the first blocks, and takes out those of which it is told so.
    ///
    /// # Safety
    ///
    /// The blocks must be there.
    pub(crate) unsafe fn sift(&self, most: usize, mut visit: impl FnMut(NonNull<Block>) -> Visit) {
        let mut link = &self.0;
        for _ in 0..most {
            let Some(block) = link.get() else { return };
            // SAFETY: the caller's promise.
            let next = unsafe { &block.as_ref().next };
            // Whoever takes it out puts it elsewhere.
            let behind = next.get();
            match visit(block) {
                Visit::GoOn => link = next,
                Visit::TakeOut => link.set(behind),
                Visit::TakeOutAndStop => return link.set(behind),
                Visit::Stop => return,
            }
        }
    }
}

/// A list of blocks in the order in which they came, which moves as a whole.
#[derive(Default)]
pub(crate) struct Queue {
    blocks: List,
    last: Cell<Option<NonNull<Block>>>,
}

impl Queue {
    /// # Safety
    ///
    /// The block must be there, and in no list.
    pub(crate) unsafe fn push(&self, block: NonNull<Block>) {
        // SAFETY: the caller's promise; so is the last one there.
        unsafe {
            block.as_ref().next.set(None);
            match self.last.replace(Some(block)) {
                Some(last) => last.as_ref().next.set(Some(block)),
                None => self.blocks.0.set(Some(block)),
            }
        }
    }

    /// As [`List::drain`].
    ///
    /// # Safety
    ///
    /// As for that.
    pub(crate) unsafe fn drain(&self) -> impl Iterator<Item = NonNull<Block>> {
        self.last.set(None);
        // SAFETY: the caller's promise.
        unsafe { self.blocks.drain() }
    }

    /// As [`List::iter`].
    ///
    /// # Safety
    ///
    /// As for that.
    pub(crate) unsafe fn iter(&self) -> impl Iterator<Item = NonNull<Block>> {
        // SAFETY: the caller's promise.
        unsafe { self.blocks.iter() }
    }

    /// Moves all into a list, in front of what is there.
    ///
    /// # Safety
    ///
    /// The last one must be there.
    pub(crate) unsafe fn move_to(&self, list: &List) {
        let Some(last) = self.last.take() else { return };
        let behind = list.0.replace(self.blocks.0.take());
        // SAFETY: the caller's promise.
        unsafe { last.as_ref() }.next.set(behind);
    }
}

/// What to do about a block of a list.
pub(crate) enum Visit {
    GoOn,
    Stop,
    TakeOut,
    TakeOutAndStop,
}

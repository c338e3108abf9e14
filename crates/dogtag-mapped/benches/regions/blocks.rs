//! Live blocks of an allocator, and how they come about before anything is measured.

use crate::WINDOW;
use crate::contestants::{Contestant, layout};
use crate::rounds::random;
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::ops::Deref;

/// How many blocks are few.
pub const BLOCKS: usize = 1000;
/// Steps that break a window into pieces, before anything is measured.
const LONG_RUN: usize = 200_000;
/// The largest of small blocks, and what they have on average.
pub const LARGEST: usize = 1024;
pub const MEAN: usize = LARGEST / 2;

/// The blocks that are live before anything is measured.
#[derive(Clone, Copy)]
pub enum Fill {
    Empty,
    /// A thousand blocks.
    Few,
    /// Half of the window, of which more was used before.
    Half,
    /// Most of the window, after a long run.
    Nearly,
}

/// Live blocks of an allocator.
pub struct Blocks<Held: Deref<Target: GlobalAlloc>> {
    pub allocator: Held,
    pub live: Vec<(*mut u8, Layout)>,
}

impl<C: Contestant> Blocks<Box<C>> {
    pub fn new(fill: Fill) -> Self {
        let mut this = Self { allocator: Box::new(C::touched()), live: Vec::new() };
        let mut random = random();
        match fill {
            Fill::Empty => {}
            Fill::Few => this.fill(&mut random, BLOCKS * MEAN),
            Fill::Half => {
                this.fill(&mut random, WINDOW / 8 * 7);
                for _ in 0..this.live.len() * 3 / 7 {
                    let which = random(this.live.len());
                    this.free(which);
                }
            }
            Fill::Nearly => {
                this.fill(&mut random, WINDOW / 8 * 7);
                for _ in 0..LONG_RUN {
                    let which = random(this.live.len());
                    this.replace(which, 1 + random(LARGEST));
                }
            }
        }
        this
    }
}

impl<Held: Deref<Target: GlobalAlloc>> Blocks<Held> {
    /// Allocates small blocks of so many bytes in all.
    pub fn fill(&mut self, random: &mut impl FnMut(usize) -> usize, bytes: usize) {
        let mut used = 0;
        while used < bytes {
            let size = 1 + random(LARGEST);
            self.live.push(self.block(size));
            used += size;
        }
    }

    /// Allocates a block, and touches it; null if it does not fit.
    #[inline(always)]
    pub fn block(&self, size: usize) -> (*mut u8, Layout) {
        let layout = layout(size);
        // SAFETY: layouts in this program are not empty.
        let block = unsafe { self.allocator.alloc(layout) };
        touch(block, size);
        (block, layout)
    }

    /// Frees a block and puts another one in its place, if it fits.
    #[inline(always)]
    pub fn replace(&mut self, which: usize, size: usize) {
        let (block, layout) = self.live[which];
        if !block.is_null() {
            // SAFETY: the block was allocated with that layout, and leaves the list.
            unsafe { self.allocator.dealloc(block, layout) };
        }
        self.live[which] = self.block(size);
    }

    /// Frees a block, and returns its size.
    pub fn free(&mut self, which: usize) -> usize {
        let (block, layout) = self.live.swap_remove(which);
        if !block.is_null() {
            // SAFETY: the block was allocated with that layout, and leaves the list.
            unsafe { self.allocator.dealloc(block, layout) };
        }
        layout.size()
    }

    /// Finds the size of the largest block that fits.
    pub fn largest(&self) -> usize {
        let (mut fits, mut none) = (0, WINDOW + 1);
        while none - fits > 1 {
            let layout = layout((fits + none) / 2);
            // SAFETY: the layout is not empty, and the block is freed with it.
            unsafe {
                let block = self.allocator.alloc(layout);
                if block.is_null() {
                    none = layout.size();
                } else {
                    self.allocator.dealloc(block, layout);
                    fits = layout.size();
                }
            }
        }
        fits
    }
}

impl<Held: Deref<Target: GlobalAlloc>> Drop for Blocks<Held> {
    fn drop(&mut self) {
        while let Some(last) = self.live.len().checked_sub(1) {
            self.free(last);
        }
    }
}

/// Writes to a block, as programs do.
#[inline(always)]
pub fn touch(block: *mut u8, size: usize) {
    if !block.is_null() {
        // SAFETY: the block is live, and no more than its size is written.
        unsafe { block.write_bytes(1, size.min(8)) };
    }
    black_box(block);
}

//! Single operations in a loop.

use super::{passes, timed};
use std::alloc::{Layout, alloc, dealloc, realloc};
use std::hint::black_box;
use std::ops::RangeInclusive;
use std::sync::mpsc::sync_channel;

/// A block is allocated and freed at once.
pub fn pair(size: usize) -> f64 {
    let layout = Layout::from_size_align(size, 8).unwrap();
    timed(9_000_000, |operations| {
        for _ in 0..operations {
            // SAFETY: the layout is not empty, and the block is freed with it.
            unsafe {
                let block = black_box(alloc(layout));
                *block = 1;
                dealloc(block, layout);
            }
        }
    })
}

/// Keeps `live` blocks of random sizes and replaces random ones.
pub fn churn(sizes: RangeInclusive<usize>, live: usize) -> f64 {
    let mut churn = Churn::new(0, sizes, live);
    timed(2_700_000, |operations| churn.replace(operations))
}

/// The same on several threads at once, each with blocks of its own: the time that
/// they take together for as many operations as one of them does.
pub fn churn_on_threads(threads: usize, sizes: RangeInclusive<usize>, live: usize) -> f64 {
    const OPERATIONS: usize = 300_000;
    passes(OPERATIONS, || {
        std::thread::scope(|scope| {
            for seed in 0..threads {
                let sizes = sizes.clone();
                scope.spawn(move || Churn::new(seed, sizes, live).replace(OPERATIONS));
            }
        });
    })
}

pub(super) struct Churn {
    random: fastrand::Rng,
    sizes: RangeInclusive<usize>,
    blocks: Vec<(*mut u8, Layout)>,
}

impl Churn {
    pub(super) fn new(seed: usize, sizes: RangeInclusive<usize>, live: usize) -> Self {
        let mut new = Self { random: fastrand::Rng::with_seed(seed as u64), sizes, blocks: Vec::new() };
        for _ in 0..live {
            let block = new.fresh();
            new.blocks.push(block);
        }
        new
    }

    #[inline(always)]
    fn fresh(&mut self) -> (*mut u8, Layout) {
        let layout = Layout::from_size_align(self.random.usize(self.sizes.clone()), 1).unwrap();
        // SAFETY: sizes begin at 1, and the first byte is written.
        unsafe {
            let block = alloc(layout);
            *block = 1;
            (block, layout)
        }
    }

    // One function in every program, whatever else calls it, so that their loops are the same.
    #[inline(never)]
    pub(super) fn replace(&mut self, operations: usize) {
        for _ in 0..operations {
            let new = self.fresh();
            let at = self.random.usize(..self.blocks.len());
            let (old, layout) = std::mem::replace(&mut self.blocks[at], new);
            // SAFETY: it came from `fresh` and left the list.
            unsafe { dealloc(old, layout) };
        }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        for (block, layout) in self.blocks.drain(..) {
            // SAFETY: each block in the list is live.
            unsafe { dealloc(block, layout) };
        }
    }
}

/// One thread allocates boxes of 48 bytes, another frees them.
pub fn hand_over() -> f64 {
    const BATCH: usize = 1_000;
    timed(4_500_000, |operations| {
        // A batch at a time, so that what is measured is not the channel.
        let (full, boxes) = sync_channel::<Vec<Box<[u64; 6]>>>(4);
        let (empty, emptied) = sync_channel::<Vec<Box<[u64; 6]>>>(8);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for mut batch in boxes {
                    batch.clear();
                    let _ = empty.try_send(batch);
                }
            });
            for batch in 0..operations / BATCH {
                let mut boxes = emptied.try_recv().unwrap_or_else(|_| Vec::with_capacity(BATCH));
                boxes.extend((0..BATCH).map(|i| Box::new([(batch + i) as u64; 6])));
                full.send(boxes).unwrap();
            }
            drop(full);
        });
    })
}

/// Numbers are pushed to a vector that begins empty.
pub fn vec_growth() -> f64 {
    const LENGTH: usize = 100_000;
    timed(18_000_000, |operations| {
        for _ in 0..operations / LENGTH {
            let mut numbers = Vec::new();
            for i in 0..LENGTH {
                numbers.push(black_box(i));
            }
            black_box(&numbers);
        }
    })
}

/// A block grows from 16 bytes to 8 KiB by doubling, and is freed.
pub fn realloc_doubling() -> f64 {
    const STEPS: usize = 10;
    timed(4_500_000, |operations| {
        for _ in 0..operations / STEPS {
            let mut size = 16;
            // SAFETY: each step passes the layout that the block has by then.
            unsafe {
                let layout = |size| Layout::from_size_align_unchecked(size, 8);
                let mut block = black_box(alloc(layout(size)));
                while size < 8192 {
                    block = black_box(realloc(block, layout(size), 2 * size));
                    size *= 2;
                }
                dealloc(block, layout(size));
            }
        }
    })
}

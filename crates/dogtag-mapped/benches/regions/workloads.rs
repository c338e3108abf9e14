//! The workloads that are timed, and how full a window gets.

use crate::WINDOW;
use crate::blocks::{BLOCKS, Blocks, Fill, LARGEST, MEAN, touch};
use crate::contestants::{Contestant, layout};
use crate::rounds::{each, random, timed};
use std::hint::black_box;
use std::sync::Barrier;

/// Pairs of an allocation and a free in each round.
const PAIRS: usize = 20_000;
/// Pairs in each round where some allocators look at thousands of ranges for one.
const FEW: usize = 10_000;
const LARGE: usize = 64 << 10;
/// So many large blocks fill most of a window.
const LARGE_BLOCKS: usize = 200;
const GROWTHS: usize = 100;
/// Steps before they repeat: more than fill a window, so that no predictor knows them by heart.
const KINDS: usize = 1 << 16;
const FILLING_STEPS: usize = 500_000;

/// Allocates and frees one block, again and again.
pub fn pairs<C: Contestant>(size: usize, fill: Fill) -> impl FnMut() -> f64 {
    let (blocks, layout) = (Blocks::<Box<C>>::new(fill), layout(size));
    move || {
        each(PAIRS, || {
            let (block, _) = blocks.block(size);
            // SAFETY: the block was allocated with that layout, and is used no more.
            unsafe { blocks.allocator.dealloc(black_box(block), layout) };
        })
    }
}

/// Replaces blocks at random by others.
pub fn replaced<C: Contestant>(fill: Fill) -> impl FnMut() -> f64 {
    let mut blocks = Blocks::<Box<C>>::new(fill);
    let (steps, mut done) = (steps(blocks.live.len()), 0);
    let count = if matches!(fill, Fill::Nearly) { FEW } else { PAIRS };
    move || {
        let time = timed(|| {
            for i in done..done + count {
                let (which, size) = steps[i % KINDS];
                blocks.replace(which, size);
            }
        });
        done += count;
        time / count as f64
    }
}

/// Allocates zeroed blocks of memory that no one has touched.
pub fn pristine<C: Contestant>() -> impl FnMut() -> f64 {
    move || {
        let mut blocks = Blocks { allocator: Box::new(C::fresh()), live: Vec::with_capacity(LARGE_BLOCKS) };
        each(LARGE_BLOCKS, || {
            // SAFETY: the layout is not empty.
            let block = unsafe { blocks.allocator.alloc_zeroed(layout(LARGE)) };
            touch(block, LARGE);
            blocks.live.push((block, layout(LARGE)));
        })
    }
}

/// Allocates and frees zeroed blocks of memory that was written to.
pub fn zeroed<C: Contestant>() -> impl FnMut() -> f64 {
    let blocks = Blocks::<Box<C>>::new(Fill::Few);
    move || {
        each(LARGE_BLOCKS, || {
            // SAFETY: the layout is not empty, and the block is freed with it.
            unsafe {
                let block = blocks.allocator.alloc_zeroed(layout(LARGE));
                touch(block, LARGE);
                blocks.allocator.dealloc(block, layout(LARGE));
            }
        })
    }
}

/// Grows so many blocks by turns, and frees them.
pub fn grown<C: Contestant>(count: usize) -> impl FnMut() -> f64 {
    let mut blocks = Blocks::<Box<C>>::new(Fill::Few);
    let others = blocks.live.len();
    move || {
        each(GROWTHS, || {
            for _ in 0..count {
                blocks.live.push(blocks.block(16));
            }
            let mut size = 16;
            while size < LARGE {
                size *= 2;
                for (block, layout) in &mut blocks.live[others..] {
                    // SAFETY: the block was allocated with that layout, and the resized one takes its place in
                    // the list.
                    *block = unsafe { blocks.allocator.realloc(*block, *layout, size) };
                    *layout = self::layout(size);
                    touch(*block, size);
                }
            }
            for _ in 0..count {
                blocks.free(others);
            }
        })
    }
}

/// Replaces blocks on two threads, each its own.
pub fn threads<C: Contestant + Sync>() -> impl FnMut() -> f64 {
    let (allocator, steps) = (C::touched(), steps(BLOCKS / 2));
    move || {
        let start = Barrier::new(2);
        let work = |own: usize| {
            let (mut blocks, mut random) = (Blocks { allocator: &allocator, live: Vec::new() }, random());
            blocks.fill(&mut random, BLOCKS / 2 * MEAN);
            let count = blocks.live.len();
            start.wait();
            timed(|| {
                for i in 0..PAIRS {
                    let (which, size) = steps[(own + i) % KINDS];
                    blocks.replace(which % count, size);
                }
            })
        };
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(|| work(KINDS / 2));
            work(0).max(other.join().unwrap())
        });
        both / PAIRS as f64
    }
}

/// Allocates blocks of sizes as programs have them until the window is full, frees a part of them, and
/// so on. Prints the live bytes, and the largest block that fits, when an allocation fails.
pub fn until_full<C: Contestant>(name: &str) {
    let mut blocks = Blocks::<Box<C>>::new(Fill::Empty);
    let (mut random, mut live, mut steps) = (random(), 0, 0);
    let (mut used, mut largest) = (vec![], vec![]);
    while steps < FILLING_STEPS {
        if random(10) < 4 && !blocks.live.is_empty() {
            let which = random(blocks.live.len());
            live -= blocks.free(which);
            steps += 1;
            continue;
        }
        let size = match random(100) {
            0..80 => 16 + random(241),
            80..95 => 256 + random(3841),
            _ => 4096 + random(61441),
        };
        let (block, layout) = blocks.block(size);
        steps += 1;
        if !block.is_null() {
            blocks.live.push((block, layout));
            live += size;
            continue;
        }
        // The run is long enough by then.
        if steps > FILLING_STEPS / 2 {
            used.push(live as f64);
            largest.push(blocks.largest() as f64);
        }
        for _ in 0..blocks.live.len() / 10 {
            let which = random(blocks.live.len());
            live -= blocks.free(which);
            steps += 1;
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (used, largest) = (mean(&used) / WINDOW as f64 * 100.0, mean(&largest) / 1024.0);
    println!("    {name:<31} {used:>8.2} %  {largest:>7.1} KiB");
}

/// Chooses for each step which of so many blocks is replaced, and the size of the new one.
fn steps(blocks: usize) -> Vec<(usize, usize)> {
    let mut random = random();
    (0..KINDS).map(|_| (random(blocks), 1 + random(LARGEST))).collect()
}

//! What allocators are measured with, written anew from the descriptions.

use super::passes;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::VecDeque;
use std::sync::Mutex;

struct Block(*mut u8, Layout);

// SAFETY: nobody but who has it uses the block.
unsafe impl Send for Block {}

impl Block {
    fn new(size: usize) -> Self {
        let layout = Layout::from_size_align(size, 8).unwrap();
        // SAFETY: callers ask for some bytes, and the first one is written.
        unsafe {
            let block = alloc(layout);
            *block = 1;
            Self(block, layout)
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: it came from `new`.
        unsafe { dealloc(self.0, self.1) };
    }
}

/// A server (Larson and Krishnan, "Memory Allocation for Long-Running Server
/// Applications", 1998): each of two threads replaces random ones of its 1,000
/// blocks of 10 to 500 bytes, and when it has done that for a while it ends and
/// leaves its blocks to a new thread.
pub fn larson() -> f64 {
    const LIVES: usize = 20;
    const REPLACED: usize = 20_000;

    fn live(mut blocks: Vec<Block>, mut random: fastrand::Rng) -> (Vec<Block>, fastrand::Rng) {
        for _ in 0..REPLACED {
            let at = random.usize(..blocks.len());
            blocks[at] = Block::new(random.usize(10..500));
        }
        (blocks, random)
    }

    passes(LIVES * REPLACED, || {
        std::thread::scope(|scope| {
            for client in 0..2 {
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(client);
                    let mut blocks = (0..1_000).map(|_| Block::new(random.usize(10..500))).collect();
                    for _ in 0..LIVES {
                        (blocks, random) = std::thread::spawn(move || live(blocks, random)).join().unwrap();
                    }
                });
            }
        });
    })
}

/// Two threads each allocate batches of 120 blocks of 8 to 256 bytes, put them
/// on a common list, and free the batches that are the first on it (the pattern
/// of Lever and Boreham, "malloc() Performance in a Multithreaded Linux
/// Environment", 2000).
pub fn xmalloc() -> f64 {
    const BATCHES: usize = 4_000;
    const BATCH: usize = 120;

    passes(BATCHES * BATCH, || {
        let common: Mutex<VecDeque<Vec<Block>>> = Mutex::default();
        std::thread::scope(|scope| {
            for worker in 0..2 {
                let common = &common;
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(worker);
                    for _ in 0..BATCHES {
                        let batch = (0..BATCH).map(|_| Block::new(random.usize(8..=256))).collect();
                        let mut list = common.lock().unwrap();
                        list.push_back(batch);
                        let first = if list.len() > 16 { list.pop_front() } else { None };
                        drop(list);
                        drop(first);
                    }
                });
            }
        });
    })
}

//! Blocks that others free: the end of the thread, or a thread of its own.

use super::futures;
use super::homes::{Block, Home};
use super::worker::{Baggage, Worker};
use crate::engine::aside;
use crate::engine::memory::{Memory, Refusal};
use std::alloc::{Layout, dealloc};
use std::cell::Cell;
use std::ptr::NonNull;

const MOST_STASHED: usize = 8;

/// Blocks that are freed when the thread ends.
struct Stash([Cell<Option<Parts>>; MOST_STASHED]);

type Parts = (NonNull<u8>, Layout);

thread_local! {
    static STASH: Stash = const { Stash([const { Cell::new(None) }; MOST_STASHED]) };
}

impl Drop for Stash {
    fn drop(&mut self) {
        for (block, layout) in self.0.iter().filter_map(Cell::take) {
            // SAFETY: it was allocated with that layout, and nobody else has it.
            unsafe { dealloc(block.as_ptr(), layout) };
            // That nobody claims it is no reason to count it wrong.
            drop(std::hint::black_box(vec![0_u8; 50]));
        }
    }
}

impl Worker<'_> {
    pub fn stash(&mut self, block: usize) {
        if self.stashed.len() == MOST_STASHED {
            return;
        }
        let Some(block) = self.take(block) else { return };
        if block.memory.may_refuse() != Refusal::Nothing {
            return aside(|| self.keep(block));
        }
        block.check();
        aside(|| {
            STASH
                .with(|stash| stash.0[self.stashed.len()].set(Some((block.piece.start, block.piece.layout))));
            self.stashed.push(block);
        });
    }

    pub fn errand(&mut self, service: usize, size: usize, block: usize) {
        let Some(held) = self.world.service(service) else { return };
        let to_free = self.take(block);
        let (world, line, mode) = (self.world, self.line, self.mode());
        // A bit of its own, as far as there are.
        let thread = self.thread + 32;
        let block = std::thread::scope(|threads| {
            let errand = move || {
                let mut worker = Worker::new(world, line, thread, Baggage::new());
                worker.enter(held);
                let owner = worker.at.current.clone();
                let block = Block::allocate(Home::Heap, owner, futures::layout(size), false, mode);
                to_free.into_iter().for_each(|block| block.free(mode));
                worker.leave(0);
                block
            };
            threads.spawn(errand).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        if let Some(block) = block {
            self.keep(block);
        }
    }
}

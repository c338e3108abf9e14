//! What a thread does with blocks.

use super::blocks::{Block, Home, check_zeros};
use super::futures;
use super::known::Known;
use super::worker::{Baggage, Worker};
use super::world::{aside, ensure};
use dogtag::Usage;
use std::alloc::{Layout, dealloc};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

const MOST_STASHED: usize = 8;

/// Blocks that are freed when the thread ends.
struct Stash([Cell<Option<(usize, Layout)>>; MOST_STASHED]);

thread_local! {
    static STASH: Stash = const { Stash([const { Cell::new(None) }; MOST_STASHED]) };
}

impl Drop for Stash {
    fn drop(&mut self) {
        for (block, layout) in self.0.iter().filter_map(Cell::take) {
            // SAFETY: it was allocated with that layout, and nobody else has it.
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(block), layout) };
            // That nobody claims it is no reason to count it wrong.
            drop(std::hint::black_box(vec![0_u8; 50]));
        }
    }
}

impl Worker<'_> {
    /// Does what takes or frees blocks. Where nobody else does anything, the thread's own
    /// figures are looked at, too.
    fn measured<R>(&self, work: impl FnOnce() -> R) -> (R, Option<Usage>) {
        if self.world.in_turn {
            let (result, usage) = dogtag::measure(work);
            (result, Some(usage))
        } else {
            (work(), None)
        }
    }

    /// A null that was a limit's doing, or a full region's.
    pub fn was_denied(&self, owner: &Arc<Known>, home: &Home, layout: Layout, is_expected: bool) {
        if self.world.in_turn {
            if is_expected {
                owner.denied.fetch_add(1, SeqCst);
            } else {
                aside(|| home.check_full(layout));
            }
        } else if home.may_be_full() {
            owner.doubtful.fetch_add(1, SeqCst);
        } else {
            ensure!(owner.chain().any(|known| known.is_limited.load(SeqCst)), "{layout:?} was not had");
            owner.denied.fetch_add(1, SeqCst);
        }
    }

    pub fn allocate(&mut self, layout: Layout, is_zeroed: bool, home: Home) -> Option<Block> {
        let owner = Arc::clone(&self.current);
        let denies = self.world.in_turn && owner.denies(layout.size(), None);
        // SAFETY: sizes begin at 1.
        let (block, usage) = self.measured(|| unsafe { home.allocate(layout, is_zeroed) });
        let size = layout.size() as u64;
        let counted = if block.is_null() { (0, 0) } else { (size, 1) };
        ensure!(usage.is_none_or(|usage| (usage.allocated_bytes, usage.allocated_blocks) == counted));
        if block.is_null() {
            self.was_denied(&owner, &home, layout, denies);
            return None;
        }
        ensure!(!denies, "{} was not denied {layout:?}", owner.name);
        owner.charge(size, 1, self.thread);
        owner.find_more(size);
        if is_zeroed {
            // SAFETY: it was asked for with zeros.
            unsafe { check_zeros(block, layout.size()) };
        }
        Some(Block::fill(block.expose_provenance(), layout, owner, home))
    }

    /// To the service that the thread is in, or what does not grow stays its owner's; or the block
    /// stays as it is.
    pub fn reallocate(&mut self, block: Block, size: usize) -> Block {
        let (old, owner) = (block.layout, Arc::clone(&self.current));
        let is_growth = size > old.size();
        if !self.world.in_turn && !is_growth && owner.chain().any(|known| known.is_limited.load(SeqCst)) {
            // Nobody could say whose it is then.
            return block;
        }
        block.owner.expect_less(old.size() as u64);
        let denies = self.world.in_turn && owner.denies(size, Some((&block.owner, old.size())));
        let (denies, stays) = (denies && is_growth, denies && !is_growth);
        // SAFETY: the block is live and has that layout; sizes begin at 1.
        let (moved, usage) = self.measured(|| unsafe { block.home.reallocate(block.pointer(), old, size) });
        if moved.is_null() {
            ensure!(is_growth, "{size} bytes instead of {} were denied", old.size());
            ensure!(usage.is_none_or(|usage| usage == Usage::default()), "{usage:?}");
            block.owner.find_more(old.size() as u64);
            let new = Layout::from_size_align(size, old.align()).unwrap();
            self.was_denied(&owner, &block.home, new, denies);
            block.check();
            return block;
        }
        ensure!(!denies, "{} was not denied {size} bytes instead of {}", owner.name, old.size());
        let is_right = |usage: Usage| {
            (usage.allocated_bytes, usage.allocated_blocks) == (size as u64, 1)
                && (usage.freed_bytes, usage.freed_blocks) == (old.size() as u64, 1)
        };
        ensure!(usage.is_none_or(is_right), "{usage:?}");
        let owner = if stays { Arc::clone(&block.owner) } else { owner };
        block.owner.refund(old.size() as u64, 1);
        owner.charge(size as u64, 1, self.thread);
        owner.find_more(size as u64);
        block.check_moved(moved, size);
        let layout = Layout::from_size_align(size, old.align()).unwrap();
        Block::fill(moved.expose_provenance(), layout, owner, block.home)
    }

    pub fn free(&mut self, block: Block) {
        let size = block.layout.size() as u64;
        block.owner.expect_less(size);
        // SAFETY: the block is live and has that layout.
        let ((), usage) = self.measured(|| unsafe { block.home.free(block.pointer(), block.layout) });
        ensure!(usage.is_none_or(|usage| (usage.freed_bytes, usage.freed_blocks) == (size, 1)));
        block.owner.refund(size, 1);
    }

    pub fn stash(&mut self, block: usize) {
        if self.stashed.len() == MOST_STASHED {
            return;
        }
        let Some(block) = self.take(block) else { return };
        if block.home.may_be_full() {
            return aside(|| self.keep(block));
        }
        aside(|| {
            STASH.with(|stash| stash.0[self.stashed.len()].set(Some((block.address, block.layout))));
            self.stashed.push(block);
        });
    }

    pub fn errand(&mut self, service: usize, size: usize, block: usize) {
        let Some(held) = self.world.service(service) else { return };
        let to_free = self.take(block);
        let (world, line) = (self.world, self.line);
        // A bit of its own, as far as there are.
        let thread = self.thread + 32;
        let block = std::thread::scope(|threads| {
            let errand = move || {
                let mut worker = Worker::new(world, line, thread, Baggage::new());
                worker.enter(held);
                let block = worker.allocate(futures::layout(size), false, Home::Heap);
                if let Some(block) = to_free {
                    worker.free(block);
                }
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

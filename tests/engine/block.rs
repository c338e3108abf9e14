//! Blocks, and the rules by which they come, change and go.

use super::account::Owner;
use super::memory::{Memory, Refusal};
use super::piece::{Piece, are_all};
use super::{Mode, ensure};
use dogtag::Usage;
use std::alloc::Layout;
use std::ptr::NonNull;

/// A live block, in the account of its owner.
pub struct Block<M, O> {
    pub piece: Piece,
    pub memory: M,
    pub owner: O,
}

impl<M: Memory, O: Owner> Block<M, O> {
    /// Allocates a block for the service that the calling thread is in; `None` if a limit denies it, or
    /// the memory refuses it.
    pub fn allocate(memory: M, owner: O, layout: Layout, is_zeroed: bool, mode: Mode) -> Option<Self> {
        let denies = mode == Mode::Alone && owner.denies(layout.size(), None);
        // SAFETY: tests ask for what their memory allows.
        let (start, usage) = measured(mode, || unsafe { memory.allocate(layout, is_zeroed) });
        let start = NonNull::new(start);
        let counted = if start.is_some() { (layout.size() as u64, 1) } else { (0, 0) };
        let is_right = |usage: Usage| (usage.allocated_bytes, usage.allocated_blocks) == counted;
        ensure!(usage.is_none_or(is_right), "{usage:?} for {layout:?} at {start:?}");
        let Some(start) = start else {
            owner.was_denied(&memory, layout, mode, denies);
            return None;
        };
        ensure!(!denies, "{} was not denied {layout:?}", owner.name);
        owner.gets(layout.size());
        // SAFETY: the block is that long; it was written to by who zeroed it.
        ensure!(!is_zeroed || unsafe { are_all(start, layout.size(), 0) }, "{layout:?} is not zeroed");
        // SAFETY: it is new and of that layout.
        Some(unsafe { Self::of(start, layout, memory, owner) })
    }

    /// A block that is in the books already.
    ///
    /// # Safety
    ///
    /// It must be live, from that memory, of that layout, and nobody else's.
    pub unsafe fn of(start: NonNull<u8>, layout: Layout, memory: M, owner: O) -> Self {
        // SAFETY: passed on as it is.
        let piece = unsafe { Piece::fill(start, layout, M::ENDS) };
        Self { piece, memory, owner }
    }

    pub fn size(&self) -> usize {
        self.piece.layout.size()
    }

    /// Nobody else has written to it.
    pub fn check(&self) {
        // SAFETY: the block is live.
        unsafe { self.piece.check() };
    }

    /// Whether anybody could say whose it is after [`resize`](Self::resize): what does not grow stays
    /// its owner's where a limit has no space for it.
    pub fn is_clear_whose(&self, to: &O, size: usize, mode: Mode) -> bool {
        mode == Mode::Alone || size > self.size() || !to.was_limited()
    }

    /// Resizes the block, so that it is the service's that the calling thread is in. If that is denied,
    /// what does not grow stays its owner's; and what would grow stays as it is, which is
    /// `false`.
    pub fn resize(&mut self, to: &O, new: Layout, is_zeroed: bool, mode: Mode) -> bool {
        let Piece { start, layout: old, .. } = self.piece;
        let (old_size, size) = (old.size(), new.size());
        let is_growth = size > old_size;
        let denies = mode == Mode::Alone && to.denies(size, Some((&self.owner, old_size)));
        let (denies, stays) = (denies && is_growth, denies && !is_growth);
        let to = if stays { self.owner.clone() } else { to.clone() };
        self.check();
        self.owner.will_change(&to, old_size, size);
        // SAFETY: the block is live, from there, and of that layout; tests ask for what their memory
        // allows.
        let (moved, usage) =
            measured(mode, || unsafe { self.memory.reallocate(start.as_ptr(), old, new, is_zeroed) });
        let Some(moved) = NonNull::new(moved) else {
            let may_refuse = self.memory.may_refuse();
            ensure!(
                is_growth || may_refuse == Refusal::Anything,
                "{size} bytes instead of {old_size} were denied"
            );
            ensure!(usage.is_none_or(|usage| usage == Usage::default()), "{usage:?}");
            self.owner.unchanged(&to, old_size, size);
            to.was_denied(&self.memory, new, mode, denies);
            self.check();
            return false;
        };
        ensure!(!denies, "{} was not denied {size} bytes instead of {old_size}", to.name);
        let is_right = |usage: Usage| {
            (usage.allocated_bytes, usage.allocated_blocks) == (size as u64, 1)
                && (usage.freed_bytes, usage.freed_blocks) == (old_size as u64, 1)
        };
        ensure!(usage.is_none_or(is_right), "{usage:?} for {size} bytes instead of {old_size}");
        self.owner.changed(&to, old_size, size);
        // SAFETY: the block is live, as long as the new layout, and nobody else's.
        unsafe {
            self.piece.check_moved(moved, size);
            if is_zeroed && is_growth {
                ensure!(are_all(moved.add(old_size), size - old_size, 0), "{new:?} is not zeroed");
            }
            self.piece = Piece::fill(moved, new, M::ENDS);
        }
        self.owner = to;
        true
    }

    /// Frees the block, whichever service the calling thread is in.
    pub fn free(self, mode: Mode) {
        self.check();
        let Piece { start, layout, .. } = self.piece;
        // SAFETY: the block is live, from there, and of that layout.
        let free = || measured(mode, || unsafe { self.memory.free(start.as_ptr(), layout) });
        let ((), usage) = self.owner.gives(layout.size(), free);
        let counted = (layout.size() as u64, 1);
        let is_right = |usage: Usage| (usage.freed_bytes, usage.freed_blocks) == counted;
        ensure!(usage.is_none_or(is_right), "{usage:?} for {layout:?} that was freed");
    }
}

/// A block that is freed when it is dropped, by whichever thread.
pub struct Owned<M: Memory, O: Owner>(Option<Block<M, O>>);

impl<M: Memory, O: Owner> Owned<M, O> {
    pub fn new(block: Block<M, O>) -> Self {
        Self(Some(block))
    }

    pub fn block(&mut self) -> &mut Block<M, O> {
        self.0.as_mut().expect("it is there until it is dropped")
    }
}

impl<M: Memory, O: Owner> Drop for Owned<M, O> {
    fn drop(&mut self) {
        if let Some(block) = self.0.take() {
            block.free(Mode::Among);
        }
    }
}

/// Does what takes or frees blocks; with the thread's own figures where nobody else does anything.
fn measured<R>(mode: Mode, work: impl FnOnce() -> R) -> (R, Option<Usage>) {
    if mode == Mode::Alone {
        let (result, usage) = dogtag::measure(work);
        (result, Some(usage))
    } else {
        (work(), None)
    }
}

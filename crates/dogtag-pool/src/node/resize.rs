//! How an allocation is given back, or made larger or smaller, before the pool is cleared.

use super::{Node, Refusal};
use crate::large::Large;
use crate::tree::InTree;
use std::alloc::Layout;
use std::ptr::NonNull;

impl Node {
    /// Gives an allocation back: a large one is freed, and the last small one is handed out again.
    /// Returns whether it was large.
    ///
    /// # Safety
    ///
    /// The memory must be this pool's, allocated with this layout since it was last cleared, and
    /// nobody may use it any more.
    pub(crate) unsafe fn give_back(&self, memory: NonNull<u8>, layout: Layout) -> bool {
        if self.is_large(layout) {
            // SAFETY: an allocation with such a layout has a record, and nobody uses it.
            self.shrink_held(unsafe { self.larges.free(memory) });
            return true;
        }
        // SAFETY: the allocation has this size, so the sum is its end. It is the active block's
        // position only for the last allocation there: no other block ends at a position, since a
        // header is in front of each.
        if unsafe { memory.add(layout.size()) } == self.position.get() {
            self.position.set(self.last(layout));
        }
        false
    }

    /// Returns the last allocation, of this layout, as a pointer that may reach what is around it.
    /// (The user's pointer may not.)
    fn last(&self, layout: Layout) -> NonNull<u8> {
        // SAFETY: the last allocation of the active block ends at the position.
        unsafe { self.position.get().sub(layout.size()) }
    }

    /// Makes an allocation larger or smaller, where it is or elsewhere.
    ///
    /// # Safety
    ///
    /// The memory must be this pool's, allocated with the old layout since it was last cleared.
    /// Once this succeeds, nobody may use the old memory any more.
    pub(crate) unsafe fn resize(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<u8>, Refusal> {
        let is_aligned = memory.addr().get().is_multiple_of(new.align());
        match (self.is_large(old), self.is_large(new)) {
            (true, true) => {
                // SAFETY: an allocation with a large layout has a record.
                let large = unsafe { self.larges.find(memory) };
                // The record's layout counts: one that stayed where it was has its first one.
                if large.layout().align() == new.align() {
                    // SAFETY: the alignment is that of the record.
                    return unsafe { self.resize_large(large, new) };
                }
            }
            (false, false) if is_aligned => {
                // SAFETY: the allocation has the old size, so the sum is its end.
                let is_last = unsafe { memory.add(old.size()) } == self.position.get();
                let up_to_end = self.end.get().addr().get().wrapping_sub(memory.addr().get());
                if is_last && new.size() <= up_to_end {
                    let start = self.last(old);
                    // SAFETY: the new size ends within the active block.
                    self.position.set(unsafe { start.add(new.size()) });
                    return Ok(start);
                }
                if new.size() <= old.size() {
                    return Ok(memory);
                }
            }
            _ => {}
        }
        // It may stay where it is until the pool is cleared, even among the large. But what is
        // large must be among those.
        let can_stay = is_aligned && new.size() <= old.size() && self.is_large(old) >= self.is_large(new);
        let elsewhere = match self.reserve_in_blocks(new) {
            Some(elsewhere) => elsewhere,
            // What a limit may deny is not asked for without need.
            // SAFETY: it is aligned, does not grow, and is large: what is small and can stay has
            // returned above.
            None if can_stay && self.store().is_limited() => return unsafe { self.stay(memory, new) },
            None => match self.reserve(new) {
                // SAFETY: as in the arm before.
                Err(_) if can_stay => return unsafe { self.stay(memory, new) },
                elsewhere => elsewhere?,
            },
        };
        // SAFETY: both allocations have at least this size; the new one overlaps nothing, and
        // nobody uses the old one any more.
        unsafe {
            elsewhere.copy_from_nonoverlapping(memory, old.size().min(new.size()));
            self.give_back(memory, old);
        }
        Ok(elsewhere)
    }

    /// Leaves a large allocation among the large, though its new layout may be small.
    ///
    /// # Safety
    ///
    /// As for [`resize`](Self::resize). The allocation must be large, aligned as the new layout
    /// says, and must not grow.
    #[cold]
    unsafe fn stay(&self, memory: NonNull<u8>, new: Layout) -> Result<NonNull<u8>, Refusal> {
        // SAFETY: a large allocation has a record.
        let large = unsafe { self.larges.find(memory) };
        match Layout::from_size_align(new.size(), large.layout().align()) {
            // SAFETY: the alignment is that of the record.
            Ok(own) if own.align() >= new.align() => unsafe { self.resize_large(large, own) },
            _ => Ok(memory),
        }
    }

    /// Makes a large allocation larger or smaller.
    ///
    /// # Safety
    ///
    /// As for [`resize`](Self::resize). The new layout must have the alignment of the record.
    unsafe fn resize_large(&self, large: &Large, new: Layout) -> Result<NonNull<u8>, Refusal> {
        let old = large.layout().size();
        let more = new.size().saturating_sub(old);
        if more > 0 {
            self.allowance(more)?;
        }
        // SAFETY: the record has the layout that its memory was allocated with; the new size with
        // the same alignment is a layout, and is not 0, since nothing empty is large or stays.
        let reallocate = |memory, layout, size| unsafe { self.store().reallocate(memory, layout, size) };
        let Some(moved) = large.resize(new, reallocate) else {
            // What does not grow can stay as it is.
            return if more > 0 { Err(Refusal::NoMemory) } else { Ok(large.memory()) };
        };
        self.grow_held(more);
        self.shrink_held(old.saturating_sub(new.size()));
        Ok(moved)
    }
}

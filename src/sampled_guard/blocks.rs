//! What allocators ask: places for new blocks, and whether a block that is given back is in the pool.

use super::entry::State;
use super::pool::{self, Need, Part, PoolSlot, reserve};
pub use super::pool::{Place, Taken};
use super::report;
pub use super::violation::Found;
use super::violation::{Kind, Violation};
use crate::owner::{Named, Placement, SampleId, unsized_free};
use crate::sync::Ordering;
use std::alloc::Layout;

/// Reserves a place for a block of Rust's, as [`reserve`].
pub(crate) fn reserve_for(placement: Placement, layout: Layout) -> Option<Place> {
    // The table has owners of what begins at multiples of 8.
    let align = if placement.is_table() { 8 } else { 1 };
    let need = Need { mark: !placement.is_beside(layout.size()), align };
    // SAFETY: nothing is written to a block whose owner stands beside the heap.
    reserve(layout, need, |block| unsafe {
        placement.write(block, layout.size(), Named::Sample(SampleId::GUARDED))
    })
}

/// Reserves a place for a block of C's, as [`reserve`].
pub fn reserve_unsized(layout: Layout) -> Option<Place> {
    reserve(layout, Need { mark: false, align: 1 }, unsized_free::write_guarded)
}

/// What is given back.
#[derive(Debug)]
pub enum Returned {
    /// A live block, this thread's alone.
    Block(Taken),
    /// Nothing: a violation was reported, and the process goes on.
    Nothing,
}

/// Takes back a block that may be in the pool; `None` if it is not. Reports what is wrong with it.
#[inline]
pub fn take(block: *mut u8, claimed: Option<Layout>, found: Found) -> Option<Returned> {
    let (slot, part) = PoolSlot::of(block.addr())?;
    Some(take_from(slot, part, block, claimed, found))
}

#[cold]
#[inline(never)]
fn take_from(slot: PoolSlot, part: Part, block: *mut u8, claimed: Option<Layout>, found: Found) -> Returned {
    let (entry, address) = (slot.entry, block.addr());
    let offset = entry.offset_of(address);
    let tell = |kind, offset| {
        report::tell(Violation { kind, found, address, offset, slot }, std::ptr::null_mut());
    };
    if !entry.is_used() {
        tell(Kind::WildAccess, 0);
        return Returned::Nothing;
    }
    if offset != 0 || part != Part::Page {
        tell(Kind::InvalidFree, offset);
        return Returned::Nothing;
    }
    if !slot.state.seize(State::Live) {
        if entry.is_opened.load(Ordering::Relaxed) {
            // It was told when the free looked for the mark.
            return Returned::Nothing;
        }
        tell(Kind::DoubleFree, 0);
        return Returned::Nothing;
    }
    if let Some(wrong) = slot.first_wrong().filter(|_| !entry.is_opened.load(Ordering::Relaxed)) {
        tell(if wrong < 0 { Kind::Underrun } else { Kind::Overrun }, wrong);
    } else if let Some(claimed) = claimed
        && (claimed.size(), claimed.align())
            != (entry.size.load(Ordering::Relaxed), entry.align.load(Ordering::Relaxed))
    {
        tell(Kind::LayoutMismatch, 0);
    }
    Returned::Block(Taken(slot))
}

/// The size of a live block in the pool; `None` for what is not in the pool. Reports a pointer to none.
pub fn size_of_block(block: *mut u8) -> Option<usize> {
    let (slot, _) = PoolSlot::of(block.addr())?;
    if !pool::is_live(block) {
        let (address, offset) = (block.addr(), slot.entry.offset_of(block.addr()));
        let kind = if offset == 0 { Kind::UseAfterFree } else { Kind::InvalidFree };
        let found = Found::UsableSize;
        report::tell(Violation { kind, found, address, offset, slot }, std::ptr::null_mut());
        return Some(0);
    }
    Some(slot.entry.size.load(Ordering::Relaxed))
}

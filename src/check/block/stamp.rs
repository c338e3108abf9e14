//! Who did something to a block, as it stands in a header.

use crate::owner::Slot;

/// Who did something to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(super) who: Who,
    /// The call stack's number in [`stack_depot`](super::super::stack_depot); 0 for none.
    pub(crate) trace: u32,
}

/// A service and a thread, as they stand in a header: slot (24 bits), generation (16), thread (24).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who(pub(super) u64);

/// What a slot fits into.
pub(super) const SLOTS: u32 = Slot::COUNT - 1;
/// The last thread's number.
pub(super) const THREADS: u32 = (1 << 24) - 1;

impl Stamp {
    /// Makes the stamp of a service, by its slot and which of those it is that have had the slot; of a thread, by its
    /// number in [`threads`](super::super::threads), of which those from 2^24 - 1 on are not distinguished; and of a call
    /// stack.
    #[cfg(test)]
    pub(crate) fn new(slot: u32, generation: u16, thread: u32, trace: u32) -> Self {
        Self::of(Self::place(slot, thread), generation, trace)
    }

    /// The part of a stamp that is a slot and a thread.
    #[inline]
    pub(crate) fn place(slot: u32, thread: u32) -> u64 {
        u64::from(slot) | u64::from(thread.min(THREADS)) << 40
    }

    /// Makes a stamp of such a part.
    #[inline(always)]
    pub(crate) fn of(place: u64, generation: u16, trace: u32) -> Self {
        Self { who: Who(place | u64::from(generation) << 24), trace }
    }

    pub(crate) fn slot(&self) -> u32 {
        self.who.0 as u32 & SLOTS
    }

    pub(crate) fn generation(&self) -> u16 {
        (self.who.0 >> 24) as u16
    }

    pub(crate) fn thread(&self) -> u32 {
        (self.who.0 >> 40) as u32
    }
}

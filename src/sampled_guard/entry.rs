//! What is known of a slot: the block in it, and who allocated and freed that.
//!
//! All atomics: the signal handler reads them, whatever it has interrupted.

use super::who::Who;
use crate::ledger::slots::{self, Record};
use crate::owner::{SampleId, Slot};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// One slot of the pool. Zeros are one that was never used.
pub(super) struct Entry {
    /// Where the block begins.
    pub(super) block: AtomicUsize,
    pub(super) size: AtomicUsize,
    pub(super) align: AtomicUsize,
    /// Whether the allocator reads 2 bytes behind the block when it is freed.
    pub(super) has_mark: AtomicBool,
    /// Whether the page behind can be read.
    pub(super) is_behind_readable: AtomicBool,
    /// Whether a violation has opened one of the pages, for the process to go on.
    pub(super) is_opened: AtomicBool,
    /// The owner's slot.
    owner: AtomicU32,
    /// One more than the block's sample in the profile; 0 for none.
    sample: AtomicU32,
    pub(super) allocated: Who,
    pub(super) freed: Who,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its pages have no access. Holds when that came about; 0 if it was never used.
    Free(u64),
    /// One thread is changing it.
    Busy,
    /// It has a live block.
    Live,
    /// It is not used again.
    Retired,
}

const BUSY: u64 = 1;
const LIVE: u64 = 2;
const RETIRED: u64 = 3;
const KIND: u64 = 3;

impl State {
    fn bits(self) -> u64 {
        match self {
            Self::Free(when) => when << 2,
            Self::Busy => BUSY,
            Self::Live => LIVE,
            Self::Retired => RETIRED,
        }
    }

    fn of(bits: u64) -> Self {
        match bits & KIND {
            BUSY => Self::Busy,
            LIVE => Self::Live,
            RETIRED => Self::Retired,
            _ => Self::Free(bits >> 2),
        }
    }
}

/// The state of a slot. Those of all slots stand together, to be looked through.
pub(super) struct StateCell(AtomicU64);

impl StateCell {
    pub(super) fn get(&self) -> State {
        State::of(self.0.load(Ordering::Acquire))
    }

    /// Since when it is free; later than ever if it is not. Does not branch, and orders nothing: whoever
    /// [seizes](Self::seize) it knows.
    #[inline]
    pub(super) fn free_since(&self) -> u64 {
        let bits = self.0.load(Ordering::Relaxed);
        let is_taken = u64::from(bits & KIND != 0);
        (bits / (KIND + 1)) | is_taken.wrapping_neg()
    }

    /// Makes the slot the calling thread's, if it is in that state.
    pub(super) fn seize(&self, from: State) -> bool {
        let (from, to) = (from.bits(), State::Busy.bits());
        self.0.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Gives up what was [seized](Self::seize).
    pub(super) fn settle(&self, state: State) {
        self.0.store(state.bits(), Ordering::Release);
    }
}

impl Entry {
    pub(super) fn set_owner(&self, owner: &Record, sample: Option<SampleId>) {
        self.owner.store(owner.index(), Ordering::Relaxed);
        self.sample.store(sample.map_or(0, |sample| sample.index() as u32 + 1), Ordering::Relaxed);
    }

    /// The owner of its live block, and the block's sample.
    pub(super) fn owner(&self) -> (Option<&'static Record>, Option<SampleId>) {
        let slot = Slot::new(self.owner.load(Ordering::Relaxed));
        let sample = self.sample.load(Ordering::Relaxed).checked_sub(1).and_then(SampleId::new);
        (slot.and_then(slots::record), sample)
    }

    pub(super) fn is_used(&self) -> bool {
        self.block.load(Ordering::Relaxed) != 0
    }

    /// How far an address is from the block's beginning.
    pub(super) fn offset_of(&self, address: usize) -> isize {
        address.wrapping_sub(self.block.load(Ordering::Relaxed)) as isize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_as_it_was_settled_and_free_since_then() {
        let cell = StateCell(AtomicU64::new(0));
        assert_eq!((cell.get(), cell.free_since()), (State::Free(0), 0));
        for (state, since) in [
            (State::Live, u64::MAX),
            (State::Free(7), 7),
            (State::Busy, u64::MAX),
            (State::Retired, u64::MAX),
            (State::Free(1 << 40), 1 << 40),
        ] {
            cell.settle(state);
            assert_eq!((cell.get(), cell.free_since()), (state, since));
        }
        assert!(!cell.seize(State::Free(7)) && cell.seize(State::Free(1 << 40)));
        assert_eq!(cell.free_since(), u64::MAX);
    }
}

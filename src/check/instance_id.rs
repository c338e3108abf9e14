//! Numbers of allocators, by which a block's header names the allocator that it came from.
//!
//! A number is given again when its allocator has ended: no block says it any more,
//! since all of them were looked for. But a thread may still keep a magazine that was
//! the old allocator's. So a number has *generations*, odd ones while an allocator has
//! it, and magazines are for one of these.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// An allocator's number and generation, which no other allocator ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(u64);

impl Identity {
    /// Shared by the allocators for which no number is left: they are not distinguished,
    /// and have no quarantine.
    pub(crate) const UNNUMBERED: Self = Self(u16::MAX as u64);

    fn new(number: usize, generation: u64) -> Self {
        Self(number as u64 | generation << u16::BITS)
    }

    /// Decodes what [`bits`](Self::bits) returned; `None` for 0, which is nobody's.
    #[inline]
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }

    #[inline]
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) fn number(self) -> u16 {
        self.0 as u16
    }

    fn generation(self) -> u64 {
        self.0 >> u16::BITS
    }
}

/// A generation for each number from 1 on.
pub(crate) struct Numbers<'a> {
    pub(crate) generations: &'a [AtomicU64],
    /// Where the search for a free one begins: at one that was taken back.
    pub(crate) next: &'a AtomicU32,
}

/// What is left of an [`Identity`] beside the number. One that has come so far is given no more:
/// there are others for longer than anybody can wait.
const LAST_GENERATION: u64 = (u64::MAX >> u16::BITS) - 1;

/// How many allocators there can be at once that are distinguished.
#[cfg(not(dogtag_loom))]
const MOST: usize = u16::MAX as usize - 1;

/// The numbers of this process.
#[cfg(not(dogtag_loom))]
pub(crate) const NUMBERS: Numbers<'static> = {
    static GENERATIONS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
    static NEXT: AtomicU32 = AtomicU32::new(0);

    Numbers { generations: &GENERATIONS, next: &NEXT }
};

impl Numbers<'_> {
    /// Gives out a free number; `None` where there is none.
    pub(crate) fn give(&self) -> Option<Identity> {
        let start = self.next.load(Ordering::Relaxed) as usize % self.generations.len().max(1);
        let (before, after) = self.generations.split_at(start);
        let in_turn = (start..).zip(after).chain((0..).zip(before));
        let (index, identity) = in_turn.into_iter().find_map(|(index, generation)| {
            let last = generation.load(Ordering::Relaxed);
            let is_given = last.is_multiple_of(2)
                && last < LAST_GENERATION
                && generation.compare_exchange(last, last + 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
            is_given.then(|| (index, Identity::new(index + 1, last + 1)))
        })?;
        self.next.store(index as u32 + 1, Ordering::Relaxed);
        Some(identity)
    }

    /// Takes a number back. Call it as the one who was given the number, when nothing refers to it any
    /// more except by this generation.
    pub(crate) fn take_back(&self, identity: Identity) {
        let Some(index) = usize::from(identity.number()).checked_sub(1) else { return };
        let Some(generation) = self.generations.get(index) else { return };
        generation.store(identity.generation() + 1, Ordering::Release);
        // So that the same few are used over and over.
        self.next.store(index as u32, Ordering::Relaxed);
    }

    /// Whether the number was taken back.
    #[inline]
    pub(crate) fn has_ended(&self, identity: Identity) -> bool {
        let generation =
            usize::from(identity.number()).checked_sub(1).and_then(|index| self.generations.get(index));
        generation.is_some_and(|generation| generation.load(Ordering::Relaxed) != identity.generation())
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_again_but_not_an_identity() {
        let (generations, next) = ([const { AtomicU64::new(0) }; 3], AtomicU32::new(0));
        let numbers = Numbers { generations: &generations, next: &next };
        let [one, two, three] = [(); 3].map(|()| numbers.give().expect("there are three"));
        assert_eq!([one, two, three].map(Identity::number), [1, 2, 3]);
        assert_eq!(numbers.give(), None);
        assert!(![one, two, three].iter().any(|identity| numbers.has_ended(*identity)));
        numbers.take_back(two);
        assert!(numbers.has_ended(two) && !numbers.has_ended(three));
        let mut last = two;
        for _ in 0..1000 {
            let again = numbers.give().expect("one was taken back");
            assert_eq!((again.number(), numbers.has_ended(again)), (2, false));
            assert!(again != last && numbers.has_ended(last) && numbers.has_ended(two));
            numbers.take_back(again);
            last = again;
        }
        assert!(!numbers.has_ended(Identity::UNNUMBERED));
        assert_eq!(Identity::from_bits(last.bits()), Some(last));
    }

    #[test]
    fn a_number_whose_generations_are_used_up_is_given_no_more() {
        let (generations, next) = ([const { AtomicU64::new(LAST_GENERATION - 2) }; 2], AtomicU32::new(0));
        let numbers = Numbers { generations: &generations, next: &next };
        let last = numbers.give().expect("its last generation");
        assert_eq!((last.number(), last.generation()), (1, LAST_GENERATION - 1));
        assert!(!numbers.has_ended(last));
        numbers.take_back(last);
        assert!(numbers.has_ended(last));
        let other = numbers.give().expect("the other one");
        assert_eq!(other.number(), 2);
        numbers.take_back(other);
        assert_eq!(numbers.give(), None);
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// However two threads take and give numbers back, no two have the same one, and
    /// nobody who has one reads that it has ended.
    #[test]
    fn who_has_a_number_has_it_alone() {
        crate::sync::model(|| {
            let shared =
                Arc::new(([AtomicU64::new(0), AtomicU64::new(0)], AtomicU32::new(0), AtomicU64::new(0)));
            let come_and_go = |shared: &([AtomicU64; 2], AtomicU32, AtomicU64)| {
                let numbers = Numbers { generations: &shared.0, next: &shared.1 };
                for _ in 0..2 {
                    // One that another gives back meanwhile may be missed.
                    let Some(identity) = numbers.give() else { continue };
                    let bit = 1 << identity.number();
                    assert_eq!(shared.2.fetch_add(bit, Ordering::Relaxed) & bit, 0, "two have it");
                    assert!(!numbers.has_ended(identity));
                    shared.2.fetch_sub(bit, Ordering::Relaxed);
                    numbers.take_back(identity);
                    assert!(numbers.has_ended(identity));
                }
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || come_and_go(&shared)
            });
            come_and_go(&shared);
            other.join().unwrap();
        });
    }
}

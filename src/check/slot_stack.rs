//! Free slots for [blocks of 0 bytes](super::zero_sized), in stacks without a lock.
//!
//! Each change counts, so that who has looked at a stack changes it only if nobody else has since: the same slot
//! may be first again, with another one below it.

use crate::sync::{AtomicU32, AtomicU64, Ordering, const_unless_loom};

/// A stack of slots, by their numbers; the last one first. Threads that come at once do not wait for each other.
pub(super) struct SlotStack {
    /// The number of the first slot plus one, or 0 for none; above it, how often it was changed.
    first: AtomicU64,
}

/// What is below each slot in its stack, as in [`SlotStack::first`]. A slot is in one stack at most.
pub(super) type Below = [AtomicU32];

/// Bits of a slot's number plus one.
const NUMBER: u32 = 13;
/// How many slots there can be.
pub(super) const MOST: usize = (1 << NUMBER) - 1;

impl SlotStack {
    const_unless_loom! {
        pub(super) fn new() -> Self {
            Self { first: AtomicU64::new(0) }
        }
    }

    /// Puts a slot in, which the caller has.
    pub(super) fn push(&self, below: &Below, slot: usize) {
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            below[slot].store(number(first), Ordering::Relaxed);
            match self.change(first, slot as u32 + 1) {
                Ok(()) => return,
                Err(now) => first = now,
            }
        }
    }

    /// Takes the first slot out, which is the caller's alone then.
    pub(super) fn pop(&self, below: &Below) -> Option<usize> {
        let mut first = self.first.load(Ordering::Acquire);
        loop {
            let slot = (number(first) as usize).checked_sub(1)?;
            match self.change(first, below[slot].load(Ordering::Relaxed)) {
                Ok(()) => return Some(slot),
                Err(now) => first = now,
            }
        }
    }

    fn change(&self, from: u64, number: u32) -> Result<(), u64> {
        // The count begins again at 0.
        let to = (from >> NUMBER).wrapping_add(1) << NUMBER | u64::from(number);
        self.first.compare_exchange_weak(from, to, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }
}

fn number(first: u64) -> u32 {
    first as u32 & ((1 << NUMBER) - 1)
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_comes_first_also_where_the_count_begins_again() {
        let below: Vec<AtomicU32> = (0..MOST).map(|_| AtomicU32::new(0)).collect();
        for count in [0, 1, u64::MAX >> NUMBER] {
            let stack = SlotStack { first: AtomicU64::new(count << NUMBER) };
            assert_eq!(stack.pop(&below), None);
            for round in 0..3 {
                (0..MOST).for_each(|slot| stack.push(&below, slot));
                assert!((0..MOST).rev().all(|slot| stack.pop(&below) == Some(slot)), "{count}, {round}");
                assert_eq!(stack.pop(&below), None);
            }
        }
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::whole_model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        stack: SlotStack,
        below: [AtomicU32; 2],
        /// Whether a thread has the slot.
        slots: [UnsafeCell<bool>; 2],
    }

    impl Shared {
        fn full() -> Arc<Self> {
            let shared = Self {
                stack: SlotStack::new(),
                below: std::array::from_fn(|_| AtomicU32::new(0)),
                slots: std::array::from_fn(|_| UnsafeCell::new(false)),
            };
            (0..2).for_each(|slot| shared.stack.push(&shared.below, slot));
            Arc::new(shared)
        }

        fn take(&self) -> Option<usize> {
            let slot = self.stack.pop(&self.below)?;
            // SAFETY: the slot is this thread's alone, or the model fails.
            let had = self.slots[slot].with_mut(|has| unsafe { std::mem::replace(&mut *has, true) });
            assert!(!had, "handed out twice");
            Some(slot)
        }

        fn put(&self, slot: usize) {
            // SAFETY: the slot is this thread's alone, or the model fails.
            self.slots[slot].with_mut(|has| unsafe { *has = false });
            self.stack.push(&self.below, slot);
        }

        /// All are there, each once.
        fn check(&self) {
            let mut left: Vec<usize> = (0..2).map(|_| self.take().expect("one is lost")).collect();
            left.sort_unstable();
            assert_eq!((left, self.take()), (vec![0, 1], None));
        }
    }

    /// One thread takes both, and puts the first one back, which comes to be first again, while another one takes it.
    #[test]
    fn a_slot_that_is_first_again_is_not_taken_for_what_it_was() {
        whole_model(|| {
            let shared = Shared::full();
            let other = thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let taken = [shared.take(), shared.take()];
                    taken.into_iter().flatten().for_each(|slot| shared.put(slot));
                }
            });
            if let Some(slot) = shared.take() {
                shared.put(slot);
            }
            other.join().unwrap();
            shared.check();
        });
    }

    /// Of the slots that threads put in at once none is lost.
    #[test]
    fn threads_that_come_at_once_lose_no_slot() {
        whole_model(|| {
            let shared = Shared::full();
            let slots = [(); 2].map(|()| shared.take().expect("there are two"));
            let other = thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    shared.put(slots[0]);
                    if let Some(slot) = shared.take() {
                        shared.put(slot);
                    }
                }
            });
            shared.put(slots[1]);
            other.join().unwrap();
            shared.check();
        });
    }
}

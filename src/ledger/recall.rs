//! Services that a thread remembers without retaining them, and the proof that the memory is
//! still true.
//!
//! The owner of the service that is remembered changes the generation before it releases the
//! service ([`Generation::change`]). A thread that enters a service by memory counts itself in
//! first, and then compares the generation ([`Generation::is_still`]). Each puts a fence between
//! the two, so at least one of them sees the other: the thread sees that its memory is
//! too old, and goes back; or the thread that looks after the service's end sees it.

use crate::sync::{AtomicU64, Ordering, const_unless_loom, fence};

/// How often something has changed. It would take centuries to count to its end.
#[derive(Debug)]
pub(crate) struct Generation(AtomicU64);

impl Generation {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Returns the generation. Read it before looking up what is remembered with it.
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Makes what is remembered untrue, before it is released. Returns the new generation, which
    /// no other caller gets.
    pub(crate) fn change(&self) -> u64 {
        let generation = self.0.fetch_add(1, Ordering::AcqRel) + 1;
        fence(Ordering::SeqCst);
        generation
    }

    /// Whether what was remembered with that generation is still true. The caller has counted
    /// itself in.
    #[inline]
    pub(crate) fn is_still(&self, generation: u64) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) == generation
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::ledger::cell::Cell;
    use crate::ledger::lifecycle::Lifecycle;
    use crate::ledger::shard::ShardList;
    use crate::owner::Slot;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    const SLOT: Slot = Slot::UNATTRIBUTED;

    /// One thread goes to a service by memory, while another one says that this is not true
    /// any more, releases the service, and ends it if it can.
    #[test]
    fn who_goes_by_memory_is_where_somebody_holds_it() {
        model(|| {
            let list = Arc::new(ShardList::new());
            let shared = Arc::new(Cell::shared(SLOT.mark()));
            let (life, generation) = (Arc::new(Lifecycle::default()), Arc::new(Generation::new()));
            assert!(life.claim());
            life.begin();
            let remembered = generation.get();
            let other = thread::spawn({
                let (list, shared) = (Arc::clone(&list), Arc::clone(&shared));
                let (life, generation) = (Arc::clone(&life), Arc::clone(&generation));
                move || {
                    generation.change();
                    assert!(life.release());
                    let ended = life.end(|| list.sum(SLOT, &shared).is_quiet().then_some(()));
                    ended.is_some()
                }
            });
            let cell = list.acquire().unwrap().claim(SLOT).unwrap();
            cell.enter();
            let is_in = generation.is_still(remembered);
            if !is_in {
                cell.leave();
            }
            let has_ended = other.join().unwrap();
            assert!(!(is_in && has_ended), "the service ended under a thread that is in it");
        });
    }

    /// One thread takes a clone of a service by memory, while another one ends the service.
    #[test]
    fn who_takes_a_clone_by_memory_has_one() {
        model(|| {
            let (life, generation) = (Arc::new(Lifecycle::default()), Arc::new(Generation::new()));
            assert!(life.claim());
            life.begin();
            let remembered = generation.get();
            let other = thread::spawn({
                let (life, generation) = (Arc::clone(&life), Arc::clone(&generation));
                move || {
                    generation.change();
                    life.release() && life.end(|| Some(())).is_some()
                }
            });
            let has_clone = life.try_hold();
            let is_in = has_clone && generation.is_still(remembered);
            let has_ended = other.join().unwrap();
            assert!(!(is_in && has_ended), "the service ended though there is a clone");
        });
    }
}

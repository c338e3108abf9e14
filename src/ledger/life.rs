//! When a service begins, ends, and may give its slot to the next.
//!
//! ```text
//!   never used ─┐
//!               ├─ claim ─▶ claimed ─ begin ─▶ in use ─ end ─▶ ended ─┐
//!               │              └──────── abandon ───────────────▲     │
//!               └──────────────────── claim ◀────────────────────────┘
//! ```
//!
//! Whoever can bring a service back to work holds it: a clone of its `Service`
//! (counted here), a scope or a block (counted in the cells). It ends when all
//! three are none at the same moment. Nothing tells of that moment, since a free
//! on the hot path has no time to look; so it is looked for later, and the proof
//! is that there was no clone from before the cells were read until after: a
//! clone that comes out of a scope leaves a trace here.

use crate::sync::{AtomicU32, AtomicU64, Ordering, const_unless_loom};

/// Zeroed memory is a slot that was never used.
#[derive(Debug)]
pub(crate) struct Life {
    /// From the lowest bit: 32 bits of clones, 2 of the state, one that says whether the
    /// last clone was dropped once, and somebody looks after the end, 29 that count how
    /// often a service without clones got one.
    word: AtomicU64,
    /// How many readers look at what belongs to the slot.
    pins: AtomicU32,
}

const CLONE: u64 = 1;
const CLONES: u64 = u32::MAX as u64;
const RETIRED: u64 = 1 << 34;
const REVIVAL: u64 = 1 << 35;
const STATE: u64 = 3 << 32;
const NEVER: u64 = 0;
const IN_USE: u64 = 1 << 32;
const ENDED: u64 = 2 << 32;
const CLAIMED: u64 = 3 << 32;

/// More clones than this are a program that forgets them.
const MOST_CLONES: u64 = 1 << 31;

impl Life {
    const_unless_loom! {
        /// That of a service which never ends.
        pub(crate) fn endless() -> Self {
            Self {
                word: AtomicU64::new(IN_USE | CLONE),
                pins: AtomicU32::new(0),
            }
        }
    }

    /// Takes an unused slot for a new service, alone. `false` if a reader still
    /// looks at the last one; then nothing has changed.
    pub(crate) fn claim(&self) -> bool {
        let unused = self.word.load(Ordering::Relaxed);
        if !matches!(unused & STATE, NEVER | ENDED) {
            return false;
        }
        let claimed = unused & !STATE | CLAIMED;
        if self.word.compare_exchange(unused, claimed, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        // Either this sees a reader's pin, or the reader, whose pin comes later
        // in the order of that word, sees the claim.
        if self.pins.fetch_add(0, Ordering::AcqRel) != 0 {
            self.word.store(unused, Ordering::Release);
            return false;
        }
        true
    }

    /// Begins a claimed slot's new service, with one clone.
    pub(crate) fn begin(&self) {
        self.word.store(self.revivals() | IN_USE | CLONE, Ordering::Release);
    }

    /// Puts a claimed slot back, for which there is no service after all.
    pub(crate) fn abandon(&self) {
        self.word.store(self.revivals() | ENDED, Ordering::Release);
    }

    fn revivals(&self) -> u64 {
        self.word.load(Ordering::Relaxed) & !(STATE | RETIRED | CLONES)
    }

    /// Another clone, by whoever has one.
    ///
    /// # Panics
    ///
    /// If 2^31 clones were not dropped.
    #[inline]
    pub(crate) fn hold(&self) {
        let before = self.word.fetch_add(CLONE, Ordering::Relaxed);
        if before & CLONES > MOST_CLONES {
            self.word.fetch_sub(CLONE, Ordering::Relaxed);
            panic!("2^31 clones of a service exist, so some code forgets them instead of dropping them");
        }
    }

    /// Another clone, unless the last one is gone.
    pub(crate) fn try_hold(&self) -> bool {
        let has_clones = |word: u64| (1..=MOST_CLONES).contains(&(word & CLONES));
        let more = |word: u64| (word & STATE == IN_USE && has_clones(word)).then(|| word + CLONE);
        self.word.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).is_ok()
    }

    /// Another clone, by a thread that is in a scope, though there may be none.
    /// Inside an allocation too.
    pub(crate) fn revive(&self) {
        let more = |word: u64| match word & CLONES {
            0 => Some((word | CLONE).wrapping_add(REVIVAL)),
            _ => Some(word + CLONE),
        };
        let _ = self.word.fetch_update(Ordering::Acquire, Ordering::Relaxed, more);
    }

    /// Drops a clone. `true` for the last one, the first time that there is
    /// none: then the caller looks after the service's end.
    #[inline]
    pub(crate) fn let_go(&self) -> bool {
        let before = self.word.fetch_sub(CLONE, Ordering::AcqRel);
        debug_assert_ne!(before & CLONES, 0, "a clone was dropped that there was not");
        if before & (RETIRED | CLONES) != CLONE {
            return false;
        }
        // Should it have got another clone since, that one's end decides; by now the slot
        // may be another service's.
        let last = before - CLONE;
        self.word.compare_exchange(last, last | RETIRED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Ends the service if it has neither clones nor, as `proof` says (`Some`),
    /// scopes and blocks. Only by whoever looks after its end.
    pub(crate) fn end<T>(&self, proof: impl FnOnce() -> Option<T>) -> Option<T> {
        let before = self.word.load(Ordering::Acquire);
        if before & (STATE | CLONES) != IN_USE {
            return None;
        }
        let proof = proof()?;
        let ended = before & !STATE | ENDED;
        let end = self.word.compare_exchange(before, ended, Ordering::AcqRel, Ordering::Relaxed);
        end.is_ok().then_some(proof)
    }

    #[inline]
    pub(crate) fn is_in_use(&self) -> bool {
        self.word.load(Ordering::Acquire) & STATE == IN_USE
    }

    /// Whether the last clone was dropped, in use or not.
    pub(crate) fn is_retired(&self) -> bool {
        self.word.load(Ordering::Relaxed) & RETIRED != 0
    }

    /// Calls `look` while the slot cannot be given to another service; `None`
    /// if no service has it, nor has had it since it was claimed last.
    #[cfg(any(feature = "memory-check", feature = "interpose", test))]
    pub(crate) fn pinned<R>(&self, look: impl FnOnce() -> R) -> Option<R> {
        self.pin().then(|| {
            let looked = look();
            self.unpin();
            looked
        })
    }

    /// As [`pinned`](Self::pinned), until [`unpin`](Self::unpin).
    pub(crate) fn pin(&self) -> bool {
        self.pins.fetch_add(1, Ordering::AcqRel);
        let is_known = matches!(self.word.load(Ordering::Acquire) & STATE, IN_USE | ENDED);
        if !is_known {
            self.unpin();
        }
        is_known
    }

    pub(crate) fn unpin(&self) {
        self.pins.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(dogtag_loom)]
impl Default for Life {
    fn default() -> Self {
        Self { word: AtomicU64::new(NEVER), pins: AtomicU32::new(0) }
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    fn never() -> Life {
        let life = Life::endless();
        life.word.store(NEVER, Ordering::Relaxed);
        life
    }

    #[test]
    fn a_slot_is_claimed_once() {
        let life = never();
        assert!(!life.is_in_use() && !life.pin());
        assert!(life.claim() && !life.claim() && !life.is_in_use() && !life.pin());
        life.abandon();
        assert!(life.claim());
        life.begin();
        assert!(life.is_in_use() && !life.claim());
    }

    #[test]
    fn it_ends_when_nobody_holds_it() {
        let life = never();
        assert!(life.claim());
        life.begin();
        life.hold();
        assert!(life.try_hold());
        assert!(!life.let_go() && !life.let_go() && life.end(|| Some(())).is_none());
        assert!(life.let_go() && life.is_retired() && !life.try_hold());
        assert!(life.end(|| None::<()>).is_none() && life.is_in_use());
        // Out of a scope comes another clone, which is no reason to retire twice.
        life.revive();
        assert!(life.end(|| Some(())).is_none() && !life.let_go());
        // So it does while the cells are read.
        let revived = life.end(|| {
            life.revive();
            life.let_go();
            Some(())
        });
        assert!(revived.is_none());
        assert_eq!(life.end(|| Some(7)), Some(7));
        assert!(!life.is_in_use() && life.claim());
        life.begin();
        assert!(life.is_in_use() && !life.is_retired());
    }

    #[test]
    fn who_is_looked_at_is_not_claimed() {
        let life = never();
        assert!(life.claim());
        life.begin();
        assert!(life.let_go());
        assert_eq!(life.end(|| Some(())), Some(()));
        assert_eq!(life.pinned(|| life.claim()), Some(false));
        assert!(life.claim());
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::cookie::Slot;
    use crate::ledger::cell::Cell;
    use crate::ledger::shard::Roster;
    use crate::sync::{AtomicBool, model};
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    const SLOT: Slot = Slot::UNATTRIBUTED;

    struct House {
        roster: Roster,
        shared: Cell,
        life: Life,
        handed_over: AtomicBool,
        ended: AtomicU32,
    }

    impl House {
        fn new() -> Arc<Self> {
            let house = Self {
                roster: Roster::new(),
                shared: Cell::shared(SLOT.mark()),
                life: Life::default(),
                handed_over: AtomicBool::new(false),
                ended: AtomicU32::new(0),
            };
            assert!(house.life.claim());
            house.life.begin();
            Arc::new(house)
        }

        fn look_after(&self) {
            let ended = self.life.end(|| {
                let sum = self.roster.sum(SLOT, &self.shared);
                sum.is_quiet().then_some(sum.usage)
            });
            if let Some(usage) = ended {
                assert_eq!((usage.allocated_bytes, usage.allocated_blocks), (100, 1), "ended too early");
                self.ended.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// One thread leaves its service with a block behind, which another frees.
    #[test]
    fn a_service_ends_after_its_last_block_and_clone() {
        model(|| {
            let house = House::new();
            let other = thread::spawn({
                let house = Arc::clone(&house);
                move || {
                    let cell = house.roster.acquire().unwrap().claim(SLOT).unwrap();
                    if house.handed_over.load(Ordering::Acquire) {
                        cell.refund(100);
                    }
                }
            });
            let cell = house.roster.acquire().unwrap().claim(SLOT).unwrap();
            cell.enter();
            cell.charge(100);
            house.handed_over.store(true, Ordering::Release);
            cell.leave();
            let is_last = house.life.let_go();
            assert!(is_last);
            house.look_after();
            other.join().unwrap();
            let usage = house.roster.sum(SLOT, &house.shared).usage;
            if house.ended.load(Ordering::Relaxed) == 0 && usage.bytes() == 0 {
                house.look_after();
                assert_eq!(house.ended.load(Ordering::Relaxed), 1, "does not end");
            }
            assert!(usage.bytes() == 0 || house.life.is_in_use());
        });
    }

    /// One thread is in a scope, though all clones are gone, and takes a clone
    /// there, with which it allocates later.
    #[test]
    fn a_clone_out_of_a_scope_keeps_it() {
        model(|| {
            let house = House::new();
            let cell = house.roster.acquire().unwrap().claim(SLOT).unwrap();
            cell.enter();
            assert!(house.life.let_go());
            let other = thread::spawn({
                let house = Arc::clone(&house);
                move || house.look_after()
            });
            house.life.revive();
            cell.leave();
            cell.enter();
            cell.charge(100);
            cell.leave();
            house.life.let_go();
            cell.refund(100);
            other.join().unwrap();
            house.look_after();
            assert_eq!(house.ended.load(Ordering::Relaxed), 1);
        });
    }

    /// Two drop what was the last clone each time, one of them late, and the slot gets another
    /// service.
    #[test]
    fn a_service_is_retired_once_and_its_successor_is_not() {
        model(|| {
            let life = Arc::new(Life::default());
            assert!(life.claim());
            life.begin();
            let other = thread::spawn({
                let life = Arc::clone(&life);
                move || {
                    // Out of a scope.
                    life.revive();
                    let is_last = life.let_go();
                    if is_last && life.end(|| Some(())).is_some() && life.claim() {
                        life.begin();
                    }
                    is_last
                }
            });
            let is_last = life.let_go();
            assert!(is_last != other.join().unwrap(), "retired twice, or never");
            let has_successor = life.try_hold();
            assert!(!has_successor || !life.is_retired());
        });
    }

    /// What belongs to a slot does not change under a reader's eyes.
    #[test]
    fn a_reader_sees_one_service() {
        model(|| {
            let life = Arc::new(Life::default());
            let name = Arc::new(UnsafeCell::new(1));
            assert!(life.claim());
            life.begin();
            let reader = thread::spawn({
                let (life, name) = (Arc::clone(&life), Arc::clone(&name));
                move || {
                    life.pinned(|| {
                        name.with(|name| {
                            // SAFETY: loom finds out if somebody writes meanwhile.
                            let name = unsafe { *name };
                            assert!(name == 1 || name == 2);
                        })
                    });
                }
            });
            assert!(life.let_go());
            assert!(life.end(|| Some(())).is_some());
            if life.claim() {
                // SAFETY: as above.
                name.with_mut(|name| unsafe { *name = 2 });
                life.begin();
            }
            reader.join().unwrap();
        });
    }
}

//! A slot's lifecycle: when its service begins and ends, and when the next service may have it.
//!
//! ```text
//!   never used ─┐
//!               ├─ claim ─▶ claimed ─ begin ─▶ in use ─ end ─▶ ended ─┐
//!               │              ▲                 └─ end_and_claim ┐   │
//!               │              └─────────────────────────────────┘    │
//!               └──────────────────── claim ◀────────────────────────┘
//! ```
//!
//! A service in use is *retired* from the moment at which its last clone is dropped, until it ends.
//!
//! Whoever can bring a service back to work holds it: a clone of its `Service`
//! (counted here), a scope or a block (counted in the cells). It ends when all
//! three are none at the same moment. Nothing announces that moment, since a free
//! on the hot path has no time to look; so it is looked for later, and the proof
//! is that there was no clone from before the cells were read until after: a
//! clone that comes out of a scope takes the mark away that whoever looks has made here.
//!
//! Clones that are forgotten stay counted, and keep their service for good. To forget
//! as many as the count can hold takes a century and more.

use crate::sync::{AtomicU64, Ordering, const_unless_loom};

/// Zeroed memory is a slot that was never used.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    /// From the lowest bit: 60 bits of clones, one that says whether the last clone was
    /// dropped once, and somebody looks after the end, one while he looks whether that has
    /// come, 2 of the state.
    word: AtomicU64,
    /// How many readers look at what belongs to the slot.
    pins: AtomicU64,
}

const CLONE: u64 = 1;
const CLONES: u64 = (1 << 60) - 1;
const RETIRED: u64 = 1 << 60;
const ENDING: u64 = 1 << 61;
const STATE: u64 = 3 << 62;
const NEVER: u64 = 0;
const IN_USE: u64 = 1 << 62;
const ENDED: u64 = 2 << 62;
const CLAIMED: u64 = 3 << 62;

impl Lifecycle {
    const_unless_loom! {
        /// The lifecycle of a service that never ends.
        pub(crate) fn endless() -> Self {
            Self {
                word: AtomicU64::new(IN_USE | CLONE),
                pins: AtomicU64::new(0),
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
        if self.word.compare_exchange(unused, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        self.keep_claim(unused)
    }

    /// Gives up what was just claimed if a reader looks at it; it goes back to `unused`.
    fn keep_claim(&self, unused: u64) -> bool {
        // Either this sees a reader's pin, or the reader, whose pin comes later
        // in the order of that word, sees the claim.
        let is_pinned = self.pins.fetch_add(0, Ordering::AcqRel) != 0;
        if is_pinned {
            self.word.store(unused, Ordering::Release);
        }
        !is_pinned
    }

    /// Begins a claimed slot's new service, with one clone.
    pub(crate) fn begin(&self) {
        self.word.store(IN_USE | CLONE, Ordering::Release);
    }

    /// Begins a claimed slot's new service, with one clone, unless another thread has. Returns whether
    /// it was this one. Also inside an allocation.
    pub(crate) fn begin_once(&self) -> bool {
        self.word.compare_exchange(CLAIMED, IN_USE | CLONE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Marks a service as retired that somebody holds for good: it never ends.
    pub(crate) fn show_retired(&self) {
        self.word.fetch_or(RETIRED, Ordering::AcqRel);
    }

    /// Whether the slot is claimed. Whoever claimed it may pass it on.
    pub(crate) fn is_claimed(&self) -> bool {
        self.word.load(Ordering::Acquire) & STATE == CLAIMED
    }

    /// Counts another clone. The caller has one.
    #[inline]
    pub(crate) fn retain(&self) {
        self.word.fetch_add(CLONE, Ordering::Relaxed);
    }

    /// Counts another clone, unless the last one is gone.
    pub(crate) fn try_hold(&self) -> bool {
        let more = |word: u64| (word & STATE == IN_USE && word & CLONES != 0).then(|| word + CLONE);
        self.word.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).is_ok()
    }

    /// Counts another clone for a thread that is in a scope, though there may be none.
    /// Also inside an allocation. `false` if no service has the slot, whose scope it might be.
    #[must_use]
    pub(crate) fn revive(&self) -> bool {
        // Who looks whether the service has ended, sees that it has not.
        let more = |word: u64| (word & STATE == IN_USE).then(|| (word & !ENDING) + CLONE);
        self.word.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).is_ok()
    }

    /// Drops a clone. `true` for the last one, the first time that there is
    /// none: then the caller looks after the service's end.
    #[inline]
    pub(crate) fn release(&self) -> bool {
        let before = self.word.fetch_sub(CLONE, Ordering::AcqRel);
        debug_assert_ne!(before & CLONES, 0, "a clone was dropped that there was not");
        if before & (RETIRED | CLONES) != CLONE {
            return false;
        }
        // Should it have got another clone since, that one's end decides. By now the slot
        // may be another service's, whose last clone was just dropped: then it is that one
        // which the caller looks after, and not who dropped it.
        let last = before - CLONE;
        // The mark is for `end`.
        let retired = last | RETIRED | ENDING;
        self.word.compare_exchange(last, retired, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Ends the service if it has neither clones nor, as `proof` says (`Some`),
    /// scopes and blocks. Only the thread that looks after the end may call this.
    pub(crate) fn end<T>(&self, proof: impl FnOnce() -> Option<T>) -> Option<T> {
        self.end_as(|retired| retired | ENDED, proof).map(|(_, proof)| proof)
    }

    /// Variant of [`end`](Self::end) that also claims the slot, in one step: nobody sees it as ended. `false` beside the
    /// proof if a reader still looks at the service; then it has ended all the same.
    pub(crate) fn end_and_claim<T>(&self, proof: impl FnOnce() -> Option<T>) -> Option<(T, bool)> {
        let (retired, proof) = self.end_as(|_| CLAIMED, proof)?;
        Some((proof, self.keep_claim(retired | ENDED)))
    }

    /// Ends the service in the state that `next` makes of the mark of retired ones, and returns that mark.
    #[inline]
    fn end_as<T>(
        &self,
        next: impl FnOnce(u64) -> u64,
        proof: impl FnOnce() -> Option<T>,
    ) -> Option<(u64, T)> {
        let mut word = self.word.load(Ordering::Acquire);
        // Mostly who dropped the last clone has made the mark.
        if word & (STATE | CLONES | ENDING) != IN_USE | ENDING {
            let look = |word: u64| (word & (STATE | CLONES) == IN_USE).then_some(word | ENDING);
            word = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, look).ok()? | ENDING;
        }
        let proof = proof()?;
        // While a service has no clone nobody makes the mark but who looks after its end, so if it is there it has been
        // there all along.
        let retired = word & RETIRED;
        let end = self.word.compare_exchange(word, next(retired), Ordering::AcqRel, Ordering::Relaxed);
        end.is_ok().then_some((retired, proof))
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
impl Default for Lifecycle {
    fn default() -> Self {
        Self { word: AtomicU64::new(NEVER), pins: AtomicU64::new(0) }
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    fn never() -> Lifecycle {
        let life = Lifecycle::endless();
        life.word.store(NEVER, Ordering::Relaxed);
        life
    }

    #[test]
    fn a_slot_is_claimed_once() {
        let life = never();
        assert!(!life.is_in_use() && !life.pin());
        assert!(life.claim() && !life.claim() && life.is_claimed() && !life.is_in_use() && !life.pin());
        life.begin();
        assert!(life.is_in_use() && !life.is_claimed() && !life.claim());
        assert!(life.release());
        assert_eq!(life.end(|| Some(())), Some(()));
        assert!(!life.is_claimed() && life.claim());
    }

    #[test]
    fn it_ends_when_nobody_holds_it() {
        let life = never();
        assert!(life.claim());
        life.begin();
        life.retain();
        assert!(life.try_hold());
        assert!(!life.release() && !life.release() && life.end(|| Some(())).is_none());
        assert!(life.release() && life.is_retired() && !life.try_hold());
        assert!(life.end(|| None::<()>).is_none() && life.is_in_use());
        // Out of a scope comes another clone, which is no reason to retire twice.
        assert!(life.revive());
        assert!(life.end(|| Some(())).is_none() && !life.release());
        // So it does while the cells are read, however often.
        for times in 1..4 {
            let revived = life.end(|| {
                for _ in 0..times {
                    assert!(life.revive());
                    life.release();
                }
                Some(())
            });
            assert!(revived.is_none());
        }
        assert_eq!(life.end(|| Some(7)), Some(7));
        assert!(!life.is_in_use() && life.claim());
        life.begin();
        assert!(life.is_in_use() && !life.is_retired());
    }

    #[test]
    fn a_record_without_a_service_is_not_revived() {
        let life = never();
        assert!(!life.revive() && !life.try_hold());
        assert!(life.claim() && !life.revive());
        life.begin();
        assert!(life.release());
        assert_eq!(life.end(|| Some(())), Some(()));
        assert!(!life.revive() && !life.try_hold() && life.claim() && !life.revive());
        assert_eq!(life.word.load(Ordering::Relaxed), CLAIMED);
    }

    /// However many clones were forgotten.
    #[test]
    fn forgotten_clones_keep_a_service_for_good() {
        for forgotten in [1 << 29, 1 << 31, 1 << 32, 1 << 33, 1 << 34, 1 << 35, 1 << 59] {
            let life = never();
            assert!(life.claim());
            life.begin();
            // One less, so that the steps below go over it.
            life.word.fetch_add(forgotten - 2, Ordering::Relaxed);
            for _ in 0..2 {
                life.retain();
                assert!(life.try_hold() && life.revive() && life.is_in_use() && !life.is_retired());
                assert!(!life.release() && !life.release());
            }
            assert!(!life.release() && life.is_in_use() && !life.claim());
            assert!(life.end(|| Some(())).is_none());
            assert_eq!(life.word.load(Ordering::Relaxed) & CLONES, forgotten);
        }
    }

    #[test]
    fn who_is_looked_at_is_not_claimed() {
        let life = never();
        assert!(life.claim());
        life.begin();
        assert!(life.release());
        assert_eq!(life.end(|| Some(())), Some(()));
        assert_eq!(life.pinned(|| life.claim()), Some(false));
        assert!(life.claim());
    }

    #[test]
    fn who_ends_a_service_has_its_slot_unless_it_is_looked_at() {
        let life = never();
        for is_pinned in [false, true] {
            assert!(life.claim());
            life.begin();
            assert!(life.end_and_claim(|| Some(())).is_none(), "there is a clone");
            assert!(life.release());
            assert!(life.end_and_claim(|| None::<()>).is_none() && life.is_in_use());
            assert!(life.revive() && life.end_and_claim(|| Some(())).is_none());
            assert!(!life.release());
            if is_pinned {
                assert_eq!(life.pinned(|| life.end_and_claim(|| Some(7))), Some(Some((7, false))));
                assert!(!life.is_in_use() && !life.is_claimed() && life.is_retired());
            } else {
                assert_eq!(life.end_and_claim(|| Some(7)), Some((7, true)));
                assert!(life.is_claimed() && !life.claim() && !life.pin());
                life.begin();
                assert!(life.release() && life.end(|| Some(())).is_some());
            }
        }
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::ledger::cell::Cell;
    use crate::ledger::shard::ShardList;
    use crate::owner::Slot;
    use crate::sync::{AtomicBool, AtomicU32, Mutex, model};
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    const SLOT: Slot = Slot::UNATTRIBUTED;

    struct Setup {
        list: ShardList,
        shared: Cell,
        life: Lifecycle,
        handed_over: AtomicBool,
        ended: AtomicU32,
    }

    impl Setup {
        fn new() -> Arc<Self> {
            let setup = Self {
                list: ShardList::new(),
                shared: Cell::shared(SLOT.mark()),
                life: Lifecycle::default(),
                handed_over: AtomicBool::new(false),
                ended: AtomicU32::new(0),
            };
            assert!(setup.life.claim());
            setup.life.begin();
            Arc::new(setup)
        }

        fn look_after(&self) {
            let ended = self.life.end(|| {
                let sum = self.list.sum(SLOT, &self.shared);
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
            let setup = Setup::new();
            let other = thread::spawn({
                let setup = Arc::clone(&setup);
                move || {
                    let cell = setup.list.acquire().unwrap().claim(SLOT).unwrap();
                    if setup.handed_over.load(Ordering::Acquire) {
                        cell.refund(100);
                    }
                }
            });
            let cell = setup.list.acquire().unwrap().claim(SLOT).unwrap();
            cell.enter();
            cell.charge(100);
            setup.handed_over.store(true, Ordering::Release);
            cell.leave();
            let is_last = setup.life.release();
            assert!(is_last);
            setup.look_after();
            other.join().unwrap();
            let usage = setup.list.sum(SLOT, &setup.shared).usage;
            if setup.ended.load(Ordering::Relaxed) == 0 && usage.bytes() == 0 {
                setup.look_after();
                assert_eq!(setup.ended.load(Ordering::Relaxed), 1, "does not end");
            }
            assert!(usage.bytes() == 0 || setup.life.is_in_use());
        });
    }

    /// One thread is in a scope, though all clones are gone, and takes a clone
    /// there, with which it allocates later.
    #[test]
    fn a_clone_out_of_a_scope_keeps_it() {
        model(|| {
            let setup = Setup::new();
            let cell = setup.list.acquire().unwrap().claim(SLOT).unwrap();
            cell.enter();
            assert!(setup.life.release());
            let other = thread::spawn({
                let setup = Arc::clone(&setup);
                move || setup.look_after()
            });
            assert!(setup.life.revive());
            cell.leave();
            cell.enter();
            cell.charge(100);
            cell.leave();
            setup.life.release();
            cell.refund(100);
            other.join().unwrap();
            setup.look_after();
            assert_eq!(setup.ended.load(Ordering::Relaxed), 1);
        });
    }

    /// One thread is in a scope, though all clones are gone, allocates there, and leaves.
    #[test]
    fn a_block_out_of_a_scope_keeps_it() {
        model(|| {
            let setup = Setup::new();
            let cell = setup.list.acquire().unwrap().claim(SLOT).unwrap();
            cell.enter();
            assert!(setup.life.release());
            let other = thread::spawn({
                let setup = Arc::clone(&setup);
                move || setup.look_after()
            });
            cell.charge(100);
            cell.leave();
            other.join().unwrap();
            assert_eq!(setup.ended.load(Ordering::Relaxed), 0, "there is a block");
            cell.refund(100);
            setup.look_after();
            assert_eq!(setup.ended.load(Ordering::Relaxed), 1);
        });
    }

    /// One thread is in a scope when it drops its clone, another drops the last one, or the same, and a third
    /// one looks. Who ends the service gives its slot to the next one.
    #[test]
    fn a_slot_is_not_given_away_under_an_open_scope() {
        model(|| {
            let setup = Setup::new();
            let turns = Arc::new(Mutex::new(()));
            setup.life.retain();
            let look_after = {
                let (setup, turns) = (Arc::clone(&setup), Arc::clone(&turns));
                // One at a time looks after the end.
                move || {
                    let _turn = turns.lock().unwrap();
                    let sum = || setup.list.sum(SLOT, &setup.shared);
                    if setup.ended.load(Ordering::Relaxed) == 0
                        && setup.life.end(|| sum().is_quiet().then_some(())).is_some()
                    {
                        assert!(setup.life.claim());
                        setup.ended.fetch_add(1, Ordering::Relaxed);
                    }
                }
            };
            let other = thread::spawn({
                let (setup, look_after) = (Arc::clone(&setup), look_after.clone());
                move || {
                    if setup.life.release() {
                        look_after();
                    }
                }
            });
            let third = thread::spawn(look_after.clone());
            let cell = setup.list.acquire().unwrap().claim(SLOT).unwrap();
            cell.enter();
            if setup.life.release() {
                look_after();
            }
            assert!(setup.life.is_in_use(), "the service ended under a thread that is in it");
            cell.leave();
            other.join().unwrap();
            third.join().unwrap();
            look_after();
            assert_eq!(setup.ended.load(Ordering::Relaxed), 1, "does not end");
        });
    }

    /// A scope that was entered where all threads count is left where the thread itself does.
    #[test]
    fn a_scope_is_one_wherever_it_is_left() {
        model(|| {
            let setup = Setup::new();
            let cell = setup.list.acquire().unwrap().claim(SLOT).unwrap();
            setup.shared.enter_shared();
            assert!(setup.life.release());
            let other = thread::spawn({
                let setup = Arc::clone(&setup);
                move || setup.look_after()
            });
            cell.charge(100);
            let is_over = setup.ended.load(Ordering::Relaxed) != 0;
            cell.leave();
            other.join().unwrap();
            assert!(!is_over && setup.ended.load(Ordering::Relaxed) == 0, "ended too early");
            cell.refund(100);
            setup.look_after();
            assert_eq!(setup.ended.load(Ordering::Relaxed), 1);
        });
    }

    /// Two drop what was the last clone each time, one of them late, and the slot gets another
    /// service.
    #[test]
    fn a_service_is_retired_once_and_its_successor_is_not() {
        model(|| {
            let life = Arc::new(Lifecycle::default());
            assert!(life.claim());
            life.begin();
            let other = thread::spawn({
                let life = Arc::clone(&life);
                move || {
                    // Out of a scope.
                    assert!(life.revive());
                    let is_last = life.release();
                    if is_last && life.end(|| Some(())).is_some() && life.claim() {
                        life.begin();
                    }
                    is_last
                }
            });
            let is_last = life.release();
            assert!(is_last != other.join().unwrap(), "retired twice, or never");
            let has_successor = life.try_hold();
            assert!(!has_successor || !life.is_retired());
        });
    }

    /// What belongs to a slot does not change under a reader's eyes.
    #[test]
    fn a_reader_sees_one_service() {
        for at_once in [false, true] {
            model(move || one_service(at_once));
        }

        fn one_service(at_once: bool) {
            let life = Arc::new(Lifecycle::default());
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
            assert!(life.release());
            let is_claimed = if at_once {
                life.end_and_claim(|| Some(())).is_some_and(|((), is_claimed)| is_claimed)
            } else {
                life.end(|| Some(())).is_some() && life.claim()
            };
            assert!(!life.is_in_use());
            if is_claimed {
                // SAFETY: the model fails if a reader is here meanwhile.
                name.with_mut(|name| unsafe { *name = 2 });
                life.begin();
            }
            reader.join().unwrap();
        }
    }
}

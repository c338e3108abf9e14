//! Handles of the half from which they are assigned, and which programs may choose as well: the order in which that is
//! done, so that no number is chosen and assigned both.
//!
//! Who chooses one says so first, and then looks who was assigned it, with the table of the chosen ones locked. Who is
//! assigned one takes its place first, and then looks whether any are chosen, and in that table if so. One of the two
//! sees the other; if both do, it is nobody's.

use crate::sync::{AtomicBool, AtomicU32, Ordering, const_unless_loom, fence};

/// Whether a program has chosen handles of that half.
pub(super) struct AnyChosen(AtomicBool);

impl AnyChosen {
    const_unless_loom! {
        pub(super) fn none() -> Self {
            Self(AtomicBool::new(false))
        }
    }

    #[inline]
    pub(super) fn get(&self) -> bool {
        // To loom what is sequentially consistent is acquire and release, unless it is a fence.
        #[cfg(dogtag_loom)]
        fence(Ordering::SeqCst);
        self.0.load(Ordering::SeqCst)
    }

    /// Locks the table of the chosen handles to put one there; what `assigned` finds is why that may not be done.
    pub(super) fn choose<Table, Refusal>(
        &self,
        lock: impl FnOnce() -> Table,
        assigned: impl FnOnce() -> Option<Refusal>,
    ) -> Result<Table, Refusal> {
        self.0.store(true, Ordering::SeqCst);
        // Services may begin without more than acquire and release.
        fence(Ordering::SeqCst);
        let table = lock();
        // Under the lock: who is assigned this number looks there afterwards.
        assigned().map_or(Ok(table), Err)
    }

    /// Assigns other handles than the one whose place was taken just now, until it is one that nobody has chosen.
    #[inline]
    pub(super) fn pass_over(
        &self,
        is_chosen: impl FnMut() -> bool,
        assign_another: impl FnMut() -> Option<()>,
    ) -> Option<()> {
        if self.get() { pass_over_chosen(is_chosen, assign_another) } else { Some(()) }
    }
}

#[cold]
#[inline(never)]
fn pass_over_chosen(
    mut is_chosen: impl FnMut() -> bool,
    mut assign_another: impl FnMut() -> Option<()>,
) -> Option<()> {
    while is_chosen() {
        assign_another()?;
    }
    Some(())
}

/// Takes the place of an assigned handle for a slot, if it is free. The handle is set before: it is to be seen with the
/// place.
#[inline]
pub(super) fn take(place: &AtomicU32, index: u32) -> bool {
    place.compare_exchange(0, index, Ordering::SeqCst, Ordering::Relaxed).is_ok()
}

/// The slot that has a place, or 0.
#[inline]
pub(super) fn holder(place: &AtomicU32) -> u32 {
    place.load(Ordering::SeqCst)
}

/// Gives a place up, if a slot has it.
#[inline]
pub(super) fn give_up(place: &AtomicU32, index: u32) -> bool {
    place.load(Ordering::Relaxed) == index
        && place.compare_exchange(index, 0, Ordering::Release, Ordering::Relaxed).is_ok()
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::{Mutex, whole_model};
    use loom::sync::Arc;
    use loom::thread;

    const INDEX: u32 = 5;
    const NUMBER: u32 = 7;
    const ANOTHER: u32 = 8;

    struct Setup {
        any: AnyChosen,
        /// Of [`NUMBER`].
        place: AtomicU32,
        /// Of the service that is assigned a handle.
        handle: AtomicU32,
        has_begun: AtomicBool,
        /// Whether [`NUMBER`] is among the chosen ones.
        chosen: Mutex<bool>,
    }

    impl Setup {
        fn new(has_begun: bool) -> Self {
            Self {
                any: AnyChosen::none(),
                place: AtomicU32::new(0),
                handle: AtomicU32::new(0),
                has_begun: AtomicBool::new(has_begun),
                chosen: Mutex::new(false),
            }
        }

        fn choose(&self) {
            let assigned = || {
                (holder(&self.place) != 0
                    && self.handle.load(Ordering::Relaxed) == NUMBER
                    && self.has_begun.load(Ordering::Acquire))
                .then_some(())
            };
            if let Ok(mut chosen) = self.any.choose(|| self.chosen.lock().unwrap(), assigned) {
                *chosen = true;
            }
        }

        fn assign(&self) {
            self.handle.store(NUMBER, Ordering::Relaxed);
            assert!(take(&self.place, INDEX));
        }

        fn pass_over(&self) {
            let another = || {
                assert!(give_up(&self.place, INDEX));
                self.handle.store(ANOTHER, Ordering::Relaxed);
                Some(())
            };
            let is_chosen = || self.handle.load(Ordering::Relaxed) == NUMBER && *self.chosen.lock().unwrap();
            self.any.pass_over(is_chosen, another).unwrap();
        }

        fn check(&self) {
            let is_assigned = self.handle.load(Ordering::Relaxed) == NUMBER;
            assert_eq!(is_assigned, holder(&self.place) == INDEX);
            assert!(!(is_assigned && *self.chosen.lock().unwrap()), "chosen and assigned");
        }
    }

    fn race(setup: fn() -> Setup, assign: fn(&Setup)) {
        whole_model(move || {
            let setup = Arc::new(setup());
            let chooses = thread::spawn({
                let setup = Arc::clone(&setup);
                move || setup.choose()
            });
            assign(&setup);
            chooses.join().unwrap();
            setup.check();
        });
    }

    #[test]
    fn a_number_is_chosen_or_assigned() {
        race(
            || Setup::new(true),
            |setup| {
                setup.assign();
                setup.pass_over();
            },
        );
    }

    /// The place was taken before, and its service begins, inside an allocation, and is published then.
    #[test]
    fn a_reserved_number_is_chosen_or_its_service_has_it() {
        race(
            || {
                let setup = Setup::new(false);
                setup.assign();
                setup
            },
            |setup| {
                setup.has_begun.store(true, Ordering::Release);
                // As `registry::publish` has it.
                fence(Ordering::SeqCst);
                setup.pass_over();
            },
        );
    }
}

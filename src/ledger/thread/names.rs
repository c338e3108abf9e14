//! Threads outside of scopes, in services named after them.
//!
//! A thread looks at its name on the slow path, so the hot path knows nothing of it. Who has not looked
//! yet keeps its cell of the unattributed service lowered, and who has looked but a few times looks
//! again soon: a thread may be named after its first allocation. From then on it notices another name
//! where it draws a grant.

use super::{Thread, Word, with};
use crate::format::FoldedName;
use crate::ledger::named;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::sys;
use std::ptr;

/// What `Word::Follows` says: how the thread's service outside of scopes is chosen.
const NOT_YET: u64 = 0;
/// By whoever began the thread.
const GIVEN: u64 = 1;
/// It is the main thread, before its first scope, or after it.
const STARTUP: u64 = 2;
const MAIN: u64 = 3;
/// By its name. This, and more the more often it has looked.
const NAMED: u64 = 4;

/// A thread that has looked once allocates so much before it looks again; then twice as much, and so
/// on.
const FIRST_LOOK: u64 = 4096;

/// Has the calling thread, which is the main thread, work for `startup` before its first scope.
pub(crate) fn begin_startup() {
    Word::Follows.set(STARTUP);
}

/// Keeps the calling thread outside of scopes in a service that somebody holds, whatever its name.
pub(crate) fn give(record: &'static Record) {
    with(|thread| {
        if thread.stays.get() == 0 && !thread.detached.get() {
            Word::Follows.set(GIVEN);
            thread.settle(record);
        }
    });
}

/// How many bytes the calling thread may allocate for a service before it looks at its name.
#[inline]
pub(crate) fn next_look(record: &'static Record) -> u64 {
    if !named::is_on() {
        return u64::MAX;
    }
    with(|thread| match Word::Follows.get() {
        // Its scopes go back to the unattributed service, and its next allocation there has to look.
        NOT_YET if ptr::eq(record, &UNATTRIBUTED) && !thread.detached.get() => 0,
        looks @ NAMED.. if thread.stays.get() == 0 => {
            FIRST_LOOK.checked_shl((looks - NAMED) as u32).unwrap_or(u64::MAX)
        }
        _ => u64::MAX,
    })
}

impl Thread {
    /// Settles the thread in the service that its name says, if it is in no scope.
    #[inline]
    pub(super) fn follow_name(&self) {
        if named::is_on() {
            self.look();
        }
    }

    #[cold]
    fn look(&self) {
        let follows = Word::Follows.get();
        // dogtag-c may have chosen, too: by the handle of its host.
        if self.detached.get() || follows == GIVEN || Word::OwnerKey.get() != 0 {
            return;
        }
        if self.stays.get() != 0 {
            if follows == STARTUP {
                self.end_startup();
            }
            return;
        }
        let service = match follows {
            STARTUP => named::service(&named::STARTUP),
            MAIN => named::service(&named::MAIN),
            _ => {
                let looks = follows.max(NAMED - 1) + 1;
                // From here on it has looked long ago.
                Word::Follows.set(looks.min(NAMED + 20));
                sys::own_thread_name().and_then(|name| named::service(&FoldedName::of_thread(&name)))
            }
        };
        let service = service.unwrap_or(&UNATTRIBUTED);
        if !ptr::eq(service, self.record()) {
            self.settle(service);
        }
    }

    /// Has the main thread, which allocates in its first scope, go to `main` after it.
    fn end_startup(&self) {
        let Some(startup) = named::service(&named::STARTUP) else { return };
        let record = self.record();
        // The registry is no scope of the program's.
        if !ptr::eq(record, &UNATTRIBUTED) && !ptr::eq(record, startup) {
            Word::Follows.set(MAIN);
            self.own_or_shared(startup).cell().lower_threshold();
        }
    }
}

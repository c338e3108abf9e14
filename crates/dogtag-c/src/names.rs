//! The names of threads, noted where a thread begins and where it is renamed. The kernel is not
//! asked: not on an allocation's path, and a sandbox may end a process that asks.
//!
//! Each thread's name is in its thread-local storage. A name that another thread gives it waits in a
//! list until it allocates again.

use crate::thread_name::ThreadName;
use dogtag::__private::memory_check;
use dogtag::__private::service::gate;
use dogtag::__private::thread::{self, Word};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Says whether names are needed: as services, or in reports of violations.
pub(crate) fn are_wanted() -> bool {
    memory_check::IS_ON || are_services()
}

/// Says whether a thread that is in no scope allocates as the service with its name.
#[inline]
pub(crate) fn are_services() -> bool {
    ARE_SERVICES.load(Ordering::Relaxed)
}

/// Makes threads that are in no scope allocate as services with their names.
pub(crate) fn make_services() {
    ARE_SERVICES.store(true, Ordering::Relaxed);
}

static ARE_SERVICES: AtomicBool = AtomicBool::new(false);

/// Returns the calling thread's name.
pub(crate) fn own() -> ThreadName {
    see_given();
    noted().unwrap_or_else(|| {
        let name = ThreadName::of_program();
        note(name);
        name
    })
}

/// Notes that the calling thread has renamed itself. Also for signal handlers.
pub(crate) fn set_own(name: ThreadName) {
    note(name);
    memory_check::thread_was_renamed();
}

/// Makes memory-check ask here for names, which takes no system call. Called before a thread's first
/// block at the latest.
#[inline]
pub(crate) fn inform_memory_check() {
    memory_check::learn_names_from(|| noted().unwrap_or_else(ThreadName::of_program).padded());
}

/// Returns the name that was noted for the calling thread, if any.
fn noted() -> Option<ThreadName> {
    ThreadName::from_words([Word::NameLow.get(), Word::NameHigh.get()])
}

/// Notes the calling thread's name, and makes its next allocation look for the service with that
/// name. Also for signal handlers.
fn note(name: ThreadName) {
    let [low, high] = name.to_words();
    Word::NameLow.set(low);
    Word::NameHigh.set(high);
    thread::lower_threshold();
}

/// Notes that another thread was renamed.
pub(crate) fn give(thread: libc::pthread_t, name: ThreadName) {
    {
        // A fork waits for the gate, so nobody holds the lock while the process forks.
        let _gate = gate();
        let mut given = given();
        let number = SO_FAR.load(Ordering::Relaxed) + 1;
        let new = Given { thread, name, number };
        if let Some(older) = given.iter_mut().find(|given| given.thread == thread) {
            *older = new;
        } else if given.try_reserve(1).is_ok() {
            given.push(new);
        } else {
            // The thread keeps its former name.
            return;
        }
        SO_FAR.store(number, Ordering::Release);
    }
    // Every thread looks at its name before it allocates again.
    thread::lower_every_threshold();
}

/// Takes the name that another thread has given the calling one meanwhile.
#[inline]
pub(crate) fn see_given() {
    let so_far = SO_FAR.load(Ordering::Acquire);
    if so_far != Word::NamesSeen.get() && thread::can_settle() {
        take_given(so_far);
    }
}

#[cold]
fn take_given(so_far: u64) {
    let seen = Word::NamesSeen.get();
    // First, since an allocation below may lead here again.
    Word::NamesSeen.set(so_far);
    // SAFETY: only returns the calling thread's number, which every thread has.
    let this_thread = unsafe { libc::pthread_self() };
    let name = {
        let _gate = gate();
        let mut given = given();
        let place = given.iter().position(|given| given.thread == this_thread);
        // An older one was for another thread, which had the same `pthread_t` before.
        place.map(|place| given.swap_remove(place)).filter(|given| given.number > seen)
    };
    if let Some(given) = name {
        set_own(given.name);
    }
}

/// The name that a new thread begins with, taken by the thread that begins it.
#[derive(Clone, Copy)]
pub(crate) struct Heritage {
    name: ThreadName,
    names_seen: u64,
}

impl Heritage {
    /// Takes the calling thread's name for a thread that it is about to begin.
    pub(crate) fn of_this_thread() -> Self {
        // Read before the thread is begun, so that it misses no name of its own.
        let names_seen = SO_FAR.load(Ordering::Acquire);
        Self { name: own(), names_seen }
    }

    /// Notes the name for the new thread, which calls this.
    pub(crate) fn accept(self) {
        note(self.name);
        Word::NamesSeen.set(self.names_seen);
    }
}

/// A name that a thread has given to another.
struct Given {
    thread: libc::pthread_t,
    name: ThreadName,
    /// Numbered from 1 on.
    number: u64,
}

/// How many names were given; at one a nanosecond it wraps after 584 years.
static SO_FAR: AtomicU64 = AtomicU64::new(0);

/// Locks the list of names that wait, one for each thread at most. The name of a thread that has ended
/// stays until another thread has its `pthread_t`.
fn given() -> MutexGuard<'static, Vec<Given>> {
    static GIVEN: Mutex<Vec<Given>> = Mutex::new(Vec::new());

    GIVEN.lock().unwrap_or_else(PoisonError::into_inner)
}

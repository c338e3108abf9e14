//! What threads are called: learnt where they begin and where they are renamed, since an
//! allocation's way is no place to ask the kernel, and a sandbox may end who does.
//!
//! A thread has its name with it. Where another thread renames it, that name waits in a list
//! until it allocates again.

use crate::thread_name::ThreadName;
use dogtag::__private::memory_check;
use dogtag::__private::service::gate;
use dogtag::__private::thread::{self, Word};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whether somebody wants to know: services are threads, or reports of crimes have them.
pub(crate) fn are_wanted() -> bool {
    memory_check::IS_ON || are_services()
}

/// Whether a thread that is in no scope allocates as the service with its name.
#[inline]
pub(crate) fn are_services() -> bool {
    ARE_SERVICES.load(Ordering::Relaxed)
}

/// Has threads that are in no scope allocate as services with their names.
pub(crate) fn make_services() {
    ARE_SERVICES.store(true, Ordering::Relaxed);
}

static ARE_SERVICES: AtomicBool = AtomicBool::new(false);

/// The calling thread's name.
pub(crate) fn own() -> ThreadName {
    see_given();
    noted().unwrap_or_else(|| {
        let name = ThreadName::of_program();
        note(name);
        name
    })
}

/// The calling thread has renamed itself. Also for signal handlers.
pub(crate) fn set_own(name: ThreadName) {
    note(name);
    memory_check::thread_was_renamed();
}

/// Has memory-check ask here for names, which makes no system call. At the latest before a thread's
/// first block.
#[inline]
pub(crate) fn inform_memory_check() {
    memory_check::learn_names_from(|| noted().unwrap_or_else(ThreadName::of_program).padded());
}

/// What the calling thread is called, as far as anybody has said so here.
fn noted() -> Option<ThreadName> {
    ThreadName::from_words([Word::NameLow.get(), Word::NameHigh.get()])
}

/// Notes the calling thread's name, and has it look for the service with that name when it
/// allocates next. Also for signal handlers.
fn note(name: ThreadName) {
    let [low, high] = name.to_words();
    Word::NameLow.set(low);
    Word::NameHigh.set(high);
    thread::lower_threshold();
}

/// Another thread was renamed.
pub(crate) fn give(thread: libc::pthread_t, name: ThreadName) {
    {
        // Who forks has the gate to itself, and so nobody holds the lock then.
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
    thread::shut_every_cell();
}

/// Has the calling thread take the name that another one gave it meanwhile.
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
    // First: what happens below may lead here again.
    Word::NamesSeen.set(so_far);
    // SAFETY: asks who is calling.
    let this_thread = unsafe { libc::pthread_self() };
    let name = {
        let _gate = gate();
        let mut given = given();
        let place = given.iter().position(|given| given.thread == this_thread);
        // An older one was another thread's, whose place in memory this one has.
        place.map(|place| given.swap_remove(place)).filter(|given| given.number > seen)
    };
    if let Some(given) = name {
        set_own(given.name);
    }
}

/// What a new thread begins with, as the thread knows that begins it.
#[derive(Clone, Copy)]
pub(crate) struct Heritage {
    name: ThreadName,
    names_seen: u64,
}

impl Heritage {
    pub(crate) fn of_this_thread() -> Self {
        // Before the thread is there, so that it misses none of its own.
        let names_seen = SO_FAR.load(Ordering::Acquire);
        Self { name: own(), names_seen }
    }

    /// By the new thread.
    pub(crate) fn accept(self) {
        note(self.name);
        Word::NamesSeen.set(self.names_seen);
    }
}

struct Given {
    thread: libc::pthread_t,
    name: ThreadName,
    /// They are numbered from 1 on.
    number: u64,
}

/// How many there were. One a nanosecond is for 584 years.
static SO_FAR: AtomicU64 = AtomicU64::new(0);

/// One for each thread at most; those of threads that have ended stay until others are in their
/// place.
fn given() -> MutexGuard<'static, Vec<Given>> {
    static GIVEN: Mutex<Vec<Given>> = Mutex::new(Vec::new());

    GIVEN.lock().unwrap_or_else(PoisonError::into_inner)
}

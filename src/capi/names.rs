//! What threads are called: learnt where they begin and where they are renamed, since an
//! allocation's way is no place to ask the kernel, and a sandbox may end who does.
//!
//! A thread has its name with it. Where another thread renames it, that name waits in a list
//! until it allocates again.

use super::tool;
use crate::ledger::thread;
use crate::service::gate;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use crate::sys::ThreadName;
use std::sync::PoisonError;

/// Whether somebody wants to know: services are threads, or reports of crimes have them.
pub(super) fn are_wanted() -> bool {
    cfg!(feature = "memory-check") || tool::services_are_threads()
}

/// The calling thread's name.
pub(super) fn own() -> ThreadName {
    see_given();
    thread::name().unwrap_or_else(|| {
        let name = ThreadName::of_program();
        thread::set_name(name);
        name
    })
}

/// The calling thread has renamed itself. Also for signal handlers.
pub(super) fn set_own(name: ThreadName) {
    thread::set_name(name);
    #[cfg(feature = "memory-check")]
    crate::check::thread_was_renamed();
}

/// Another thread was renamed.
pub(super) fn give(thread: libc::pthread_t, name: ThreadName) {
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
    tool::have_names_refreshed();
}

/// Has the calling thread take the name that another one gave it meanwhile.
#[inline]
pub(super) fn see_given() {
    let so_far = SO_FAR.load(Ordering::Acquire);
    if so_far != thread::names_seen() && thread::can_settle() {
        take_given(so_far);
    }
}

#[cold]
fn take_given(so_far: u64) {
    let seen = thread::names_seen();
    // First: what happens below may lead here again.
    thread::set_names_seen(so_far);
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
pub(super) struct Heritage {
    name: ThreadName,
    names_seen: u64,
}

impl Heritage {
    pub(super) fn of_this_thread() -> Self {
        // Before the thread is there, so that it misses none of its own.
        let names_seen = SO_FAR.load(Ordering::Acquire);
        Self { name: own(), names_seen }
    }

    /// By the new thread.
    pub(super) fn accept(self) {
        thread::set_name(self.name);
        thread::set_names_seen(self.names_seen);
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

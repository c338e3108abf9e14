//! Services named after threads: the ledger begins them inside allocations, and here they are made
//! known.

use super::fork;
use super::handle::Service;
use super::registry::{self, Conflict, HandleIs};
use super::retirement;
use super::scope::Scope;
use crate::events;
use crate::ledger::threshold::lower_every_threshold;
use crate::ledger::{named, slots, thread};
use crate::sync::{AtomicBool, Ordering};
use crate::sys;

/// Makes each thread that is in no scope work for a service named after it: call it first in `main`.
///
/// Digits at the end of a name become one `*`, so that the threads of a pool share a service: `worker-3`
/// and `worker-17` work for `worker-*`. The name is the one that the system has, of which Linux keeps 15
/// bytes; a thread that was given none has the name of the thread that began it, or of the program. A
/// thread without any name stays in `unattributed`.
///
/// The main thread works for `startup` until it has allocated in its first scope, and from then on,
/// outside of scopes, for `main`. (What was allocated before this call belongs to `unattributed`.)
///
/// Threads that run already are named as well, from their next allocation on. A thread that is renamed
/// goes to the service of its new name before it has allocated another 256 KiB. Threads of
/// [`dogtag::thread`](crate::thread) that were handed a service stay in that.
///
/// Up to 64 names, `startup` and `main` among them, have services; a thread with another name works for
/// `other threads`, and a [`tracing` event](crate#events) says so once. These services last as long as
/// the process. A service that the program has registered under a thread's name is the thread's, too,
/// as soon as somebody takes a [`snapshot`](crate::snapshot()) or looks a service up.
///
/// An allocation takes no instruction more than without. A thread asks the system for its name (a
/// system call, `prctl`) at its first allocation, a few times while it allocates its first 256 KiB,
/// and each time that it has allocated 256 KiB more. A sandbox has to allow for that. Calls after the
/// first change nothing.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// use dogtag::Service;
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     dogtag::thread::services_by_name();
///
///     let settings = vec![0_u8; 1000];
///     let startup = Service::by_name("startup").expect("the main thread has allocated");
///     assert!(startup.usage().bytes() >= 1000);
///
///     let worker = std::thread::Builder::new().name("worker-3".to_owned());
///     let table = worker.spawn(|| vec![0_u8; 5000])?.join().expect("it does not panic");
///     let workers = Service::by_name("worker-*").expect("one has allocated");
///     assert_eq!(workers.usage().bytes(), 5000);
/// #   drop((settings, table));
///     Ok(())
/// }
/// ```
pub fn services_by_name() {
    static IS_CALLED: AtomicBool = AtomicBool::new(false);

    if IS_CALLED.swap(true, Ordering::AcqRel) {
        return;
    }
    {
        let _scope = Scope::enter(&slots::UNATTRIBUTED);
        named::turn_on(|| {
            let record = retirement::claim_slot().ok()?;
            registry::reserve_handle(record)?;
            Some((record, record.handle()))
        });
    }
    if sys::is_main_thread() {
        thread::begin_startup();
    }
    lower_every_threshold();
}

/// Puts services that have begun inside allocations into the registry. Call it before a look at names,
/// without any lock.
#[inline]
pub(crate) fn publish() {
    if named::has_unpublished() {
        publish_all();
    }
}

#[cold]
fn publish_all() {
    fork::prepare();
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let mut has_moved = false;
    {
        let _publishing = fork::publishing();
        'entries: for entry in named::unpublished() {
            let Some(record) = entry.record() else { continue };
            let hash = registry::hash_of_name(record.name());
            let another = loop {
                match registry::publish(record, hash, HandleIs::Reserved) {
                    Ok(()) => {
                        events::registered(record);
                        break None;
                    }
                    // The program's own of that name. It is kept.
                    Err(Conflict::Name(living)) => break Some(living.0),
                    Err(Conflict::Handle(living)) => drop(Service::of_retained(living)),
                    // Another time.
                    Err(Conflict::NoMemory) => continue 'entries,
                }
            };
            has_moved |= another.is_some();
            entry.publish(another);
        }
    }
    if has_moved {
        lower_every_threshold();
    }
}

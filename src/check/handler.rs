//! Who is called when a crime is found: a closure of the program's, which is exchanged while other
//! threads may be about to call it.
//!
//! It is called inside the allocator, so to find it takes no lock, which a forked child could find
//! held for ever, and no memory. It is shared ([`Arc`]), and stands behind a pointer that is
//! exchanged whole. Whoever reads the pointer counts as a reader until it has a clone; whoever has
//! exchanged it waits until nobody reads, and only then frees the place that it pointed to.

use super::reaction::{Reaction, report};
use super::settings::Settings;
use super::violation::Violation;
use crate::contained::{call, drop_contained};
use crate::ledger::thread::Inside;
use crate::sync::{AtomicPtr, AtomicUsize, Ordering, spin};
use crate::sys::stderr;
use std::ptr;
use std::sync::Arc;

/// What is called when a crime is found.
type Handler = Arc<dyn Fn(&Violation) -> Reaction + Send + Sync>;

/// From [`Box::into_raw`]; null for [`report`].
static HANDLER: AtomicPtr<Handler> = AtomicPtr::new(ptr::null_mut());

/// Threads between the load of the pointer and the end of the clone.
static READERS: AtomicUsize = AtomicUsize::new(0);

/// Sets what is called when a crime is found, in place of [`report`] or of the former handler,
/// which is dropped.
///
/// The handler runs on the thread that met the crime, inside the allocator's
/// function that met it. It may allocate and free, and a crime that is met
/// meanwhile on the same thread is told in a line on standard error. It must
/// not wait for anything that the program may hold there, a lock say: leave
/// that to `report`, which does not. If it panics, the process aborts.
///
/// To find and call the handler takes neither memory nor a lock. It may be set and taken at any
/// time, also by a handler; one that is replaced while it runs is dropped when it returns, on the
/// thread that runs it.
///
/// ```
/// use dogtag::check::{self, Reaction, Violation};
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// let found = Arc::new(AtomicU64::new(0));
/// let counter = Arc::clone(&found);
/// check::set_handler(move |violation: &Violation| {
///     counter.fetch_add(1, Ordering::Relaxed);
///     check::report(violation)
/// });
/// assert_eq!(found.load(Ordering::Relaxed), 0);
/// ```
pub fn set_handler(handler: impl Fn(&Violation) -> Reaction + Send + Sync + 'static) {
    let handler: Handler = Arc::new(handler);
    drop(exchange(Box::into_raw(Box::new(handler))));
}

/// Takes away the handler and returns it; [`report`] is called from now on. Returns that if no
/// handler was set.
///
/// A call that is under way is not waited for.
///
/// ```
/// use dogtag::check;
///
/// // Adds something to whatever is done about a crime.
/// let former = check::take_handler();
/// check::set_handler(move |violation| {
///     eprintln!("found by build {}", env!("CARGO_PKG_VERSION"));
///     former(violation)
/// });
/// ```
#[must_use = "to drop the handler is to have crimes reported"]
pub fn take_handler() -> Arc<dyn Fn(&Violation) -> Reaction + Send + Sync> {
    exchange(ptr::null_mut()).unwrap_or_else(|| Arc::new(report))
}

/// The handler that is set.
fn current() -> Option<Handler> {
    READERS.fetch_add(1, Ordering::SeqCst);
    let place = HANDLER.load(Ordering::SeqCst);
    // SAFETY: null, or from `Box::into_raw` in `set_handler`. Whoever exchanges it frees it only
    // when it has seen no reader since, and this thread has counted itself before it loaded it.
    let handler = unsafe { place.as_ref() }.map(Arc::clone);
    READERS.fetch_sub(1, Ordering::SeqCst);
    handler
}

/// Returns the former one.
fn exchange(place: *mut Handler) -> Option<Handler> {
    /// How often it is looked, about a second. In a child that was forked while another thread read,
    /// that thread's count stays.
    const PATIENCE: u32 = 1000;

    let former = HANDLER.swap(place, Ordering::SeqCst);
    if former.is_null() {
        return None;
    }
    for attempt in 0..PATIENCE {
        if READERS.load(Ordering::SeqCst) == 0 {
            // SAFETY: from `Box::into_raw`, and nobody else's since it was exchanged. Who reads it
            // has loaded it before that, and counts until it is done: there is none.
            return Some(unsafe { *Box::from_raw(former) });
        }
        spin(attempt);
    }
    // SAFETY: as in `current`; the place is not freed at all.
    Some(Arc::clone(unsafe { &*former }))
}

/// Has the handler react. Returns if the process is to go on.
#[cold]
#[inline(never)]
pub(super) fn react(violation: &Violation) {
    let violation = if Settings::get().backtrace { &violation.with_backtrace() } else { violation };
    let Some(_inside) = Inside::enter() else {
        stderr::print(format_args!(
            "dogtag: {} of {:#x} was met while another crime was being told\n",
            violation.kind(),
            violation.address(),
        ));
        return;
    };
    let handler = current();
    let reaction = call(|| match &handler {
        Some(handler) => handler(violation),
        None => report(violation),
    });
    // It may have been replaced meanwhile, so that this is the last one.
    drop_contained(handler);
    if reaction.is_err() {
        stderr::print(format_args!("{violation}dogtag: the handler panicked over this\n"));
    }
    if !matches!(reaction, Ok(Reaction::Leak)) {
        std::process::abort();
    }
}

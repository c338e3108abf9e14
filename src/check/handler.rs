//! The handler of violations: a closure of the program's, which may be exchanged while other
//! threads are about to call it.
//!
//! The handler is called inside the allocator, so finding it takes no memory, and no lock, which a
//! forked child could find held for ever. The closure is shared ([`Arc`]), behind a pointer that is
//! exchanged atomically. A thread that reads the pointer counts as a reader until it has a clone of
//! the closure. A thread that has exchanged the pointer waits until there are no readers, and only
//! then frees what it pointed to.

use super::reaction::{Reaction, report};
use super::settings::Settings;
use super::violation::Violation;
use crate::contained::{call, drop_contained};
use crate::ledger::thread::Inside;
use crate::sync::{AtomicPtr, AtomicUsize, Ordering, spin};
use crate::sys::stderr;
use std::ptr;
use std::sync::Arc;

/// A handler, shared with the threads that are calling it.
type Handler = Arc<dyn Fn(&Violation) -> Reaction + Send + Sync>;

/// The handler that is set, from [`Box::into_raw`]; null for [`report`].
static HANDLER: AtomicPtr<Handler> = AtomicPtr::new(ptr::null_mut());

/// Counts the threads between the load of the pointer and the end of the clone.
static READERS: AtomicUsize = AtomicUsize::new(0);

/// Sets the handler of violations, a function or closure that is called instead of [`report`], and
/// drops the former handler.
///
/// The handler runs on the thread that found the violation, inside the allocator's
/// function that found it. It may allocate and free; a violation that the same thread finds
/// meanwhile is reported as one line on standard error. It must
/// not wait for anything that the program may hold at that point, such as a lock; `report` does
/// not. If it panics, the process aborts.
///
/// Finding and calling the handler takes neither memory nor a lock. Handlers may be set and taken at
/// any time, also by a handler. One that is replaced while it runs is dropped when it returns, on
/// the thread that runs it.
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

/// Removes the handler of violations and returns it, as [`std::panic::take_hook`] does; returns
/// [`report`] if no handler was set. From now on `report` is called.
///
/// A call of the handler may go on when this returns.
///
/// ```
/// use dogtag::check;
///
/// // Adds something to whatever is done about a violation.
/// let former = check::take_handler();
/// check::set_handler(move |violation| {
///     eprintln!("found by build {}", env!("CARGO_PKG_VERSION"));
///     former(violation)
/// });
/// ```
#[must_use = "to drop the handler is to go back to reports"]
pub fn take_handler() -> Arc<dyn Fn(&Violation) -> Reaction + Send + Sync> {
    exchange(ptr::null_mut()).unwrap_or_else(|| Arc::new(report))
}

/// Returns the handler that is set.
fn current() -> Option<Handler> {
    READERS.fetch_add(1, Ordering::SeqCst);
    let place = HANDLER.load(Ordering::SeqCst);
    // SAFETY: null, or from `Box::into_raw` in `set_handler`. Whoever exchanges it frees it only
    // when it has seen no reader since, and this thread has counted itself before it loaded it.
    let handler = unsafe { place.as_ref() }.map(Arc::clone);
    READERS.fetch_sub(1, Ordering::SeqCst);
    handler
}

/// Exchanges the handler's pointer and returns the former handler.
fn exchange(place: *mut Handler) -> Option<Handler> {
    /// Attempts, in about a second. In a child that was forked while another thread read the pointer,
    /// that thread's count stays.
    const PATIENCE: u32 = 1000;

    let former = HANDLER.swap(place, Ordering::SeqCst);
    if former.is_null() {
        return None;
    }
    for attempt in 0..PATIENCE {
        if READERS.load(Ordering::SeqCst) == 0 {
            // SAFETY: from `Box::into_raw`, and only this thread has it since it was exchanged. A
            // reader that loaded it before would still be counted.
            return Some(unsafe { *Box::from_raw(former) });
        }
        spin(attempt);
    }
    // SAFETY: from `Box::into_raw` in `set_handler`; the place is never freed.
    Some(Arc::clone(unsafe { &*former }))
}

/// Calls the handler, or [`report`]. Returns if the process is to go on.
#[cold]
#[inline(never)]
pub(super) fn react(violation: &Violation) {
    let lacks_backtrace = Settings::get().backtrace && violation.met().backtrace().is_none();
    let violation = if lacks_backtrace { &violation.with_backtrace() } else { violation };
    let Some(_inside) = Inside::enter() else {
        stderr::print(format_args!(
            "dogtag: {} of {:#x} was met while another violation was being reported\n",
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

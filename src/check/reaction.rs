//! What happens when a crime is found.

use super::report_thread::{self, Backtraces};
use super::settings::Settings;
use super::violation::Violation;
use crate::contained::call;
use crate::ledger::thread::Inside;
use crate::sync::{AtomicPtr, Ordering};
use crate::sys::stderr;
use std::ptr;

/// What a handler wants to be done about a [`Violation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reaction {
    /// The process aborts.
    Abort,
    /// The process goes on. The block's memory is never used again; for the
    /// program and for the ledger it is freed, if it was being freed. Where it
    /// was being resized, its contents move to a new one; but what is no live
    /// block cannot be resized, and `realloc` fails; nor can one of C's be over whose size
    /// something wrote.
    Leak,
}

/// Sets what is called when a crime is found, in place of [`report`].
///
/// The handler runs on the thread that met the crime, inside the allocator's
/// function that met it. It may allocate and free, and a crime that is met
/// meanwhile on the same thread is told in a line on standard error. It must
/// not wait for anything that the program may hold there, a lock say: leave
/// that to `report`, which does not. If it panics, the process aborts.
///
/// ```
/// use dogtag::check::{self, Reaction, Violation};
///
/// fn count(violation: &Violation) -> Reaction {
///     eprintln!("{}", violation.kind());
///     Reaction::Leak
/// }
/// check::set_handler(count);
/// ```
pub fn set_handler(handler: fn(&Violation) -> Reaction) {
    HANDLER.store(handler as *mut (), Ordering::Release);
}

/// Writes the report to standard error, with the call stacks if there are any,
/// emits a `tracing` event (target `dogtag`, level error) with the same facts,
/// and asks for an abort, or for a leak if `DOGTAG_CHECK` has `reaction=leak`.
///
/// This is what happens unless [`set_handler`] is called; a handler may call it
/// too. The report is written at once, with neither an allocation nor a lock.
/// The functions' names and the event come from a thread of their own, which
/// is waited for no longer than ten seconds: so nothing that the program was in
/// the middle of can make it hang.
pub fn report(violation: &Violation) -> Reaction {
    stderr::print(format_args!("{violation}"));
    if !report_thread::deliver(violation) && violation.has_backtraces() {
        stderr::print(format_args!("{}", Backtraces { violation, names: false }));
    }
    if Settings::get().leak { Reaction::Leak } else { Reaction::Abort }
}

static HANDLER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

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
    let handler = HANDLER.load(Ordering::Acquire);
    let handler: fn(&Violation) -> Reaction = if handler.is_null() {
        report
    } else {
        // SAFETY: only `set_handler` stores here, and what it stores is such a function.
        unsafe { std::mem::transmute::<*mut (), fn(&Violation) -> Reaction>(handler) }
    };
    let reaction = call(|| handler(violation));
    if reaction.is_err() {
        stderr::print(format_args!("{violation}dogtag: the handler panicked over this\n"));
    }
    if !matches!(reaction, Ok(Reaction::Leak)) {
        std::process::abort();
    }
}

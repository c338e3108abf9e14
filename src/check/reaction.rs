//! What can be done about a crime, and what is done unless a handler says otherwise.

use super::report_thread::{self, Backtraces};
use super::settings::Settings;
use super::violation::Violation;
use crate::sys::stderr;

/// What a handler wants to be done about a [`Violation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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

/// Writes the report to standard error, with the call stacks if there are any,
/// emits a `tracing` event (target `dogtag`, level error) with the same facts,
/// and asks for an abort, or for a leak if `DOGTAG_CHECK` has `reaction=leak`.
///
/// This is what happens unless [`set_handler`](super::set_handler) is called; a handler may call it
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

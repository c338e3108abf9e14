//! The reactions that a handler chooses from, and the default handler.

use super::report_thread::{self, Backtraces};
use super::settings::Settings;
use super::violation::Violation;
use crate::sys::stderr;

/// Selects what is done after a handler has seen a [`Violation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reaction {
    /// The process aborts.
    Abort,
    /// The process goes on. The block's memory is never used again. A block that was being freed is
    /// freed for the program and for the ledger. The contents of one that was being resized move to
    /// a new block; `realloc` fails for a pointer to no live block, and for a block of C's whose
    /// size was overwritten.
    Leak,
}

/// Reports a violation on standard error and as a `tracing` event: the default handler.
///
/// This function writes the report, with the call stacks if there are any,
/// emits an event (target `dogtag`, level error) with the same facts,
/// and returns [`Reaction::Abort`], or [`Reaction::Leak`] if `DOGTAG_CHECK` has `reaction=leak`.
///
/// The report is written at once, with neither an allocation nor a lock. A thread of its own writes
/// the functions' names and emits the event; `report` waits for that thread for ten seconds at most, or as
/// long as `DOGTAG_CHECK` has it (`patience=60`).
/// So no lock that the program holds can make it hang.
///
/// ```
/// use dogtag::check::{self, Reaction, ViolationKind};
///
/// // Double frees are reported, and the process goes on; everything else as usual.
/// check::set_handler(|violation| match (violation.kind(), check::report(violation)) {
///     (ViolationKind::DoubleFree, _) => Reaction::Leak,
///     (_, reaction) => reaction,
/// });
/// ```
pub fn report(violation: &Violation) -> Reaction {
    stderr::print(format_args!("{violation}"));
    if !report_thread::deliver(violation) && violation.has_backtraces() {
        stderr::print(format_args!("{}", Backtraces { violation, names: false }));
    }
    if Settings::get().leak { Reaction::Leak } else { Reaction::Abort }
}

//! Scopes: the calling thread goes to a service, and back.
//!
//! Mostly that is a swap of the thread's current cell, and two counters: one in the service's cell, which keeps the
//! service, and one in the thread's record, which keeps the thread from being settled elsewhere.

use super::{access, with};
#[cfg(feature = "tracing-layer")]
use crate::ledger::account::Account;
use crate::ledger::cell::Cell;
use crate::ledger::slots::{Entrance, Record};
use crate::owner::Mark;
use std::ptr;

/// A scope that the calling thread has entered, for `leave`.
///
/// That the thread is in a service is counted, and keeps the service; so does a scope with the one
/// it will go back to: the count of the service that the thread was in goes over to the scope.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Entered {
    /// What the thread goes back to. After the thread's end has begun, the cell may be another
    /// thread's; its mark still says whose service it is, since that is kept.
    previous: *const Cell,
    /// The thread's own cell in which the scope is counted; null if it was not entered the short way.
    own: *const Cell,
}

#[cfg(feature = "tracing-layer")]
impl Entered {
    /// Returns the service that the calling thread goes back to from this scope.
    #[inline]
    pub(crate) fn former(&self) -> &'static Record {
        // SAFETY: as in `leave_slow`.
        unsafe { Record::of_cell(self.previous) }
    }

    /// Changes the service that the calling thread goes back to: what counts it in there, the scope has
    /// from now on, and the caller what counted it in the former one.
    #[inline]
    pub(crate) fn set_former(&mut self, record: &'static Record) {
        self.previous = with(|thread| thread.place_of(record).0);
    }
}

/// Puts the calling thread into a service, which somebody holds.
#[inline]
pub fn enter(record: &'static Record) -> Entered {
    enter_by(&Entrance::of(record))
}

/// Variant of [`enter`] for a service whose entrance is at hand.
#[inline]
pub(crate) fn enter_by(entrance: &Entrance) -> Entered {
    let mark = entrance.mark();
    debug_assert_eq!(mark, entrance.record().shared().mark(), "another service has the slot");
    let words = access::Words::of_thread();
    let own = words.directory().cell_at(entrance.place());
    if !own.has_cookie(mark) {
        return enter_slow(entrance);
    }
    let previous = words.cell();
    words.stay();
    own.enter();
    words.set_cell(own);
    Entered { previous, own }
}

/// Takes the calling thread out of the service that it is in, and back to where it was before that
/// scope: mostly that is the scope's service, but scopes may be left in any order.
#[inline]
pub fn leave(scope: Entered) {
    let words = access::Words::of_thread();
    if !words.is_cell(scope.own) {
        return leave_slow(scope.previous);
    }
    // SAFETY: the current cell, which is the thread's own: where it is not, it is no scope's `own`.
    // Cells are never unmapped.
    unsafe { (*scope.own).leave() };
    words.stay_no_more();
    words.set_cell(scope.previous);
}

/// The thread has no cell for the service yet, or it is a long slot's.
#[cold]
#[inline(never)]
fn enter_slow(entrance: &Entrance) -> Entered {
    let record = entrance.record();
    with(|thread| {
        let previous = thread.cell.get();
        // Not for a thread that has allocated nothing yet: to get a shard may allocate.
        let own = thread.shard.get().and_then(|shard| shard.claim(record.slot()));
        thread.stay();
        thread.go_to(record);
        let is_short = own.is_some_and(|own| own.mark() != Mark::LONG);
        Entered { previous, own: if is_short { thread.cell.get() } else { ptr::null() } }
    })
}

/// The thread is elsewhere, or has got a cell, or lost all.
#[cold]
#[inline(never)]
fn leave_slow(previous: *const Cell) {
    // SAFETY: `previous` was the thread's current cell, and the scope kept its service; so the cell has
    // had its mark ever since, and is a record's own if that is the mark of long slots.
    leave_for(unsafe { Record::of_cell(previous) });
}

/// Puts the calling thread into a service, which somebody holds, and returns the one it was in, for
/// [`leave_for`].
#[inline]
pub fn go_to(record: &'static Record) -> &'static Record {
    with(|thread| {
        thread.stay();
        let former = thread.record();
        thread.go_to(record);
        former
    })
}

/// Takes the calling thread out of its service and back to a former one.
#[inline]
pub fn leave_for(former: &'static Record) {
    with(|thread| {
        thread.stay_no_more();
        let left = thread.cell.get();
        thread.find(former);
        thread.leave_cell(left);
    });
}

/// Variant of [`leave_for`] for a service that the thread went to by memory, and that may have ended just
/// then (`recall`): the count is taken back where it stands.
#[cfg(feature = "tracing-layer")]
#[inline]
pub(crate) fn leave_remembered_for(former: &'static Record) {
    with(|thread| {
        let left = thread.cell.get();
        // SAFETY: the current cell; cells are never unmapped.
        let left = unsafe { &*left };
        if left.mark() != Mark::NONE {
            return leave_for(former);
        }
        thread.stay_no_more();
        thread.find(former);
        // Right in an own cell, too.
        left.leave_shared();
    });
}

/// Counts the calling thread in a service, which the caller holds, without going there: the thread
/// goes back to it later.
#[cfg(feature = "tracing-layer")]
#[inline]
pub(crate) fn retain(record: &'static Record) {
    with(|thread| {
        thread.stay();
        match thread.own_or_shared(record) {
            Account::Own(cell) => cell.enter(),
            Account::Shared(cell) => cell.enter_shared(),
        }
    });
}

/// Takes a [`retain`] back, or the count of a service that [`go_to`] returned.
#[cfg(feature = "tracing-layer")]
#[inline]
pub(crate) fn release(record: &'static Record) {
    with(|thread| {
        thread.stay_no_more();
        thread.count_out(record);
    });
}

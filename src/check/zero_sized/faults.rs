//! Who reads or writes a block of 0 bytes is told of.

use super::{IS_OPEN, Slot};
use crate::check::block::{BlockHeader, Tag};
use crate::check::block_state::{Entry, State};
use crate::check::claim::Claim;
use crate::check::handler::react;
use crate::check::inspect::{pointer, violation};
use crate::check::violation::Violation;
use crate::check::violation_kind::{Operation, ViolationKind};
use crate::check::{protection, shadow};
use crate::sync::{Ordering, spin};
use crate::sys::fault::{Access, Fault, Outcome};
use std::ptr::NonNull;

/// Tells of a fault in a slot. May be on a small stack.
pub(in crate::check) fn handle(fault: &Fault) -> Outcome {
    let Some(slot) = Slot::of(fault.address).filter(|slot| fault.address >= slot.block()) else {
        return Outcome::Nothing;
    };
    let Some(entry) = shadow::entry(slot.block()) else { return Outcome::Nothing };
    for attempt in 0..protection::TRIES {
        let outcome = match entry.get() {
            State::ZeroSized | State::Protected => {
                protection::as_interrupted(fault, || tell(fault, slot, entry))
            }
            State::None => protection::as_interrupted(fault, || Some(tell_of_none(fault, slot))),
            State::Busy => None,
            // Somebody else has told of it, or what was done before.
            _ => Some(slot.open()),
        };
        if let Some(outcome) = outcome {
            return outcome;
        }
        spin(attempt);
    }
    Outcome::Nothing
}

/// Reports an access to a block, which it then has; `None` if somebody has the block at this moment.
fn tell(fault: &Fault, slot: Slot, entry: &'static Entry) -> Option<Outcome> {
    let block = pointer(slot.block())?;
    // SAFETY: the block is pinned.
    let violation = entry.pinned_briefly(|state| unsafe { look(fault, block, state) })??;
    react(&violation.met_at(protection::trace(fault.context)));
    Some(slot.open())
}

/// Says what is wrong with an access, and in which state the block is from then on.
///
/// # Safety
///
/// The block must be pinned.
unsafe fn look(fault: &Fault, block: NonNull<u8>, state: State) -> (State, Option<Violation>) {
    let (tag, next) = match state {
        State::ZeroSized => (Tag::Live, State::Condemned),
        State::Protected => (Tag::Freed, State::Leaked),
        _ => return (state, None),
    };
    // SAFETY: the page before the block can be read.
    let violation = unsafe {
        let header = BlockHeader::read(block, tag);
        let offset = fault.address - block.addr().get();
        accessed(fault, tag).about(block, header.as_ref(), tag, Some(offset as isize))
    };
    (next, Some(violation))
}

/// Reports an access to a block that has left the quarantine, and of which nothing is known any more.
fn tell_of_none(fault: &Fault, slot: Slot) -> Outcome {
    if !IS_OPEN[slot.0].swap(true, Ordering::Relaxed) {
        react(&accessed(fault, Tag::Freed).met_at(protection::trace(fault.context)));
    }
    slot.open()
}

fn accessed(fault: &Fault, tag: Tag) -> Violation {
    let kind = match (tag, fault.access) {
        (Tag::Live, Access::Write) => ViolationKind::Overrun,
        (Tag::Live, _) => ViolationKind::Overread,
        (Tag::Freed, Access::Write) => ViolationKind::WriteAfterFree,
        (Tag::Freed, _) => ViolationKind::ReadAfterFree,
    };
    let address = std::ptr::with_exposed_provenance_mut(fault.address);
    violation(kind, Operation::Access, address, Claim::default())
}

//! Tells of faults in the pool.

use super::entry::State;
use super::pool::{FREES, Part, PoolSlot};
use super::reaction;
use super::report;
use super::violation::{Found, Kind, Violation};
use crate::sync::Ordering;
use crate::sys::fault::{Access, Fault, FaultHook, Outcome, may_try_again};

pub(super) static FAULT_HOOK: FaultHook = FaultHook { handle };

/// Tells of a fault that is in the pool.
fn handle(fault: &Fault) -> Outcome {
    let address = fault.address;
    let Some((slot, part)) = PoolSlot::of(address) else { return Outcome::Nothing };
    let found = match fault.access {
        Access::Read => Found::Read,
        Access::Write => Found::Write,
        Access::Either => Found::Access,
    };
    let (entry, offset) = (slot.entry, slot.entry.offset_of(address));
    let size = entry.size.load(Ordering::Relaxed) as isize;
    let has_mark = entry.has_mark.load(Ordering::Relaxed);
    let kind = match (slot.state.get(), part) {
        _ if !entry.is_used() => Kind::WildAccess,
        // There may have come a block meanwhile.
        (State::Live | State::Retired, Part::Page) => {
            let turn = FREES.load(Ordering::Relaxed) as usize;
            return if may_try_again(address, turn) { Outcome::TryAgain } else { Outcome::Nothing };
        }
        (State::Live | State::Retired, Part::Before) => Kind::Underrun,
        (State::Live | State::Retired, _) => Kind::Overrun,
        // The mark: a free has looked for it.
        (State::Free(_), _)
            if has_mark && found != Found::Write && (offset == size || offset == size + 1) =>
        {
            Kind::DoubleFree
        }
        _ => Kind::UseAfterFree,
    };
    let (found, offset) = if kind == Kind::DoubleFree { (Found::Dealloc, 0) } else { (found, offset) };
    report::tell(Violation { kind, found, address, offset, slot }, fault.context);
    debug_assert!(reaction::goes_on());
    if slot.open(part) { Outcome::TryAgain } else { Outcome::Told }
}

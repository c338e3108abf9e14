//! Verification of all blocks, on demand.

use super::block_state;
use super::block_state::State;
use super::claim::Claim;
use super::handler::react;
use super::inspect::{pointer, violation, whole_and_freed, whole_in, wrong_with_freed, wrong_with_live};
use super::protection;
use super::settings::Settings;
use super::shadow;
use super::violation::Violation;
use super::violation_kind::{Operation, ViolationKind};
use std::ptr::NonNull;

/// Verifies every block, live or in quarantine, and calls the handler for each violation, as a free
/// does.
///
/// Call it in tests, and in programs that do not free much: it finds an overrun of a live block
/// before the block is freed. It reads a byte for each 16 bytes of the heap, and pins each block while
/// it reads it; other threads go on meanwhile. Each violation is found once.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// let text = String::from("nothing wrong here");
/// let verified = dogtag::check::verify();
/// assert_eq!(verified.violations, 0);
/// assert!(verified.live_blocks > 0);
/// # drop(text);
/// # }
/// ```
pub fn verify() -> Verified {
    let settings = Settings::get();
    let mut verified = Verified::default();
    shadow::for_each(|address, entry| {
        let Some(block) = pointer(address) else { return };
        let violation = |kind| violation(kind, Operation::Verify, block.as_ptr(), Claim::default());
        let found = entry.pinned(|state| {
            match state {
                State::Live | State::Condemned | State::ZeroSized => verified.live_blocks += 1,
                State::Quarantined | State::Protected => verified.quarantined_blocks += 1,
                _ => {}
            }
            // SAFETY: the block is pinned.
            unsafe {
                match state {
                    // Reported now, and not again when the block is freed.
                    State::Live | State::ZeroSized if whole_in(block, state).is_none() => {
                        (State::Condemned, Some(wrong_with_live(violation, block, ViolationKind::Overrun)))
                    }
                    _ => wrong_in_quarantine(block, state, Operation::Verify, settings),
                }
            }
        });
        if let Some(Some(violation)) = found {
            verified.violations += 1;
            react(&violation);
        }
    });
    verified
}

/// Looks at a block that may be in quarantine. Returns the state that it is in from then on, and its violation if
/// there is one: it is reported now, and not again when the block leaves.
///
/// # Safety
///
/// The block must be in that state, and be pinned.
pub(super) unsafe fn wrong_in_quarantine(
    block: NonNull<u8>,
    state: State,
    operation: Operation,
    settings: &Settings,
) -> (State, Option<Violation>) {
    // SAFETY: the caller's block, in that state.
    let wrong = unsafe {
        match state {
            State::Quarantined if whole_and_freed(block, settings).is_none() => {
                Some(wrong_with_freed(block, operation, settings))
            }
            State::Protected if protection::whole(block).is_none() => {
                Some(protection::wrong(block, operation))
            }
            _ => None,
        }
    };
    (if wrong.is_some() { State::Leaked } else { state }, wrong)
}

/// Runs [`verify`] at the end of a process, where nobody asked for it. Skips a forked child that has
/// freed little: nearly all of its blocks are its parent's, and to verify them would take longer than
/// all that the child has done.
pub fn verify_at_exit() {
    let has_done_enough = |magazines| magazines >= 2 * shadow::leaves() as u64;
    if Settings::get().quarantine == 0 || block_state::magazines_as_child().is_none_or(has_done_enough) {
        verify();
    }
}

/// Counts what [`verify`] has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Live blocks, with and without violations.
    pub live_blocks: u64,
    /// Freed blocks in quarantine.
    pub quarantined_blocks: u64,
    /// Violations that were found, if the process went on.
    pub violations: u64,
}

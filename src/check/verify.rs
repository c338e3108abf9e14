//! Verification of all blocks, on demand.

use super::block_state;
use super::block_state::State;
use super::claim::Claim;
use super::handler::react;
use super::inspect::{
    pointer, violation, whole_and_freed, whole_and_live, wrong_with_freed, wrong_with_live,
};
use super::settings::Settings;
use super::shadow;
use super::violation_kind::{Operation, ViolationKind};

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
            // SAFETY: the block is pinned.
            let found = unsafe {
                match state {
                    State::Live if whole_and_live(block).is_none() => {
                        Some(wrong_with_live(violation, block, ViolationKind::Overrun))
                    }
                    State::Quarantined if whole_and_freed(block, settings).is_none() => {
                        Some(wrong_with_freed(block, Operation::Verify, settings))
                    }
                    _ => None,
                }
            };
            match state {
                State::Live | State::Condemned => verified.live_blocks += 1,
                State::Quarantined => verified.quarantined_blocks += 1,
                _ => {}
            }
            // Reported now, and not again when the block is freed or reused.
            let next = match (&found, state) {
                (Some(_), State::Live) => State::Condemned,
                (Some(_), _) => State::Leaked,
                (None, state) => state,
            };
            (next, found)
        });
        if let Some(Some(violation)) = found {
            verified.violations += 1;
            react(&violation);
        }
    });
    verified
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

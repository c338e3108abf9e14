//! Tells of accesses to [pages that hold no block](super::uncommitted).
//!
//! Whose pointer it was nobody can know: the nearest block is named, and called that.

use super::block::{BlockHeader, Tag};
use super::block_state::State;
use super::claim::Claim;
use super::handler::react;
use super::inspect::{may_be_gone, pointer, violation};
use super::protection;
use super::settings::Settings;
use super::shadow;
use super::threads;
use super::uncommitted;
use super::violation::Violation;
use super::violation_kind::{Operation, ViolationKind};
use crate::sync::{AtomicBool, Ordering};
use crate::sys::fault::{Access, Fault, Outcome};
use std::ptr::NonNull;

static IS_HEARD_OF: AtomicBool = AtomicBool::new(false);

/// Has faults come to this module, unless the settings say that there are none: then pages have their access back that
/// lost it before the settings could be read. For C's `malloc`, when the library is loaded.
pub(super) fn begin() {
    match Settings::get().protect {
        0 => uncommitted::open_all(),
        _ => hear(),
    }
}

/// The same where a thread allocates for the first time. Not on the first one: Rust's standard library sets a handler
/// before `main`, and only where there is none.
#[cfg(all(feature = "jemalloc", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn begin_by_thread() {
    if threads::number() != 1 && !threads::has_source() {
        hear();
    }
}

/// The same where a thread has freed so much that `main` has begun.
#[inline]
pub(super) fn begin_by_free() {
    if !IS_HEARD_OF.load(Ordering::Relaxed) && !threads::has_source() {
        hear();
    }
}

#[cold]
fn hear() {
    if Settings::get().protect != 0 && uncommitted::is_on() && !cfg!(miri) {
        protection::hear();
    }
    IS_HEARD_OF.store(true, Ordering::Relaxed);
}

/// Tells of a fault in a page that holds no block. May be on a small stack.
pub(super) fn handle(fault: &Fault) -> Outcome {
    protection::as_interrupted(fault, || Some(tell(fault))).unwrap_or(Outcome::Nothing)
}

/// Reports an access, and lets it through.
fn tell(fault: &Fault) -> Outcome {
    let kind = match fault.access {
        Access::Write => ViolationKind::WildWrite,
        Access::Read | Access::Either => ViolationKind::WildRead,
    };
    let address = std::ptr::with_exposed_provenance_mut(fault.address);
    let violation = violation(kind, Operation::Access, address, Claim::default());
    react(&near(violation).met_at(protection::trace(fault.context)));
    if uncommitted::let_through(fault.address) { Outcome::TryAgain } else { Outcome::Told }
}

/// Adds what is known of the nearest block, if there is one within reach.
fn near(violation: Violation) -> Violation {
    let address = violation.address();
    let above = shadow::first_in(address..address.saturating_add(shadow::REACH));
    let candidates = [shadow::below(address), above].into_iter().flatten();
    let found = candidates.filter_map(|(start, entry)| {
        let block = pointer(start)?;
        // SAFETY: the block is pinned.
        entry.pinned_briefly(|state| (state, unsafe { about(violation, block, state) }))?
    });
    found.min_by_key(Violation::distance).unwrap_or(violation)
}

/// Adds what is known of a block; `None` if its header has been overwritten, since then nobody knows which part of it
/// can be read.
///
/// # Safety
///
/// The block must be pinned.
unsafe fn about(violation: Violation, block: NonNull<u8>, state: State) -> Option<Violation> {
    if may_be_gone(state) {
        return None;
    }
    [Tag::Live, Tag::Freed].into_iter().find_map(|tag| {
        // SAFETY: the state says that a block begins here, so its header can be read.
        unsafe {
            let header = BlockHeader::read(block, tag)?;
            Some(violation.about(block, Some(&header), tag, None))
        }
    })
}

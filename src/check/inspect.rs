//! Finds what is wrong with a block, and whose block it is.

use super::block::{self, BlockHeader, Tag};
use super::block_state::State;
use super::claim::Claim;
use super::settings::Settings;
use super::shadow;
use super::violation::Violation;
use super::violation_kind::{Operation, ViolationKind};
use super::zero_sized;
use crate::sync::{AtomicBool, Ordering};
use std::ptr::{self, NonNull};

#[inline]
pub(super) fn pointer(address: usize) -> Option<NonNull<u8>> {
    NonNull::new(ptr::with_exposed_provenance_mut(address))
}

pub(super) fn violation(
    kind: ViolationKind,
    operation: Operation,
    address: *mut u8,
    claim: Claim,
) -> Violation {
    Violation::new(kind, operation, address.addr()).claimed(claim)
}

/// Reads the header of a live block; `None` if the header or a guard has been overwritten.
///
/// # Safety
///
/// The block must have been live, and have been seized or be pinned.
#[inline]
pub(super) unsafe fn whole_and_live(block: NonNull<u8>) -> Option<BlockHeader> {
    // SAFETY: the state says that a block begins here, so its head and tail are mapped.
    unsafe {
        let header = BlockHeader::read(block, Tag::Live)?;
        block::has_guards(block, &header).then_some(header)
    }
}

/// Variant of [`whole_and_live`] for a block in one of both states in which all is well with it.
///
/// # Safety
///
/// As for [`whole_and_live`]; the block must have been in that state.
pub(super) unsafe fn whole_in(block: NonNull<u8>, state: State) -> Option<BlockHeader> {
    // SAFETY: as the caller says.
    unsafe {
        match state {
            State::ZeroSized => zero_sized::whole(block),
            _ => whole_and_live(block),
        }
    }
}

/// Reads the header of a block in quarantine; `None` if the header, a guard or the pattern has been
/// overwritten.
///
/// # Safety
///
/// The block must have been in quarantine, and have been seized or be pinned.
#[inline(always)]
pub(super) unsafe fn whole_and_freed(block: NonNull<u8>, settings: &Settings) -> Option<BlockHeader> {
    // SAFETY: the state says that a block begins here, so its head and tail are mapped.
    unsafe {
        let header = BlockHeader::read(block, Tag::Freed)?;
        let is_filled = || block::has_fill(block, header.layout().size(), settings.fill.freed());
        (block::has_guards(block, &header) && is_filled()).then_some(header)
    }
}

/// Describes the violation of a live block that is not whole; of kind `otherwise` if it is.
///
/// # Safety
///
/// As for [`whole_and_live`].
#[cold]
pub(super) unsafe fn wrong_with_live(
    violation: impl Fn(ViolationKind) -> Violation,
    block: NonNull<u8>,
    otherwise: ViolationKind,
) -> Violation {
    // SAFETY: the state says that a block begins here, so its head and tail are mapped.
    unsafe {
        let header = BlockHeader::read(block, Tag::Live);
        let wrong = match &header {
            Some(known) => block::wrong_guard(block, known),
            None => block::wrong_head(block),
        };
        let kind = match wrong {
            Some(0..) => ViolationKind::Overrun,
            Some(_) => ViolationKind::Underrun,
            None if header.is_none() => ViolationKind::Underrun,
            None => otherwise,
        };
        violation(kind).about(block, header.as_ref(), Tag::Live, wrong)
    }
}

/// Describes the violation of a block in quarantine that is not whole.
///
/// # Safety
///
/// As for [`whole_and_freed`].
#[cold]
pub(super) unsafe fn wrong_with_freed(
    block: NonNull<u8>,
    operation: Operation,
    settings: &Settings,
) -> Violation {
    // SAFETY: the state says that a block begins here, so its head and tail are mapped.
    unsafe {
        let header = BlockHeader::read(block, Tag::Freed);
        let wrong = match &header {
            Some(known) => {
                let filled = settings.fill.freed();
                let wrong = filled.and_then(|filled| block::wrong_fill(block, known.layout().size(), filled));
                wrong.or_else(|| block::wrong_guard(block, known))
            }
            None => block::wrong_head(block),
        };
        violation(ViolationKind::WriteAfterFree, operation, block.as_ptr(), Claim::default()).about(
            block,
            header.as_ref(),
            Tag::Freed,
            wrong,
        )
    }
}

/// Adds what is known of a block that a pointer points into.
pub(super) fn inside_another(violation: Violation) -> Violation {
    let found = shadow::below(violation.address()).and_then(|(address, entry)| {
        let block = pointer(address)?;
        // SAFETY: the block is pinned.
        entry.pinned(|state| (state, unsafe { about_any(violation, block, state) }))
    });
    let is_inside = |found: &Violation| match (found.block(), found.layout()) {
        (Some(block), Some(layout)) => violation.address() - block < layout.size(),
        _ => false,
    };
    found.filter(is_inside).unwrap_or(violation)
}

/// Adds what is known of a block, whatever state it is in.
///
/// # Safety
///
/// The block must be pinned.
pub(super) unsafe fn about_any(violation: Violation, block: NonNull<u8>, state: State) -> Violation {
    if may_be_gone(state) {
        return violation;
    }
    // SAFETY: the state says that a block begins here, so its head and tail are mapped.
    unsafe {
        match BlockHeader::read(block, Tag::Freed) {
            Some(freed) => violation.about(block, Some(&freed), Tag::Freed, None),
            None => {
                let live = BlockHeader::read(block, Tag::Live);
                violation.about(block, live.as_ref(), Tag::Live, None)
            }
        }
    }
}

/// Whether the memory of a block in that state may not be there any more: an
/// allocator that ends cannot know whether a block with an overwritten header is its own.
pub(super) fn may_be_gone(state: State) -> bool {
    matches!(state, State::Condemned | State::Leaked) && SOME_HAVE_ENDED.load(Ordering::Relaxed)
}

/// Set when an allocator ends.
pub(super) static SOME_HAVE_ENDED: AtomicBool = AtomicBool::new(false);

//! The way of blocks out of the quarantine, back to the backend.

use super::block::{BlockHeader, HEAD};
use super::block_state::{self, Entry, State};
use super::handler::react;
use super::inspect::{pointer, whole_and_freed, wrong_with_freed};
use super::protection;
use super::quarantine::Left;
use super::settings::Settings;
use super::shadow::{self, Vacancies};
use super::violation_kind::Operation;
use super::zero_sized;
use crate::backend;
use crate::sync::{AtomicU64, Ordering};
use std::alloc::Layout;
use std::ptr::NonNull;

/// Gives the memory that was requested for a block back to the backend.
pub(super) type Release<B> = unsafe fn(&B, NonNull<u8>, Layout);

/// Has a [`Release`], as a type: so the compiler knows it where many blocks are released.
pub(crate) trait Releases<B> {
    /// Gives the memory that was requested for a block back to the backend.
    ///
    /// # Safety
    ///
    /// The memory must have come from that backend with that layout, and be nobody's any more.
    unsafe fn release(backend: &B, base: NonNull<u8>, outer: Layout);
}

/// Gives a block's memory back, unless something has overwritten how much it is.
///
/// # Safety
///
/// The block must have that header, and be nobody's any more; `release` must be for the backend that it was requested
/// from.
#[inline(always)]
pub(super) unsafe fn give_back(
    block: NonNull<u8>,
    header: &BlockHeader,
    release: impl FnOnce(NonNull<u8>, Layout),
) {
    // SAFETY: where the block's memory begins, and the layout that it was requested with.
    unsafe {
        if let Some(outer) = header.plain_outer_layout() {
            release(block.sub(HEAD), outer);
        } else if let Some(outer) = header.outer_layout(block) {
            release(block.sub(header.offset()), outer);
        }
    }
}

/// Releases a block that has left the quarantine, unless something wrote to it.
///
/// # Safety
///
/// [`Checker::retire`](super::Checker::retire) must have put it in; `release` must be for the backend that it was
/// requested from.
#[inline(always)]
pub(super) unsafe fn release_block(
    Left { address, entry }: Left,
    vacancies: &mut Vacancies,
    settings: &Settings,
    release: impl FnOnce(NonNull<u8>, Layout),
) {
    let (Some(entry), Some(block)) = (entry, pointer(address)) else { return };
    // None if `verify` has found a violation there.
    let Some(state) = entry.seize_quarantined() else { return };
    if state == State::Protected {
        // SAFETY: it was protected and has been seized, and was requested from that backend.
        return unsafe { release_protected(block, entry, release) };
    }
    // SAFETY: it was in quarantine and has been seized.
    match unsafe { whole_and_freed(block, settings) } {
        Some(header) => {
            vacancies.vacate(address, entry);
            // SAFETY: the block is seized, and was requested from that backend.
            unsafe { give_back(block, &header, release) };
        }
        // SAFETY: it was in quarantine and has been seized.
        None => unsafe { keep_for_good(block, entry, settings) },
    }
}

/// Reports a block in quarantine that something wrote to. It is never used again.
///
/// # Safety
///
/// The block must have been in quarantine, and have been seized.
#[cold]
#[inline(never)]
unsafe fn keep_for_good(block: NonNull<u8>, entry: &'static Entry, settings: &Settings) {
    // SAFETY: the caller's block.
    let violation = unsafe { wrong_with_freed(block, Operation::Reuse, settings) };
    entry.set(State::Leaked);
    react(&violation);
}

/// Gives the access to a block back that leaves the quarantine, and the block to the backend. It is never used again if
/// what stands in front of it was overwritten, which is reported, or if the system refuses. The pages of a block of 0
/// bytes are for another one.
///
/// # Safety
///
/// The block must have been protected, have been seized, and be from the backend that `release` is for.
#[cold]
#[inline(never)]
unsafe fn release_protected(
    block: NonNull<u8>,
    entry: &'static Entry,
    release: impl FnOnce(NonNull<u8>, Layout),
) {
    // SAFETY: the block is the caller's alone.
    unsafe {
        let whole = protection::whole(block);
        if whole.is_some_and(|header| header.is_zero_sized()) {
            shadow::vacate(block.addr().get(), entry);
            return zero_sized::put(block);
        }
        if let Some(header) = whole
            && protection::reopen(block, &header)
        {
            shadow::vacate(block.addr().get(), entry);
            return give_back(block, &header, release);
        }
        let violation = whole.is_none().then(|| protection::wrong(block, Operation::Reuse));
        entry.set(State::Leaked);
        violation.iter().for_each(react);
    }
}

/// Has the backend return memory to the operating system once quarantines have become that much
/// smaller: every fork would copy it.
#[inline]
pub(super) fn give_back_after_forks(less: u64) {
    static LESS: AtomicU64 = AtomicU64::new(0);

    const MUCH: u64 = 4 << 20;

    if less != 0 && LESS.fetch_add(less, Ordering::Relaxed) + less >= MUCH && block_state::forks() != 0 {
        LESS.store(0, Ordering::Relaxed);
        backend::give_back();
    }
}

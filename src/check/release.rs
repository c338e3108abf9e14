//! The way of blocks out of the quarantine, back to the backend.

use super::block::BlockHeader;
use super::block_state::{self, Entry, State};
use super::handler::react;
use super::inspect::{pointer, whole_and_freed, wrong_with_freed};
use super::protection;
use super::settings::Settings;
use super::shadow;
use super::violation_kind::Operation;
use super::zero_sized;
use crate::backend;
use crate::sync::{AtomicU64, Ordering};
use std::ptr::NonNull;

/// Gives a block's memory back to the backend.
pub(super) type Release<B> = unsafe fn(&B, NonNull<u8>, BlockHeader);

/// Releases a block that has left the quarantine, unless something wrote to it.
///
/// # Safety
///
/// [`Checker::retire`](super::Checker::retire) must have put it in, for that backend.
#[inline]
pub(super) unsafe fn release_block<B>(address: usize, settings: &Settings, backend: &B, release: Release<B>) {
    let (Some(entry), Some(block)) = (shadow::entry(address), pointer(address)) else { return };
    // None if `verify` has found a violation there.
    let Some(state) = entry.seize_quarantined() else { return };
    if state == State::Protected {
        // SAFETY: it was protected and has been seized, and was requested from that backend.
        return unsafe { release_protected(block, entry, backend, release) };
    }
    // SAFETY: it was in quarantine and has been seized.
    match unsafe { whole_and_freed(block, settings) } {
        Some(header) => {
            shadow::vacate(address, entry);
            // SAFETY: the block is seized, and was requested from that backend.
            unsafe { release(backend, block, header) };
        }
        None => {
            // SAFETY: it was in quarantine and has been seized.
            let violation = unsafe { wrong_with_freed(block, Operation::Reuse, settings) };
            entry.set(State::Leaked);
            react(&violation);
        }
    }
}

/// Gives the access to a block back that leaves the quarantine, and the block to the backend. It is never used again if
/// what stands in front of it was overwritten, which is reported, or if the system refuses. The pages of a block of 0
/// bytes are for another one.
///
/// # Safety
///
/// The block must have been protected, have been seized, and be from that backend.
#[cold]
#[inline(never)]
unsafe fn release_protected<B>(block: NonNull<u8>, entry: &'static Entry, backend: &B, release: Release<B>) {
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
            return release(backend, block, header);
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

//! What a freed block is filled with, and whether it still is.

use std::ptr::NonNull;

/// The byte that fresh memory is filled with.
pub(crate) const FRESH: u8 = 0xCD;
/// The byte that freed memory is filled with.
pub(crate) const FREED: u8 = 0xDD;
/// The first byte of a freed block that is not what it was filled with any more.
///
/// # Safety
///
/// As for [`BlockHeader::read`](super::BlockHeader::read), for a block of `size` bytes that was filled so.
#[inline]
pub(crate) unsafe fn wrong_fill(block: NonNull<u8>, size: usize, filled: u8) -> Option<isize> {
    // SAFETY: the block is `size` bytes of the backend's memory that nobody
    // may write to.
    let bytes = unsafe { NonNull::slice_from_raw_parts(block, size).as_ref() };
    if filled == 0 { wrong_byte::<0>(bytes) } else { wrong_byte::<FREED>(bytes) }
}

/// Whether a freed block is still what it was filled with, or was not filled.
///
/// # Safety
///
/// As for [`wrong_fill`].
#[inline(always)]
pub(crate) unsafe fn has_fill(block: NonNull<u8>, size: usize, filled: Option<u8>) -> bool {
    // SAFETY: the caller's block.
    let bytes = unsafe { NonNull::slice_from_raw_parts(block, size).as_ref() };
    match filled {
        Some(0) => wrong_byte::<0>(bytes).is_none(),
        Some(_) => has_pattern(bytes),
        None => true,
    }
}

/// Whether all bytes are [`FREED`].
#[inline]
fn has_pattern(bytes: &[u8]) -> bool {
    const MEANT: u128 = u128::from_ne_bytes([FREED; 16]);
    let wrong = |bytes: &[u8; 16]| u128::from_ne_bytes(*bytes) ^ MEANT;

    // A few of them at once, since a way out after each takes longer than the comparisons.
    let (runs, rest) = bytes.as_chunks::<64>();
    for run in runs {
        let (words, _) = run.as_chunks::<16>();
        if words.iter().fold(0, |sum, word| sum | wrong(word)) != 0 {
            return false;
        }
    }
    if rest.is_empty() {
        return true;
    }
    let (words, few) = rest.as_chunks::<16>();
    let sum = words.iter().fold(0, |sum, word| sum | wrong(word));
    match bytes.last_chunk::<16>() {
        // The last ones again, with some of those before them.
        Some(last) => sum | wrong(last) == 0,
        None => few.iter().all(|byte| *byte == FREED),
    }
}

/// The first byte that is another one.
#[inline]
pub(super) fn wrong_byte<const FILLED: u8>(bytes: &[u8]) -> Option<isize> {
    // By the run, without a way out within one, so that the compiler compares many bytes at once.
    let (runs, rest) = bytes.as_chunks::<64>();
    let start = match runs.iter().position(|run| !is_filled::<FILLED>(run)) {
        Some(run) => run * 64,
        None if is_filled::<FILLED>(rest) => return None,
        None => runs.len() * 64,
    };
    Some((start + bytes[start..].iter().position(|&byte| byte != FILLED)?) as isize)
}

#[inline(always)]
fn is_filled<const FILLED: u8>(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    let meant = u64::from_ne_bytes([FILLED; 8]);
    let wrong = words.iter().fold(0_u64, |wrong, word| wrong | (u64::from_ne_bytes(*word) ^ meant));
    rest.iter().fold(wrong, |wrong, &byte| wrong | u64::from(byte ^ FILLED)) == 0
}

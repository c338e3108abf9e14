//! Fills a block with a pattern. dogtag-c replaces C's `memset` by one that checks what it writes; here
//! the C library's own is called, since these writes are right.

use crate::sync::{AtomicPtr, Ordering};
use std::ptr;

/// C's `memset`.
pub type Memset = unsafe extern "C" fn(*mut u8, i32, usize) -> *mut u8;

/// A [`Memset`], or null for the one that the compiler calls.
static FUNCTION: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Makes `function` what fills blocks.
pub fn set_function(function: Memset) {
    FUNCTION.store(function as *mut (), Ordering::Relaxed);
}

/// Fills memory with a byte.
///
/// # Safety
///
/// The memory must be valid for writes of that length.
#[inline]
pub(crate) unsafe fn fill(start: *mut u8, byte: u8, length: usize) {
    if (LEAST..=4 * LEAST).contains(&length) {
        // SAFETY: the memory is valid for writes, and as long as that.
        return unsafe { fill_few(start, byte, length) };
    }
    let function = FUNCTION.load(Ordering::Relaxed);
    // SAFETY: only `set_function` stores there, such a function; the caller's memory is valid for writes.
    unsafe {
        if function.is_null() {
            return start.write_bytes(byte, length);
        }
        std::mem::transmute::<*mut (), Memset>(function)(start, byte.into(), length);
    }
}

/// What is written at once.
const LEAST: usize = 2 * WORD;
const WORD: usize = size_of::<u64>();

/// Fills few bytes, from both ends towards the middle.
///
/// # Safety
///
/// As for [`fill`], for a length from [`LEAST`] to four times as much.
#[inline(always)]
unsafe fn fill_few(start: *mut u8, byte: u8, length: usize) {
    let words = [u64::from_ne_bytes([byte; WORD]); LEAST / WORD];
    // SAFETY: all are within the length, which is at least twice the larger offset.
    let write =
        |offset: usize| unsafe { start.add(offset).cast::<[u64; LEAST / WORD]>().write_unaligned(words) };
    write(0);
    write(length - LEAST);
    if length > 2 * LEAST {
        write(LEAST);
        write(length - 2 * LEAST);
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_are_filled_and_no_others() {
        for length in 0..100 {
            let mut memory = [1_u8; 120];
            // SAFETY: within the array.
            unsafe { fill(memory[10..].as_mut_ptr(), 0xAB, length) };
            let is_right =
                |(at, byte): (usize, &u8)| *byte == if (10..10 + length).contains(&at) { 0xAB } else { 1 };
            assert!(memory.iter().enumerate().all(is_right), "{length} bytes: {memory:x?}");
        }
    }
}

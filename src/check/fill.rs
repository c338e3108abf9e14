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
#[inline(always)]
pub(crate) unsafe fn fill(start: *mut u8, byte: u8, length: usize) {
    // SAFETY: the memory is valid for writes, and as long as that.
    unsafe {
        match length {
            MANY.. => fill_many(start, byte, length),
            LEAST.. => fill_some(start, byte, length),
            _ => fill_few(start, byte, length),
        }
    }
}

/// # Safety
///
/// As for [`fill`].
#[inline(never)]
unsafe fn fill_many(start: *mut u8, byte: u8, length: usize) {
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
const LEAST: usize = 16;
/// From this length on the C library's function takes less time.
const MANY: usize = 8 * LEAST + 1;

/// Fills some bytes, from both ends towards the middle.
///
/// # Safety
///
/// As for [`fill`], for a length from [`LEAST`] up to eight times as much.
#[inline(always)]
unsafe fn fill_some(start: *mut u8, byte: u8, length: usize) {
    // SAFETY: all are within the length, which is at least twice the larger offset.
    let write = |offset: usize| unsafe { start.add(offset).cast::<[u8; LEAST]>().write([byte; LEAST]) };
    let write_both = |offset: usize| {
        write(offset);
        write(length - LEAST - offset);
    };
    write_both(0);
    if length > 2 * LEAST {
        write_both(LEAST);
        if length > 4 * LEAST {
            write_both(2 * LEAST);
            write_both(3 * LEAST);
        }
    }
}

/// Fills less than [`LEAST`], in the same way.
///
/// # Safety
///
/// As for [`fill`], for such a length.
#[inline(always)]
unsafe fn fill_few(start: *mut u8, byte: u8, length: usize) {
    // SAFETY: within the length, which is at least the size of what is written.
    unsafe {
        if length >= 8 {
            start.cast::<[u8; 8]>().write([byte; 8]);
            start.add(length - 8).cast::<[u8; 8]>().write([byte; 8]);
        } else if length >= 4 {
            start.cast::<[u8; 4]>().write([byte; 4]);
            start.add(length - 4).cast::<[u8; 4]>().write([byte; 4]);
        } else if length != 0 {
            *start = byte;
            *start.add(length / 2) = byte;
            *start.add(length - 1) = byte;
        }
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_are_filled_and_no_others() {
        for length in 0..200 {
            let mut memory = [1_u8; 220];
            // SAFETY: within the array.
            unsafe { fill(memory[10..].as_mut_ptr(), 0xAB, length) };
            let is_right =
                |(at, byte): (usize, &u8)| *byte == if (10..10 + length).contains(&at) { 0xAB } else { 1 };
            assert!(memory.iter().enumerate().all(is_right), "{length} bytes: {memory:x?}");
        }
    }
}

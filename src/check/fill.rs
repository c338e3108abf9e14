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
    let function = FUNCTION.load(Ordering::Relaxed);
    // SAFETY: only `set_function` stores there, such a function; the caller's memory is valid for writes.
    unsafe {
        if function.is_null() {
            return start.write_bytes(byte, length);
        }
        std::mem::transmute::<*mut (), Memset>(function)(start, byte.into(), length);
    }
}

//! `dogtag_malloc` and its kin: blocks, with C's rules for sizes, alignments and `errno`.

use crate::{blocks, errno};
use dogtag::__private::memory_check;
#[cfg(any(feature = "interpose", feature = "skynet"))]
use std::ffi::c_int;
use std::ffi::{c_char, c_void};
use std::ptr;

#[unsafe(no_mangle)]
extern "C" fn dogtag_malloc(size: usize) -> *mut c_void {
    malloc(size)
}

#[unsafe(no_mangle)]
extern "C" fn dogtag_calloc(count: usize, size: usize) -> *mut c_void {
    calloc(count, size)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_realloc(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { realloc(block, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { reallocarray(block, count, size) }
}

#[unsafe(no_mangle)]
extern "C" fn dogtag_aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    aligned_alloc(alignment, size)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_strdup(string: *const c_char) -> *mut c_char {
    // SAFETY: a C string, by the caller's promise.
    unsafe { strdup(string) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_free(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { free(block) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_usable_size(block: *const c_void) -> usize {
    // SAFETY: the caller's promise.
    unsafe { usable_size(block) }
}

#[inline(always)]
pub(crate) fn malloc(size: usize) -> *mut c_void {
    or_errno(blocks::allocate::<false>(size))
}

#[inline(always)]
pub(crate) fn calloc(count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        Some(size) => or_errno(blocks::allocate::<true>(size)),
        None => out_of_memory(),
    }
}

/// # Safety
///
/// `block` must be null or a live block of C's.
#[inline(always)]
pub(crate) unsafe fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return malloc(size);
    }
    // SAFETY: the caller's promise.
    unsafe {
        if size == 0 {
            free(block);
            return ptr::null_mut();
        }
        resize(block, size)
    }
}

/// The same without C's rule for 0 bytes, and for a block.
///
/// # Safety
///
/// `block` must be a live block of C's.
#[inline(always)]
pub(crate) unsafe fn resize(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    or_errno(unsafe { blocks::resize(block.cast(), size) })
}

/// # Safety
///
/// As for [`realloc`].
pub(crate) unsafe fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's promise.
        Some(size) => unsafe { realloc(block, size) },
        None => out_of_memory(),
    }
}

pub(crate) fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    if !alignment.is_power_of_two() {
        errno::set(libc::EINVAL);
        return ptr::null_mut();
    }
    or_errno(blocks::allocate_aligned(alignment, size))
}

/// glibc's: takes the next power of two for an alignment; EINVAL where there is none.
#[cfg(feature = "interpose")]
pub(crate) fn memalign(alignment: usize, size: usize) -> *mut c_void {
    match alignment.checked_next_power_of_two() {
        Some(alignment) => aligned_alloc(alignment, size),
        None => {
            errno::set(libc::EINVAL);
            ptr::null_mut()
        }
    }
}

/// POSIX's: says what is wrong by its result, and leaves `place` as it is then. Sets `errno`
/// where there is no memory, as glibc's does, and only there.
///
/// # Safety
///
/// `place` must be valid for writes.
#[cfg(any(feature = "interpose", feature = "skynet"))]
pub(crate) unsafe fn posix_memalign(place: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
    if !alignment.is_power_of_two() || !alignment.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    let block = or_errno(blocks::allocate_aligned(alignment, size));
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's promise.
    unsafe { place.write(block) };
    0
}

/// # Safety
///
/// `string` must be a C string.
pub(crate) unsafe fn strdup(string: *const c_char) -> *mut c_char {
    // SAFETY: the caller's promise; the copy is as long as the string.
    unsafe {
        let size = libc::strlen(string) + 1;
        let copy = malloc(size).cast::<c_char>();
        if !copy.is_null() {
            ptr::copy_nonoverlapping(string, copy, size);
        }
        copy
    }
}

/// # Safety
///
/// As for [`realloc`].
#[inline(always)]
pub(crate) unsafe fn free(block: *mut c_void) {
    if !block.is_null() {
        // SAFETY: the caller's promise.
        keeping_errno(|| unsafe { blocks::free(block.cast()) });
    }
}

/// # Safety
///
/// As for [`realloc`].
pub(crate) unsafe fn usable_size(block: *const c_void) -> usize {
    if block.is_null() {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { blocks::size(block.cast_mut().cast()) }
}

/// A text as a block of C's.
pub(crate) fn text(text: &str) -> *mut c_char {
    let copy = malloc(text.len() + 1).cast::<u8>();
    if !copy.is_null() {
        // SAFETY: the copy is one byte longer than the text.
        unsafe {
            ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len());
            copy.add(text.len()).write(0);
        }
    }
    copy.cast()
}

/// What C's `free` does not change. A report does; jemalloc does not, unless the
/// system fails.
#[inline(always)]
pub(crate) fn keeping_errno(work: impl FnOnce()) {
    if memory_check::IS_ON { errno::kept(work) } else { work() }
}

#[inline(always)]
fn or_errno(block: *mut u8) -> *mut c_void {
    if block.is_null() {
        return out_of_memory();
    }
    block.cast()
}

#[cold]
#[inline(never)]
fn out_of_memory() -> *mut c_void {
    errno::set(libc::ENOMEM);
    ptr::null_mut()
}

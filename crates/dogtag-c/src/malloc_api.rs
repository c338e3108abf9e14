//! `dogtag_malloc` and the other functions of blocks, with C's rules for sizes, alignments and `errno`.

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
    // SAFETY: C's caller passes null or a live block of this library.
    unsafe { realloc(block, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: C's caller passes null or a live block of this library.
    unsafe { reallocarray(block, count, size) }
}

#[unsafe(no_mangle)]
extern "C" fn dogtag_aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    aligned_alloc(alignment, size)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_strdup(string: *const c_char) -> *mut c_char {
    // SAFETY: C's caller passes a string that ends with a zero.
    unsafe { strdup(string) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_free(block: *mut c_void) {
    // SAFETY: C's caller passes null or a live block of this library, and uses it no more.
    unsafe { free(block) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dogtag_usable_size(block: *const c_void) -> usize {
    // SAFETY: C's caller passes null or a live block of this library.
    unsafe { usable_size(block) }
}

/// Allocates a block; null, with `errno` ENOMEM, where there is no memory or a limit denies it.
#[inline(always)]
pub(crate) fn malloc(size: usize) -> *mut c_void {
    or_errno(blocks::allocate::<false>(size))
}

/// Allocates a zeroed block of `count` times `size` bytes; ENOMEM also where that overflows.
#[inline(always)]
pub(crate) fn calloc(count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        Some(size) => or_errno(blocks::allocate::<true>(size)),
        None => out_of_memory(),
    }
}

/// Resizes a block as glibc does: allocates for null, and frees the block for a size of 0.
///
/// # Safety
///
/// `block` must be null or a live block of C's.
#[inline(always)]
pub(crate) unsafe fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return malloc(size);
    }
    // SAFETY: the block is not null, so the caller passed a live one. Where it is freed, it is not
    // used again.
    unsafe {
        if size == 0 {
            free(block);
            return ptr::null_mut();
        }
        resize(block, size)
    }
}

/// Resizes a block to any size, 0 included; null, with `errno` ENOMEM, leaves it as it is.
///
/// # Safety
///
/// `block` must be a live block of C's.
#[inline(always)]
pub(crate) unsafe fn resize(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller passes a live block of C's.
    or_errno(unsafe { blocks::resize(block.cast(), size) })
}

/// Resizes a block to `count` times `size` bytes; ENOMEM also where that overflows.
///
/// # Safety
///
/// As for [`realloc`].
pub(crate) unsafe fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller passes null or a live block of C's.
        Some(size) => unsafe { realloc(block, size) },
        None => out_of_memory(),
    }
}

/// Allocates a block of an alignment; EINVAL for one that is no power of two.
pub(crate) fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    if !alignment.is_power_of_two() {
        errno::set(libc::EINVAL);
        return ptr::null_mut();
    }
    or_errno(blocks::allocate_aligned(alignment, size))
}

/// Rounds an alignment up to a power of two, as glibc does, and allocates a block of it; EINVAL
/// where there is no such power.
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

/// Writes a new block's address to `place` and returns 0; on failure it returns the error and
/// writes nothing. It sets `errno` where there is no memory, as glibc does, and only there.
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
    // SAFETY: the caller passes a place that is valid for writes.
    unsafe { place.write(block) };
    0
}

/// Copies a string to a block of its own.
///
/// # Safety
///
/// `string` must be a C string.
pub(crate) unsafe fn strdup(string: *const c_char) -> *mut c_char {
    // SAFETY: the string ends with a zero; the copy is as long as it is, that zero included.
    unsafe {
        let size = libc::strlen(string) + 1;
        let copy = malloc(size).cast::<c_char>();
        if !copy.is_null() {
            ptr::copy_nonoverlapping(string, copy, size);
        }
        copy
    }
}

/// Frees a block; does nothing for null. Leaves `errno` as it is.
///
/// # Safety
///
/// As for [`realloc`]. The block must not be used again.
#[inline(always)]
pub(crate) unsafe fn free(block: *mut c_void) {
    if !block.is_null() {
        // SAFETY: the block is not null, so the caller passed a live one, which nobody uses again.
        keeping_errno(|| unsafe { blocks::free(block.cast()) });
    }
}

/// Returns how many bytes may be written to a block; 0 for null.
///
/// # Safety
///
/// As for [`realloc`].
pub(crate) unsafe fn usable_size(block: *const c_void) -> usize {
    if block.is_null() {
        return 0;
    }
    // SAFETY: the block is not null, so the caller passed a live one.
    unsafe { blocks::size(block.cast_mut().cast()) }
}

/// Copies a text to a block of C's, as a C string.
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

/// Keeps `errno` as it is while a block is freed. A report of memory-check changes it; jemalloc does
/// not, unless the system fails.
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

//! The C library's allocation functions, under their own names. A program that is linked with the
//! library, or has it preloaded, calls these, and so does the C library itself.

#[cfg(feature = "skynet")]
use crate::host;
use crate::{blocks, malloc_api};
use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr;

#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut c_void {
    or_end(malloc_api::malloc(size), size)
}

#[unsafe(no_mangle)]
extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    or_end(malloc_api::calloc(count, size), count.saturating_mul(size))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    #[cfg(feature = "skynet")]
    if size == 0 && !block.is_null() && host::is_there() {
        // This is its `skynet_realloc`.
        // SAFETY: the block is not null, so C's caller passed a live one of this library.
        return or_end(unsafe { malloc_api::resize(block, 0) }, 0);
    }
    // SAFETY: C's caller passes null or a live block of this library.
    let moved = unsafe { malloc_api::realloc(block, size) };
    if size == 0 { moved } else { or_end(moved, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: C's caller passes null or a live block of this library.
    unsafe { malloc_api::reallocarray(block, count, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: C's caller passes null or a live block of this library, and uses it no more.
    unsafe { malloc_api::free(block) };
}

/// Frees a block, as SunOS named it, and glibc until 2.26.
#[unsafe(no_mangle)]
unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: C's caller passes null or a live block of this library, and uses it no more.
    unsafe { malloc_api::free(block) };
}

/// Frees a block that was allocated without an alignment (C23).
#[unsafe(no_mangle)]
unsafe extern "C" fn free_sized(block: *mut c_void, size: usize) {
    // SAFETY: C's caller passes null or a live block of this library, and uses it no more.
    unsafe { free_aligned_sized(block, mem::align_of::<libc::max_align_t>(), size) };
}

/// Frees a block of which the caller says the alignment and the size (C23).
#[unsafe(no_mangle)]
unsafe extern "C" fn free_aligned_sized(block: *mut c_void, alignment: usize, size: usize) {
    if !block.is_null() {
        // SAFETY: the block is not null, so C's caller passed a live one, which nobody uses again.
        malloc_api::keeping_errno(|| unsafe { blocks::free_told(block.cast(), alignment, size) });
    }
}

/// Rounds any alignment up to a power of two, as glibc does.
#[unsafe(no_mangle)]
extern "C" fn memalign(alignment: usize, size: usize) -> *mut c_void {
    or_end(malloc_api::memalign(alignment, size), size)
}

/// Does what `memalign` does, as in glibc until 2.37: programs that were built for it ask for
/// alignments that are no power of two, and for sizes that are no multiple.
#[unsafe(no_mangle)]
extern "C" fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    or_end(malloc_api::memalign(alignment, size), size)
}

/// Writes a new block's address to `place` and returns 0; on failure it returns the error and
/// writes nothing.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(place: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
    // SAFETY: C's caller passes a place that is valid for writes.
    let error = unsafe { malloc_api::posix_memalign(place, alignment, size) };
    if error == libc::ENOMEM {
        or_end(ptr::null_mut(), size);
    }
    error
}

#[unsafe(no_mangle)]
extern "C" fn valloc(size: usize) -> *mut c_void {
    or_end(malloc_api::memalign(page(), size), size)
}

#[unsafe(no_mangle)]
extern "C" fn pvalloc(size: usize) -> *mut c_void {
    // What overflows is more than there is.
    let whole = size.checked_next_multiple_of(page()).unwrap_or(usize::MAX);
    or_end(malloc_api::memalign(page(), whole), size)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: C's caller passes null or a live block of this library.
    unsafe { malloc_api::usable_size(block) }
}

fn page() -> usize {
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).unwrap_or(4096)
}

/// Ends the process instead of returning null, if the host is skynet: its `malloc` is its
/// `skynet_malloc`.
#[inline(always)]
fn or_end(block: *mut c_void, _size: usize) -> *mut c_void {
    #[cfg(feature = "skynet")]
    if block.is_null() && host::is_there() {
        host::end_out_of_memory(_size);
    }
    block
}

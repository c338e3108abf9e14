//! The C library's functions by name: whoever is linked with this, or has it preloaded,
//! calls these, and so does the C library itself.

use super::{blocks, functions};
use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr;

#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut c_void {
    or_end(functions::malloc(size), size)
}

#[unsafe(no_mangle)]
extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    or_end(functions::calloc(count, size), count.saturating_mul(size))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    #[cfg(feature = "skynet")]
    if size == 0 && !block.is_null() && super::skynet::has_host() {
        // This is its `skynet_realloc`.
        // SAFETY: the caller's promise.
        return or_end(unsafe { functions::resize(block, 0) }, 0);
    }
    // SAFETY: the caller's promise.
    let moved = unsafe { functions::realloc(block, size) };
    if size == 0 { moved } else { or_end(moved, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { functions::reallocarray(block, count, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { functions::free(block) };
}

/// As SunOS had it, and glibc until 2.26.
#[unsafe(no_mangle)]
unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { functions::free(block) };
}

/// Of C23, for a block that was allocated without an alignment.
#[unsafe(no_mangle)]
unsafe extern "C" fn free_sized(block: *mut c_void, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { free_aligned_sized(block, mem::align_of::<libc::max_align_t>(), size) };
}

/// Of C23.
#[unsafe(no_mangle)]
unsafe extern "C" fn free_aligned_sized(block: *mut c_void, alignment: usize, size: usize) {
    if !block.is_null() {
        // SAFETY: the caller's promise.
        functions::keeping_errno(|| unsafe { blocks::free_told(block.cast(), alignment, size) });
    }
}

/// Rounds any alignment up to a power of two, as glibc does.
#[unsafe(no_mangle)]
extern "C" fn memalign(alignment: usize, size: usize) -> *mut c_void {
    or_end(functions::memalign(alignment, size), size)
}

/// Is `memalign`, as in glibc until 2.37: programs that were built for it ask for alignments
/// that are no power of two, and for sizes that are no multiple.
#[unsafe(no_mangle)]
extern "C" fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    or_end(functions::memalign(alignment, size), size)
}

/// Says what is wrong by its result, and leaves `place` as it is then.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(place: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
    // SAFETY: the caller's promise.
    let error = unsafe { functions::posix_memalign(place, alignment, size) };
    if error == libc::ENOMEM {
        or_end(ptr::null_mut(), size);
    }
    error
}

#[unsafe(no_mangle)]
extern "C" fn valloc(size: usize) -> *mut c_void {
    or_end(functions::memalign(page(), size), size)
}

#[unsafe(no_mangle)]
extern "C" fn pvalloc(size: usize) -> *mut c_void {
    // What overflows is more than there is.
    let whole = size.checked_next_multiple_of(page()).unwrap_or(usize::MAX);
    or_end(functions::memalign(page(), whole), size)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the caller's promise.
    unsafe { functions::usable_size(block) }
}

fn page() -> usize {
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).unwrap_or(4096)
}

/// skynet's `malloc` is its `skynet_malloc`, and does not return null.
#[inline(always)]
fn or_end(block: *mut c_void, _size: usize) -> *mut c_void {
    #[cfg(feature = "skynet")]
    if block.is_null() {
        super::skynet::out_of_memory(_size);
    }
    block
}

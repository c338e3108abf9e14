//! jemalloc as a `GlobalAlloc`, with shorter ways to the common cases.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use tikv_jemalloc_sys as ffi;
use tikv_jemallocator::Jemalloc as Full;

/// jemalloc: [tikv-jemallocator](https://docs.rs/tikv-jemallocator) with a
/// shorter way to the common case, a layout that needs no alignment flag.
///
/// ```
/// #[global_allocator]
/// static ALLOC: dogtag::Dogtag<dogtag::Jemalloc> = dogtag::Dogtag::with_backend(dogtag::Jemalloc);
/// # fn main() {}
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Jemalloc;

/// Whether every size class that `size` can fall into has that alignment:
/// jemalloc's smallest is 8 bytes, and the others are multiples of 16.
#[inline(always)]
fn is_aligned_anyway(align: usize, size: usize) -> bool {
    align <= 8 || (align == 16 && size > 8)
}

// SAFETY: jemalloc's own functions; those without flags are used for the
// same layouts on all four ways, and `Full` takes the others.
unsafe impl GlobalAlloc for Jemalloc {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= 8 {
            // SAFETY: the size is not 0: `GlobalAlloc::alloc` requires it.
            unsafe { ffi::malloc(layout.size()) }.cast()
        } else {
            cold_path();
            // SAFETY: the size is not 0: `GlobalAlloc::alloc` requires it.
            unsafe { alloc_aligned(layout) }
        }
    }

    #[inline(always)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_aligned_anyway(layout.align(), layout.size()) && layout.size() <= SMALL {
            // SAFETY: the size is not 0, and a size class is aligned as the layout says.
            unsafe { malloc_zeroed(layout.size()) }
        } else {
            // SAFETY: the layout is not empty: `GlobalAlloc::alloc_zeroed` requires it.
            unsafe { Full.alloc_zeroed(layout) }
        }
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.align() <= 8 {
            // SAFETY: the block is live, and its size class is that of the layout's size, without flags.
            unsafe { free_sized(block, layout.size()) }
        } else {
            cold_path();
            // SAFETY: the block is live and was requested with that layout.
            unsafe { dealloc_aligned(block, layout) }
        }
    }

    #[inline(always)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let (old, align) = (layout.size(), layout.align());
        if is_aligned_anyway(align, old.min(new_size)) && old.max(new_size) <= SMALL {
            // SAFETY: the block is live, was requested as a plain `malloc`, and the new size is not 0.
            unsafe { realloc_small(block, old, new_size) }
        } else {
            // SAFETY: the block is live and was requested with that layout, and the new size is not 0.
            unsafe { Full.realloc(block, layout, new_size) }
        }
    }
}

/// # Safety
///
/// As for [`GlobalAlloc::alloc`].
#[cfg_attr(not(feature = "memory-check"), inline(never))]
#[cfg_attr(feature = "memory-check", inline(always))]
unsafe fn alloc_aligned(layout: Layout) -> *mut u8 {
    // SAFETY: the size is not 0, and the flags say the alignment where the size class has none.
    unsafe {
        if is_aligned_anyway(layout.align(), layout.size()) {
            ffi::malloc(layout.size()).cast()
        } else {
            Full.alloc(layout)
        }
    }
}

/// # Safety
///
/// As for [`GlobalAlloc::dealloc`].
#[cfg_attr(not(feature = "memory-check"), inline(never))]
#[cfg_attr(feature = "memory-check", inline(always))]
unsafe fn dealloc_aligned(block: *mut u8, layout: Layout) {
    // SAFETY: the block is live, and was requested with the same flags, which its layout decides.
    unsafe {
        if is_aligned_anyway(layout.align(), layout.size()) {
            free_sized(block, layout.size());
        } else {
            Full.dealloc(block, layout);
        }
    }
}

/// Frees a block that was allocated without flags: `sdallocx`, but that jemalloc has no flags to look at.
///
/// # Safety
///
/// `block` must be a live one of that size, or of one in the same size class, that was allocated without flags.
#[inline(always)]
unsafe fn free_sized(block: *mut u8, size: usize) {
    #[cfg(dogtag_free_sized)]
    {
        use std::ffi::c_void;

        // Older versions of tikv-jemalloc-sys do not declare it.
        unsafe extern "C" {
            #[cfg_attr(dogtag_free_sized_prefixed, link_name = "_rjem_free_sized")]
            fn free_sized(block: *mut c_void, size: usize);
        }

        // SAFETY: what the caller promises is what it asks for.
        unsafe { free_sized(block.cast(), size) }
    }
    #[cfg(not(dogtag_free_sized))]
    // SAFETY: the same.
    unsafe {
        ffi::sdallocx(block.cast(), size, 0)
    }
}

/// Sizes up to this are looked up in a table and come from the thread's
/// cache, on jemalloc's shortest way.
const SMALL: usize = 4096;

/// Allocates a zeroed block. jemalloc's `calloc` is a longer way to the same result: small blocks
/// share pages with others, so they have to be cleared in any case.
///
/// # Safety
///
/// `size` must not be 0.
#[inline(always)]
unsafe fn malloc_zeroed(size: usize) -> *mut u8 {
    // SAFETY: the block is valid for writes of its size.
    unsafe {
        let block: *mut u8 = ffi::malloc(size).cast();
        if !block.is_null() {
            block.write_bytes(0, size);
        }
        block
    }
}

/// Resizes a small block. jemalloc's `realloc` has to find out how large a block is, and copies
/// all of that. Here the size is known, and small blocks never grow in place past their size
/// class, so this takes half the time.
///
/// # Safety
///
/// `block` must be a live one that was allocated with `old` and no flags.
#[inline(always)]
unsafe fn realloc_small(block: *mut u8, old: usize, new: usize) -> *mut u8 {
    // SAFETY: asks for a size class, changes nothing.
    if unsafe { ffi::nallocx(old, 0) == ffi::nallocx(new, 0) } {
        return block;
    }
    // SAFETY: both blocks are valid for the smaller size; the old one is
    // freed, with the size it has, only when the new one is there.
    unsafe {
        let moved: *mut u8 = ffi::malloc(new).cast();
        if !moved.is_null() {
            ptr::copy_nonoverlapping(block, moved, old.min(new));
            free_sized(block, old);
        }
        moved
    }
}

/// Tells the compiler which way is the rare one, so that it branches.
#[cold]
#[inline(always)]
fn cold_path() {}

//! The same with memory-check, where what was requested is noted with each block: so an
//! overrun of one byte past that is found, though the size class has room for it.

use super::ALIGN;
use crate::allocator::Dogtag;
use crate::backend::Jemalloc;
use crate::capi::identity;
use std::alloc::{GlobalAlloc, Layout};
use std::ptr;

/// All of C's blocks are from this one, so that none is freed by Rust, nor Rust's by C.
static HEAP: Dogtag<Jemalloc> = Dogtag::with_backend(Jemalloc);

pub(crate) fn allocate<const ZEROED: bool>(size: usize) -> *mut u8 {
    let Some(layout) = layout(ALIGN, size) else { return ptr::null_mut() };
    prepare();
    // SAFETY: that the layout may be empty is for the backend, which gets one that
    // is not.
    unsafe { if ZEROED { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) } }
}

pub(crate) fn allocate_aligned(alignment: usize, size: usize) -> *mut u8 {
    let Some(layout) = layout(alignment, size) else { return ptr::null_mut() };
    prepare();
    // SAFETY: as above.
    unsafe { HEAP.alloc(layout) }
}

/// # Safety
///
/// The block must be one of these; if it is not, that is found out.
pub(crate) unsafe fn free(block: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { HEAP.free(block, None) };
}

/// # Safety
///
/// As for [`free`].
#[cfg(feature = "interpose")]
pub(crate) unsafe fn free_told(block: *mut u8, alignment: usize, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { HEAP.free(block, layout(alignment.max(1), size)) };
}

/// # Safety
///
/// As for [`free`].
pub(crate) unsafe fn resize(block: *mut u8, size: usize) -> *mut u8 {
    prepare();
    // SAFETY: the caller's promise.
    unsafe { HEAP.resize(block, None, layout(ALIGN, size)) }
}

/// # Safety
///
/// As for [`free`].
pub(crate) unsafe fn size(block: *mut u8) -> usize {
    HEAP.size(block).unwrap_or(0)
}

fn prepare() {
    identity::refresh();
    identity::refresh_name();
}

fn layout(alignment: usize, size: usize) -> Option<Layout> {
    Layout::from_size_align(size, alignment).ok()
}

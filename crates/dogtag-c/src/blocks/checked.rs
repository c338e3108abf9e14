//! The same with memory-check, where what was requested is noted with each block: so an
//! overrun of one byte past that is found, though the size class has room for it.

use super::ALIGN;
use crate::current_owner;
#[cfg(feature = "interpose")]
use crate::names;
use dogtag::__private::blocks as heap;
use dogtag::{Dogtag, Jemalloc};
use heap::{Claim, Family};
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
    let Some(layout) = layout(alignment.max(ALIGN), size) else { return ptr::null_mut() };
    prepare();
    // SAFETY: as above.
    unsafe { HEAP.alloc(layout) }
}

/// # Safety
///
/// The block must be one of these; if it is not, that is found out.
pub(crate) unsafe fn free(block: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { heap::free(&HEAP, block, Claim::of(Family::Malloc)) };
}

/// # Safety
///
/// As for [`free`].
#[cfg(feature = "interpose")]
pub(crate) unsafe fn free_told(block: *mut u8, alignment: usize, size: usize) {
    let claim =
        Claim { size: Some(size), alignment: Some(given_alignment(alignment)), ..Claim::of(Family::Malloc) };
    // SAFETY: the caller's promise.
    unsafe { heap::free(&HEAP, block, claim) };
}

/// A block of C++'s `operator new`, or `new[]`.
#[cfg(feature = "interpose")]
pub(crate) fn new<const ARRAY: bool>(alignment: Option<usize>, size: usize) -> *mut u8 {
    let Some(layout) = layout(alignment.unwrap_or(ALIGN).max(ALIGN), size) else { return ptr::null_mut() };
    prepare();
    heap::allocate_as(&HEAP, family::<ARRAY>(), layout)
}

/// Frees such a block, of which the program may say how large it is. It says the alignment, if
/// it is none that every block has.
///
/// # Safety
///
/// As for [`free`].
#[cfg(feature = "interpose")]
pub(crate) unsafe fn delete<const ARRAY: bool>(
    block: *mut u8,
    alignment: Option<usize>,
    size: Option<usize>,
) {
    let alignment = Some(given_alignment(alignment.unwrap_or(ALIGN)));
    // SAFETY: the caller's promise.
    unsafe { heap::free(&HEAP, block, Claim { alignment, size, ..Claim::of(family::<ARRAY>()) }) };
}

#[cfg(feature = "interpose")]
fn family<const ARRAY: bool>() -> Family {
    if ARRAY { Family::NewArray } else { Family::New }
}

/// What a block was aligned to for which that was asked.
#[cfg(feature = "interpose")]
fn given_alignment(alignment: usize) -> usize {
    // What has no next power of two is no block's.
    alignment.checked_next_power_of_two().unwrap_or(alignment).max(ALIGN)
}

/// # Safety
///
/// As for [`free`].
pub(crate) unsafe fn resize(block: *mut u8, size: usize) -> *mut u8 {
    prepare();
    // SAFETY: the caller's promise.
    unsafe { heap::resize(&HEAP, block, Claim::of(Family::Malloc), layout(ALIGN, size)) }
}

/// # Safety
///
/// As for [`free`].
pub(crate) unsafe fn size(block: *mut u8) -> usize {
    heap::size(&HEAP, block).unwrap_or(0)
}

fn prepare() {
    #[cfg(feature = "interpose")]
    names::inform_memory_check();
    current_owner::refresh();
    current_owner::refresh_name();
}

fn layout(alignment: usize, size: usize) -> Option<Layout> {
    Layout::from_size_align(size, alignment).ok()
}

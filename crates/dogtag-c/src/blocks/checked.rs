//! C's blocks with memory-check, which notes the requested size with each block. So an overrun of
//! one byte is found, though the size class is larger.

use super::ALIGN;
use crate::current_owner;
#[cfg(feature = "interpose")]
use crate::names;
use dogtag::__private::blocks as heap;
use dogtag::{Dogtag, Jemalloc};
use heap::{Claim, Family};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr;

/// Allocates all of C's blocks, so that none is freed by Rust, nor Rust's by C.
static HEAP: Dogtag<Jemalloc> = Dogtag::with_backend(Jemalloc);

/// Allocates a block of `size` bytes, all zeros if `ZEROED`.
pub(crate) fn allocate<const ZEROED: bool>(size: usize) -> *mut u8 {
    let Some(layout) = layout(ALIGN, size) else { return ptr::null_mut() };
    if size == 0 {
        return allocate_nothing(Family::Malloc, layout);
    }
    prepare();
    // SAFETY: the layout is not empty.
    unsafe { if ZEROED { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) } }
}

/// Allocates a block of `size` bytes and an alignment, a power of two.
pub(crate) fn allocate_aligned(alignment: usize, size: usize) -> *mut u8 {
    let Some(layout) = layout(alignment.max(ALIGN), size) else { return ptr::null_mut() };
    if size == 0 {
        return allocate_nothing(Family::Malloc, layout);
    }
    prepare();
    // SAFETY: the layout is not empty.
    unsafe { HEAP.alloc(layout) }
}

/// Allocates a block of 0 bytes.
#[cold]
fn allocate_nothing(family: Family, layout: Layout) -> *mut u8 {
    prepare();
    heap::allocate_zero_sized(&HEAP, family, layout)
}

/// Frees a block.
///
/// # Safety
///
/// The block must be one of these, live, and not used again; if it is not, that is reported.
pub(crate) unsafe fn free(block: *mut u8) {
    // SAFETY: the caller passes a live block of this heap, and uses it no more.
    unsafe { heap::free(&HEAP, block, Claim::of(Family::Malloc)) };
}

/// Frees a block of which the program says the alignment and the size.
///
/// # Safety
///
/// As for [`free`].
#[cfg(feature = "interpose")]
pub(crate) unsafe fn free_told(block: *mut u8, alignment: usize, size: usize) {
    let claim =
        Claim { size: Some(size), alignment: Some(given_alignment(alignment)), ..Claim::of(Family::Malloc) };
    // SAFETY: the caller passes a live block of this heap, and uses it no more.
    unsafe { heap::free(&HEAP, block, claim) };
}

/// Allocates a block of C++'s `operator new`, or `new[]` if `ARRAY`.
#[cfg(feature = "interpose")]
pub(crate) fn new<const ARRAY: bool>(alignment: Option<usize>, size: usize) -> *mut u8 {
    let Some(layout) = layout(alignment.unwrap_or(ALIGN).max(ALIGN), size) else { return ptr::null_mut() };
    if size == 0 {
        return allocate_nothing(family::<ARRAY>(), layout);
    }
    prepare();
    heap::allocate_as(&HEAP, family::<ARRAY>(), layout)
}

/// Frees a block of [`new`]. The program says the alignment, if it is more than every block has, and
/// may say the size.
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
    // SAFETY: the caller passes a live block of this heap, and uses it no more.
    unsafe { heap::free(&HEAP, block, Claim { alignment, size, ..Claim::of(family::<ARRAY>()) }) };
}

#[cfg(feature = "interpose")]
fn family<const ARRAY: bool>() -> Family {
    if ARRAY { Family::NewArray } else { Family::New }
}

/// Returns what a block is aligned to for which this alignment was asked.
#[cfg(feature = "interpose")]
fn given_alignment(alignment: usize) -> usize {
    // An alignment without a next power of two is no block's.
    alignment.checked_next_power_of_two().unwrap_or(alignment).max(ALIGN)
}

/// Resizes a block and makes it the current service's; null leaves it as it is.
///
/// # Safety
///
/// As for [`free`].
pub(crate) unsafe fn resize(block: *mut u8, size: usize) -> *mut u8 {
    prepare();
    // SAFETY: the caller passes a live block of this heap, and uses it no more unless this fails.
    unsafe { heap::resize(&HEAP, block, Claim::of(Family::Malloc), layout(ALIGN, size)) }
}

/// Returns the bytes of a block; 0 for what is no live block, which is reported.
///
/// # Safety
///
/// As for [`free`].
pub(crate) unsafe fn size(block: *mut u8) -> usize {
    heap::size(&HEAP, block).unwrap_or(0)
}

/// Brings the thread's name and its current service up to date, before an allocation.
fn prepare() {
    #[cfg(feature = "interpose")]
    names::inform_memory_check();
    current_owner::refresh();
    current_owner::refresh_name();
}

fn layout(alignment: usize, size: usize) -> Option<Layout> {
    Layout::from_size_align(size, alignment).ok()
}

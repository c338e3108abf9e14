//! The header and the guards around a checked block. Other modules do not depend on the encoding.
//!
//! ```text
//!           | padding | header | head guard | the block      | tail guard |
//!            for large    48 bytes     16 bytes   layout.size()      32 bytes or more
//!            alignments
//! ```
//!
//! The tail guard takes what would be left of the backend's size class, up to 256 bytes. A large block begins
//! with a page, and has all up to the end of its last one: so access to it can be taken away
//! ([`protection`](super::protection)), and its header stays readable, in the page before. A block of 0 bytes may have
//! [no tail](super::zero_sized). One of the tail's
//! first bytes is 0, so that a text without an end ends there: the second one, since the zero that
//! belongs behind a text is the most frequent overrun; the first one with `fill=zero`.
//!
//! Everything is mixed with the block's address, so that what was copied from
//! another block does not pass. The guards' bytes are 0xF5 to 0xFC, which are
//! neither in text (no UTF-8 has them) nor zeros, ones, or the fill patterns: so
//! what an overrun is likely to write is never what stands there already.

mod family;
mod freed;
mod guards;
mod header;
mod prefetch;
mod stamp;
#[cfg(test)]
mod tests;

pub use family::Family;
pub(crate) use {
    freed::{FREED, FRESH, has_fill, wrong_fill},
    guards::{
        has_guards, meant, write_first_guards, write_guards, write_head, write_tail, wrong_guard, wrong_head,
    },
    header::{BlockHeader, size_hint},
    prefetch::{prefetch, prefetch_freed},
    stamp::Stamp,
};

use header::SIZES;
use std::alloc::Layout;
use std::ptr::NonNull;

/// The bytes in front of a block in which any change is noticed, and behind one that has shrunk in its
/// place.
pub(crate) const GUARD: usize = 16;

/// The least number of bytes behind a block of that size in which any change is noticed.
#[inline]
const fn least_tail(size: usize) -> usize {
    if size < SMALL { LEAST_TAIL } else { 64 }
}

const LEAST_TAIL: usize = 32;
/// The most of them, but for large blocks.
const MOST_TAIL: usize = 256;

/// Pages of large blocks, each a multiple of the system's.
pub(crate) const PAGE: usize = if cfg!(target_arch = "x86_64") { 4 << 10 } else { 64 << 10 };
/// Blocks from this size on are large: they share their pages with nobody.
pub(crate) const LARGE: usize = 16 * PAGE;

/// The class of [`size_class`] for small blocks with what stands around them, by the number of times that 16 goes into their
/// size: a look takes less time.
static SMALL_CLASSES: [u16; (SMALL + HEAD + LEAST_TAIL) / ALIGN + 1] = {
    let mut classes = [0; (SMALL + HEAD + LEAST_TAIL) / ALIGN + 1];
    let mut number = 0;
    while number < classes.len() {
        classes[number] = size_class(number * ALIGN) as u16;
        number += 1;
    }
    classes
};

/// Blocks below this size have the least tails.
const SMALL: usize = 512;

/// Rounds a size up to jemalloc's next size class: four to a doubling from 128 on.
#[inline]
const fn size_class(size: usize) -> usize {
    let spacing = if size <= 128 { 16 } else { 1 << ((size - 1).ilog2() - 2) };
    (size + (spacing - 1)) & !(spacing - 1)
}

/// skynet's words.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Tag {
    Live = 0x2014_0605,
    Freed = 0x0bad_f00d,
}
const HEADER: usize = size_of::<BlockHeader>();
/// What stands in front of a block.
pub(crate) const HEAD: usize = HEADER + GUARD;
/// What a block needs at least beside itself.
pub(crate) const AROUND: usize = HEAD + LEAST_TAIL;
const _: () = assert!(HEADER == 48 && HEAD == 64);

/// Whether a block is neither large nor aligned more than all are, as nearly all are.
#[inline]
pub(crate) fn is_plain(block: Layout) -> bool {
    block.size() < LARGE && block.align() <= ALIGN
}

/// The layout to request for a block; `None` when it would overflow.
#[inline]
pub(crate) fn layout(block: Layout) -> Option<Layout> {
    if block.size() >= LARGE {
        return large_layout(block);
    }
    // What fits is more than twice an alignment, and than these sizes.
    let size = offset(block) + block.size() + tail(block);
    Layout::from_size_align(size, block.align().max(ALIGN)).ok().filter(|_| size as u64 <= SIZES)
}

#[cold]
fn large_layout(block: Layout) -> Option<Layout> {
    let size = block.size().checked_add(offset(block) + LARGE_TAIL)?.checked_next_multiple_of(PAGE)?;
    Layout::from_size_align(size, block.align().max(PAGE)).ok().filter(|_| size as u64 <= SIZES)
}

/// The number of bytes behind a block in which any change is noticed.
#[inline]
pub(crate) fn tail(block: Layout) -> usize {
    if block.size() >= LARGE {
        return large_tail(block.size());
    }
    let size = block.size() + offset(block);
    // No small class leaves more than the most.
    if block.size() < SMALL
        && let Some(class) = SMALL_CLASSES.get((size + LEAST_TAIL + (ALIGN - 1)) >> ALIGN.trailing_zeros())
    {
        return usize::from(*class) - size;
    }
    (size_class(size + least_tail(block.size())) - size).min(MOST_TAIL)
}

/// The least number of bytes behind a large block.
const LARGE_TAIL: usize = least_tail(LARGE);

/// Up to the end of a page.
#[inline]
fn large_tail(size: usize) -> usize {
    (size + LARGE_TAIL).next_multiple_of(PAGE) - size
}

/// How far a block of that size is to be found from addresses in and behind it.
#[inline]
pub(crate) fn reach(size: usize) -> usize {
    size + if size >= LARGE { LARGE_TAIL + PAGE } else { GUARD }
}

/// How far into the requested memory the block begins.
#[inline]
pub(crate) fn offset(block: Layout) -> usize {
    offset_of(block.align(), block.size() >= LARGE)
}

#[inline]
fn offset_of(align: usize, has_own_pages: bool) -> usize {
    (if has_own_pages { PAGE } else { HEAD }).max(align)
}

/// Every block's alignment is at least this.
pub(crate) const ALIGN: usize = 16;

/// A block's address, so that each of its bits is in many.
#[inline]
fn mix(block: NonNull<u8>) -> u64 {
    let address = block.addr().get() as u64;
    let mixed = (address >> 4).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 32
}

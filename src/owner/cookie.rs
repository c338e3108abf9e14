//! The cookie behind a block, at `block + size`, unaligned.
//!
//! ```text
//! short   | the block: layout.size() bytes | mark |               slots below 65,536
//!                                           2 bytes
//! long    | the block: layout.size() bytes | escape | slot, tag |  all others
//!                                           2 bytes   4 bytes
//! sampled | the block: layout.size() bytes | escape | sample, tag |
//! ```
//!
//! A short cookie is the slot, its higher byte first, scrambled so that what an
//! overrun is likely to leave there (zeros, ones, text, small numbers) is
//! unlikely to be a slot in use: with fewer than 256 services a single byte
//! that is written past the end never is one. A long one begins with a mark
//! that no slot has: services beyond the first 65,533 cost four more bytes a
//! block, and nobody else pays for them. Once there are so many, though, nearly
//! every short mark is somebody's, and an overwritten cookie is believed.
//!
//! A sampled block has the same mark as those, and its number in the table of live samples in place
//! of a slot.

use super::slot::{Mark, Named, Slot};
use crate::sync::{AtomicBool, Ordering, shared};

/// Bytes of a short cookie.
pub(super) const SHORT: usize = size_of::<u16>();
/// Bytes of a long cookie.
pub(super) const LONG: usize = SHORT + size_of::<u32>();

impl Named {
    /// The number of bytes of the cookie.
    pub(crate) const fn cookie_size(self) -> usize {
        if self.is_short() { SHORT } else { LONG }
    }
}

/// Writes any cookie.
///
/// # Safety
///
/// `block` must be valid for writes of `size` bytes and the cookie.
pub(super) unsafe fn write(block: *mut u8, size: usize, named: Named) {
    // SAFETY: the mark is the first two bytes of a short and of a long cookie, for which there is
    // memory behind the block.
    unsafe { write_short(block, size, named.mark()) };
    if !named.is_short() {
        note_long_one();
        // SAFETY: behind a block with a long cookie there is memory for four more bytes.
        unsafe { block.add(size + SHORT).cast::<u32>().write_unaligned(named.tagged()) };
    }
}

/// Writes the cookie of a long slot.
///
/// # Safety
///
/// `block` must be valid for writes of `size` bytes and a long cookie.
#[inline(always)]
pub(super) unsafe fn write_long(block: *mut u8, size: usize, slot: Slot) {
    note_long_one();
    // SAFETY: the six bytes behind the block's `size` are part of the same allocation.
    unsafe {
        write_short(block, size, Mark::LONG);
        block.add(size + SHORT).cast::<u32>().write_unaligned(Named::Slot(slot).tagged());
    }
}

/// Writes a short cookie.
///
/// # Safety
///
/// `block` must be valid for writes of `size` bytes and a short cookie.
#[inline(always)]
pub(super) unsafe fn write_short(block: *mut u8, size: usize, mark: Mark) {
    // SAFETY: the two bytes behind the block's `size` are part of the same allocation.
    unsafe { block.add(size).cast::<[u8; SHORT]>().write_unaligned(mark.to_cookie()) };
}

/// Reads the mark that a cookie begins with.
///
/// # Safety
///
/// `block` must be a live block of `size` bytes with a cookie behind it.
#[inline(always)]
pub(super) unsafe fn read_mark(block: *const u8, size: usize) -> Mark {
    // SAFETY: a cookie is at least two bytes, and they were written before the
    // block was handed out; an overrun leaves other bytes there, no fewer.
    Mark::from_cookie(unsafe { block.add(size).cast::<[u8; SHORT]>().read_unaligned() })
}

/// Reads a cookie; `None` where none looks like that. The slot need not be in use, nor the sample be
/// this block's.
///
/// # Safety
///
/// `block` must be a live block of `size` bytes with a cookie behind it.
pub(super) unsafe fn read(block: *const u8, size: usize) -> Option<Named> {
    // SAFETY: behind a live block of that size stands a cookie.
    let mark = unsafe { read_mark(block, size) };
    if mark != Mark::LONG {
        return Named::of_mark(mark);
    }
    if !long_ones_exist() {
        return None;
    }
    // SAFETY: a long cookie has four more bytes. Only a short one that was
    // overwritten with the very bytes of the escape has none, in a process
    // with more services than short slots or with samples; then this reads what follows in
    // the heap, after undefined behaviour elsewhere.
    Named::of_tagged(unsafe { block.add(size + SHORT).cast::<u32>().read_unaligned() })
}

/// Variant of [`read`] for a long slot; `None` where the cookie is another one.
///
/// # Safety
///
/// As for [`read`].
#[inline(always)]
pub(super) unsafe fn read_long(block: *const u8, size: usize) -> Option<Slot> {
    // SAFETY: behind a live block of that size stands a cookie.
    if unsafe { read_mark(block, size) } != Mark::LONG || !long_ones_exist() {
        return None;
    }
    // SAFETY: as in `read`.
    Slot::of_long_tagged(unsafe { block.add(size + SHORT).cast::<u32>().read_unaligned() })
}

/// To be called before a long cookie is written.
#[inline]
pub(super) fn note_long_one() {
    if !long_ones_exist() {
        LONG_ONES_EXIST.store(true, Ordering::Relaxed);
    }
}

/// Whether a long cookie was ever written.
#[inline]
pub(super) fn long_ones_exist() -> bool {
    LONG_ONES_EXIST.load(Ordering::Relaxed)
}

shared! {
    /// Set before the first long cookie is written, and never taken back. The thread that
    /// frees such a block got it from the thread that wrote the cookie, and so sees this set.
    static LONG_ONES_EXIST: AtomicBool = AtomicBool::new(false);
}

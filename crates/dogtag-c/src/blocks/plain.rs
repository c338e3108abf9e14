//! The hot path for C.
//!
//! A block is what jemalloc makes of the request, but for its cookie. `malloc` looks that
//! up in a table of size classes, and notes it for the page; there `free` finds it, as
//! jemalloc's would in a table of its own, which it needs no more when it is told the size.

use super::ALIGN;
use crate::current_owner;
use dogtag::__private::blocks::unsized_free::{self, Beside};
use dogtag::__private::blocks::{Freed, LARGE, Slot, charge_ownerless, charged, record_of};
use dogtag::__private::thread;
use std::sync::atomic::{AtomicU16, Ordering};
use std::ffi::c_int;
use std::ptr;
use tikv_jemalloc_sys as jemalloc;

/// A block of at least `size` bytes; all zeros if that is asked for.
#[inline(always)]
pub(crate) fn allocate<const ZEROED: bool>(size: usize) -> *mut u8 {
    current_owner::refresh();
    let usable = small_usable(size);
    if usable == 0 {
        return allocate_large::<ZEROED>(size);
    }
    let size_of_block = unsized_free::short_size(usable);
    if thread::current().needs_slow_path(size_of_block) {
        return allocate_slow::<ZEROED>(size);
    }
    // SAFETY: the size is not 0.
    let block: *mut u8 = unsafe { jemalloc::malloc(usable) }.cast();
    if !block.is_null() {
        let cell = thread::current();
        // SAFETY: so many bytes were allocated just now.
        unsafe {
            if ZEROED {
                block.write_bytes(0, size_of_block);
            }
            unsized_free::write_short(block, usable, cell.mark());
        }
        cell.charge(size_of_block);
    }
    block
}

/// The same with an alignment, a power of two.
pub(crate) fn allocate_aligned(alignment: usize, size: usize) -> *mut u8 {
    current_owner::refresh();
    let flags = flags_of(alignment.max(ALIGN));
    // SAFETY: a request is not empty.
    placed(size, flags, None, |request| unsafe { jemalloc::mallocx(request, flags) }.cast())
}

/// Frees a block.
///
/// # Safety
///
/// It must be one of these, and live.
#[inline(always)]
pub(crate) unsafe fn free(block: *mut u8) {
    let usable = Beside::of(block).small_usable();
    // SAFETY: the block is live, by the caller's promise.
    unsafe {
        if unsized_free::is_large(usable) {
            return free_large(block);
        }
        let mark = unsized_free::read_mark(block, usable);
        let cell = thread::cell(mark);
        if cell.mark() != mark {
            return free_slow(block, usable);
        }
        cell.refund(unsized_free::short_size(usable));
        jemalloc::sdallocx(block.cast(), usable, 0);
    }
}

/// Frees a block, of which somebody says how large it is. Not looked at here.
///
/// # Safety
///
/// As for [`free`].
#[cfg(feature = "interpose")]
pub(crate) unsafe fn free_told(block: *mut u8, _alignment: usize, _size: usize) {
    // SAFETY: the caller's promise.
    unsafe { free(block) };
}

/// A block of C++'s `operator new`, or `new[]`.
#[cfg(feature = "interpose")]
#[inline(always)]
pub(crate) fn new<const ARRAY: bool>(alignment: Option<usize>, size: usize) -> *mut u8 {
    match alignment {
        None => allocate::<false>(size),
        Some(alignment) => allocate_aligned(alignment, size),
    }
}

/// Frees such a block. What the program says of it is not looked at: where it is wrong, nothing
/// comes of it in the C++ library either, and the page says the size as fast.
///
/// # Safety
///
/// As for [`free`].
#[cfg(feature = "interpose")]
#[inline(always)]
pub(crate) unsafe fn delete<const ARRAY: bool>(block: *mut u8, _: Option<usize>, _: Option<usize>) {
    // SAFETY: the caller's promise.
    unsafe { free(block) };
}

/// Moves a block, if need be, to one of at least `size` bytes, which is the current
/// service's. Null leaves it as it is.
///
/// What does not grow is never denied: where the current service has no room for it, it stays
/// its former owner's, and where there is no memory, as it is.
///
/// # Safety
///
/// As for [`free`].
pub(crate) unsafe fn resize(block: *mut u8, size: usize) -> *mut u8 {
    current_owner::refresh();
    // SAFETY: the caller's promise.
    unsafe {
        let usable = usable_of(block);
        let new_usable = small_usable(size);
        let mark = unsized_free::read_mark(block, usable);
        let owner = thread::cell(mark);
        if new_usable == 0
            || unsized_free::is_large(usable)
            || owner.mark() != mark
            || thread::current().needs_slow_path(unsized_free::short_size(new_usable))
        {
            return resize_slow(block, usable, size);
        }
        let (old_size, new_size) = (unsized_free::short_size(usable), unsized_free::short_size(new_usable));
        let mut moved = block;
        if new_usable != usable {
            moved = jemalloc::malloc(new_usable).cast();
            if moved.is_null() {
                return resize_slow(block, usable, size);
            }
            ptr::copy_nonoverlapping(block, moved, old_size.min(new_size));
            jemalloc::sdallocx(block.cast(), usable, 0);
        }
        owner.refund(old_size);
        let cell = thread::current();
        unsized_free::write_short(moved, new_usable, cell.mark());
        cell.charge(new_size);
        moved
    }
}

/// The bytes of a block.
///
/// # Safety
///
/// As for [`free`].
pub(crate) unsafe fn size(block: *mut u8) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let usable = usable_of(block);
        unsized_free::size(usable, unsized_free::read(block, usable).unwrap_or(Slot::UNATTRIBUTED))
    }
}

/// From 4 KiB on: the owner stands beside the heap.
#[inline(never)]
fn allocate_large<const ZEROED: bool>(size: usize) -> *mut u8 {
    let usable = match MEDIUM.get(size.wrapping_sub(1) / KIB) {
        Some(usable) if size >= LARGE => usable.load(Ordering::Relaxed).into(),
        _ => usable_for(size, Slot::UNATTRIBUTED, 0),
    };
    if !unsized_free::is_large(usable) || thread::current().needs_slow_path(usable) {
        return allocate_slow::<ZEROED>(size);
    }
    let block = from_jemalloc::<ZEROED>(usable);
    if !block.is_null() {
        let cell = thread::current();
        if unsized_free::write_large(block, usable, cell.mark()) {
            cell.charge(usable);
        } else {
            charge_ownerless(usable);
        }
    }
    block
}

#[cold]
#[inline(never)]
fn allocate_slow<const ZEROED: bool>(size: usize) -> *mut u8 {
    learn_sizes();
    placed(size, 0, None, from_jemalloc::<ZEROED>)
}

/// # Safety
///
/// As for [`free`].
#[inline(never)]
unsafe fn free_large(block: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let usable = usable_of(block);
        let mark = unsized_free::read_mark(block, usable);
        let cell = thread::cell(mark);
        if cell.mark() != mark {
            return free_slow(block, usable);
        }
        cell.refund(unsized_free::size(usable, Slot::UNATTRIBUTED));
        // With the size it would be no faster for these.
        jemalloc::free(block.cast());
    }
}

/// # Safety
///
/// As for [`free`], and it has so many usable bytes.
#[cold]
#[inline(never)]
unsafe fn free_slow(block: *mut u8, usable: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        freed(block, usable).refund();
        jemalloc::sdallocx(block.cast(), usable, 0);
    }
}

/// # Safety
///
/// As for [`free_slow`].
#[cold]
#[inline(never)]
unsafe fn resize_slow(block: *mut u8, usable: usize, size: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    let old = unsafe { freed(block, usable) };
    let is_growth = size > old.size;
    let resized = || {
        // SAFETY: as above.
        placed(size, 0, Some((old, !is_growth)), |request| unsafe {
            if request == usable { block } else { jemalloc::realloc(block.cast(), request).cast() }
        })
    };
    let moved = resized();
    if !moved.is_null() || is_growth {
        return moved;
    }
    // As a scope of the owner, it keeps the owner, which the block did until now.
    let current = thread::enter(old.owner_or_nobody());
    let moved = resized();
    thread::leave_for(current);
    if moved.is_null() { block } else { moved }
}

/// Has a block of the current service placed by jemalloc, if its limits allow for it,
/// and charges it; it may take the place of another one, which is refunded, and may
/// stay its owner's otherwise.
fn placed(
    size: usize,
    flags: c_int,
    replaced: Option<(Freed, bool)>,
    place: impl FnOnce(usize) -> *mut u8,
) -> *mut u8 {
    current_owner::refresh_name();
    let (account, record) = thread::current_account();
    let slot = record.slot();
    let usable = usable_for(size, slot, flags);
    if usable == 0 {
        return ptr::null_mut();
    }
    // SAFETY: jemalloc gave as many usable bytes as it said it would.
    let note_owner = |block| unsafe { unsized_free::write(block, usable, slot) };
    let size = unsized_free::size(usable, slot);
    charged((account, record), size, replaced, || place(usable), note_owner)
}

/// What a block is charged with, and to whom.
///
/// # Safety
///
/// As for [`free_slow`].
unsafe fn freed(block: *mut u8, usable: usize) -> Freed {
    // SAFETY: the block is live and has so many usable bytes.
    let owner = unsafe { unsized_free::read(block, usable) }.and_then(record_of);
    let slot = owner.map_or(Slot::UNATTRIBUTED, |owner| owner.slot());
    Freed { owner, size: unsized_free::size(usable, slot) }
}

fn from_jemalloc<const ZEROED: bool>(usable: usize) -> *mut u8 {
    // SAFETY: the size is not 0.
    unsafe { if ZEROED { jemalloc::calloc(1, usable) } else { jemalloc::malloc(usable) } }.cast()
}

/// # Safety
///
/// As for [`free`].
#[inline(always)]
unsafe fn usable_of(block: *mut u8) -> usize {
    match Beside::of(block).usable() {
        // SAFETY: the caller's promise.
        0 => unsafe { jemalloc::sallocx(block.cast(), 0) },
        usable => usable,
    }
}

/// The usable bytes that jemalloc will have for a block of `size` and its cookie; 0 if
/// that is more than there can be.
fn usable_for(size: usize, slot: Slot, flags: c_int) -> usize {
    // C's pointers have to be subtracted.
    match unsized_free::request(size, slot).filter(|&request| request <= isize::MAX as usize) {
        // SAFETY: asks for a size class, changes nothing.
        Some(request) => unsafe { jemalloc::nallocx(request.max(ALIGN), flags) },
        None => 0,
    }
}

/// jemalloc's flags for an alignment: its logarithm.
fn flags_of(alignment: usize) -> c_int {
    alignment.trailing_zeros() as c_int
}

/// The same as [`usable_for`] without flags, for a short slot; 0 if that is large, or
/// has not been looked up yet.
#[inline(always)]
fn small_usable(size: usize) -> usize {
    if size > MOST_SMALL {
        return 0;
    }
    SMALL[(unsized_free::short_request(size) - 1) / GRANULE].load(Ordering::Relaxed).into()
}

/// Usable bytes by the granule that a request ends in.
static SMALL: [AtomicU16; GRANULES] = [const { AtomicU16::new(0) }; GRANULES];

/// jemalloc's size classes are multiples of this. (Those from [`ALIGN`] on are aligned to it.)
const GRANULE: usize = 8;
const GRANULES: usize = LARGE / GRANULE;
/// Those of the last granule may be large.
const MOST_SMALL: usize = unsized_free::short_size(LARGE);

/// The same for large blocks of up to 16 KiB, by the KiB that they end in; 0 up to 4 KiB.
static MEDIUM: [AtomicU16; 16] = [const { AtomicU16::new(0) }; 16];

const KIB: usize = 1 << 10;

fn learn_sizes() {
    if SMALL[0].load(Ordering::Relaxed) != 0 {
        return;
    }
    for (kib, usable) in MEDIUM.iter().enumerate() {
        // SAFETY: asks for a size class, changes nothing.
        usable.store(unsafe { jemalloc::nallocx((kib + 1) * KIB, 0) } as u16, Ordering::Relaxed);
    }
    // The first one last: it says that all are there.
    for (granule, usable) in SMALL.iter().enumerate().rev() {
        // SAFETY: asks for a size class, changes nothing.
        let found = unsafe { jemalloc::nallocx(((granule + 1) * GRANULE).max(ALIGN), 0) };
        if !unsized_free::is_large(found) {
            usable.store(found as u16, Ordering::Relaxed);
        }
    }
}

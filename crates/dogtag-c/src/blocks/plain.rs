//! The hot path for C.
//!
//! A block is as large as the size class that jemalloc chooses for the request, less its cookie.
//! `malloc` looks the class up in a table, and notes it for the page. `free` finds it there and tells
//! jemalloc the size, which saves jemalloc the look-up in a table of its own.

use super::ALIGN;
use crate::current_owner;
use dogtag::__private::blocks::unsized_free::{self, Beside};
use dogtag::__private::blocks::guarded::{self, Found, Returned};
use dogtag::__private::blocks::{Freed, LARGE, Named, Slot, Source, charge_ownerless, charged, owner_of};
use dogtag::__private::thread;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::alloc::Layout;
use std::ffi::c_int;
use std::ptr;
use tikv_jemalloc_sys as jemalloc;

/// Allocates a block of at least `size` bytes, all zeros if `ZEROED`.
#[inline(always)]
pub(crate) fn allocate<const ZEROED: bool>(size: usize) -> *mut u8 {
    current_owner::refresh();
    let size_of_block = small_size(size);
    if size_of_block == 0 {
        return allocate_large::<ZEROED>(size);
    }
    let usable = unsized_free::short_request(size_of_block);
    if thread::current().needs_slow_path(size_of_block) {
        return allocate_slow::<ZEROED>(size);
    }
    // SAFETY: any size may be asked of jemalloc's `malloc`.
    let block: *mut u8 = unsafe { jemalloc::malloc(usable) }.cast();
    if block.is_null() {
        return block;
    }
    let cell = thread::current();
    // SAFETY: `usable` bytes were allocated just now: the block's, and behind it the cookie's.
    unsafe {
        if ZEROED {
            block.write_bytes(0, size_of_block);
        }
        if !unsized_free::write_short_at_once(block, usable, cell.own_mark()) {
            return note_and_charge(block, size_of_block);
        }
    }
    cell.charge(size_of_block);
    block
}

/// Charges a new block, the first of its size class in its page, to the current cell, and returns it. It
/// takes the whole job over, so that the hot path has nothing to keep over a call.
///
/// # Safety
///
/// The block must have so many bytes and a cookie, not be large, and be within the cell's threshold.
#[cold]
#[inline(never)]
unsafe fn note_and_charge(block: *mut u8, size: usize) -> *mut u8 {
    let cell = thread::current();
    // SAFETY: behind the block's bytes are the cookie's.
    unsafe { unsized_free::write_short(block, unsized_free::short_request(size), cell.own_mark()) };
    cell.charge(size);
    block
}

/// Allocates a block of at least `size` bytes and an alignment, a power of two.
pub(crate) fn allocate_aligned(alignment: usize, size: usize) -> *mut u8 {
    current_owner::refresh();
    let flags = flags_of(alignment.max(ALIGN));
    // SAFETY: the request is a size class of these flags, so it is neither 0 nor too large.
    let place = |request| unsafe { jemalloc::mallocx(request, flags) }.cast();
    placed(size, flags, None, |block| block, place)
}

/// Frees a block.
///
/// # Safety
///
/// It must be one of these, live, and not used again.
#[inline(always)]
pub(crate) unsafe fn free(block: *mut u8) {
    let beside = Beside::of(block);
    let size = beside.small_size();
    let usable = unsized_free::short_request(size);
    // SAFETY: the caller passes a live block, so the page says its usable bytes, and its cookie stands
    // at their end. No one uses it after that.
    unsafe {
        if size >= MOST_SMALL {
            return free_large(block, beside);
        }
        let mark = unsized_free::read_small_mark(block, size);
        // Mostly the cell that the thread charges to, which is one load away.
        let mut cell = thread::current();
        if !cell.is_own_for(mark) {
            cell = thread::cell(mark);
            if !cell.is_own_for(mark) {
                return free_slow(block, usable);
            }
        }
        cell.refund(size);
        jemalloc::sdallocx(block.cast(), usable, 0);
    }
}

/// Frees a block of which the program says the alignment and the size. Only memory-check compares
/// them.
///
/// # Safety
///
/// As for [`free`].
#[cfg(feature = "interpose")]
pub(crate) unsafe fn free_told(block: *mut u8, _alignment: usize, _size: usize) {
    // SAFETY: the caller passes a live block of these, and uses it no more.
    unsafe { free(block) };
}

/// Allocates a block of C++'s `operator new`, or `new[]` if `ARRAY`.
#[cfg(feature = "interpose")]
#[inline(always)]
pub(crate) fn new<const ARRAY: bool>(alignment: Option<usize>, size: usize) -> *mut u8 {
    match alignment {
        None => allocate::<false>(size),
        Some(alignment) => allocate_aligned(alignment, size),
    }
}

/// Frees a block of [`new`]. Alignment and size, as the program says them, are ignored, as in the C++
/// library: the page gives the size as fast.
///
/// # Safety
///
/// As for [`free`].
#[cfg(feature = "interpose")]
#[inline(always)]
pub(crate) unsafe fn delete<const ARRAY: bool>(block: *mut u8, _: Option<usize>, _: Option<usize>) {
    // SAFETY: the caller passes a live block of these, and uses it no more.
    unsafe { free(block) };
}

/// Resizes a block to at least `size` bytes, in its place or by a move, and makes it the current
/// service's. Null leaves it as it is.
///
/// A block that does not grow is never denied: over the current service's limit it stays its former
/// owner's, and without memory it stays as it is.
///
/// # Safety
///
/// As for [`free`].
pub(crate) unsafe fn resize(block: *mut u8, size: usize) -> *mut u8 {
    current_owner::refresh();
    // SAFETY: the caller passes a live block, whose cookie stands at the end of its usable bytes. A new
    // one is jemalloc's, as large as its class, and another than the old, which is not used after it
    // is freed.
    unsafe {
        let beside = Beside::of(block);
        let usable = usable_of(block, beside);
        let new_size = small_size(size);
        let new_usable = unsized_free::short_request(new_size);
        let mark = unsized_free::read_mark(block, usable, beside);
        let owner = thread::cell(mark);
        if new_size == 0
            || unsized_free::is_large(usable)
            || owner.own_mark() != mark
            || thread::current().needs_slow_path(new_size)
        {
            return resize_slow(block, usable, size);
        }
        let old_size = unsized_free::short_size(usable);
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
        unsized_free::write_short(moved, new_usable, cell.own_mark());
        cell.charge(new_size);
        moved
    }
}

/// Returns the bytes of a block.
///
/// # Safety
///
/// As for [`free`].
pub(crate) unsafe fn size(block: *mut u8) -> usize {
    if let Some(size) = guarded::size_of_block(block) {
        return size;
    }
    // SAFETY: the caller passes a live block, whose cookie stands at the end of its usable bytes.
    unsafe {
        let usable = usable_of(block, Beside::of(block));
        unsized_free::size(usable, unsized_free::read(block, usable).unwrap_or(SHORT))
    }
}

/// Allocates a block of 4 KiB or more, whose owner is noted beside the heap.
#[inline(never)]
fn allocate_large<const ZEROED: bool>(size: usize) -> *mut u8 {
    let usable = match MEDIUM.get(size.wrapping_sub(1) / KIB) {
        Some(usable) if size >= LARGE => usable.load(Ordering::Relaxed).into(),
        _ => usable_for(size, SHORT, 0),
    };
    if !unsized_free::is_large(usable) || thread::current().needs_slow_path(usable) {
        return allocate_slow::<ZEROED>(size);
    }
    let block = from_jemalloc::<ZEROED>(usable);
    if block.is_null() {
        return block;
    }
    let cell = thread::current();
    if !unsized_free::write_large_at_once(block, usable, cell.own_mark()) {
        return note_large_and_charge(block, usable);
    }
    cell.charge(usable);
    block
}

/// Charges a new large block where no owner was noted before, as [`note_and_charge`].
#[cold]
#[inline(never)]
fn note_large_and_charge(block: *mut u8, usable: usize) -> *mut u8 {
    let cell = thread::current();
    if unsized_free::write_large(block, usable, cell.own_mark()) {
        cell.charge(usable);
    } else {
        charge_ownerless(usable);
    }
    block
}

/// Allocates where the threshold says that something rare is due, or before the sizes are known.
#[cold]
#[inline(never)]
fn allocate_slow<const ZEROED: bool>(size: usize) -> *mut u8 {
    learn_sizes();
    let alone = |block: *mut u8| {
        if ZEROED {
            // SAFETY: a place for a block of so many bytes, which nobody else has.
            unsafe { block.write_bytes(0, size) };
        }
        block
    };
    placed(size, 0, None, alone, from_jemalloc::<ZEROED>)
}

/// Frees a block of 4 KiB or more. (As C's it does not unwind, so `free` jumps here, and has no frame for a call.)
///
/// # Safety
///
/// As for [`free`], and `beside` is what stands beside the heap for the block.
#[inline(never)]
unsafe extern "C" fn free_large(block: *mut u8, beside: Beside) {
    // SAFETY: the caller passes a live block, of which so much is noted. No one uses it after that.
    unsafe {
        let Some((usable, mark)) = beside.large() else { return free_unnoted(block, beside) };
        let mut cell = thread::current();
        if !cell.is_own_for(mark) {
            cell = thread::cell(mark);
            if !cell.is_own_for(mark) {
                return free_slow(block, usable);
            }
        }
        cell.refund(usable);
        // jemalloc's short way with the size ends here.
        if usable == LARGE {
            jemalloc::sdallocx(block.cast(), usable, 0);
        } else {
            jemalloc::free(block.cast());
        }
    }
}

/// Frees a block whose usable bytes are not noted.
///
/// # Safety
///
/// As for [`free_large`].
#[cold]
#[inline(never)]
unsafe extern "C" fn free_unnoted(block: *mut u8, beside: Beside) {
    // SAFETY: the caller passes a live block, so it has so many usable bytes, and its mark can be read.
    // No one uses it after that.
    unsafe {
        let usable = usable_of(block, beside);
        let mark = unsized_free::read_mark(block, usable, beside);
        let cell = thread::cell(mark);
        if !cell.is_own_for(mark) {
            return free_slow(block, usable);
        }
        cell.refund(unsized_free::size(usable, SHORT));
        jemalloc::free(block.cast());
    }
}

/// Frees a block of which this thread has no cell, or which is not any service's.
///
/// # Safety
///
/// As for [`free`], and it has so many usable bytes.
#[cold]
#[inline(never)]
unsafe extern "C" fn free_slow(block: *mut u8, usable: usize) {
    if let Some(returned) = guarded::take(block, None, Found::Dealloc) {
        if let Returned::Block(taken) = returned {
            taken.free();
        }
        return;
    }
    // SAFETY: the caller passes a live block with its usable bytes, and uses it no more.
    unsafe {
        freed(block, usable).refund();
        jemalloc::sdallocx(block.cast(), usable, 0);
    }
}

/// Resizes a block where it is large, or something rare is due.
///
/// # Safety
///
/// As for [`free_slow`].
#[cold]
#[inline(never)]
unsafe fn resize_slow(block: *mut u8, usable: usize, size: usize) -> *mut u8 {
    let taken = match guarded::take(block, None, Found::Realloc) {
        Some(Returned::Block(taken)) => Some(taken),
        Some(Returned::Nothing) => return ptr::null_mut(),
        None => None,
    };
    let old = match taken {
        Some(taken) => taken.freed(),
        // SAFETY: the caller passes a live block with its usable bytes.
        None => unsafe { freed(block, usable) },
    };
    let is_growth = size > old.size;
    // What is in the block, for a new one; and the old one is freed, but for its owner's figures.
    let copied = |new: *mut u8| {
        // SAFETY: both are valid for the smaller of their sizes, and the old one is not used any more.
        unsafe {
            ptr::copy_nonoverlapping(block, new, old.size.min(size));
            match taken {
                Some(taken) => taken.retire(),
                None => jemalloc::sdallocx(block.cast(), usable, 0),
            }
        }
        new
    };
    let place = |request: usize| {
        // SAFETY: the block is live until one of the two calls moves it, after which there is no other;
        // the request is a size class, so it is not 0.
        unsafe {
            if taken.is_some() {
                let new: *mut u8 = jemalloc::malloc(request).cast();
                if new.is_null() { new } else { copied(new) }
            } else if request == usable {
                block
            } else {
                jemalloc::realloc(block.cast(), request).cast()
            }
        }
    };
    let resized = || placed(size, 0, Some((old, !is_growth)), copied, place);
    let mut moved = resized();
    if moved.is_null() && !is_growth {
        // In a scope of its owner the block keeps that owner.
        let current = thread::go_to(old.owner);
        moved = resized();
        thread::leave_for(current);
        if moved.is_null() {
            moved = block;
        }
    }
    if let Some(taken) = taken
        && (moved.is_null() || moved == block)
    {
        taken.restore();
    }
    moved
}

/// Charges the current service, if its limits allow for it, with a block that `place` has jemalloc
/// allocate, or that the sampled guard has a place for, which `alone` is called with and returns. The
/// block may replace another one, which is refunded, and which stays its owner's if
/// this fails.
fn placed(
    size: usize,
    flags: c_int,
    replaced: Option<(Freed, bool)>,
    alone: impl FnOnce(*mut u8) -> *mut u8,
    place: impl FnOnce(usize) -> *mut u8,
) -> *mut u8 {
    current_owner::refresh_name();
    let (account, record) = thread::current_account();
    let slot = Named::Slot(record.slot());
    let usable_of_slot = usable_for(size, slot, flags);
    if usable_of_slot == 0 {
        return ptr::null_mut();
    }
    let usable = |named| if named == slot { usable_of_slot } else { usable_for(size, named, flags) };
    // What is too large with a sample's cookie is denied by `place`.
    let charge = |named| match usable(named) {
        0 => 0,
        usable => unsized_free::size(usable, named),
    };
    let place = |source| match source {
        Source::Alone(block) => alone(block),
        Source::Heap(named) => match usable(named) {
            0 => ptr::null_mut(),
            usable => place(usable),
        },
    };
    let alignment = if flags == 0 { ALIGN } else { 1 << flags };
    let reserve = || guarded::reserve_unsized(Layout::from_size_align(size, alignment).ok()?);
    // SAFETY: the block is as large as its size class.
    let note_owner = |block, named| unsafe { unsized_free::write(block, usable(named), named) };
    charged((account, record), charge, reserve, replaced, place, note_owner)
}

/// Returns how many bytes a block is charged with, and to whom.
///
/// # Safety
///
/// As for [`free_slow`].
unsafe fn freed(block: *mut u8, usable: usize) -> Freed {
    // SAFETY: the caller passes a live block with its usable bytes, at whose end the cookie stands.
    let named = unsafe { unsized_free::read(block, usable) };
    let owner = owner_of(named, block);
    let named = owner.0.and(named).unwrap_or(SHORT);
    Freed::new(owner, unsized_free::size(usable, named))
}

fn from_jemalloc<const ZEROED: bool>(usable: usize) -> *mut u8 {
    // SAFETY: any size may be asked of jemalloc's `malloc` and `calloc`.
    unsafe { if ZEROED { jemalloc::calloc(1, usable) } else { jemalloc::malloc(usable) } }.cast()
}

/// Returns the usable bytes of a block: by its page, or else by jemalloc.
///
/// # Safety
///
/// As for [`free_large`].
#[inline(always)]
unsafe fn usable_of(block: *mut u8, beside: Beside) -> usize {
    match beside.usable() {
        // SAFETY: the caller passes a live block, which is jemalloc's.
        0 => unsafe { jemalloc::sallocx(block.cast(), 0) },
        usable => usable,
    }
}

/// Returns the size class that jemalloc chooses for a block of `size` and its cookie; 0 if that is
/// more than there can be.
fn usable_for(size: usize, named: Named, flags: c_int) -> usize {
    // C subtracts pointers, whose difference is an `isize`.
    match unsized_free::request(size, named).filter(|&request| request <= isize::MAX as usize) {
        // SAFETY: only looks a size class up; the size is not 0.
        Some(request) => unsafe { jemalloc::nallocx(request.max(ALIGN), flags) },
        None => 0,
    }
}

/// What most blocks are kept with: a short slot.
const SHORT: Named = Named::Slot(Slot::UNATTRIBUTED);

/// Returns jemalloc's flags for an alignment: its logarithm.
fn flags_of(alignment: usize) -> c_int {
    alignment.trailing_zeros() as c_int
}

/// Looks up in the table how many bytes a small block of a short slot has for a request of `size`: those of the
/// size class that [`usable_for`] asks jemalloc for, less the cookie. 0 if the block is large, or the table is not
/// filled yet.
#[inline(always)]
fn small_size(size: usize) -> usize {
    if size > MOST_SMALL {
        return 0;
    }
    SMALL[(unsized_free::short_request(size) - 1) / GRANULE].load(Ordering::Relaxed) as usize
}

/// Bytes of small blocks, by the granule that the request ends in: of 32 bits, which are a `usize` without further
/// ado.
static SMALL: [AtomicU32; GRANULES] = [const { AtomicU32::new(0) }; GRANULES];

/// jemalloc's size classes are multiples of this. (Those from [`ALIGN`] on are aligned to it.)
const GRANULE: usize = 8;
const GRANULES: usize = LARGE / GRANULE;
/// The largest size that [`SMALL`] is asked for: requests of the last granule may be large.
const MOST_SMALL: usize = unsized_free::short_size(LARGE);

/// Size classes of large requests up to 16 KiB, by the KiB that the request ends in; 0 until they are
/// looked up.
static MEDIUM: [AtomicU16; 16] = [const { AtomicU16::new(0) }; 16];

const KIB: usize = 1 << 10;

/// Fills the tables of size classes, once.
fn learn_sizes() {
    if SMALL[0].load(Ordering::Relaxed) != 0 {
        return;
    }
    for (kib, usable) in MEDIUM.iter().enumerate() {
        // SAFETY: only looks a size class up; the size is not 0.
        usable.store(unsafe { jemalloc::nallocx((kib + 1) * KIB, 0) } as u16, Ordering::Relaxed);
    }
    // The first one last: it says that all are there.
    for (granule, size) in SMALL.iter().enumerate().rev() {
        // SAFETY: only looks a size class up; the size is not 0.
        let found = unsafe { jemalloc::nallocx(((granule + 1) * GRANULE).max(ALIGN), 0) };
        if !unsized_free::is_large(found) {
            size.store(unsized_free::short_size(found) as u32, Ordering::Relaxed);
        }
    }
}

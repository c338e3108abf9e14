//! What stands on both sides of a block, so that whoever writes there is noticed.

use super::{BlockHeader, GUARD, LARGE, LEAST_TAIL, mix, offset};
use std::alloc::Layout;
use std::ptr::NonNull;

/// Writes both guards of a block that has this header.
///
/// # Safety
///
/// As for [`BlockHeader::write`].
#[inline]
pub(crate) unsafe fn write_guards(block: NonNull<u8>, header: &BlockHeader) {
    // SAFETY: as the caller says.
    unsafe { write_both_guards(block, header, header.layout().size(), header.tail()) }
}

/// Variant of [`write_guards`] for a block of that layout, for which `outer` has just been requested.
///
/// # Safety
///
/// As for [`BlockHeader::write`].
#[inline]
pub(crate) unsafe fn write_first_guards(
    block: NonNull<u8>,
    header: &BlockHeader,
    layout: Layout,
    outer: Layout,
) {
    let tail = outer.size() - offset(layout) - layout.size();
    debug_assert_eq!(tail, header.tail());
    // A byte more than the least, but for large blocks: with what the compiler knows then, guards do not overlap.
    let tail = if layout.size() < LARGE { LEAST_TAIL + usize::from((tail - LEAST_TAIL) as u8) } else { tail };
    // SAFETY: as the caller says.
    unsafe { write_both_guards(block, header, layout.size(), tail) }
}

/// # Safety
///
/// As for [`BlockHeader::write`], for a block of that size with so many bytes behind it.
#[inline(always)]
unsafe fn write_both_guards(block: NonNull<u8>, header: &BlockHeader, size: usize, tail: usize) {
    let guards = Guards::of(block, header.zero(), size, tail);
    // SAFETY: the requested memory holds both, the head and the tail of at least 16 bytes.
    unsafe {
        block.sub(GUARD).cast().write_unaligned(guards.head);
        write_behind(block, &guards, size, tail);
    }
}

/// Writes the guard behind a block whose memory was given back.
///
/// # Safety
///
/// As for [`BlockHeader::write`], for a block that has this header and a tail.
pub(crate) unsafe fn write_tail(block: NonNull<u8>, header: &BlockHeader) {
    let (size, tail) = (header.layout().size(), header.tail());
    // SAFETY: as the caller says.
    unsafe { write_behind(block, &Guards::of(block, header.zero(), size, tail), size, tail) }
}

/// # Safety
///
/// As for [`BlockHeader::write`], for a block of that size with so many bytes behind it.
#[inline(always)]
unsafe fn write_behind(block: NonNull<u8>, guards: &Guards, size: usize, tail: usize) {
    // SAFETY: the requested memory holds the tail of at least 16 bytes.
    unsafe {
        let behind = block.add(size);
        let mut at = GUARD;
        while at + GUARD < tail {
            behind.add(at).cast().write_unaligned(guards.next);
            at += GUARD;
        }
        behind.add(tail - GUARD).cast().write_unaligned(guards.last);
        behind.cast().write_unaligned(guards.first);
    }
}

/// Writes the guard in front of a block.
///
/// # Safety
///
/// As for [`BlockHeader::write`].
pub(crate) unsafe fn write_head(block: NonNull<u8>) {
    let guard = guard(block);
    // SAFETY: the requested memory holds it.
    unsafe { block.sub(GUARD).cast().write_unaligned(Bytes([guard, guard])) };
}

/// Whether both guards are as they were written.
///
/// # Safety
///
/// As for [`BlockHeader::read`], for a block that has this header.
#[inline]
pub(crate) unsafe fn has_guards(block: NonNull<u8>, header: &BlockHeader) -> bool {
    let (size, tail) = (header.layout().size(), header.tail());
    let guards = Guards::of(block, header.zero(), size, tail);
    // SAFETY: the guards were written when the block was handed out.
    unsafe {
        let behind = block.add(size);
        let mut wrong = Bytes::default();
        wrong.add(block.sub(GUARD), guards.head);
        wrong.add(behind, guards.first);
        let mut at = GUARD;
        while at + GUARD < tail {
            wrong.add(behind.add(at), guards.next);
            at += GUARD;
        }
        if tail > GUARD {
            wrong.add(behind.add(tail - GUARD), guards.last);
        }
        wrong.0[0] | wrong.0[1] == 0
    }
}

/// Some bytes of a guard, or what is wrong with them.
#[derive(Clone, Copy, Default)]
struct Bytes([u64; 2]);

impl Bytes {
    /// Adds what is not as it was meant. By the word, so that the compiler compares both at once.
    ///
    /// # Safety
    ///
    /// So many bytes must be there.
    #[inline(always)]
    unsafe fn add(&mut self, place: NonNull<u8>, meant: Self) {
        // SAFETY: the caller's bytes.
        let found = unsafe { place.cast::<Self>().read_unaligned() };
        self.0[0] |= found.0[0] ^ meant.0[0];
        self.0[1] |= found.0[1] ^ meant.0[1];
    }
}

/// What stands around a block. Each byte is the guard's for its offset.
struct Guards {
    head: Bytes,
    /// Behind it, with the zero.
    first: Bytes,
    /// From there on.
    next: Bytes,
    /// At the end, before which a whole number of the others may leave some bytes.
    last: Bytes,
}

impl Guards {
    #[inline(always)]
    fn of(block: NonNull<u8>, zero: usize, size: usize, tail: usize) -> Self {
        let guard = guard(block);
        let from = |offset: usize| u64::from_le(guard.to_le().rotate_right((offset % 8 * 8) as u32));
        let (next, last) = (from(size), from(size + tail));
        let first = u64::from_le(next.to_le() & !(0xff << (8 * zero)));
        Self {
            head: Bytes([guard, guard]),
            first: Bytes([first, next]),
            next: Bytes([next, next]),
            last: if tail == GUARD { Bytes([first, next]) } else { Bytes([last, last]) },
        }
    }
}

/// The wrong byte of a block's guards that is nearest to it, from its
/// beginning: its size or more in the guard behind it, which is looked at
/// first, negative in the one in front of it.
///
/// # Safety
///
/// As for [`BlockHeader::read`], for a block that has this header.
pub(crate) unsafe fn wrong_guard(block: NonNull<u8>, header: &BlockHeader) -> Option<isize> {
    let size = header.layout().size();
    let wrong = (size..size + header.tail()).find(|&offset| {
        // SAFETY: the guard was written when the block was handed out.
        let byte = unsafe { block.add(offset).read() };
        meant(block, Some(header), None, offset as isize).is_some_and(|meant| meant != byte)
    });
    match wrong {
        Some(offset) => Some(offset as isize),
        // SAFETY: the head was written when the block was handed out.
        None => unsafe { wrong_head(block) },
    }
}

/// The wrong byte of the guard in front of a block that is nearest to it, however large it is.
///
/// # Safety
///
/// As for [`BlockHeader::read`].
pub(crate) unsafe fn wrong_head(block: NonNull<u8>) -> Option<isize> {
    // SAFETY: the head was written when the block was handed out.
    let head: [u8; GUARD] = unsafe { block.sub(GUARD).cast().read() };
    // Backwards, since the nearest byte is the last one.
    let guard = guard(block).to_ne_bytes();
    let last = (0..GUARD).rev().find(|&index| head[index] != guard[index % 8]);
    last.map(|index| index as isize - GUARD as isize)
}

/// The byte that should stand at an offset from the block's beginning; `None` where anything may.
/// `filled` is what the block is filled with.
pub(crate) fn meant(
    block: NonNull<u8>,
    header: Option<&BlockHeader>,
    filled: Option<u8>,
    offset: isize,
) -> Option<u8> {
    let guard = guard(block).to_ne_bytes();
    if offset < 0 {
        let is_near = offset >= -(GUARD as isize);
        return is_near.then(|| guard[offset.rem_euclid(8) as usize]);
    }
    let (header, offset) = (header?, offset as usize);
    match offset.checked_sub(header.layout().size()) {
        None => filled,
        Some(past) if past == header.zero() => Some(0),
        Some(past) => (past < header.tail()).then(|| guard[offset % 8]),
    }
}

/// What stands on both sides of a block, again and again: three bits of the mixed address in
/// each byte.
#[inline]
pub(super) fn guard(block: NonNull<u8>) -> u64 {
    0xF5F5_F5F5_F5F5_F5F5 + (mix(block) & 0x0707_0707_0707_0707)
}

//! Owners of blocks that are freed without their size, as C's are.
//!
//! Where such a block's cookie stands can only be known from what the backend
//! allocated for it, so it is the last of that; and the block is all before it.
//!
//! ```text
//! short   | the block                     | mark |    slots below 65,536
//!         | the backend's usable bytes           |
//! long    | the block         | slot, tag | escape |  all others
//! ```
//!
//! Those that are large (`page_map`) by their usable bytes have their owner beside the heap. In the
//! same place stands how many bytes a block has, so that a free need not ask the
//! backend: its own usable bytes, or for smaller ones those before a short cookie, of which all blocks in the
//! page have as many.
//!
//! ```text
//! an entry | 1 | KiB of a large block, or 0 | its owner, or the bytes before a smaller one's short cookie |
//!           bit 31    bits 16 to 30                              bits 0 to 15
//! ```

use super::cookie::{self, LONG, SHORT};
use super::page_map::{self, LARGE};
use super::slot::{Mark, Named};

/// Whether the owner of a block in so many usable bytes stands beside the heap.
#[inline(always)]
pub const fn is_large(usable: usize) -> bool {
    usable >= LARGE
}

/// The bytes to request for a block of `size` or more, or `None` when they would
/// overflow.
#[inline]
pub const fn request(size: usize, named: Named) -> Option<usize> {
    if is_large(size) {
        return Some(size);
    }
    let Some(outer) = size.checked_add(named.cookie_size()) else { return None };
    // What is large has no cookie.
    Some(if outer > LARGE { LARGE } else { outer })
}

/// The bytes to request for a block of a short slot, which is not large.
#[inline(always)]
pub const fn short_request(size: usize) -> usize {
    size + SHORT
}

/// The bytes of the block in so many usable ones.
#[inline(always)]
pub const fn size(usable: usize, named: Named) -> usize {
    if is_large(usable) { usable } else { usable - named.cookie_size() }
}

/// The bytes of a short slot's block in so many usable ones, which are not large.
#[inline(always)]
pub const fn short_size(usable: usize) -> usize {
    usable - SHORT
}

/// What stands beside the heap for a block.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Beside(u32);

impl Beside {
    /// What stands there for that block.
    #[inline(always)]
    pub fn of(block: *const u8) -> Self {
        Self(page_map::get(block))
    }

    /// The bytes of a short slot's block that is not large, as [`short_size`]; otherwise more than those can be.
    #[inline(always)]
    pub const fn small_size(self) -> usize {
        // Less a bit that is set; where it is not, this is too many. In 32 bits the compiler would flip the bit
        // instead, by one instruction more.
        (self.0 as usize).wrapping_sub(USABLE as usize)
    }

    /// The usable bytes and the mark of a large block; `None` where [`usable`](Self::usable) says 0, or the block is
    /// not large.
    #[inline(always)]
    pub const fn large(self) -> Option<(usize, Mark)> {
        if self.0 < USABLE | 1 << KIB {
            return None;
        }
        Some(((self.large_kib() as usize) << 10, self.large_mark()))
    }

    /// The usable bytes, large or not; 0 if they were not noted: there was no memory for
    /// that, the owner's slot is a long one, the block is sampled, or they are very many.
    #[inline]
    pub const fn usable(self) -> usize {
        match (self.0 & USABLE, self.large_kib()) {
            (0, _) => 0,
            (_, 0) => short_request(self.small_size()),
            (_, kib) => (kib as usize) << 10,
        }
    }

    /// The mark of a large block, as `Placement::read_mark`.
    #[inline(always)]
    const fn large_mark(self) -> Mark {
        Mark::from_bits(self.owner() ^ page_map::UNATTRIBUTED)
    }

    const fn large_kib(self) -> u32 {
        (self.0 & !USABLE) >> KIB
    }

    /// What the entry of a large block would be if it were not C's.
    #[inline]
    const fn owner(self) -> u32 {
        if self.0 & USABLE == 0 { self.0 } else { self.0 & OWNER }
    }
}

/// Set in all entries of C's, and in no other.
const USABLE: u32 = 1 << 31;
const KIB: u32 = 16;
/// What a short slot's entry may differ in from zero.
const OWNER: u32 = (1 << KIB) - 1;
/// So many KiB do not fit.
const TOO_MANY: usize = 1 << (31 - KIB);

/// Notes the owner of a block. `false` as for `Placement::write`.
///
/// # Safety
///
/// `block` must be valid for writes of `usable` bytes, which are no fewer than
/// [`request`] says for `named`.
#[inline]
#[must_use]
pub unsafe fn write(block: *mut u8, usable: usize, named: Named) -> bool {
    if is_large(usable) {
        return if named.is_short() {
            write_large(block, usable, named.mark())
        } else {
            page_map::write(block, named)
        };
    }
    if !named.is_short() {
        cookie::note_long_one();
        // SAFETY: `request` has asked for a long cookie's four more bytes.
        unsafe { block.add(usable - LONG).cast::<u32>().write_unaligned(named.tagged()) };
    }
    // SAFETY: the block is not large, and has `usable` bytes, the cookie's among them.
    unsafe { write_short(block, usable, named.mark()) };
    true
}

/// Notes the owner of a block by its mark: of a short slot's block that is not large.
///
/// # Safety
///
/// As for [`write`].
#[inline(always)]
pub unsafe fn write_short(block: *mut u8, usable: usize, mark: Mark) {
    let entry = small_entry(usable);
    // Mostly it is there already. Pages of several threads have their entries in one
    // cache line, which stays everybody's if nobody writes.
    if page_map::get(block) != entry {
        note_for_page(block, entry);
    }
    // SAFETY: the block has `usable` bytes, and the last two of them are the cookie.
    unsafe { cookie::write_short(block, usable - SHORT, mark) };
}

/// Variant of [`write_short`] for a block whose page has its usable bytes noted already. `false`, and nothing
/// is written, if it has not: so that the caller has no call on its hot path, which registers would be saved for.
///
/// # Safety
///
/// As for [`write`].
#[inline(always)]
#[must_use]
pub unsafe fn write_short_at_once(block: *mut u8, usable: usize, mark: Mark) -> bool {
    if page_map::get(block) != small_entry(usable) {
        return false;
    }
    // SAFETY: the block has `usable` bytes, and the last two of them are the cookie.
    unsafe { cookie::write_short(block, usable - SHORT, mark) };
    true
}

/// Where there is no memory for it, a free asks the backend.
#[cold]
#[inline(never)]
fn note_for_page(block: *mut u8, entry: u32) {
    page_map::set(block, entry);
}

/// Notes the owner of a large block by its mark: of a short slot's block. `false` as for [`write`].
#[inline]
#[must_use]
pub fn write_large(block: *mut u8, usable: usize, mark: Mark) -> bool {
    page_map::set(block, large_entry(usable, mark))
}

/// Variant of [`write_large`] that asks the system for nothing. `false`, and nothing is written, where it has to.
#[inline(always)]
#[must_use]
pub fn write_large_at_once(block: *mut u8, usable: usize, mark: Mark) -> bool {
    page_map::set_at_once(block, large_entry(usable, mark))
}

#[inline(always)]
const fn small_entry(usable: usize) -> u32 {
    USABLE + short_size(usable) as u32
}

#[inline(always)]
const fn large_entry(usable: usize, mark: Mark) -> u32 {
    let (owner, kib) = (mark.bits() ^ page_map::UNATTRIBUTED, usable >> 10);
    // From 4 KiB on size classes are whole KiB.
    if kib >= TOO_MANY || !usable.is_multiple_of(1 << 10) {
        return owner;
    }
    USABLE | (kib as u32) << KIB | owner
}

/// Notes of a block that it is the sampled guard's, so that a free of it leaves the hot path, whatever is behind
/// it. `false` as for [`write`].
#[cfg(feature = "sampled-guard")]
#[must_use]
pub(crate) fn write_guarded(block: *mut u8) -> bool {
    let kib = (LARGE >> 10) as u32;
    page_map::set(block, USABLE | kib << KIB | (Mark::LONG.bits() ^ page_map::UNATTRIBUTED))
}

/// Reads the mark of a block, as `Placement::read_mark`. The caller has looked beside the heap already,
/// which is not done twice.
///
/// # Safety
///
/// `block` must be a live block in `usable` bytes.
#[inline(always)]
pub unsafe fn read_mark(block: *const u8, usable: usize, beside: Beside) -> Mark {
    if is_large(usable) {
        return beside.large_mark();
    }
    // SAFETY: the block is live, and the last two of its `usable` bytes are the cookie.
    unsafe { cookie::read_mark(block, usable - SHORT) }
}

/// Variant of [`read_mark`] for a block that has `size` bytes before a short cookie, as [`Beside::small_size`] says,
/// and so is not large.
///
/// # Safety
///
/// `block` must be a live block in `size` bytes and two more.
#[inline(always)]
pub unsafe fn read_small_mark(block: *const u8, size: usize) -> Mark {
    // SAFETY: the block is live, and the two bytes behind the first `size` ones are the cookie.
    unsafe { cookie::read_mark(block, size) }
}

/// Reads the owner of a block or its sample, as `Placement::read`.
///
/// # Safety
///
/// As for [`read_mark`].
#[inline]
pub unsafe fn read(block: *const u8, usable: usize) -> Option<Named> {
    let beside = Beside::of(block);
    if is_large(usable) {
        return page_map::owner(beside.owner());
    }
    // SAFETY: the block is live, in `usable` bytes.
    let mark = unsafe { read_mark(block, usable, beside) };
    if mark != Mark::LONG {
        return Named::of_mark(mark);
    }
    if !cookie::long_ones_exist() || usable < LONG {
        return None;
    }
    // SAFETY: there are as many usable bytes.
    Named::of_tagged(unsafe { block.add(usable - LONG).cast::<u32>().read_unaligned() })
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use crate::owner::Slot;

    #[test]
    fn every_slot_reads_back_from_the_end() {
        for index in (0..70_000).chain([1 << 20, Slot::COUNT - 1]) {
            let Some(slot) = Slot::new(index).map(Named::Slot) else { continue };
            for wanted in [0, 1, 13, 62, 100] {
                let usable = request(wanted, slot).unwrap().next_multiple_of(8);
                // Not of the heap, whose pages have entries that are needed.
                let mut memory = [0xAA_u8; 128];
                let memory = &mut memory[..usable];
                // SAFETY: as many bytes as were requested, and more.
                unsafe {
                    assert!(write(memory.as_mut_ptr(), usable, slot));
                    assert_eq!(read(memory.as_ptr(), usable), Some(slot));
                    let mark = read_mark(memory.as_ptr(), usable, Beside::of(memory.as_ptr()));
                    assert_eq!(mark, slot.mark());
                }
                assert!(size(usable, slot) >= wanted);
                assert!(
                    memory[..size(usable, slot)].iter().all(|&byte| byte == 0xAA),
                    "the block is touched"
                );
            }
        }
    }

    #[test]
    fn usable_bytes_are_noted_beside_the_owner() {
        // Where no process of ours has a heap.
        let block: *mut u8 = std::ptr::without_provenance_mut(0x1235 << 32);
        assert_eq!((Beside::of(block).usable(), Beside::of(block).large()), (0, None));
        assert!(Beside::of(block).small_size() >= LARGE);
        for index in [0, 1, 255, 65_535, 70_000] {
            let Some(slot) = Slot::new(index).map(Named::Slot) else { continue };
            for usable in [4096, 5120, 1 << 20, 32_767 << 10, 1 << 25, 1 << 40] {
                // SAFETY: nothing is written to a large block.
                unsafe {
                    assert!(write(block, usable, slot));
                    assert_eq!(read(block, usable), Some(slot));
                    if slot.is_short() {
                        assert_eq!(read_mark(block, usable, Beside::of(block)), slot.mark());
                    }
                }
                let is_noted = slot.is_short() && usable < 1 << 25;
                assert_eq!(Beside::of(block).usable(), if is_noted { usable } else { 0 });
                assert!(Beside::of(block).small_size() >= LARGE);
                assert_eq!(Beside::of(block).large(), is_noted.then(|| (usable, slot.mark())));
            }
        }
        let mut page = [0_u64; 8];
        let block: *mut u8 = page.as_mut_ptr().cast();
        for usable in [8, 64] {
            // SAFETY: there are as many bytes.
            assert!(unsafe { write(block, usable, Slot::UNATTRIBUTED.into()) });
            let beside = Beside::of(block);
            // SAFETY: the block was written just now.
            let mark = unsafe { read_small_mark(block, beside.small_size()) };
            assert_eq!(mark, Slot::UNATTRIBUTED.mark());
            assert_eq!(
                (beside.usable(), beside.small_size(), beside.large()),
                (usable, usable - SHORT, None)
            );
        }
    }

    #[test]
    fn nothing_is_written_at_once_where_something_has_to_be_noted_first() {
        let marks = [7, 8].map(|slot| Slot::new(slot).unwrap().mark());
        let mut page = [0_u64; 8];
        let block: *mut u8 = page.as_mut_ptr().cast();
        // SAFETY: there are 64 bytes.
        unsafe {
            write_short(block, 64, marks[0]);
            assert!(!write_short_at_once(block, 32, marks[1]), "another size class");
            assert_eq!(Beside::of(block).usable(), 64);
            assert_eq!(read_mark(block, 64, Beside::of(block)), marks[0]);
            assert!(write_short_at_once(block, 64, marks[1]));
            assert_eq!(read_mark(block, 64, Beside::of(block)), marks[1]);
        }
        assert_eq!(page[..7], [0; 7], "the block is touched");
        // Where no process of ours has a heap, and no other test a block.
        let large: *mut u8 = std::ptr::without_provenance_mut(0x1236 << 32);
        assert!(!write_large_at_once(large, LARGE, marks[0]));
        assert_eq!(Beside::of(large).large(), None);
        assert!(write_large(large, LARGE, marks[0]) && write_large_at_once(large, 2 * LARGE, marks[1]));
        assert_eq!(Beside::of(large).large(), Some((2 * LARGE, marks[1])));
    }

    #[test]
    fn what_is_nearly_large_has_no_cookie() {
        let (short, long) = (Named::Slot(Slot::UNATTRIBUTED), Named::Slot(Slot::new(70_000).unwrap()));
        assert_eq!((request(4093, short), request(4094, short)), (Some(4095), Some(LARGE)));
        assert_eq!((request(4089, long), request(4091, long)), (Some(4095), Some(LARGE)));
        assert_eq!((request(LARGE, short), size(LARGE, short)), (Some(LARGE), LARGE));
        assert_eq!(request(usize::MAX, long), Some(usize::MAX));
    }

    #[test]
    fn an_overwritten_cookie_is_not_believed() {
        for bytes in [[0; 8], [0xff; 8]] {
            // SAFETY: a block of six bytes and its cookie.
            assert_eq!(unsafe { read(bytes.as_ptr(), 8) }, None);
        }
    }
}

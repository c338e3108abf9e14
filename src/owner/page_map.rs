//! Owners of large blocks, which stand beside the heap.
//!
//! Large blocks often fill a size class exactly, as pages and buffers do, so
//! that two bytes more would cost a quarter of the block; and their last bytes
//! are seldom in the cache when they are freed. But no two of them begin within
//! [`LARGE`] bytes, unless one is in the other, so a table with an entry for each
//! such stretch of the address space holds all of their owners.
//!
//! ```text
//! ROOT ──▶ leaf: one entry for each LARGE bytes of a GiB of addresses
//! ```
//!
//! C's blocks, whose size the caller of `free` does not say, have more there: see [`unsized_free`](super::unsized_free).
//!
//! Leaves are mapped when they are first written, and touched a page at a time.
//! Where there is none, and where its entry is zero, the owner is the
//! unattributed service. So reading never fails, and where the system has no
//! memory left for a leaf, that service gets the block.

use super::slot::{Mark, Named, Slot};
use crate::sync::{AtomicPtr, AtomicU32, Ordering, nulls, shared};
use crate::sys;

/// From this many bytes on blocks are large.
pub const LARGE: usize = 4096;

/// Notes the owner of a large block. `false` if the system gives no memory for
/// it; then the block is the unattributed service's.
pub(crate) fn write(block: *mut u8, named: Named) -> bool {
    if named.is_short() {
        return write_short(block, named.mark());
    }
    set(block, named.tagged())
}

/// Notes the owner of a large block by its mark, if its slot is a short one.
#[inline]
pub(crate) fn write_short(block: *mut u8, mark: Mark) -> bool {
    set(block, mark.bits() ^ UNATTRIBUTED)
}

/// The mark of a large block's owner; none that a cell has if its slot is a long one, or the block
/// is sampled.
#[inline]
pub(crate) fn read_mark(block: *const u8) -> Mark {
    Mark::from_bits(get(block) ^ UNATTRIBUTED)
}

/// The owner of a large block, or its sample. Of what is no block of ours: any, or `None`.
pub(crate) fn read(block: *const u8) -> Option<Named> {
    owner(get(block))
}

/// The owner that an entry says.
pub(super) fn owner(entry: u32) -> Option<Named> {
    if entry > u32::from(u16::MAX) {
        Named::of_tagged(entry)
    } else {
        Named::of_mark(Mark::from_bits(entry ^ UNATTRIBUTED))
    }
}

struct Leaf([AtomicU32; LEAF / LARGE]);

/// Bytes of the address space that a leaf has entries for: a GiB. It is mapped as a
/// MiB.
const LEAF: usize = if cfg!(dogtag_loom) { 2 * LARGE } else { 1 << 30 };
const LEAVES: usize = if cfg!(dogtag_loom) { 1 } else { 1 << (ADDRESS_BITS - 30) };
/// Bits of an address that a process has, unless it asks for more; above them some
/// systems have tags.
const ADDRESS_BITS: u32 = 48;

shared! {
    static ROOT: [AtomicPtr<Leaf>; LEAVES] = nulls!(LEAVES);
}

/// The mark that is kept as zero; all others differ from it, and in their lower
/// half alone.
pub(super) const UNATTRIBUTED: u32 = Slot::UNATTRIBUTED.mark().bits();

/// The entry of the page in which a block begins.
#[inline(always)]
pub(super) fn get(block: *const u8) -> u32 {
    let (leaf, entry) = place(block);
    // SAFETY: leaves are never unmapped.
    let Some(leaf) = (unsafe { leaf.load(Ordering::Acquire).as_ref() }) else { return 0 };
    // Written before the block was handed out.
    leaf.0[entry].load(Ordering::Relaxed)
}

#[inline]
pub(super) fn set(block: *mut u8, owner: u32) -> bool {
    let (leaf, entry) = place(block);
    // SAFETY: leaves are never unmapped.
    let mapped = unsafe { leaf.load(Ordering::Acquire).as_ref() };
    let Some(leaf) = mapped.or_else(|| map(leaf)) else { return false };
    leaf.0[entry].store(owner, Ordering::Relaxed);
    true
}

/// Variant of [`set`] for where there is a leaf already. `false`, and nothing is written, if there is none.
#[inline(always)]
#[cfg(not(feature = "memory-check"))]
pub(super) fn set_at_once(block: *mut u8, owner: u32) -> bool {
    let (leaf, entry) = place(block);
    // SAFETY: leaves are never unmapped.
    let Some(leaf) = (unsafe { leaf.load(Ordering::Acquire).as_ref() }) else { return false };
    leaf.0[entry].store(owner, Ordering::Relaxed);
    true
}

#[inline]
fn place(block: *const u8) -> (&'static AtomicPtr<Leaf>, usize) {
    let address = block.addr();
    (&ROOT[address / LEAF % LEAVES], address % LEAF / LARGE)
}

#[cold]
#[inline(never)]
fn map(leaf: &AtomicPtr<Leaf>) -> Option<&'static Leaf> {
    // SAFETY: all atomics, for which zeros are valid.
    unsafe { sys::get_or_map(leaf) }
}

#[cfg(dogtag_loom)]
impl Default for Leaf {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use std::ptr;

    fn block(address: usize) -> *mut u8 {
        ptr::without_provenance_mut(address)
    }

    /// Where no process of ours has a heap.
    const NOWHERE: usize = 0x1234 << 32;

    #[test]
    fn every_slot_reads_back_beside_others() {
        let slots = (0..70_000).chain([1 << 20, Slot::COUNT - 1]).filter_map(Slot::new);
        let blocks: Vec<_> = slots.enumerate().map(|(i, slot)| (block(NOWHERE + i * LARGE), slot)).collect();
        for &(block, slot) in &blocks {
            assert!(write(block, slot.into()));
        }
        for (block, slot) in blocks {
            assert_eq!(read(block), Some(slot.into()));
            // What the hot path looks up is the slot's, or none that a cell has.
            let mark = read_mark(block);
            assert!(if slot.is_short() {
                mark == slot.mark()
            } else {
                mark.bits() > Mark::LONG.bits() | 0xffff
            });
        }
    }

    #[test]
    fn where_nothing_was_written_the_unattributed_service_is_the_owner() {
        let fresh = block(NOWHERE + (1 << 40));
        for fresh in [fresh, fresh.wrapping_add(LEAF), block(usize::MAX)] {
            assert_eq!(read(fresh), Some(Slot::UNATTRIBUTED.into()));
            assert_eq!(read_mark(fresh), Slot::UNATTRIBUTED.mark());
        }
        // Beside one that was written, too.
        assert!(write(fresh, Slot::new(7).unwrap().into()));
        assert_eq!(read(fresh.wrapping_add(LARGE)), Some(Slot::UNATTRIBUTED.into()));
        assert!(write(fresh, Slot::UNATTRIBUTED.into()));
        assert_eq!(read(fresh), Some(Slot::UNATTRIBUTED.into()));
    }

    #[test]
    fn no_other_entry_is_a_slot() {
        let address = block(NOWHERE + (2 << 40));
        for entry in [1 << 16, u32::MAX, 1 << 24, 0x14 << 24, (0x14 << 24) | 0xffff] {
            assert!(set(address, entry));
            assert_eq!(read(address), None, "{entry:#x}");
        }
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::whole_model;
    use loom::thread;
    use std::ptr;

    /// Two threads need the same leaf, which neither has found.
    #[test]
    fn whoever_maps_a_leaf_keeps_the_others_owner() {
        whole_model(|| {
            let write_and_read = |address: usize, slot| {
                let (block, slot) = (ptr::without_provenance_mut(address), Slot::new(slot).unwrap());
                assert!(write(block, slot.into()));
                assert_eq!(read(block), Some(slot.into()));
            };
            let other = thread::spawn(move || write_and_read(0, 1));
            write_and_read(LARGE, 2);
            other.join().unwrap();
            assert_eq!(read(ptr::null()), Slot::new(1).map(Named::Slot));
            assert_eq!(read(ptr::without_provenance(LARGE)), Slot::new(2).map(Named::Slot));
        });
    }
}

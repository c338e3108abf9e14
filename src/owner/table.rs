//! Owners by the page: a table beside the heap, and nothing behind a block.
//!
//! The blocks of a page mostly have one owner, so it is noted once.
//!
//! ```text
//! ROOT ──▶ leaf, for 128 MiB of addresses
//!          ├─ entries:  2 bytes for each 4 KiB: nobody, one owner's mark, or mixed
//!          ├─ former:   2 bytes for each 4 KiB: of a mixed page, whose it was alone
//!          ├─ granules: 2 bytes for each 16 bytes, and as many for what begins between two such:
//!          │            of a mixed page, the mark of the block that begins there; 0 is the former owner
//!          └─ wide ──▶  4 bytes for each 8 bytes: a long slot or a sample, where the granule is the escape
//! ```
//!
//! An allocation in a page that is its owner's already writes nothing. Otherwise it moves the entry,
//! by compare-and-swap, *nobody → one owner → mixed*, and never back; in a mixed page each allocation writes
//! the granule at which its block begins. Long slots and samples have mixed pages only. A free reads the
//! entry, which serves a whole page, and its granule if the page is mixed.
//!
//! Why each free reads what was noted, whatever other threads do meanwhile, without a fence or a
//! lock on the hot path:
//!
//! - *An entry changes twice at most*, so all who make a page mixed have found the same one owner in it
//!   and store the same `former`, before the entry says that the page is mixed (release, acquire). One
//!   that finds *nobody* stores none.
//! - *A block that was allocated in a page of its owner alone* has written nothing. If the page is mixed by
//!   another thread, before or after that, the block's granule is 0, since none but a block that begins
//!   there writes it; so the former owner is found, which is the block's. If an older block there had
//!   written it, the page was mixed while that one was live; it was freed before this one was allocated,
//!   and the backend, which hands the memory on from thread to thread, makes all that visible which its
//!   former owner had seen: so this allocation has found the page mixed.
//! - *A granule is one block's*: blocks begin at different multiples of 8 bytes, and it is written and
//!   read between the block's allocation in the backend and its free.
//!
//! A page that the backend gives back to the system, or fills with other blocks, keeps its entry: at worst
//! it becomes mixed without need.
//!
//! Leaves are mapped when they are first needed, and touched a page at a time. Where the system refuses
//! one, the block is the unattributed service's, and so is, from then on, each page of these
//! 128 MiB before it becomes mixed: a leaf that is mapped later begins so. A leaf has all that its pages
//! may need, but for wide owners: a block for whose there is no memory is noted as the unattributed service's.
//! After a fork the child has a copy, in which each entry is whole.

use super::slot::{Mark, Named, Slot};
use crate::sync::{AtomicBool, AtomicPtr, AtomicU16, AtomicU32, Ordering, fence, nulls, shared};
use crate::sys;
use std::ptr;

/// What an entry stands for.
const PAGE: usize = if cfg!(dogtag_loom) { 32 } else { 4096 };
/// Blocks begin at multiples of this.
const ALIGN: usize = 8;
/// Bytes of the address space that a leaf is for. It is mapped as 32 MiB and a little.
const LEAF: usize = if cfg!(dogtag_loom) { PAGE } else { 128 << 20 };
const PAGES: usize = LEAF / PAGE;
const GRANULES: usize = LEAF / (2 * ALIGN);
/// Bits of an address that a process has, unless it asks for more; above them some
/// systems have tags.
const ADDRESS_BITS: u32 = 48;
const LEAVES: usize = if cfg!(dogtag_loom) { 1 } else { (1 << ADDRESS_BITS) / LEAF };

/// Neither this is a slot's mark, nor the next one.
const NOBODY: u16 = 0;
const MIXED: u16 = 0xffff;
/// A granule whose owner stands in the wide table.
const ESCAPE: u16 = Mark::LONG.short();
const UNATTRIBUTED: u16 = Slot::UNATTRIBUTED.mark().short();

#[repr(C)]
struct Leaf {
    entries: Entries,
    former: Entries,
    granules: [Granules; 2],
    wide: AtomicPtr<Wide>,
}

struct Entries([AtomicU16; PAGES]);
struct Granules([AtomicU16; GRANULES]);
struct Wide([AtomicU32; LEAF / ALIGN]);

shared! {
    /// Null, [`refused`], or a leaf.
    static ROOT: [AtomicPtr<Leaf>; LEAVES] = nulls!(LEAVES);

    static IS_USED: AtomicBool = AtomicBool::new(false);
}

/// Stands where a leaf was refused, and some block has no owner for that.
const fn refused() -> *mut Leaf {
    ptr::without_provenance_mut(1)
}

/// Whether some instance has its owners here.
pub(super) fn is_used() -> bool {
    IS_USED.load(Ordering::Relaxed)
}

/// Notes the owner of a block by its mark, if its slot is a short one, and either all of its page is its
/// owner's, so that nothing is written, or the page is mixed already.
#[inline(always)]
pub(super) fn write_short_at_once(block: *mut u8, mark: Mark) -> bool {
    let Some(leaf) = leaf(block) else { return false };
    let found = leaf.entries.of(block).load(Ordering::Relaxed);
    if found == mark.short() {
        return true;
    }
    if found != MIXED {
        return false;
    }
    leaf.granule(block).store(mark.short(), Ordering::Relaxed);
    true
}

/// The mark of a block's owner; none that a cell has if its slot is a long one, the block
/// is sampled, or there was no memory to note its owner.
#[inline(always)]
pub(super) fn read_mark(block: *const u8) -> Mark {
    Mark::from_short(leaf(block).map_or(NOBODY, |leaf| leaf.mark(block)))
}

/// The owner of a block, or its sample. Of what is no block of ours: any, or `None`.
pub(super) fn read(block: *const u8) -> Option<Named> {
    let Some(leaf) = leaf(block) else { return Some(Slot::UNATTRIBUTED.into()) };
    match leaf.mark(block) {
        NOBODY => Some(Slot::UNATTRIBUTED.into()),
        // SAFETY: wide tables are never unmapped.
        ESCAPE => match unsafe { leaf.wide.load(Ordering::Acquire).as_ref() } {
            Some(wide) => Named::of_tagged(wide.of(block).load(Ordering::Relaxed)),
            None => None,
        },
        mark => Named::of_mark(Mark::from_short(mark)),
    }
}

/// Notes the owner of a block by its mark, if its slot is a short one. `false` if the system gives
/// no memory for it; then the block is the unattributed service's.
#[inline]
pub(super) fn write_short(block: *mut u8, mark: Mark) -> bool {
    let Some(leaf) = leaf(block).or_else(|| map(root(block))) else { return false };
    leaf.note(block, mark.short());
    true
}

/// Notes the owner of a block. `false` as for [`write_short`].
pub(super) fn write(block: *mut u8, named: Named) -> bool {
    if named.is_short() {
        return write_short(block, named.mark());
    }
    let Some(leaf) = leaf(block).or_else(|| map(root(block))) else { return false };
    // SAFETY: all atomics, for which zeros are valid; nobody else fills the place.
    let Some(wide) = (unsafe { sys::get_or_map_sparse(&leaf.wide) }) else {
        leaf.note(block, UNATTRIBUTED);
        return false;
    };
    wide.of(block).store(named.tagged(), Ordering::Relaxed);
    leaf.note(block, ESCAPE);
    true
}

impl Leaf {
    /// Notes a short mark, or the escape.
    #[inline]
    fn note(&self, block: *mut u8, mark: u16) {
        let entry = self.entries.of(block);
        // So that `former` is seen by whoever finds the page mixed.
        let mut found = entry.load(Ordering::Acquire);
        while found != MIXED {
            if found == mark {
                return;
            }
            let new = if found == NOBODY && mark != ESCAPE { mark } else { MIXED };
            if new == MIXED && found != NOBODY {
                self.former.of(block).store(found, Ordering::Relaxed);
            }
            match entry.compare_exchange(found, new, Ordering::Release, Ordering::Acquire) {
                Ok(_) => found = new,
                Err(other) => found = other,
            }
        }
        self.granule(block).store(mark, Ordering::Relaxed);
    }

    /// What the table says of a block. It was written before the block was handed out.
    #[inline(always)]
    fn mark(&self, block: *const u8) -> u16 {
        let found = self.entries.of(block).load(Ordering::Relaxed);
        if found != MIXED {
            return found;
        }
        let mark = self.granule(block).load(Ordering::Relaxed);
        if mark != 0 {
            return mark;
        }
        // With the release of whoever has made the page mixed, and stored `former` before.
        fence(Ordering::Acquire);
        self.former.of(block).load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn granule(&self, block: *const u8) -> &AtomicU16 {
        let address = block.addr();
        &self.granules[address / ALIGN % 2].0[address / (2 * ALIGN) % GRANULES]
    }
}

impl Entries {
    #[inline(always)]
    fn of(&self, block: *const u8) -> &AtomicU16 {
        &self.0[block.addr() / PAGE % PAGES]
    }
}

impl Wide {
    fn of(&self, block: *const u8) -> &AtomicU32 {
        &self.0[block.addr() / ALIGN % self.0.len()]
    }
}

#[inline(always)]
fn root(block: *const u8) -> &'static AtomicPtr<Leaf> {
    &ROOT[block.addr() / LEAF % LEAVES]
}

#[inline(always)]
fn leaf(block: *const u8) -> Option<&'static Leaf> {
    known(root(block).load(Ordering::Acquire))
}

#[inline(always)]
fn known(leaf: *mut Leaf) -> Option<&'static Leaf> {
    // SAFETY: what is neither null nor `refused` is a leaf, and leaves are never unmapped.
    if leaf.addr() > refused().addr() { Some(unsafe { &*leaf }) } else { None }
}

/// Maps a leaf. `None`, which is noted in its place, where the system refuses.
#[cold]
#[inline(never)]
fn map(place: &AtomicPtr<Leaf>) -> Option<&'static Leaf> {
    IS_USED.store(true, Ordering::Relaxed);
    // SAFETY: all atomics, for which zeros are valid.
    let Some(fresh) = (unsafe { sys::map_zeroed_sparse::<Leaf>() }) else { return refuse(place) };
    let (new, mut found) = (ptr::from_ref(fresh).cast_mut(), place.load(Ordering::Acquire));
    loop {
        if known(found).is_some() {
            // SAFETY: nobody has seen `fresh`.
            unsafe { sys::unmap(fresh) };
            return known(found);
        }
        if found == refused() {
            // Blocks without owners are anywhere.
            fresh.entries.0.iter().for_each(|entry| entry.store(UNATTRIBUTED, Ordering::Relaxed));
        }
        match place.compare_exchange(found, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Some(fresh),
            Err(other) => found = other,
        }
    }
}

/// Notes that a block has no owner for want of a leaf, unless another thread has just mapped it.
fn refuse(place: &AtomicPtr<Leaf>) -> Option<&'static Leaf> {
    match place.compare_exchange(ptr::null_mut(), refused(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => None,
        Err(other) => known(other),
    }
}

#[cfg(dogtag_loom)]
impl Default for Leaf {
    fn default() -> Self {
        let numbers = || std::array::from_fn(|_| AtomicU16::new(0));
        Self {
            entries: Entries(std::array::from_fn(|_| AtomicU16::new(0))),
            former: Entries(std::array::from_fn(|_| AtomicU16::new(0))),
            granules: [Granules(numbers()), Granules(numbers())],
            wide: AtomicPtr::new(ptr::null_mut()),
        }
    }
}

#[cfg(dogtag_loom)]
impl Default for Wide {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

#[cfg(test)]
mod tests;

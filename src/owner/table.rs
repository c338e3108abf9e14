//! Owners by the page: a table beside the heap, and nothing behind a block.
//!
//! The blocks of a page mostly have one owner, so it is noted once.
//!
//! ```text
//! ROOT ──▶ leaf, for 128 MiB of addresses
//!          ├─ entries:  4 bytes for each 4 KiB: nobody; one owner's mark; or mixed, and whose it was alone
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
//! - *An entry changes twice at most*, and one that says that its page is mixed says whose it was before, too.
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
//! one, which is asked again once a second, the block is the unattributed service's, and so is, from then on, each page of these
//! 128 MiB before it becomes mixed: a leaf that is mapped later begins so. A leaf has all that its pages
//! may need, but for wide owners: a block for whose there is no memory is noted as the unattributed service's.
//! After a fork the child has a copy, in which each entry is whole.

use super::slot::{Mark, Named, Slot};
use crate::sync::{AtomicBool, AtomicPtr, AtomicU16, AtomicU32, AtomicU64, Ordering, nulls, shared};
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

/// Of one that says that a page is mixed, above that: the former owner, or [`NOBODY`].
const FORMER: u32 = u16::BITS;
/// A granule whose owner stands in the wide table.
const ESCAPE: u16 = Mark::LONG.short();
const UNATTRIBUTED: Mark = Slot::UNATTRIBUTED.mark();

#[repr(C)]
struct Leaf {
    /// Zero, the bits of a mark, or [`MIXED`].
    entries: Entries,
    granules: [Granules; 2],
    wide: AtomicPtr<Wide>,
}

struct Entries([AtomicU32; PAGES]);
struct Granules([AtomicU16; GRANULES]);
struct Wide([AtomicU32; LEAF / ALIGN]);

shared! {
    /// Null, [`refused()`], or a leaf.
    static ROOT: [AtomicPtr<Leaf>; LEAVES] = nulls!(LEAVES);

    static IS_USED: AtomicBool = AtomicBool::new(false);

    /// When the system was asked again for what it had refused, in milliseconds.
    static ASKED_AGAIN: AtomicU64 = AtomicU64::new(0);
}

/// Stands where the system has refused memory, and some block has no owner for that.
const fn refused<T>() -> *mut T {
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
    if found == mark.bits() {
        return true;
    }
    if !is_mixed(found) {
        return false;
    }
    leaf.granule(block).store(mark.short(), Ordering::Relaxed);
    true
}

/// What is seen of a block's owner at first.
#[derive(Clone, Copy)]
pub(super) struct Sight {
    leaf: &'static Leaf,
    entry: u32,
}

impl Sight {
    /// `None` if nothing is known of these addresses, so that the block can only be the unattributed service's.
    #[inline(always)]
    pub(super) fn of(block: *const u8) -> Option<Self> {
        let leaf = leaf(block)?;
        Some(Self { leaf, entry: leaf.entries.of(block).load(Ordering::Relaxed) })
    }

    /// The mark of the owner if all of the page is its; otherwise none that a cell has.
    #[inline(always)]
    pub(super) fn mark_of_page(self) -> Mark {
        Mark::from_bits(self.entry)
    }

    /// The mark of the block's owner; none that a cell has if its slot is a long one, the block
    /// is sampled, or there was no memory to note its owner.
    #[inline(always)]
    pub(super) fn mark(self, block: *const u8) -> Mark {
        Mark::from_short(self.leaf.mark(block, self.entry))
    }
}

/// The mark of a block's owner, as [`Sight::mark`].
#[inline(always)]
pub(super) fn read_mark(block: *const u8) -> Mark {
    Sight::of(block).map_or(Mark::from_short(NOBODY), |sight| sight.mark(block))
}

/// The owner of a block, or its sample. Of what is no block of ours: any, or `None`.
pub(super) fn read(block: *const u8) -> Option<Named> {
    let Some(leaf) = leaf(block) else { return Some(Slot::UNATTRIBUTED.into()) };
    match leaf.mark(block, leaf.entries.of(block).load(Ordering::Relaxed)) {
        NOBODY => Some(Slot::UNATTRIBUTED.into()),
        ESCAPE => match known(leaf.wide.load(Ordering::Acquire)) {
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
    let Some(leaf) = leaf(block).or_else(|| map_leaf(root(block))) else { return false };
    leaf.note(block, mark);
    true
}

/// Notes the owner of a block. `false` as for [`write_short`].
pub(super) fn write(block: *mut u8, named: Named) -> bool {
    if named.is_short() {
        return write_short(block, named.mark());
    }
    let Some(leaf) = leaf(block).or_else(|| map_leaf(root(block))) else { return false };
    let wide = known(leaf.wide.load(Ordering::Acquire)).or_else(|| map(&leaf.wide, |_| ()));
    let Some(wide) = wide else {
        leaf.note(block, UNATTRIBUTED);
        return false;
    };
    wide.of(block).store(named.tagged(), Ordering::Relaxed);
    leaf.note(block, Mark::LONG);
    true
}

impl Leaf {
    /// Notes a short mark, or the escape.
    #[inline]
    fn note(&self, block: *mut u8, mark: Mark) {
        let entry = self.entries.of(block);
        let mut found = entry.load(Ordering::Relaxed);
        while !is_mixed(found) {
            if found == mark.bits() {
                return;
            }
            let is_first = found == u32::from(NOBODY) && mark.short() != ESCAPE;
            let new = if is_first { mark.bits() } else { found << FORMER | u32::from(MIXED) };
            match entry.compare_exchange(found, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if is_first => return,
                Ok(_) => break,
                Err(other) => found = other,
            }
        }
        self.granule(block).store(mark.short(), Ordering::Relaxed);
    }

    /// What the table says of a block in a page of that entry. It was written before the block was handed out.
    #[inline(always)]
    fn mark(&self, block: *const u8, entry: u32) -> u16 {
        if !is_mixed(entry) {
            return entry as u16;
        }
        match self.granule(block).load(Ordering::Relaxed) {
            0 => (entry >> FORMER) as u16,
            mark => mark,
        }
    }

    #[inline(always)]
    fn granule(&self, block: *const u8) -> &AtomicU16 {
        let address = block.addr();
        &self.granules[address / ALIGN % 2].0[address / (2 * ALIGN) % GRANULES]
    }
}

/// Whether an entry says that its page is mixed.
#[inline(always)]
const fn is_mixed(entry: u32) -> bool {
    entry as u16 == MIXED
}

impl Entries {
    #[inline(always)]
    fn of(&self, block: *const u8) -> &AtomicU32 {
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

/// What stands in a place, or is read from there.
#[inline(always)]
fn known<T>(found: *mut T) -> Option<&'static T> {
    // SAFETY: what is neither null nor `refused` is mapped, and never unmapped.
    if found.addr() > refused::<T>().addr() { Some(unsafe { &*found }) } else { None }
}

#[cold]
#[inline(never)]
fn map_leaf(place: &AtomicPtr<Leaf>) -> Option<&'static Leaf> {
    IS_USED.store(true, Ordering::Relaxed);
    // Blocks without owners are anywhere. But in the page of address 0 is none: null is nobody's.
    let is_first = !cfg!(dogtag_loom) && ptr::eq(place, &raw const ROOT[0]);
    map(place, |fresh: &Leaf| {
        let entries = fresh.entries.0.iter().skip(usize::from(is_first));
        entries.for_each(|entry| entry.store(UNATTRIBUTED.bits(), Ordering::Relaxed));
    })
}

/// Maps what a place is for. `None`, which is noted there, where the system refuses; then it is asked again, for
/// all such places, once a second. After that `after_refusal` prepares what it gives.
#[cold]
#[inline(never)]
fn map<T: sys::Zeroed>(place: &AtomicPtr<T>, after_refusal: impl Fn(&T)) -> Option<&'static T> {
    let is_time = || cfg!(dogtag_loom) || sys::is_time(&ASKED_AGAIN);
    if place.load(Ordering::Acquire) == refused() && !is_time() {
        return None;
    }
    // SAFETY: all atomics, for which zeros are valid.
    let Some(fresh) = (unsafe { sys::map_zeroed_sparse::<T>() }) else { return refuse(place) };
    let (new, mut found) = (ptr::from_ref(fresh).cast_mut(), place.load(Ordering::Acquire));
    loop {
        if known(found).is_some() {
            // SAFETY: nobody has seen `fresh`.
            unsafe { sys::unmap(fresh) };
            return known(found);
        }
        if found == refused() {
            after_refusal(fresh);
        }
        match place.compare_exchange(found, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Some(fresh),
            Err(other) => found = other,
        }
    }
}

/// Notes that a block has no owner for want of memory, unless another thread has just mapped it.
fn refuse<T>(place: &AtomicPtr<T>) -> Option<&'static T> {
    if !cfg!(dogtag_loom) {
        // From now on, not at once.
        sys::is_time(&ASKED_AGAIN);
    }
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
            entries: Entries(std::array::from_fn(|_| AtomicU32::new(0))),
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

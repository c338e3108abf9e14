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
use crate::sync::{AtomicPtr, AtomicU16, AtomicU32, Ordering, nulls, shared};
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
}

/// Stands where a leaf was refused, and some block has no owner for that.
const fn refused() -> *mut Leaf {
    ptr::without_provenance_mut(1)
}

/// Whether a block of that mark needs nothing written where it begins: its page is its owner's.
#[inline(always)]
pub(super) fn is_page_of(block: *const u8, mark: Mark) -> bool {
    entry(block) == mark.short()
}

/// The mark of all blocks in the page in which a block begins; none that a cell has if the
/// page is mixed, or nobody's.
#[inline(always)]
pub(super) fn read_page_mark(block: *const u8) -> Mark {
    Mark::from_short(entry(block))
}

/// The mark of a block's owner; none that a cell has if its slot is a long one, the block
/// is sampled, or there was no memory to note its owner.
#[inline]
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

    /// What the table says of a block.
    #[inline]
    fn mark(&self, block: *const u8) -> u16 {
        let found = self.entries.of(block).load(Ordering::Acquire);
        if found != MIXED {
            return found;
        }
        match self.granule(block).load(Ordering::Relaxed) {
            0 => self.former.of(block).load(Ordering::Relaxed),
            mark => mark,
        }
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

#[inline(always)]
fn entry(block: *const u8) -> u16 {
    match leaf(block) {
        // Written before the block was handed out.
        Some(leaf) => leaf.entries.of(block).load(Ordering::Relaxed),
        None => NOBODY,
    }
}

/// Maps a leaf. `None`, which is noted in its place, where the system refuses.
#[cold]
#[inline(never)]
fn map(place: &AtomicPtr<Leaf>) -> Option<&'static Leaf> {
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

/// What the allocator does, in the same order.
#[cfg(test)]
mod acts {
    use super::*;

    pub(super) fn block(address: usize) -> *mut u8 {
        ptr::without_provenance_mut(address)
    }

    pub(super) fn allocate(block: *mut u8, named: impl Into<Named>) -> bool {
        let named = named.into();
        (named.is_short() && is_page_of(block, named.mark())) || write(block, named)
    }

    /// The owner that a free finds, on whatever way.
    pub(super) fn owner(block: *const u8) -> Option<Named> {
        let is_cells = |mark: &Mark| Named::of_mark(*mark).is_some();
        let short =
            Some(read_page_mark(block)).filter(is_cells).or_else(|| Some(read_mark(block)).filter(is_cells));
        let found = short.map_or_else(|| read(block), Named::of_mark);
        assert_eq!(found, read(block));
        found
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::acts::*;
    use super::*;
    use crate::owner::SampleId;
    use std::sync::Mutex;

    /// Where no process of ours has a heap: a stretch for each test.
    const NOWHERE: usize = 0x1237 << 32;

    fn slot(index: u32) -> Slot {
        Slot::new(index).unwrap()
    }

    fn is_mixed(address: usize) -> bool {
        entry(block(address)) == MIXED
    }

    #[test]
    fn every_slot_reads_back_alone_and_among_others() {
        let slots = (0..70_000).chain([1 << 20, Slot::COUNT - 1]).filter_map(Slot::new);
        let samples =
            [0, 70_000, SampleId::COUNT - 1].map(|index| Named::Sample(SampleId::new(index).unwrap()));
        let all: Vec<Named> = slots.map(Named::Slot).chain(samples).collect();
        for (page, &named) in all.iter().enumerate() {
            let page = NOWHERE + page * PAGE;
            assert!(allocate(block(page + 64), named));
            assert_eq!(owner(block(page + 64)), Some(named));
            assert_eq!(is_mixed(page), !named.is_short(), "{named:?}");
            // The mark that the hot path looks up is the slot's, or none that a cell has.
            assert_eq!(read_mark(block(page + 64)), named.mark());
        }
        for (page, &named) in all.iter().enumerate() {
            let (page, other) = (NOWHERE + page * PAGE, all[(page + 7) % all.len()]);
            assert!(allocate(block(page), other) && allocate(block(page + PAGE - 8), other));
            for (offset, named) in [(0, other), (64, named), (PAGE - 8, other)] {
                assert_eq!(owner(block(page + offset)), Some(named), "at {offset}");
            }
            assert!(is_mixed(page));
        }
    }

    #[test]
    fn a_page_of_one_owner_stays_unmixed() {
        let page = NOWHERE + (1 << 32);
        for at in (0..PAGE).step_by(8) {
            assert!(allocate(block(page + at), slot(7)));
        }
        assert!(!is_mixed(page) && !is_mixed(page + PAGE));
        assert_eq!(owner(block(page + PAGE)), Some(Slot::UNATTRIBUTED.into()), "nobody's");
        // From now on each place has an owner of its own; those from before keep theirs.
        for at in (8..PAGE).step_by(16) {
            assert!(allocate(block(page + at), slot(1000 + at as u32)));
        }
        for at in (0..PAGE).step_by(16) {
            assert_eq!(owner(block(page + at)), Some(slot(7).into()));
            assert_eq!(owner(block(page + at + 8)), Some(slot(1008 + at as u32).into()));
        }
        // The former owner's new blocks are its own, too.
        assert!(allocate(block(page + 8), slot(7)));
        assert_eq!(owner(block(page + 8)), Some(slot(7).into()));
    }

    #[test]
    fn a_block_that_had_no_memory_for_its_owner_stays_unattributed() {
        let start = NOWHERE + (2 << 32);
        let (ownerless, later) = (block(start), block(start + 16));
        assert!(refuse(root(ownerless)).is_none() && refuse(root(ownerless)).is_none());
        assert!(leaf(ownerless).is_none());
        assert_eq!(owner(ownerless), Some(Slot::UNATTRIBUTED.into()));
        // There is memory again.
        assert!(allocate(later, slot(9)));
        assert_eq!(owner(later), Some(slot(9).into()));
        assert_eq!(owner(ownerless), Some(Slot::UNATTRIBUTED.into()));
        assert_eq!(owner(block(start + LEAF - PAGE)), Some(Slot::UNATTRIBUTED.into()));
        // Somebody else's leaf came first.
        assert!(refuse(root(later)).is_some());
    }

    #[test]
    fn addresses_that_no_process_has_are_nobodys() {
        for address in [0, 8, usize::MAX & !7, 1 << 47, 0xfe << 56] {
            assert_eq!(owner(block(address)), Some(Slot::UNATTRIBUTED.into()));
        }
    }

    /// Blocks go from thread to thread as a backend hands them on, in pages that all share.
    #[test]
    fn threads_that_share_pages_find_each_blocks_owner() {
        const THREADS: u32 = 4;
        const TURNS: usize = 200_000;
        let start = NOWHERE + (3 << 32);
        let free: Mutex<Vec<usize>> = Mutex::new((0..64 * PAGE / 8).map(|at| start + at * 8).rev().collect());
        let live: Mutex<Vec<(usize, Named)>> = Mutex::default();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (free, live) = (&free, &live);
                scope.spawn(move || {
                    for turn in 0..TURNS as u32 {
                        let at = free.lock().unwrap().pop().unwrap();
                        // Long stretches of one owner, as programs have them; now and then a long slot.
                        let index = thread + turn / 50 % 3 * THREADS + u32::from(turn % 1000 == 0) * 70_000;
                        let named = Named::Slot(slot(index));
                        assert!(allocate(block(at), named));
                        assert_eq!(owner(block(at)), Some(named));
                        let freed = {
                            let mut live = live.lock().unwrap();
                            live.push((at, named));
                            let other = turn as usize * 7919 % live.len();
                            (live.len() > 3000).then(|| live.swap_remove(other))
                        };
                        if let Some((at, named)) = freed {
                            assert_eq!(owner(block(at)), Some(named));
                            free.lock().unwrap().push(at);
                        }
                    }
                });
            }
        });
        for (at, named) in live.into_inner().unwrap() {
            assert_eq!(owner(block(at)), Some(named));
        }
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::acts::*;
    use super::*;
    use crate::sync::{AtomicBool, whole_model};
    use loom::thread;
    use std::sync::Arc;

    fn slot(index: u32) -> Named {
        Slot::new(index).unwrap().into()
    }

    /// Allocates a block, and finds its owner again.
    fn allocate_and_read(address: usize, named: Named) {
        assert!(allocate(block(address), named));
        assert_eq!(owner(block(address)), Some(named));
    }

    /// Two threads find a page that is nobody's, and each makes it its own, or mixed.
    #[test]
    fn a_page_that_two_threads_make_mixed_at_once_has_both_owners() {
        whole_model(|| {
            let other = thread::spawn(|| allocate_and_read(16, slot(1)));
            allocate_and_read(0, slot(2));
            other.join().unwrap();
            assert_eq!((owner(block(16)), owner(block(0))), (Some(slot(1)), Some(slot(2))));
        });
    }

    /// Two threads make a third one's page mixed, while that one frees a block, and allocates another one.
    #[test]
    fn a_page_that_others_make_mixed_keeps_its_former_owners_blocks() {
        whole_model(|| {
            allocate_and_read(0, slot(1));
            let others = [(16, 2), (8, 3)]
                .map(|(address, index)| thread::spawn(move || allocate_and_read(address, slot(index))));
            assert_eq!(owner(block(0)), Some(slot(1)));
            allocate_and_read(24, slot(1));
            for other in others {
                other.join().unwrap();
            }
            let found = [0, 8, 16, 24].map(|address| owner(block(address)));
            assert_eq!(found, [1, 3, 2, 1].map(|index| Some(slot(index))));
        });
    }

    /// A long slot's thread makes a page mixed that is nobody's, while a short one's takes it.
    #[test]
    fn a_long_slot_and_a_short_one_meet_in_a_fresh_page() {
        whole_model(|| {
            let other = thread::spawn(|| allocate_and_read(16, slot(70_000)));
            allocate_and_read(0, slot(2));
            other.join().unwrap();
            assert_eq!((owner(block(16)), owner(block(0))), (Some(slot(70_000)), Some(slot(2))));
        });
    }

    /// A block's memory is handed on, by release and acquire as a backend does it, to a thread that
    /// looks at the page for the first time; it was mixed when the former block was allocated.
    #[test]
    fn memory_that_is_handed_on_has_the_new_owner() {
        whole_model(|| {
            allocate_and_read(16, slot(1));
            let is_free = Arc::new(AtomicBool::new(false));
            let taker = thread::spawn({
                let is_free = Arc::clone(&is_free);
                move || {
                    if is_free.load(Ordering::Acquire) {
                        allocate_and_read(0, slot(1));
                    }
                    allocate_and_read(24, slot(1));
                }
            });
            allocate_and_read(0, slot(2));
            is_free.store(true, Ordering::Release);
            taker.join().unwrap();
            assert_eq!((owner(block(16)), owner(block(24))), (Some(slot(1)), Some(slot(1))));
        });
    }

    /// A thread has no memory for a leaf while another one maps it.
    #[test]
    fn a_block_without_an_owner_is_unattributed_whoever_maps_the_leaf() {
        whole_model(|| {
            let other = thread::spawn(|| allocate_and_read(16, slot(1)));
            let is_refused = refuse(root(block(0))).is_none();
            if !is_refused {
                allocate_and_read(0, slot(2));
            }
            other.join().unwrap();
            let expected = if is_refused { Slot::UNATTRIBUTED.into() } else { slot(2) };
            assert_eq!((owner(block(16)), owner(block(0))), (Some(slot(1)), Some(expected)));
        });
    }
}

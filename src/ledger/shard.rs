//! One thread's part of the ledger, and the list of all of them.
//!
//! A shard belongs to one thread at a time. When the thread ends the shard
//! goes to the next new thread with all that was counted in it, so there are
//! never more shards than threads were alive at once, and nothing is ever
//! added up or moved when a thread ends.
//!
//! ```text
//! shard   directory: 256 chunks ──▶ chunk: 256 cells ──▶ cell: 4 counters, threshold, mark
//!         long:   65,536 chunks ──▶ chunks of the slots from 65,536 on
//! ```
//!
//! Shards and chunks are pages from the operating system, touched when they
//! are first used: a thread with a handful of services has two pages.

use crate::ledger::cell::{Cell, Live};
use crate::owner::{Mark, Slot};
use crate::sync::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, const_unless_loom, shared};
use crate::sys;
use crate::usage::Usage;
use std::ptr;

#[cfg(all(test, dogtag_loom))]
mod model;

/// Chunks in a directory, and cells in a chunk: a mark's two bytes.
pub(super) const CELLS: usize = if cfg!(dogtag_loom) { 2 } else { 256 };
const CHUNKS: usize = if cfg!(dogtag_loom) { 1 } else { 256 };
const LONG_CHUNKS: usize = if cfg!(dogtag_loom) { 1 } else { Slot::COUNT as usize / CELLS };

/// Where a slot's cell is in every shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    long: bool,
    pub(super) chunk: usize,
    pub(super) cell: usize,
}

impl Place {
    pub(super) fn of(slot: Slot) -> Self {
        let mark = slot.mark();
        if mark == Mark::LONG {
            return Self::of_long(slot);
        }
        let (chunk, cell) = mark.position();
        Self { long: false, chunk: chunk % CHUNKS, cell: cell % CELLS }
    }

    fn of_long(slot: Slot) -> Self {
        let (chunk, cell) = (slot.index() / CELLS, slot.index() % CELLS);
        Self { long: true, chunk: chunk % LONG_CHUNKS, cell }
    }
}

pub(super) struct Chunk(pub(super) [Cell; CELLS]);

/// The chunks for all short marks; none is missing, since those that nobody has
/// touched are all the same empty one, in which no cell has a mark.
pub(crate) struct Directory([AtomicPtr<Chunk>; CHUNKS]);

impl Directory {
    /// The cell for a short mark, which is another's or unclaimed where the
    /// cell's own mark differs.
    #[inline(always)]
    pub(crate) fn cell(&self, mark: Mark) -> &'static Cell {
        let (chunk, cell) = mark.position();
        let chunk = self.0[chunk % CHUNKS].load(Ordering::Relaxed);
        // SAFETY: a directory is filled with chunks before anybody sees it, and
        // chunks are never unmapped.
        let chunk: &'static Chunk = unsafe { &*chunk };
        &chunk.0[cell % CELLS]
    }

    /// Variant of [`cell`](Self::cell) for a mark whose place is known.
    #[inline(always)]
    pub(crate) fn cell_at(&self, place: &CellPlace) -> &'static Cell {
        // SAFETY: a place is that of an entry of the directory, and of a cell of a chunk. A directory is filled with
        // chunks before anybody sees it, and chunks are never unmapped.
        unsafe {
            let entry = ptr::from_ref(self).byte_add(place.chunk.into()).cast::<AtomicPtr<Chunk>>();
            let chunk = (*entry).load(Ordering::Relaxed);
            &*chunk.byte_add(place.cell.into()).cast::<Cell>()
        }
    }
}

/// Where a mark's cell is in every shard, in bytes: for who goes there often. Passed by reference, since the
/// compiler would load all of it at once, and take it apart by shifts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CellPlace {
    /// From the beginning of a directory.
    chunk: u16,
    /// From the beginning of a chunk.
    cell: u16,
}

impl CellPlace {
    #[inline]
    pub(crate) const fn of(mark: Mark) -> Self {
        let (chunk, cell) = mark.position();
        Self {
            chunk: (chunk % CHUNKS * size_of::<AtomicPtr<Chunk>>()) as u16,
            cell: (cell % CELLS * size_of::<Cell>()) as u16,
        }
    }
}

const _: () = assert!(size_of::<Directory>() <= 1 << 16 && size_of::<Chunk>() <= 1 << 16);

/// A thread's part of the ledger.
#[repr(C, align(4096))]
pub(crate) struct Shard {
    pub(super) directory: Directory,
    /// The chunks for long marks, `null` where nobody touched them.
    long: AtomicPtr<LongDirectory>,
    /// The shard that was the newest before this one.
    older: AtomicPtr<Shard>,
    /// An address in the stack of the thread that has this shard, or had it last.
    pub(super) stack: AtomicUsize,
    /// While this shard is free: the next free one.
    next_free: AtomicPtr<Shard>,
    /// Whether no thread has it. Who takes it from the stack has it if he has changed this.
    is_free: AtomicBool,
    /// Places for what another module keeps for the thread that has the shard; it
    /// goes to the next thread with the rest.
    #[cfg(feature = "memory-check")]
    keepsakes: [AtomicPtr<()>; KEEPSAKES],
    /// Numbers that another module keeps likewise.
    #[cfg(feature = "memory-check")]
    numbers: [AtomicU64; NUMBERS],
}

/// The number of numbers that a shard has for another module.
#[cfg(feature = "memory-check")]
pub(crate) const NUMBERS: usize = 16;

/// The number of places that a shard has for what another module keeps there.
#[cfg(feature = "memory-check")]
pub(crate) const KEEPSAKES: usize = 4;

struct LongDirectory([AtomicPtr<Chunk>; LONG_CHUNKS]);

impl Shard {
    fn map() -> Option<&'static Self> {
        // SAFETY: all atomics, for which zeros are valid.
        let shard = unsafe { sys::map_zeroed::<Self>() }?;
        for chunk in &shard.directory.0 {
            chunk.store(empty_chunk(), Ordering::Relaxed);
        }
        Some(shard)
    }

    /// The slot's cell in this shard, claimed if it is not yet. `None` when the
    /// operating system gives no memory for it. Only the thread that has the
    /// shard may call it.
    pub(crate) fn claim(&self, slot: Slot) -> Option<&'static Cell> {
        let place = Place::of(slot);
        let entry = if place.long { &self.long_directory()?.0 } else { &self.directory.0[..] };
        let entry = &entry[place.chunk];
        let mut chunk: *const Chunk = entry.load(Ordering::Relaxed);
        if chunk.is_null() || ptr::eq(chunk, empty_chunk()) {
            // SAFETY: all atomics, for which zeros are valid.
            let fresh = unsafe { sys::map_zeroed::<Chunk>() }?;
            if place.chunk == 0 {
                // A free whose cookie was overwritten with zeros looks here, and zero is in all that nobody has claimed.
                fresh.0[0].claim_shared(Mark::NONE);
            }
            entry.store(ptr::from_ref(fresh).cast_mut(), Ordering::Release);
            chunk = fresh;
        }
        // SAFETY: chunks are never unmapped.
        let cell = unsafe { &(*chunk).0[place.cell] };
        if cell.mark() != slot.mark() {
            cell.claim(slot.mark());
        }
        Some(cell)
    }

    /// The cell of a long slot, if it is claimed.
    #[inline]
    pub(crate) fn long_cell(&self, slot: Slot) -> Option<&'static Cell> {
        // SAFETY: long directories are never unmapped.
        let long: &'static LongDirectory = unsafe { self.long.load(Ordering::Relaxed).as_ref() }?;
        let place = Place::of_long(slot);
        // SAFETY: chunks are never unmapped.
        let chunk: &'static Chunk = unsafe { long.0[place.chunk].load(Ordering::Relaxed).as_ref() }?;
        Some(&chunk.0[place.cell]).filter(|cell| cell.is_own_for(Mark::LONG))
    }

    /// The chunk of that place, for a reader on any thread; `None` where no
    /// thread that had this shard has touched it.
    pub(super) fn chunk(&self, place: Place) -> Option<&'static Chunk> {
        let entries = if place.long {
            // SAFETY: long directories are never unmapped.
            let long: &'static LongDirectory = unsafe { self.long.load(Ordering::Acquire).as_ref() }?;
            &long.0
        } else {
            &self.directory.0[..]
        };
        let chunk = entries[place.chunk].load(Ordering::Acquire);
        if ptr::eq(chunk, empty_chunk()) {
            return None;
        }
        // SAFETY: chunks are never unmapped.
        unsafe { chunk.as_ref() }
    }

    #[cfg(feature = "memory-check")]
    pub(crate) fn keepsake(&self, number: usize) -> &AtomicPtr<()> {
        &self.keepsakes[number % KEEPSAKES]
    }

    /// Only the thread that has the shard may change them.
    #[cfg(feature = "memory-check")]
    pub(crate) fn numbers(&self) -> &[AtomicU64; NUMBERS] {
        &self.numbers
    }

    /// What was ever counted in this shard, of all services. Only the thread that
    /// has the shard may call it.
    pub(crate) fn usage(&self) -> Usage {
        // SAFETY: long directories are never unmapped.
        let long: Option<&LongDirectory> = unsafe { self.long.load(Ordering::Relaxed).as_ref() };
        let long = long.map_or(&[][..], |long| &long.0[..]);
        let mut usage = Usage::default();
        for chunk in self.directory.0.iter().chain(long) {
            let chunk = chunk.load(Ordering::Relaxed);
            // SAFETY: chunks are never unmapped.
            let Some(chunk) = unsafe { chunk.as_ref() }.filter(|_| !ptr::eq(chunk, empty_chunk())) else {
                continue;
            };
            for cell in &chunk.0 {
                cell.add_allocated(&mut usage);
                cell.add_freed(&mut usage);
            }
        }
        usage
    }

    fn long_directory(&self) -> Option<&'static LongDirectory> {
        // SAFETY: long directories are never unmapped.
        if let Some(long) = unsafe { self.long.load(Ordering::Relaxed).as_ref() } {
            return Some(long);
        }
        // SAFETY: all atomics, for which zeros are valid.
        let fresh = unsafe { sys::map_zeroed::<LongDirectory>() }?;
        self.long.store(ptr::from_ref(fresh).cast_mut(), Ordering::Release);
        Some(fresh)
    }
}

/// All shards of a ledger: a list that only grows, and a stack of those that
/// no thread has.
///
/// Both are lock-free, so that a fork at any moment leaves them whole.
pub(crate) struct ShardList {
    newest: AtomicPtr<Shard>,
    /// The top of the stack, with a tag in the bits that a page's address
    /// leaves over, against the ABA problem: see [`Top`].
    free: AtomicU64,
}

impl ShardList {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self { newest: AtomicPtr::new(ptr::null_mut()), free: AtomicU64::new(0) }
        }
    }

    /// A shard for a thread that has none: a free one, or a new one. `None`
    /// when the operating system gives no memory.
    pub(crate) fn acquire(&self) -> Option<&'static Shard> {
        if let Some(shard) = self.pop_free() {
            return Some(shard);
        }
        let shard = Shard::map()?;
        let mut older = self.newest.load(Ordering::Relaxed);
        loop {
            shard.older.store(older, Ordering::Relaxed);
            let new = ptr::from_ref(shard).cast_mut();
            match self.newest.compare_exchange_weak(older, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return Some(shard),
                Err(now) => older = now,
            }
        }
    }

    /// Puts a shard down for the next thread.
    pub(crate) fn release(&self, shard: &'static Shard) {
        shard.is_free.store(true, Ordering::Release);
        let mut top = self.free.load(Ordering::Relaxed);
        loop {
            shard.next_free.store(Top(top).shard(), Ordering::Relaxed);
            let new = Top(top).followed_by(shard);
            // Release: what this thread counted comes before what the next does.
            match self.free.compare_exchange_weak(top, new.0, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// What was ever counted in a slot: in its cell of every shard, and the
    /// shared one. Frees first, allocations second; [`Cell::add_freed`] says why.
    pub(crate) fn sum(&self, slot: Slot, shared: &Cell) -> Sum {
        let place = Place::of(slot);
        // (Loops, which are half as long as what is made of a chain of iterators: services come and go.)
        let cells = || self.shards().filter_map(|shard| Some(&shard.chunk(place)?.0[place.cell]));
        let mut usage = Usage::default();
        let mut scopes = 0_u64;
        // Scopes before the allocations, too: what a thread has allocated in a scope that it is
        // seen to have left, is seen then.
        let mut add_freed = |cell: &Cell| {
            cell.add_freed(&mut usage);
            scopes = scopes.wrapping_add(cell.scopes());
        };
        for cell in cells() {
            add_freed(cell);
        }
        add_freed(shared);
        for cell in cells() {
            cell.add_allocated(&mut usage);
        }
        shared.add_allocated(&mut usage);
        Sum { usage, scopes }
    }

    /// Bytes that were ever freed in a slot.
    pub(crate) fn freed(&self, slot: Slot, shared: &Cell) -> u64 {
        self.cells(slot, shared).map(Cell::freed).fold(0, u64::wrapping_add)
    }

    /// Bounds of what is live in a slot: of allocations, frees, and allocations
    /// the first two give the lower one, the last two the upper one.
    pub(crate) fn live(&self, slot: Slot, shared: &Cell) -> Live {
        let sum = |count: fn(&Cell) -> u64| self.cells(slot, shared).map(count).fold(0, u64::wrapping_add);
        let (first, freed, last) = (sum(Cell::allocated), sum(Cell::freed), sum(Cell::allocated));
        // They begin again past their end; and of the first more may have been freed meanwhile.
        let live = |allocated: u64| (allocated.wrapping_sub(freed) as i64).max(0) as u64;
        Live { at_least: live(first), at_most: live(last), granted: 0 }
    }

    /// A slot's cells: one in each shard that has it, and the shared one.
    pub(crate) fn cells<'a>(&self, slot: Slot, shared: &'a Cell) -> impl Iterator<Item = &'a Cell> {
        let place = Place::of(slot);
        self.shards().filter_map(move |shard| Some(&shard.chunk(place)?.0[place.cell])).chain([shared])
    }

    /// Every shard there is, free or not.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &'static Shard> + use<> {
        let mut next = self.newest.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: shards are never unmapped; `older` is set before a shard
            // is published and never changes afterwards.
            let shard: &'static Shard = unsafe { next.as_ref() }?;
            next = shard.older.load(Ordering::Relaxed);
            Some(shard)
        })
    }

    fn pop_free(&self) -> Option<&'static Shard> {
        let mut top = self.free.load(Ordering::Acquire);
        loop {
            // SAFETY: shards are never unmapped, so even one that another thread
            // has just taken from the stack can be looked at.
            let shard: &'static Shard = unsafe { Top(top).shard().as_ref() }?;
            let below = shard.next_free.load(Ordering::Relaxed);
            let new = Top(top).followed_by_ptr(below);
            match self.free.compare_exchange_weak(top, new.0, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) if shard.is_free.swap(false, Ordering::Acquire) => return Some(shard),
                // The top was mistaken for an older one. What is left there may be anything, and
                // is given up.
                Ok(_) => {
                    self.free.fetch_and(Top::COUNTER, Ordering::Relaxed);
                    return None;
                }
                Err(now) => top = now,
            }
        }
    }
}

shared! {
    /// The shards of this process.
    pub(super) static SHARDS: ShardList = ShardList::new();
}

/// A slot's cells, added up.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    pub(crate) usage: Usage,
    /// Scopes that threads were in when the frees were added up; of those, none that was
    /// entered before that is missing.
    scopes: u64,
}

impl Sum {
    /// Whether there was a moment, while it was added up, without a block and
    /// without a scope: if nobody could enter meanwhile.
    pub(crate) fn is_quiet(&self) -> bool {
        let Usage { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks, .. } = self.usage;
        (allocated_bytes, allocated_blocks, self.scopes) == (freed_bytes, freed_blocks, 0)
    }
}

/// A shard's address in the upper 36 of its 48 bits (the lower 12 are zero),
/// above a counter that each change advances. A thread that slept through 2^28 changes exactly
/// would mistake an old top for the new one; then the free shards are given up, which are
/// the memory of some threads, and none is given twice.
struct Top(u64);

impl Top {
    const ADDRESS_SHIFT: u32 = 16;
    const COUNTER: u64 = (1 << 28) - 1;

    fn shard(&self) -> *mut Shard {
        ptr::with_exposed_provenance_mut(((self.0 & !Self::COUNTER) >> Self::ADDRESS_SHIFT) as usize)
    }

    fn followed_by(&self, shard: &'static Shard) -> Self {
        self.followed_by_ptr(ptr::from_ref(shard).cast_mut())
    }

    fn followed_by_ptr(&self, shard: *mut Shard) -> Self {
        let address = (shard.expose_provenance() as u64) << Self::ADDRESS_SHIFT;
        Self(address | (self.0.wrapping_add(1) & Self::COUNTER))
    }
}

#[cfg(not(dogtag_loom))]
static EMPTY_CHUNK: Chunk = Chunk([const { Cell::shared(Mark::NONE) }; CELLS]);

/// The directory of a thread that has no shard.
#[cfg(not(dogtag_loom))]
pub(super) static EMPTY_DIRECTORY: Directory =
    Directory([const { AtomicPtr::new((&raw const EMPTY_CHUNK).cast_mut()) }; CHUNKS]);

#[cfg(not(dogtag_loom))]
fn empty_chunk() -> *mut Chunk {
    (&raw const EMPTY_CHUNK).cast_mut()
}

/// Under loom nothing is zeroed memory: what is mapped is made.
#[cfg(dogtag_loom)]
mod made {
    use super::*;

    loom::lazy_static! {
        static ref EMPTY_CHUNK: Chunk = Chunk::default();
    }

    pub(super) fn empty_chunk() -> *mut Chunk {
        ptr::from_ref(&*EMPTY_CHUNK).cast_mut()
    }

    fn nulls<T, const N: usize>() -> [AtomicPtr<T>; N] {
        std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut()))
    }

    impl Default for Chunk {
        fn default() -> Self {
            Self(std::array::from_fn(|_| Cell::shared(Mark::NONE)))
        }
    }

    impl Default for LongDirectory {
        fn default() -> Self {
            Self(nulls())
        }
    }

    impl Default for Shard {
        fn default() -> Self {
            Self {
                directory: Directory(nulls()),
                long: AtomicPtr::new(ptr::null_mut()),
                stack: AtomicUsize::new(0),
                older: AtomicPtr::new(ptr::null_mut()),
                next_free: AtomicPtr::new(ptr::null_mut()),
                is_free: AtomicBool::new(false),
                #[cfg(feature = "memory-check")]
                keepsakes: nulls(),
                #[cfg(feature = "memory-check")]
                numbers: std::array::from_fn(|_| AtomicU64::new(0)),
            }
        }
    }
}
#[cfg(dogtag_loom)]
use made::empty_chunk;

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    /// As a free looks it up whose block's cookie was overwritten.
    #[test]
    fn no_cell_is_that_of_a_mark_that_is_no_slots() {
        let shard = ShardList::new().acquire().unwrap();
        let zeros_chunk = Slot::of_mark(Mark::from_cookie([0, 1])).unwrap();
        for slot in [None, Some(Slot::UNATTRIBUTED), Some(zeros_chunk)] {
            let claimed = slot.map(|slot| (slot.mark(), shard.claim(slot).unwrap()));
            for bytes in 0..=u16::MAX {
                let mark = Mark::from_cookie(bytes.to_ne_bytes());
                let cell = shard.directory.cell(mark);
                let is_claimed =
                    Slot::of_mark(mark).is_some_and(|slot| shard.directory.cell(slot.mark()).mark() == mark);
                assert_eq!(cell.is_own_for(mark), is_claimed, "{mark:?}");
                let is_empty = EMPTY_DIRECTORY.cell(mark).is_own_for(mark);
                assert!(!is_empty, "{mark:?}");
            }
            assert!(claimed.is_none_or(|(mark, cell)| cell.is_own_for(mark)));
        }
    }

    /// Who enters a service goes there; with another place it would find no cell each time, and take the slow way.
    #[test]
    fn a_marks_place_is_where_its_cell_is() {
        let shard = ShardList::new().acquire().unwrap();
        // In each chunk some.
        for slot in (0..1 << 16).step_by(97).filter_map(Slot::new) {
            assert!(shard.claim(slot).is_some());
        }
        for bytes in 0..=u16::MAX {
            let mark = Mark::from_cookie(bytes.to_ne_bytes());
            let [looked_up, known] =
                [shard.directory.cell(mark), shard.directory.cell_at(&CellPlace::of(mark))];
            assert!(ptr::eq(looked_up, known), "{mark:?}");
        }
    }

    /// A thread looks at the top, and changes it when the counter has come round.
    #[test]
    fn a_shard_has_one_owner_though_the_counter_comes_round() {
        let list = ShardList::new();
        let [first, second, third] = [(); 3].map(|()| list.acquire().unwrap());
        list.release(second);
        list.release(first);
        let seen = list.free.load(Ordering::Relaxed);
        // Meanwhile both are taken, and the first is put back.
        assert!(ptr::eq(list.acquire().unwrap(), first) && ptr::eq(list.acquire().unwrap(), second));
        list.release(third);
        list.release(first);
        // Who has seen the old top puts in its place what was below.
        assert!(ptr::eq(Top(seen).shard(), first));
        list.free.store(Top(seen).followed_by(second).0, Ordering::Relaxed);
        assert!(first.is_free.swap(false, Ordering::Relaxed));
        // The second is somebody's.
        let next = list.acquire().unwrap();
        assert!(![first, second].iter().any(|owned| ptr::eq(*owned, next)), "two have it");
        list.release(second);
        assert!(ptr::eq(list.acquire().unwrap(), second));
        assert!(!ptr::eq(list.acquire().unwrap(), second));
    }
}

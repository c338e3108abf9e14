//! The table of slots, each with a record of the service that has it.
//!
//! It is read without a lock, from inside an allocation too; that is why a service's
//! name is kept here and not only in the registry, which may allocate.

use crate::ledger::cell::Cell;
use crate::ledger::family::Family;
use crate::ledger::lifecycle::Lifecycle;
use crate::ledger::shard::{CellPlace, SHARDS};
use crate::owner::{Mark, Slot};
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering, const_unless_loom, nulls, shared, spin};
use crate::sys;
use crate::usage::Usage;
use std::fmt;
use std::ptr::{self, NonNull};

/// A slot, and the service that has it, as the ledger knows it.
///
/// Who the service is changes only while the slot is claimed (`Lifecycle`): whoever
/// holds it, or has it pinned, can rely on that.
#[repr(C)]
pub struct Record {
    /// First, so that a thread can start at the first record's address.
    shared: Cell,
    slot: AtomicU32,
    handle: AtomicU32,
    name: AtomicPtr<u8>,
    name_length: AtomicU32,
    /// What the registry finds the name by.
    name_hash: AtomicU32,
    /// Distinguishes the services that have had this slot.
    generation: AtomicU64,
    life: Lifecycle,
    /// What earlier services of this slot have allocated, and freed.
    earlier: Past,
    /// What all services of this slot that have ended allocated, and freed.
    past: Past,
    family: Family,
    /// The most live bytes that were seen.
    peak_bytes: AtomicU64,
    /// Allocations that a limit has refused.
    denied: AtomicU64,
}

const _: () = assert!(cfg!(dogtag_loom) || size_of::<Record>() == 192);

/// What is left of a link beside the slot. It takes 12 days at least to register and drop so many
/// services one after the other.
pub(crate) const LAST_GENERATION: u64 = u64::MAX >> Slot::COUNT.trailing_zeros();

/// Of services that have ended; so as much was freed as was allocated.
#[derive(Debug)]
struct Past {
    bytes: AtomicU64,
    blocks: AtomicU64,
}

impl Past {
    const_unless_loom! {
        fn none() -> Self {
            Self { bytes: AtomicU64::new(0), blocks: AtomicU64::new(0) }
        }
    }
}

/// What was live in a service at one moment, or less: the allocations were added up before the frees.
/// The other way round, as a reading goes, it may be more than ever was live, by what was freed and
/// allocated meanwhile; as a peak that would stay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    bytes: u64,
    resets: u64,
}

impl Moment {
    /// Before anything is added up: what is found is nobody's peak if that is reset meanwhile.
    pub(crate) fn begin() -> Self {
        Self { bytes: 0, resets: RESETS.load(Ordering::Acquire) }
    }

    /// What was found by a lower bound.
    pub(crate) fn with_at_least(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }
}

shared! {
    /// How often any service's peak was reset.
    static RESETS: AtomicU64 = AtomicU64::new(0);
}

impl Record {
    const_unless_loom! {
        /// The record of a service which never ends, in the first slot.
        fn endless(name: &'static str) -> Self {
            Self {
                shared: Cell::shared(Slot::UNATTRIBUTED.mark()),
                slot: AtomicU32::new(0),
                handle: AtomicU32::new(0),
                name: AtomicPtr::new(name.as_ptr().cast_mut()),
                name_length: AtomicU32::new(name.len() as u32),
                name_hash: AtomicU32::new(0),
                generation: AtomicU64::new(1),
                life: Lifecycle::endless(),
                earlier: Past::none(),
                past: Past::none(),
                family: Family::none(),
                peak_bytes: AtomicU64::new(0),
                denied: AtomicU64::new(0),
            }
        }
    }

    /// Where it stands.
    #[inline]
    pub fn slot(&self) -> Slot {
        Slot::new(self.slot.load(Ordering::Relaxed)).unwrap_or(Slot::UNATTRIBUTED)
    }

    /// The slot's index.
    #[inline]
    pub(crate) fn index(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    /// A number that the next service of this slot does not have.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// The service, as a number that no other one has.
    pub(crate) fn identity(&self) -> (u32, u64) {
        (self.index(), self.generation())
    }

    /// Counts as if the slot had had many services before this one.
    #[cfg(all(test, not(dogtag_loom)))]
    pub(crate) fn preset_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// Whether the slot has had as many services as can be distinguished: then no other gets it.
    pub(crate) fn is_used_up(&self) -> bool {
        self.generation() >= LAST_GENERATION
    }

    /// Its number, as users see it.
    pub fn handle(&self) -> u32 {
        self.handle.load(Ordering::Relaxed)
    }

    /// Of a service that is not in a registry yet.
    pub(crate) fn set_handle(&self, handle: u32) {
        self.handle.store(handle, Ordering::Relaxed);
    }

    /// Of a service that somebody holds or has pinned.
    pub(crate) fn name(&self) -> &str {
        let Some(name) = NonNull::new(self.name.load(Ordering::Relaxed)) else {
            return "";
        };
        let length = self.name_length.load(Ordering::Acquire) as usize;
        // SAFETY: name and length are those of one string, stored while the slot
        // was claimed, and kept until it is claimed again. Of a prepared one the length is 0 until all
        // bytes are there, which do not change any more.
        unsafe { str::from_utf8_unchecked(NonNull::slice_from_raw_parts(name, length).as_ref()) }
    }

    /// The hash that was noted last. No name is found by another service's.
    #[cfg(not(dogtag_loom))]
    #[inline]
    pub(crate) fn name_hash(&self) -> u32 {
        self.name_hash.load(Ordering::Relaxed)
    }

    /// Notes a hash of the name.
    #[cfg(not(dogtag_loom))]
    #[inline]
    pub(crate) fn note_name_hash(&self, hash: u32) {
        self.name_hash.store(hash, Ordering::Relaxed);
    }

    /// The counters that threads without a shard share.
    pub(crate) const fn shared(&self) -> &Cell {
        &self.shared
    }

    /// Points to the shared cell, and as far as the record.
    pub(crate) const fn as_cell(&'static self) -> *const Cell {
        ptr::from_ref(self).cast()
    }

    /// Returns the service that a cell is of: its own shared one, or that of a thread for a short slot.
    ///
    /// # Safety
    ///
    /// `cell` must point to a cell, and if that has the mark of long slots, be what
    /// [`as_cell`](Self::as_cell) returned.
    #[cfg(not(dogtag_loom))]
    #[inline]
    pub(crate) unsafe fn of_cell(cell: *const Cell) -> &'static Self {
        // SAFETY: the caller's cell; cells are never unmapped.
        let mark = unsafe { (*cell).mark() };
        if mark == Mark::LONG {
            // SAFETY: it came from a record, as the caller promises; records are never unmapped.
            return unsafe { &*cell.cast() };
        }
        // The mark is missing where C left a scope once too often, and the service has ended; and where a
        // thread went to a service by memory that ended just then.
        Slot::of_mark(mark).and_then(any_record).unwrap_or(&UNATTRIBUTED)
    }

    pub(crate) const fn lifecycle(&self) -> &Lifecycle {
        &self.life
    }

    /// What this service has allocated and freed, of what was ever counted in its slot. Notes what was
    /// live there at one moment.
    pub(crate) fn share_of(&self, slot: Usage, live: Moment) -> Usage {
        let usage = self.share_without_peak(slot);
        let peak = self.note(live);
        Usage { peak_bytes: peak.max(usage.bytes()), ..usage }
    }

    fn share_without_peak(&self, slot: Usage) -> Usage {
        let bytes = self.earlier.bytes.load(Ordering::Relaxed);
        let blocks = self.earlier.blocks.load(Ordering::Relaxed);
        Usage {
            allocated_bytes: slot.allocated_bytes.wrapping_sub(bytes),
            allocated_blocks: slot.allocated_blocks.wrapping_sub(blocks),
            freed_bytes: slot.freed_bytes.wrapping_sub(bytes),
            freed_blocks: slot.freed_blocks.wrapping_sub(blocks),
            denied: self.denied.load(Ordering::Acquire),
            peak_bytes: 0,
        }
    }

    /// Notes that so many bytes were live, unless the peak was reset since, and returns the most that
    /// ever were.
    pub(crate) fn note(&self, live: Moment) -> u64 {
        let mut peak = self.peak_bytes.load(Ordering::Acquire);
        // Mostly it is not a new one, and needs no store.
        while live.bytes > peak && live.resets == RESETS.load(Ordering::Acquire) {
            let noted =
                self.peak_bytes.compare_exchange_weak(peak, live.bytes, Ordering::Relaxed, Ordering::Acquire);
            match noted {
                Ok(_) => return live.bytes,
                Err(now) => peak = now,
            }
        }
        peak
    }

    /// Forgets the most bytes that ever were live.
    pub(crate) fn reset_peak(&self) {
        RESETS.fetch_add(1, Ordering::AcqRel);
        self.peak_bytes.swap(0, Ordering::AcqRel);
    }

    /// Counts an allocation that a limit has refused.
    pub(crate) fn deny(&self) {
        // In this order: who sees a service's sees it in the sum too.
        DENIED.fetch_add(1, Ordering::Relaxed);
        self.denied.fetch_add(1, Ordering::Release);
    }

    pub(crate) const fn family(&self) -> &Family {
        &self.family
    }

    /// What the service had that ended last.
    pub(crate) fn last_usage(&self) -> Usage {
        let (bytes, blocks) =
            (self.past.bytes.load(Ordering::Relaxed), self.past.blocks.load(Ordering::Relaxed));
        self.share_without_peak(Usage {
            allocated_bytes: bytes,
            allocated_blocks: blocks,
            freed_bytes: bytes,
            freed_blocks: blocks,
            ..Usage::default()
        })
    }

    /// Begins a service in this slot, which the caller has claimed.
    pub(crate) fn begin(&self, name: Box<str>, handle: u32) {
        self.forget_name();
        // No name is longer than 255 bytes.
        self.name_length.store(name.len() as u32, Ordering::Release);
        self.name.store(Box::into_raw(name).cast(), Ordering::Relaxed);
        self.clear(handle);
        self.life.begin();
    }

    /// Prepares this slot, which the caller has claimed, for a service that begins inside an allocation
    /// and never ends. By then its name stands in `name`.
    #[cfg(not(dogtag_loom))]
    pub(crate) fn prepare(&self, name: &'static [AtomicU64], handle: u32) {
        self.forget_name();
        self.name.store(name.as_ptr().cast::<u8>().cast_mut(), Ordering::Relaxed);
        self.clear(handle);
    }

    /// Begins the service of a prepared slot, whose name is in its place, of so many bytes of UTF-8. Any
    /// number of threads may call this, each with the same; returns whether this one has begun it.
    #[cfg(not(dogtag_loom))]
    pub(super) fn begin_prepared(&self, name_length: usize) -> bool {
        self.name_length.store(name_length as u32, Ordering::Release);
        self.life.begin_once()
    }

    /// Makes everything but the name that of a new service.
    fn clear(&self, handle: u32) {
        self.shared.claim_shared(self.slot().mark());
        self.handle.store(handle, Ordering::Relaxed);
        self.generation.store(self.generation() + 1, Ordering::Relaxed);
        self.family.begin();
        self.peak_bytes.store(0, Ordering::Relaxed);
        self.denied.store(0, Ordering::Relaxed);
        self.earlier.bytes.store(self.past.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        self.earlier.blocks.store(self.past.blocks.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Ends the service if nobody holds it. Only the thread that looks after the end may call this.
    pub(crate) fn end(&self) -> bool {
        self.life.end(|| self.last_sum()).map(|usage| self.bury(usage)).is_some()
    }

    /// Variant of [`end`](Self::end) for a service without a parent, that also claims the slot and frees the name, unless
    /// a reader looks at the service: then it has only ended.
    pub(crate) fn end_and_claim(&self) -> bool {
        let Some((usage, is_claimed)) = self.life.end_and_claim(|| self.last_sum()) else { return false };
        self.bury(usage);
        if is_claimed {
            self.forget_name();
        }
        true
    }

    /// What was counted, if that is nothing live any more, and no thread is in the service.
    fn last_sum(&self) -> Option<Usage> {
        let sum = SHARDS.sum(self.slot(), &self.shared);
        sum.is_quiet().then_some(sum.usage)
    }

    /// Closes the books of a service that has ended.
    fn bury(&self, usage: Usage) {
        // Or a cookie that something wrote would be believed on the hot path, and the next
        // service of this slot have a free that is not its own.
        SHARDS.cells(self.slot(), &self.shared).for_each(Cell::abandon);
        self.past.bytes.store(usage.freed_bytes, Ordering::Relaxed);
        self.past.blocks.store(usage.freed_blocks, Ordering::Relaxed);
    }

    /// Whether the service has no blocks, and no thread is in it.
    pub fn is_idle(&self) -> bool {
        SHARDS.sum(self.slot(), &self.shared).is_quiet()
    }

    /// Frees the name of the service that had the slot, which must be claimed.
    pub(crate) fn forget_name(&self) {
        let name = self.name.load(Ordering::Relaxed);
        if !name.is_null() {
            let length = self.name_length.load(Ordering::Relaxed) as usize;
            self.name.store(ptr::null_mut(), Ordering::Relaxed);
            self.name_length.store(0, Ordering::Relaxed);
            // SAFETY: the string that `begin` leaked; while the slot is claimed
            // nobody else looks at it.
            drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(name, length)) });
        }
    }
}

/// A service, which whoever has this holds, and what a thread reads to enter it: not the record, which may be in no
/// cache.
#[derive(Clone, Copy)]
pub(crate) struct Entrance {
    record: &'static Record,
    place: CellPlace,
    mark: Mark,
}

impl Entrance {
    #[inline]
    pub(crate) fn of(record: &'static Record) -> Self {
        let mark = record.shared.mark();
        Self { record, place: CellPlace::of(mark), mark }
    }

    #[inline]
    pub(crate) const fn record(&self) -> &'static Record {
        self.record
    }

    /// Where each thread's own cell for the service is.
    #[inline(always)]
    pub(crate) const fn place(&self) -> &CellPlace {
        &self.place
    }

    /// The mark of that cell, if the thread has it.
    #[inline(always)]
    pub(crate) const fn mark(&self) -> Mark {
        self.mark
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Record").field(&self.slot).finish()
    }
}

/// Why there is no slot.
pub(crate) enum SlotError {
    /// All slots are in use.
    Full,
    /// The operating system gives no memory for another record.
    NoMemory,
}

/// How many services there can be: all but the reserved slots.
pub(crate) const CAPACITY: u32 = Slot::COUNT - 3;

/// A slot that was never used, claimed for the caller. Takes none if there is no
/// memory for its record.
pub(crate) fn fresh() -> Result<&'static Record, SlotError> {
    let mut index = NEXT.load(Ordering::Relaxed);
    loop {
        if index >= Slot::COUNT {
            return Err(SlotError::Full);
        }
        // `None` for a reserved index, which is passed over.
        let taken = match Slot::new(index) {
            Some(slot) => Some(page(slot).ok_or(SlotError::NoMemory)?),
            None => None,
        };
        match NEXT.compare_exchange_weak(index, index + 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => match taken {
                // A reader may look whether it is in use just now; it is
                // nobody's but ours all the same.
                Some(record) => {
                    record.slot.store(index, Ordering::Relaxed);
                    let mut attempt = 0;
                    while !record.life.claim() {
                        spin(attempt);
                        attempt += 1;
                    }
                    return Ok(record);
                }
                None => index += 1,
            },
            Err(now) => index = now,
        }
    }
}

/// The service that has that slot, `None` when there is none. Takes no lock. It
/// may end at any time, unless the caller knows of something that holds it.
#[inline]
pub fn record(slot: Slot) -> Option<&'static Record> {
    any_record(slot).filter(|record| record.life.is_in_use())
}

/// The slot's record, if it was ever used.
#[inline]
pub(crate) fn any_record(slot: Slot) -> Option<&'static Record> {
    if slot == Slot::UNATTRIBUTED {
        return Some(&UNATTRIBUTED);
    }
    let (page, index) = (slot.index() / PAGE, slot.index() % PAGE);
    // SAFETY: pages of records are never unmapped.
    let page: &'static Page = unsafe { TABLE[page].load(Ordering::Acquire).as_ref() }?;
    Some(&page.0[index])
}

/// All records, in use or not.
pub(crate) fn all() -> impl Iterator<Item = &'static Record> {
    (0..end()).filter_map(Slot::new).filter_map(any_record)
}

/// One more than the highest index in use.
pub(crate) fn end() -> u32 {
    NEXT.load(Ordering::Acquire)
}

shared! {
    /// The service of what nobody claims. Threads begin in it.
    pub(crate) static UNATTRIBUTED: Record = Record::endless("unattributed");
}

/// Allocations of all services that a limit has refused.
pub(crate) fn denied() -> u64 {
    DENIED.load(Ordering::Relaxed)
}

shared! {
    static DENIED: AtomicU64 = AtomicU64::new(0);
}

/// Records in a page: mapped together, touched one by one.
const PAGE: usize = if cfg!(dogtag_loom) { 2 } else { 4096 };
const PAGES: usize = if cfg!(dogtag_loom) { 3 } else { Slot::COUNT as usize / PAGE };

struct Page([Record; PAGE]);

shared! {
    static TABLE: [AtomicPtr<Page>; PAGES] = nulls!(PAGES);

    /// The first index that was never used.
    static NEXT: AtomicU32 = AtomicU32::new(1);
}

/// The slot's record, published or not, in a page that is mapped if need be.
fn page(slot: Slot) -> Option<&'static Record> {
    let (page, index) = (slot.index() / PAGE, slot.index() % PAGE);
    // SAFETY: atomics only, for which zeros are valid; only this fills the table.
    let page = unsafe { sys::get_or_map(&TABLE[page]) }?;
    Some(&page.0[index])
}

#[cfg(dogtag_loom)]
impl Default for Page {
    fn default() -> Self {
        let unused =
            || Record { shared: Cell::shared(Mark::NONE), life: Lifecycle::default(), ..Record::endless("") };
        Self(std::array::from_fn(|_| unused()))
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::model;
    use loom::thread;

    fn begin(name: &str) -> &'static Record {
        let record = fresh().unwrap_or_else(|_| panic!("there are slots"));
        record.begin(name.into(), name.len() as u32);
        record
    }

    /// Two threads begin a service, and a third looks at all there are.
    #[test]
    fn a_slot_is_given_once_and_seen_whole() {
        model(|| {
            let [one, other] = ["one", "another"].map(|name| thread::spawn(move || begin(name).slot()));
            // Else loom, who keeps one access in mind, would not try what comes before.
            thread::yield_now();
            for record in all() {
                record.lifecycle().pinned(|| {
                    let known = [("unattributed", 0), ("one", 3), ("another", 7)];
                    assert!(known.contains(&(record.name(), record.handle())), "{:?}", record.name());
                });
            }
            let (one, other) = (one.join().unwrap(), other.join().unwrap());
            assert_ne!(one, other);
            assert_eq!([one, other].map(|slot| record(slot).unwrap().name()), ["one", "another"]);
        });
    }
}

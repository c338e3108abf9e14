//! The pool: pages in which blocks stand alone, between pages without access.
//!
//! ```text
//! one mapping │ states, entries │ before │ page │ behind │ before │ page │ behind │ ...
//!                               └───── slot 0 ─────┘       └───── slot 1 ─────┘
//! ```
//!
//! A block stands at the end of its page, in every third slot at its beginning. All else in the page has a
//! pattern, which is looked at when the block is freed.
//!
//! An allocator with cookies reads 2 bytes behind each block that is freed, and goes the slow way for these if
//! they are the mark that no service has. They stand in the page behind, which can be read then, and not be
//! written, if the block fills its page up to the end; by turns the block ends so much earlier that they
//! fit in its own page, and the page behind has no access at all.

use super::entry::{Entry, State, StateCell};
use super::who::Who;
use crate::ledger::charge::{Alone, Freed};
use crate::ledger::slots::Record;
use crate::ledger::thread;
use crate::owner::{Mark, SampleId};
use crate::sync::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crate::sys;
use crate::token_bucket::TokenBucket;
use std::alloc::Layout;
use std::{ptr, slice};

/// What is in a slot's page beside its block.
pub(super) const PATTERN: u8 = 0xF7;
/// Pages of a slot.
const STRIDE: usize = 3;
/// Bytes of a mark.
const MARK: usize = 2;
/// The memory of so many bytes of pages stays when their blocks are freed: to have it anew costs a fault each time.
const KEPT: usize = 512 << 10;

/// The first slot's first page; 0 before there is a pool. The next four are there before it is.
static BASE: AtomicUsize = AtomicUsize::new(0);
static PAGE: AtomicUsize = AtomicUsize::new(0);
static SLOTS: AtomicUsize = AtomicUsize::new(0);
static STATES: AtomicPtr<StateCell> = AtomicPtr::new(ptr::null_mut());
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());
/// How many slots are used for new blocks; 0 before there is a pool. All others are there before it is.
static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// How many blocks were freed, and so how often a page has lost its access.
pub(super) static FREES: AtomicU64 = AtomicU64::new(0);

pub(super) static GUARDED: AtomicU64 = AtomicU64::new(0);
pub(super) static BYTES: AtomicU64 = AtomicU64::new(0);
pub(super) static EVER: AtomicU64 = AtomicU64::new(0);
pub(super) static REFUSED: AtomicU64 = AtomicU64::new(0);
pub(super) static THROTTLED: AtomicU64 = AtomicU64::new(0);

/// Of how many blocks a second the program pays for the time. A few at once are free, so that of a program's first
/// blocks, and of a short program's, chance alone says which are guarded.
pub(super) static BUDGET: TokenBucket<32> = TokenBucket::new();

/// How many slots there are.
pub(super) fn slots() -> usize {
    if BASE.load(Ordering::Acquire) == 0 { 0 } else { SLOTS.load(Ordering::Relaxed) }
}

/// How many slots are used for new blocks.
pub(super) fn slots_in_use() -> usize {
    IN_USE.load(Ordering::Relaxed)
}

/// How many of all slots are not used again.
pub(super) fn retired() -> usize {
    (0..slots()).filter(|&index| PoolSlot::new(index).state.get() == State::Retired).count()
}

/// Has so many slots be used, of those that there are.
pub(super) fn use_slots(slots: usize) {
    IN_USE.store(slots.min(self::slots()), Ordering::Release);
}

/// The addresses of all slots.
pub(super) fn addresses() -> std::ops::Range<usize> {
    let base = BASE.load(Ordering::Acquire);
    base..base + slots() * STRIDE * PAGE.load(Ordering::Relaxed)
}

/// Maps the pool, once. `false` if the system refuses. Callers take turns.
pub(super) fn map(slots: usize) -> bool {
    if self::slots() != 0 {
        return true;
    }
    // SAFETY: only returns a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(4096);
    let states = (slots * size_of::<StateCell>()).next_multiple_of(align_of::<Entry>());
    let entries = (states + slots * size_of::<Entry>()).next_multiple_of(page);
    let length = entries + slots * STRIDE * page;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping touches no memory that exists.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the first part of the mapping, which nobody has seen.
    if unsafe { libc::mprotect(mapped, entries, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
        // SAFETY: as above.
        unsafe { libc::munmap(mapped, length) };
        return false;
    }
    #[cfg(target_os = "linux")]
    // The mark of dogtag's own tables, see `sys::map`.
    // SAFETY: mapped just now. Should the system refuse, nothing depends on it.
    unsafe {
        libc::madvise(mapped, entries, libc::MADV_RANDOM)
    };
    PAGE.store(page, Ordering::Relaxed);
    SLOTS.store(slots, Ordering::Relaxed);
    STATES.store(mapped.cast(), Ordering::Relaxed);
    ENTRIES.store(mapped.wrapping_byte_add(states).cast(), Ordering::Relaxed);
    BASE.store(mapped.expose_provenance() + entries, Ordering::Release);
    true
}

/// A part of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Before,
    Page,
    Behind,
}

/// One of the pool's slots.
#[derive(Clone, Copy)]
pub(super) struct PoolSlot {
    index: usize,
    pub(super) state: &'static StateCell,
    pub(super) entry: &'static Entry,
}

impl PoolSlot {
    fn new(index: usize) -> Self {
        debug_assert!(index < SLOTS.load(Ordering::Relaxed));
        // SAFETY: there are as many states and entries, all atomics, and they are never unmapped.
        unsafe {
            Self {
                index,
                state: &*STATES.load(Ordering::Relaxed).add(index),
                entry: &*ENTRIES.load(Ordering::Relaxed).add(index),
            }
        }
    }

    /// The slot that an address is in, and in which part.
    #[inline]
    pub(super) fn of(address: usize) -> Option<(Self, Part)> {
        let base = BASE.load(Ordering::Acquire);
        if base == 0 || address < base {
            return None;
        }
        let page = (address - base) / PAGE.load(Ordering::Relaxed);
        if page >= SLOTS.load(Ordering::Relaxed) * STRIDE {
            return None;
        }
        let part = [Part::Before, Part::Page, Part::Behind][page % STRIDE];
        Some((Self::new(page / STRIDE), part))
    }

    fn part(self, part: Part) -> *mut u8 {
        let page = self.index * STRIDE + part as usize;
        ptr::with_exposed_provenance_mut(BASE.load(Ordering::Relaxed) + page * PAGE.load(Ordering::Relaxed))
    }

    fn protect(self, part: Part, access: i32) -> bool {
        // SAFETY: a page of the pool's. Whoever may use it is who the caller says.
        unsafe { libc::mprotect(self.part(part).cast(), PAGE.load(Ordering::Relaxed), access) == 0 }
    }

    /// Takes the access to the page away, and gives its memory back, but for the first ones'.
    fn close(self) {
        self.protect(Part::Page, libc::PROT_NONE);
        if self.index >= KEPT / PAGE.load(Ordering::Relaxed) {
            self.advise(libc::MADV_DONTNEED);
        }
    }

    /// Has the system keep the page apart from those around it. A change of its access would otherwise part a
    /// mapping in three, or make one of three, which takes longer than the change.
    fn part_from_neighbours(self) {
        // Any advice that these have not been given; blocks of a page are not read ahead.
        self.advise(libc::MADV_SEQUENTIAL);
    }

    fn advise(self, advice: i32) {
        // SAFETY: a page of the pool's, in which there is no block. Should the system refuse, it stays as it is.
        unsafe { libc::madvise(self.part(Part::Page).cast(), PAGE.load(Ordering::Relaxed), advice) };
    }

    /// Lets the program write to a part, for good: the slot is not used again. `false` if the system refuses.
    pub(super) fn open(self, part: Part) -> bool {
        self.entry.is_opened.store(true, Ordering::Relaxed);
        let state = self.state.get();
        if matches!(state, State::Free(_)) && self.state.seize(state) {
            self.state.settle(State::Retired);
        }
        self.protect(part, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Where in its page a block stands; `None` if it does not fit with its mark.
    fn offset(self, layout: Layout, need: Need) -> Option<usize> {
        let (page, size) = (PAGE.load(Ordering::Relaxed), layout.size());
        let align = layout.align().max(need.align);
        let down = |end: usize| Some(end.checked_sub(size)? & !(align - 1));
        match (self.index % 3, need.mark) {
            (2, false) => Some(0),
            (2, true) => (size + MARK <= page).then_some(0),
            (_, false) => down(page),
            (1, true) => down(page - MARK),
            (_, true) => {
                let offset = down(page)?;
                // A mark of which the page behind had the second half would not be the one that it has.
                if offset + size == page - 1 { offset.checked_sub(align) } else { Some(offset) }
            }
        }
    }

    /// Opens the page for a block that begins at `offset` there, and fills it. `None` if the system refuses.
    fn prepare(self, layout: Layout, has_mark: bool, offset: usize) -> Option<*mut u8> {
        let page = PAGE.load(Ordering::Relaxed);
        let end = offset + layout.size();
        if !self.protect_behind(has_mark && end == page) {
            return None;
        }
        if !self.entry.is_used() {
            self.part_from_neighbours();
        }
        if !self.protect(Part::Page, libc::PROT_READ | libc::PROT_WRITE) {
            return None;
        }
        let start = self.part(Part::Page);
        // SAFETY: the page can be written, and is this thread's alone; the block and a mark that is not in the
        // page behind are within it.
        unsafe {
            start.write_bytes(PATTERN, page);
            if has_mark && end < page {
                start.add(end).cast::<[u8; MARK]>().write_unaligned(Mark::LONG.to_cookie());
            }
        }
        let entry = self.entry;
        // SAFETY: within the page.
        let block = unsafe { start.add(offset) };
        entry.block.store(block.addr(), Ordering::Relaxed);
        entry.size.store(layout.size(), Ordering::Relaxed);
        entry.align.store(layout.align(), Ordering::Relaxed);
        entry.has_mark.store(has_mark, Ordering::Relaxed);
        Some(block)
    }

    /// Lets the page behind be read, with a mark at its beginning, or not.
    fn protect_behind(self, is_readable: bool) -> bool {
        if self.entry.is_behind_readable.load(Ordering::Relaxed) == is_readable {
            return true;
        }
        if is_readable {
            if !self.protect(Part::Behind, libc::PROT_READ | libc::PROT_WRITE) {
                return false;
            }
            // SAFETY: the page can be written, and is this thread's alone.
            unsafe { self.part(Part::Behind).cast::<[u8; MARK]>().write(Mark::LONG.to_cookie()) };
        }
        let access = if is_readable { libc::PROT_READ } else { libc::PROT_NONE };
        let is_done = self.protect(Part::Behind, access);
        if is_done {
            self.entry.is_behind_readable.store(is_readable, Ordering::Relaxed);
        }
        is_done
    }

    /// Whether a part of the page has the pattern and nothing else: by some words at once, since this is most of
    /// the page.
    fn is_plain(self, from: usize, to: usize) -> bool {
        const WORD: usize = size_of::<u64>();
        const RUN: usize = 8 * WORD;

        let page = self.part(Part::Page);
        // SAFETY: as in `first_wrong`, within the page, which is aligned; and so are these.
        let byte = |at: usize| unsafe { page.add(at).read_volatile() };
        // SAFETY: as above.
        let word = |at: usize| unsafe { page.add(at).cast::<u64>().read_volatile() };
        let is_plain = |at: usize| byte(at) == PATTERN;
        let is_plain_run = |run: usize| {
            let wrong = |at: usize| word(run + at * WORD) ^ u64::from_ne_bytes([PATTERN; WORD]);
            (0..RUN / WORD).fold(0, |sum, at| sum | wrong(at)) == 0
        };
        let (first, last) = (from.next_multiple_of(RUN), to / RUN * RUN);
        if first >= last {
            return (from..to).all(is_plain);
        }
        (from..first).all(is_plain)
            && (first..last).step_by(RUN).all(is_plain_run)
            && (last..to).all(is_plain)
    }

    /// The first byte around the block that is not what it should be, nearest to the block.
    pub(super) fn first_wrong(self) -> Option<isize> {
        let entry = self.entry;
        let page = PAGE.load(Ordering::Relaxed);
        let (block, size) = (entry.block.load(Ordering::Relaxed), entry.size.load(Ordering::Relaxed));
        // SAFETY: the page is this thread's: the block is being freed. Others may write there, wrongly.
        let byte = |at: usize| unsafe { self.part(Part::Page).add(at).read_volatile() };
        let start = block - self.part(Part::Page).addr();
        let end = start + size;
        let marked = if entry.has_mark.load(Ordering::Relaxed) && end < page { MARK } else { 0 };
        let mark = Mark::LONG.to_cookie();
        let is_mark = (0..marked).all(|at| byte(end + at) == mark[at]);
        if is_mark && self.is_plain(0, start) && self.is_plain(end + marked, page) {
            return None;
        }
        let is_wrong = |&at: &usize| {
            let meant = if (end..end + marked).contains(&at) { mark[at - end] } else { PATTERN };
            byte(at) != meant
        };
        let past = (end..page).find(is_wrong);
        let before = (0..start).rev().find(is_wrong);
        past.or(before).map(|at| at as isize - start as isize)
    }
}

/// What an allocator needs of a place for a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// Whether it looks at a mark behind the block when that is freed.
    pub(super) mark: bool,
    /// The least alignment, whatever the block's.
    pub(super) align: usize,
}

/// A slot that was reserved for a new block.
#[derive(Debug)]
pub struct Place(usize);

/// Reserves a place for a block, which the sampled guard takes; `None` if it fits none, or none is free.
///
/// Without a mark, `note` has to note that the block is not the heap's.
#[cold]
#[inline(never)]
pub(super) fn reserve(layout: Layout, need: Need, note: impl FnOnce(*mut u8) -> bool) -> Option<Place> {
    // Whoever sees that slots are used sees the pool.
    let in_use = IN_USE.load(Ordering::Acquire);
    let page = PAGE.load(Ordering::Relaxed);
    if in_use == 0 || layout.size() == 0 || layout.size() > page || layout.align() > page {
        return None;
    }
    let refused = || {
        REFUSED.fetch_add(1, Ordering::Relaxed);
        None
    };
    if GUARDED.load(Ordering::Relaxed) >= in_use as u64 {
        return refused();
    }
    // The clock is no system call.
    if !BUDGET.take(sys::milliseconds) {
        THROTTLED.fetch_add(1, Ordering::Relaxed);
        return None;
    }
    let Some((slot, when)) = oldest(in_use) else { return refused() };
    let Some(offset) = slot.offset(layout, need) else {
        // What is known of the block that was there stays, for those who use it still.
        slot.state.settle(State::Free(when));
        return refused();
    };
    let place = Place(slot.index);
    match slot.prepare(layout, need.mark, offset) {
        Some(block) if need.mark || note(block) => {
            slot.entry.allocated.set(thread::current_record());
            slot.entry.allocated.set_stack();
            Some(place)
        }
        _ => None,
    }
}

/// Seizes the free slot that has been free for longest, of so many, and returns since when.
fn oldest(in_use: usize) -> Option<(PoolSlot, u64)> {
    /// Other threads may be as fast.
    const TRIES: usize = 4;

    // SAFETY: as many are in use only when they have been mapped, and they are never unmapped.
    let states: &[StateCell] = unsafe { slice::from_raw_parts(STATES.load(Ordering::Relaxed), in_use) };
    for _ in 0..TRIES {
        let (mut when, mut index) = (u64::MAX, 0);
        for (at, state) in states.iter().enumerate() {
            let since = state.free_since();
            if since < when {
                (when, index) = (since, at);
            }
        }
        if when == u64::MAX {
            return None;
        }
        let slot = PoolSlot::new(index);
        if slot.state.seize(State::Free(when)) {
            return Some((slot, when));
        }
    }
    None
}

impl Alone for Place {
    fn size(&self) -> usize {
        PoolSlot::new(self.0).entry.size.load(Ordering::Relaxed)
    }

    fn block(&self) -> *mut u8 {
        let slot = PoolSlot::new(self.0);
        let block = slot.entry.block.load(Ordering::Relaxed);
        slot.part(Part::Page).with_addr(block)
    }

    fn hand_out(self, owner: &'static Record, sample: Option<SampleId>) {
        let PoolSlot { entry, state, .. } = PoolSlot::new(self.0);
        entry.set_owner(owner, sample);
        GUARDED.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(self.size() as u64, Ordering::Relaxed);
        EVER.fetch_add(1, Ordering::Relaxed);
        state.settle(State::Live);
        std::mem::forget(self);
    }
}

/// Nobody has seen it: the next one gets it.
impl Drop for Place {
    fn drop(&mut self) {
        let slot = PoolSlot::new(self.0);
        slot.protect(Part::Page, libc::PROT_NONE);
        slot.entry.block.store(0, Ordering::Relaxed);
        slot.state.settle(State::Free(0));
    }
}

/// A block of the pool's that is being given back: this thread's alone.
#[derive(Clone, Copy)]
pub struct Taken(pub(super) PoolSlot);

impl Taken {
    /// The bytes that it was requested with.
    pub fn size(self) -> usize {
        self.0.entry.size.load(Ordering::Relaxed)
    }

    /// What is refunded for it.
    pub fn freed(self) -> Freed {
        Freed::new(self.0.entry.owner(), self.size())
    }

    /// Refunds it, and takes the access to its page away.
    pub fn free(self) {
        self.freed().refund();
        self.retire();
    }

    /// Takes the access to its page away.
    pub fn retire(self) {
        let slot = self.0;
        slot.entry.freed.set(thread::current_record());
        slot.entry.freed.set_stack();
        GUARDED.fetch_sub(1, Ordering::Relaxed);
        BYTES.fetch_sub(self.size() as u64, Ordering::Relaxed);
        let is_opened = slot.entry.is_opened.load(Ordering::Relaxed);
        if is_opened {
            slot.state.settle(State::Retired);
        } else {
            slot.close();
            slot.state.settle(State::Free(FREES.fetch_add(1, Ordering::Relaxed) + 1));
        }
    }

    /// Leaves it as it was.
    pub fn restore(self) {
        self.0.state.settle(State::Live);
    }
}

/// Whether a pointer is to the beginning of a live block in the pool.
pub(super) fn is_live(block: *const u8) -> bool {
    PoolSlot::of(block.addr())
        .is_some_and(|(slot, _)| slot.state.get() == State::Live && slot.entry.offset_of(block.addr()) == 0)
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Taken").field(&self.0.index).finish()
    }
}

/// Who found the violation that is being reported.
pub(super) static MET: Who = Who::new();

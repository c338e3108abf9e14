//! A window and its tables: the memory of one [`MappedRegion`](crate::MappedRegion).
//!
//! The tables are in pages of their own. A region may be the global allocator's backend, so nothing
//! here allocates.

use crate::entry::Entry;
use crate::error::MapError;
use crate::mapping::{Mapping, Plan, Protection, page_size};
use crate::quick_lists::QuickLists;
use crate::tlsf::{Tlsf, bin_of};
use dogtag::__private::counts;
use dogtag::RegionStats;
use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Stands at the beginning of its own tables, and never moves.
pub(crate) struct Window {
    pub(crate) entry: Entry<Self>,
    mapping: Mapping,
    tables: Mapping,
    /// Blocks begin and end at multiples of 2 to this power.
    shift: u32,
    /// The window's address, in granules.
    base: u32,
    /// All bins from this one on are empty: allocations that need one fail without the lock.
    first_empty: AtomicU32,
    /// Allocations that failed.
    refused: AtomicU64,
    dirty: Dirty,
    state: Mutex<State>,
    /// The guard of `state`, while the process is forked.
    held: UnsafeCell<Option<MutexGuard<'static, State>>>,
}

struct State {
    tlsf: Tlsf,
    quick_lists: QuickLists,
    blocks: usize,
    /// Bytes, rounded up to granules.
    used: usize,
    peak: usize,
    /// Requested bytes of blocks that the ledger counts, cookies and guards included.
    counted: usize,
}

impl Window {
    /// Maps a window and its tables.
    ///
    /// # Safety
    ///
    /// The window must be [ended](Self::end) at most once, and not be used after that.
    pub(crate) unsafe fn map(plan: &Plan<'_>, granularity: usize) -> Result<NonNull<Self>, MapError> {
        if !granularity.is_power_of_two() || granularity > page_size() {
            return Err(MapError::Granularity { bytes: granularity });
        }
        let mapping = Mapping::new(plan)?;
        // Offsets are of 32 bits, and the window begins at a multiple of a page.
        let least = (mapping.len() >> 31).next_power_of_two();
        if least > page_size() {
            return Err(MapError::OutOfMemory { len: plan.len, source: None });
        }
        let shift = granularity.max(least).trailing_zeros();
        let len = (mapping.len() >> shift) as u32;
        let dirty_offset = size_of::<Self>().next_multiple_of(16);
        let tlsf_offset = dirty_offset + Dirty::bytes(mapping.len());
        let tables_len = tlsf_offset + Tlsf::table_bytes(len);
        let tables = Plan { name: "region-tables", is_not_reserved: true, ..Plan::anonymous(tables_len) };
        let tables = Mapping::new(&tables).map_err(|error| match error {
            MapError::OutOfMemory { source, .. } => MapError::OutOfMemory { len: plan.len, source },
            error => error,
        })?;
        let can_be_allocated = plan.protection != Protection::Read;
        // SAFETY: the tables are fresh pages, so they are zero; they have space for the window, the dirty
        // bits and the placement, one behind the other, each aligned; and they are unmapped by `end` only.
        unsafe {
            let memory = tables.start();
            let dirty = Dirty { words: memory.add(dirty_offset).cast(), len: Dirty::words_of(mapping.len()) };
            if plan.file.is_some() {
                dirty.fill();
            }
            let tlsf = Tlsf::new(if can_be_allocated { len } else { 0 }, memory.add(tlsf_offset));
            let this = memory.cast::<Self>();
            this.write(Self {
                entry: Entry::new(plan.name),
                shift,
                base: (mapping.start().addr().get() >> shift) as u32,
                first_empty: AtomicU32::new(tlsf.last()),
                refused: AtomicU64::new(0),
                dirty,
                state: Mutex::new(State {
                    tlsf,
                    quick_lists: QuickLists::new(),
                    blocks: 0,
                    used: 0,
                    peak: 0,
                    counted: 0,
                }),
                held: UnsafeCell::new(None),
                mapping,
                tables,
            });
            // It is read here and there; and so it is told from other memory: see `smaps`.
            this.as_ref().tables.is_read_at_random();
            Ok(this)
        }
    }

    /// Unmaps the window and its tables.
    ///
    /// # Safety
    ///
    /// Nobody may use the window or its blocks from now on, and it must not have been ended.
    pub(crate) unsafe fn end(this: NonNull<Self>) {
        // SAFETY: nobody uses `this` any more, as for this function, so it may be moved out. The tables
        // are unmapped last, since it stands in them.
        let Self { mapping, tables, .. } = unsafe { this.read() };
        drop(mapping);
        drop(tables);
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.mapping.start()
    }

    pub(crate) fn len(&self) -> usize {
        self.mapping.len()
    }

    pub(crate) fn owns(&self, block: *const u8) -> bool {
        block.addr().wrapping_sub(self.start().addr().get()) < self.len()
    }

    pub(crate) fn allocate(&self, layout: Layout, is_zeroed: bool) -> Option<NonNull<u8>> {
        let Some((len, align)) = self.granules(layout) else { return self.refuse() };
        if bin_of(len) as u32 >= self.first_empty.load(Ordering::Relaxed) {
            return self.refuse();
        }
        let mut state = self.state();
        let again = if align == 1 { state.quick_lists.take(len) } else { None };
        let Some(start) = again.or_else(|| self.place(&mut state, len, align)) else {
            drop(state);
            return self.refuse();
        };
        state.count(1, (len as usize) << self.shift, 0);
        state.note_counted(layout.size(), 0);
        drop(state);
        // What follows is about pages of which this block has a part, so nobody gives them back.
        let offset = (start as usize) << self.shift;
        if is_zeroed {
            self.dirty.clean(self.start(), offset, layout.size());
        }
        self.dirty.mark(offset, (len as usize) << self.shift);
        // SAFETY: placement returns ranges of the window only.
        Some(unsafe { self.start().add(offset) })
    }

    /// Frees a block.
    ///
    /// # Safety
    ///
    /// The block must be live, from this window, and of that layout.
    pub(crate) unsafe fn free(&self, block: NonNull<u8>, layout: Layout) {
        let Some((len, _)) = self.granules(layout) else { return };
        let start = self.granule(block);
        let mut state = self.state();
        if !state.quick_lists.keep(start, len) {
            state.tlsf.give(start, len);
        }
        state.blocks -= 1;
        state.used -= (len as usize) << self.shift;
        state.note_counted(0, layout.size());
        self.note_bins(&state);
    }

    /// Resizes a block in place. Returns whether it could; if not, the block is unchanged.
    ///
    /// # Safety
    ///
    /// The block must be live, from this window, and of that layout.
    pub(crate) unsafe fn resize(&self, block: NonNull<u8>, layout: Layout, new_size: usize) -> bool {
        let new = Layout::from_size_align(new_size, layout.align()).ok().and_then(|new| self.granules(new));
        let (Some((old, _)), Some((new, _))) = (self.granules(layout), new) else { return false };
        let start = self.granule(block);
        let mut state = self.state();
        if new == old {
            state.note_counted(new_size, layout.size());
            return true;
        }
        if new > old {
            let extends =
                state.tlsf.extend(start, old, new) || state.settle() && state.tlsf.extend(start, old, new);
            self.note_bins(&state);
            if !extends {
                return false;
            }
        } else {
            state.tlsf.give(start + new, old - new);
            self.note_bins(&state);
        }
        state.count(0, (new as usize) << self.shift, (old as usize) << self.shift);
        state.note_counted(new_size, layout.size());
        drop(state);
        self.dirty.mark((start as usize) << self.shift, (new as usize) << self.shift);
        true
    }

    pub(crate) fn trim(&self) -> usize {
        let mut state = self.state();
        state.settle();
        let page = self.mapping.page();
        let mut bytes = 0;
        for (start, len) in state.tlsf.free_ranges() {
            let start = (start as usize) << self.shift;
            let end = (start + ((len as usize) << self.shift)) / page * page;
            let mut from = start.next_multiple_of(page);
            while let Some(run) = self.dirty.run(from, end) {
                let run = run.start / page * page..run.end.next_multiple_of(page);
                // SAFETY: the run is within a free range, and the lock keeps it free.
                if unsafe { self.mapping.give_back(run.start, run.len()) } {
                    bytes += run.len();
                    self.dirty.forget(run.start, run.len());
                }
                from = run.end;
            }
        }
        self.note_bins(&state);
        bytes
    }

    pub(crate) fn stats(&self) -> RegionStats {
        let mut state = self.state();
        state.settle();
        self.note_bins(&state);
        let bytes = |granules: u32| (granules as usize) << self.shift;
        let mut stats = RegionStats::default();
        stats.size = self.len();
        stats.used = state.used;
        stats.free = bytes(state.tlsf.free());
        stats.largest_free = bytes(state.tlsf.largest());
        stats.free_ranges = state.tlsf.ranges() as usize;
        stats.blocks = state.blocks;
        stats.peak = state.peak;
        stats.refused = self.refused.load(Ordering::Relaxed);
        stats
    }

    /// Requested bytes of blocks that the ledger counts, cookies and guards included.
    pub(crate) fn counted(&self) -> usize {
        self.state().counted
    }

    /// Takes the lock, until it is [released](Self::release).
    ///
    /// # Safety
    ///
    /// The window must not end before that, and only one thread at a time may hold it so.
    pub(crate) unsafe fn hold(&self) {
        // SAFETY: the window outlives the guard, and only the holder of its lock uses `held`, as for this
        // function.
        unsafe {
            let guard =
                std::mem::transmute::<MutexGuard<'_, State>, MutexGuard<'static, State>>(self.state());
            *self.held.get() = Some(guard);
        }
    }

    /// Gives the lock back.
    ///
    /// # Safety
    ///
    /// The window must be [held](Self::hold) by this thread, or by the one that it is a fork's copy of.
    pub(crate) unsafe fn release(&self) {
        // SAFETY: this thread holds the lock, so nobody else uses `held`.
        drop(unsafe { (*self.held.get()).take() });
    }

    /// Addresses of the window.
    pub(crate) fn addresses(&self) -> Range<usize> {
        let start = self.start().addr().get();
        start..start + self.len()
    }

    #[cold]
    fn refuse(&self) -> Option<NonNull<u8>> {
        self.refused.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Granules that a block takes, and what it is aligned to.
    fn granules(&self, layout: Layout) -> Option<(u32, u32)> {
        let granule = 1 << self.shift;
        let len = layout.size().max(1).checked_add(granule - 1)? >> self.shift;
        let align = layout.align().max(granule) >> self.shift;
        Some((u32::try_from(len).ok()?, u32::try_from(align).ok()?))
    }

    fn granule(&self, block: NonNull<u8>) -> u32 {
        ((block.addr().get() - self.start().addr().get()) >> self.shift) as u32
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places a block; merges the quick lists' blocks if no range fits without them.
    fn place(&self, state: &mut State, len: u32, align: u32) -> Option<u32> {
        let found = state.tlsf.take(len, align, self.base);
        let found = match found {
            None if state.settle() => state.tlsf.take(len, align, self.base),
            found => found,
        };
        self.note_bins(state);
        found
    }

    fn note_bins(&self, state: &State) {
        // Merging the quick lists may make a range of any length.
        let first = if state.quick_lists.is_empty() { state.tlsf.last() } else { u32::MAX };
        if self.first_empty.load(Ordering::Relaxed) != first {
            self.first_empty.store(first, Ordering::Relaxed);
        }
    }
}

impl State {
    /// Merges the quick lists' blocks with their neighbours. Returns whether there were any.
    fn settle(&mut self) -> bool {
        let were_any = !self.quick_lists.is_empty();
        if were_any {
            self.quick_lists.settle(&mut self.tlsf);
        }
        were_any
    }

    fn count(&mut self, blocks: usize, more: usize, less: usize) {
        self.blocks += blocks;
        self.used = self.used + more - less;
        self.peak = self.peak.max(self.used);
    }

    /// Adds and subtracts requested bytes, if the calling thread asks for a `Dogtag` that counts them.
    fn note_counted(&mut self, more: usize, less: usize) {
        if counts() {
            self.counted = (self.counted + more).saturating_sub(less);
        }
    }
}

/// Which pages may be other than zero: a bit for each.
struct Dirty {
    words: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the words that it points to are in the window's tables, which outlive it, and are its own.
unsafe impl Send for Dirty {}
// SAFETY: the words are atomic.
unsafe impl Sync for Dirty {}

const PAGE: usize = 4096;

impl Dirty {
    fn bytes(len: usize) -> usize {
        Self::words_of(len) * size_of::<u64>()
    }

    fn words_of(len: usize) -> usize {
        len.div_ceil(PAGE).div_ceil(64)
    }

    fn fill(&self) {
        self.words().iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
    }

    fn mark(&self, start: usize, len: usize) {
        for (word, bits) in Self::bits(start / PAGE..(start + len).div_ceil(PAGE)) {
            // Most of what is handed out was so before.
            if self.words()[word].load(Ordering::Relaxed) & bits != bits {
                self.words()[word].fetch_or(bits, Ordering::Relaxed);
            }
        }
    }

    fn forget(&self, start: usize, len: usize) {
        for (word, bits) in Self::bits(start / PAGE..(start + len) / PAGE) {
            self.words()[word].fetch_and(!bits, Ordering::Relaxed);
        }
    }

    /// Makes zero what may be something else, of a part of the window.
    fn clean(&self, window: NonNull<u8>, start: usize, len: usize) {
        let mut from = start;
        while let Some(run) = self.run(from / PAGE * PAGE, (start + len).next_multiple_of(PAGE)) {
            let (first, end) = (run.start.max(start), run.end.min(start + len));
            // SAFETY: the range is within the block that is being handed out, so nobody else uses it.
            unsafe { window.add(first).write_bytes(0, end - first) };
            from = run.end;
        }
    }

    /// The first pages, between these two, that may be other than zero.
    fn run(&self, from: usize, end: usize) -> Option<Range<usize>> {
        let pages = from / PAGE..end / PAGE;
        let first = pages.clone().find(|page| self.is_dirty(*page))?;
        let last = (first..pages.end).find(|page| !self.is_dirty(*page)).unwrap_or(pages.end);
        Some(first * PAGE..last * PAGE)
    }

    fn is_dirty(&self, page: usize) -> bool {
        self.words()[page / 64].load(Ordering::Relaxed) & (1 << (page % 64)) != 0
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the words are in the window's tables, which outlive this, and have `len` of them.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }

    /// The words in which the bits of some pages are, and which bits these are.
    fn bits(pages: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
        let mut page = pages.start;
        std::iter::from_fn(move || {
            let first = page;
            page = (first / 64 * 64 + 64).min(pages.end);
            (first < page).then(|| (first / 64, u64::MAX >> (64 - (page - first)) << (first % 64)))
        })
    }
}

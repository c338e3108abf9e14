//! One service's counters in one place: the unit the ledger is made of.

use crate::owner::{Mark, UNCHECKED_SIZES};
use crate::sync::{AtomicU32, AtomicU64, Ordering, const_unless_loom, fence, load_own};
use crate::usage::Usage;

/// Counters that only grow, and the threshold. One cache line, so that no two
/// services share one.
///
/// All zeros is a valid cell that nobody has claimed: it has no mark, every allocation reaches its
/// threshold, and adding it to a sum changes nothing.
///
/// A cell in a shard has a single writer, the thread that has the shard, which
/// therefore needs no read-modify-write (but others may lower its threshold). The
/// *shared* cell of a service, in its record, is for threads that have no shard,
/// and takes atomic additions.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Cell {
    allocated_bytes: AtomicU64,
    allocated_blocks: AtomicU64,
    freed_bytes: AtomicU64,
    freed_blocks: AtomicU64,
    /// An allocation that would take `allocated_bytes` to this leaves the hot path.
    threshold: AtomicU64,
    /// An allocation that would take it to this needs a grant. Equal to the threshold, but where
    /// that is never raised, and where a byte before that is sampled.
    grant_end: AtomicU64,
    /// What a block of this service is marked with, and [`SHARED`] in a shared cell; 0, or that alone, while unclaimed.
    mark: AtomicU32,
    /// What was live here, in KiB, when the peak was looked at last, or the least
    /// since then.
    looked_at: AtomicU32,
    /// Scopes that were entered here, less those that were left here: of a cell alone it may
    /// be negative, since a thread may enter in the shared cell and leave in its own. 64 bits,
    /// since those that are forgotten stay.
    scopes: AtomicU64,
}

const _: () = assert!(cfg!(dogtag_loom) || size_of::<Cell>() == 64);

/// Set in the mark of a shared cell, so that it is no block's, whatever its cookie was overwritten with. The hot
/// path compares a block's mark with the current cell's, and counts there only if that is the thread's own.
const SHARED: u32 = 1 << 17;

/// The threshold that every allocation reaches.
const LOWERED: u64 = 0;

/// Where the next sampled byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    /// It is the one that takes `allocated_bytes` to this.
    At(u64),
    /// It is not known yet, but none before this is sampled.
    After(u64),
}

impl Cell {
    const_unless_loom! {
        /// A service's shared cell: its threshold is never raised, because threads that count there
        /// need atomic additions.
        pub(crate) fn shared(mark: Mark) -> Self {
            Self {
                allocated_bytes: AtomicU64::new(0),
                allocated_blocks: AtomicU64::new(0),
                freed_bytes: AtomicU64::new(0),
                freed_blocks: AtomicU64::new(0),
                threshold: AtomicU64::new(LOWERED),
                grant_end: AtomicU64::new(LOWERED),
                mark: AtomicU32::new(mark.bits() | SHARED),
                looked_at: AtomicU32::new(0),
                scopes: AtomicU64::new(0),
            }
        }
    }

    /// Makes an unclaimed cell that mark's. Its threshold stays lowered until the
    /// thread has drawn a grant.
    pub(super) fn claim(&self, mark: Mark) {
        self.mark.store(mark.bits(), Ordering::Relaxed);
    }

    /// Variant of [`claim`](Self::claim) for a service's shared cell.
    pub(super) fn claim_shared(&self, mark: Mark) {
        self.mark.store(mark.bits() | SHARED, Ordering::Relaxed);
    }

    /// Makes the cell unclaimed again, by the thread that has ended its service. The counters
    /// stay.
    pub(super) fn abandon(&self) {
        self.claim_shared(Mark::NONE);
    }

    /// Whether an allocation of `size` bytes needs a grant.
    #[inline]
    pub(super) fn needs_grant(&self, size: usize) -> bool {
        let after = self.allocated_bytes.load(Ordering::Relaxed).saturating_add(size as u64);
        after >= self.grant_end.load(Ordering::Relaxed)
    }

    /// Raises the threshold, so that the thread that has this cell draws again when it has allocated
    /// `size` and then more than `grant` bytes. A long mark's cell keeps its threshold lowered: the
    /// hot path writes short cookies only.
    pub(super) fn raise_threshold(&self, size: u64, grant: u64) {
        let allocated = self.allocated_bytes.load(Ordering::Relaxed);
        let end = allocated.saturating_add(size).saturating_add(grant + 1);
        // The hot path takes no sizes whose layout needs checking, and none that takes the
        // counter past its end: once it has come that far, each allocation draws a grant.
        let end = if allocated < UNCHECKED_SIZES { end.min(UNCHECKED_SIZES) } else { LOWERED };
        // The threshold first, and the other way round in `lower_threshold`: so it is never the
        // threshold alone that stays raised.
        if self.mark() != Mark::LONG {
            self.threshold.store(end, Ordering::Relaxed);
        }
        self.grant_end.store(end, Ordering::Release);
    }

    /// Lets threads that share this cell allocate `grant` bytes before one draws again.
    pub(super) fn extend_shared(&self, grant: u64) {
        let allocated = self.allocated_bytes.load(Ordering::Relaxed);
        let end = if allocated < UNCHECKED_SIZES { allocated.saturating_add(grant) } else { LOWERED };
        self.grant_end.store(end, Ordering::Relaxed);
    }

    /// Lowers the threshold, so that the next allocation reaches it. Any thread may call this; it
    /// takes effect when the thread that has the cell sees it.
    pub(super) fn lower_threshold(&self) {
        self.grant_end.store(LOWERED, Ordering::Relaxed);
        // For `set_point`.
        #[cfg(any(feature = "profile", feature = "sampled-guard", dogtag_loom))]
        fence(Ordering::SeqCst);
        self.threshold.store(LOWERED, Ordering::Release);
    }

    /// Where the next sampled byte is, if it comes before the end of the grant. Only the thread
    /// that has this cell may call it.
    pub(super) fn pending_point(&self) -> Pending {
        let allocated = self.allocated_bytes.load(Ordering::Relaxed);
        let (threshold, end) =
            (self.threshold.load(Ordering::Relaxed), self.grant_end.load(Ordering::Relaxed));
        match threshold {
            LOWERED => Pending::After(allocated),
            point if point < end => Pending::At(point),
            // The grant ends with a byte that needs another one, and is not known about.
            _ => Pending::After(allocated.max(end.saturating_sub(1))),
        }
    }

    /// Lets the allocation that reaches `point` leave the hot path, if that is before the end of
    /// the grant. Only the thread that has this cell may call it.
    pub(super) fn set_point(&self, point: u64) {
        let threshold = self.grant_end.load(Ordering::Relaxed).min(point);
        self.threshold.store(threshold, Ordering::Relaxed);
        // Either the thread that lowers the threshold meanwhile does it after this, or this sees what
        // it has done before.
        fence(Ordering::SeqCst);
        if self.grant_end.load(Ordering::Relaxed) == LOWERED {
            self.threshold.store(LOWERED, Ordering::Relaxed);
        }
    }

    /// Whether what is live here has grown by `bytes` since this was last so, or
    /// since it was least when asked. Call it having just allocated `size` bytes.
    #[inline]
    pub(super) fn has_grown(&self, size: usize, bytes: u64) -> bool {
        // Negative where other threads' blocks are freed.
        let [allocated, freed] =
            [&self.allocated_bytes, &self.freed_bytes].map(|bytes| bytes.load(Ordering::Relaxed) as i64);
        let live = allocated.wrapping_sub(freed);
        // They wrap around together.
        let [before, live] = [live - size as i64, live].map(|bytes| (bytes >> 10) as i32);
        let looked_at = self.looked_at.load(Ordering::Relaxed) as i32;
        let least = if before.wrapping_sub(looked_at) < 0 { before } else { looked_at };
        let has_grown = size as u64 >= bytes || live.wrapping_sub(least) >= (bytes >> 10) as i32;
        self.looked_at.store(if has_grown { live } else { least } as u32, Ordering::Relaxed);
        has_grown
    }

    /// The bytes that the thread that has this cell may allocate before it draws again.
    pub(super) fn granted(&self) -> u64 {
        let end = self.grant_end.load(Ordering::Relaxed);
        end.saturating_sub(1).saturating_sub(self.allocated_bytes.load(Ordering::Relaxed))
    }

    /// What was allocated here, and freed.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated_bytes.load(Ordering::Acquire)
    }

    pub(super) fn freed(&self) -> u64 {
        self.freed_bytes.load(Ordering::Acquire)
    }

    /// Whether an allocation of `size` bytes reaches the threshold, and has to take the slow path.
    #[inline(always)]
    pub fn needs_slow_path(&self, size: usize) -> bool {
        // Where it wraps around, the counter has passed 2^61: then the threshold is never raised, and
        // every allocation takes the slow path, as exactly.
        compare::reaches_threshold(
            self,
            self.allocated_bytes.load(Ordering::Relaxed).wrapping_add(size as u64),
        )
    }

    /// The mark of the service, whether the cell is a thread's own or shared.
    #[inline(always)]
    pub fn mark(&self) -> Mark {
        Mark::from_bits(self.mark.load(Ordering::Relaxed) & !SHARED)
    }

    /// Whether the cell is the thread's own for blocks of that mark.
    #[inline(always)]
    pub fn is_own_for(&self, mark: Mark) -> bool {
        compare::has_mark(self, mark.bits())
    }

    /// Whether the cell's blocks have the cookie of that mark, whether it is a thread's own or shared.
    #[inline(always)]
    pub(super) fn has_cookie(&self, mark: Mark) -> bool {
        compare::has_cookie(self, u16::from_ne_bytes(mark.to_cookie()))
    }

    /// The mark of the service if the cell is a thread's own; otherwise one that no block has.
    #[inline(always)]
    pub fn own_mark(&self) -> Mark {
        Mark::from_bits(self.mark.load(Ordering::Relaxed))
    }

    /// Counts an allocation. Only the thread that has this cell may call it.
    #[inline(always)]
    pub fn charge(&self, size: usize) {
        debug_assert!(self.mark() != Mark::NONE, "nobody's cell is charged");
        grow(&self.allocated_bytes, size as u64);
        grow(&self.allocated_blocks, 1);
    }

    /// Counts a free. Only the thread that has this cell may call it.
    #[inline(always)]
    pub fn refund(&self, size: usize) {
        debug_assert!(self.mark() != Mark::NONE, "nobody's cell is refunded");
        grow(&self.freed_bytes, size as u64);
        grow(&self.freed_blocks, 1);
    }

    /// Counts an allocation in a cell that threads share.
    pub(super) fn charge_shared(&self, size: usize) {
        self.allocated_bytes.fetch_add(size as u64, Ordering::Release);
        self.allocated_blocks.fetch_add(1, Ordering::Release);
    }

    /// Counts a free in a cell that threads share.
    pub(super) fn refund_shared(&self, size: usize) {
        self.freed_bytes.fetch_add(size as u64, Ordering::Release);
        self.freed_blocks.fetch_add(1, Ordering::Release);
    }

    /// Counts that a scope was entered. Only the thread that has this cell may
    /// call it.
    #[inline(always)]
    pub(super) fn enter(&self) {
        self.scopes.store(load_own(&self.scopes).wrapping_add(1), Ordering::Release);
    }

    /// Counts that a scope was left. Only the thread that has this cell may
    /// call it.
    #[inline(always)]
    pub(super) fn leave(&self) {
        self.scopes.store(load_own(&self.scopes).wrapping_sub(1), Ordering::Release);
    }

    /// Counts that a scope was entered, in a cell that threads share.
    pub(super) fn enter_shared(&self) {
        self.scopes.fetch_add(1, Ordering::Release);
    }

    /// Counts that a scope was left, in a cell that threads share.
    pub(super) fn leave_shared(&self) {
        self.scopes.fetch_sub(1, Ordering::Release);
    }

    /// Scopes that were entered here and not left, or the other way round if negative.
    pub(super) fn scopes(&self) -> u64 {
        self.scopes.load(Ordering::Acquire)
    }

    /// Counts as if so many scopes had been forgotten, and so many bytes and blocks allocated and
    /// freed.
    #[cfg(all(test, not(dogtag_loom)))]
    pub(crate) fn preset(&self, scopes: u64, counted: u64) {
        self.scopes.store(scopes, Ordering::Relaxed);
        for counter in [&self.allocated_bytes, &self.allocated_blocks, &self.freed_bytes, &self.freed_blocks]
        {
            counter.store(counted, Ordering::Relaxed);
        }
    }

    /// Adds what was freed here. A reader does this with every cell of a
    /// service before the first [`add_allocated`](Self::add_allocated): then
    /// the allocation of every block whose free it saw happened before, and
    /// the difference of the sums is never negative.
    #[inline(always)]
    pub(super) fn add_freed(&self, usage: &mut Usage) {
        add_to(&mut usage.freed_bytes, &self.freed_bytes);
        add_to(&mut usage.freed_blocks, &self.freed_blocks);
    }

    /// Adds what was allocated here.
    #[inline(always)]
    pub(super) fn add_allocated(&self, usage: &mut Usage) {
        add_to(&mut usage.allocated_bytes, &self.allocated_bytes);
        add_to(&mut usage.allocated_blocks, &self.allocated_blocks);
    }
}

/// Comparisons on the hot path, with what stands in memory: the compiler would load that first, since it is atomic.
#[cfg(all(target_arch = "x86_64", not(any(miri, dogtag_loom))))]
mod compare {
    use super::Cell;
    use std::arch::asm;
    use std::mem::offset_of;
    use std::ptr;

    #[inline(always)]
    pub(super) fn reaches_threshold(cell: &Cell, allocated: u64) -> bool {
        // SAFETY: reads a field of the cell in one access, as an atomic load does.
        unsafe {
            asm!(
                "cmp {allocated}, qword ptr [{cell} + {threshold}]",
                "jae {yes}",
                allocated = in(reg) allocated,
                cell = in(reg) ptr::from_ref(cell),
                threshold = const offset_of!(Cell, threshold),
                yes = label { return true },
                options(readonly, nostack),
            );
        }
        false
    }

    #[inline(always)]
    pub(super) fn has_mark(cell: &Cell, mark: u32) -> bool {
        // SAFETY: reads a field of the cell in one access, as an atomic load does.
        unsafe {
            asm!(
                "cmp {mark:e}, dword ptr [{cell} + {of_cell}]",
                "jne {no}",
                mark = in(reg) mark,
                cell = in(reg) ptr::from_ref(cell),
                of_cell = const offset_of!(Cell, mark),
                no = label { return false },
                options(readonly, nostack),
            );
        }
        true
    }

    #[inline(always)]
    pub(super) fn has_cookie(cell: &Cell, cookie: u16) -> bool {
        // SAFETY: reads the lower half of a field of the cell in one access.
        unsafe {
            asm!(
                "cmp {cookie:x}, word ptr [{cell} + {of_cell}]",
                "jne {no}",
                cookie = in(reg) cookie,
                cell = in(reg) ptr::from_ref(cell),
                of_cell = const offset_of!(Cell, mark),
                no = label { return false },
                options(readonly, nostack),
            );
        }
        true
    }
}

#[cfg(not(all(target_arch = "x86_64", not(any(miri, dogtag_loom)))))]
mod compare {
    use super::{Cell, Ordering};

    #[inline(always)]
    pub(super) fn reaches_threshold(cell: &Cell, allocated: u64) -> bool {
        allocated >= cell.threshold.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(super) fn has_mark(cell: &Cell, mark: u32) -> bool {
        mark == cell.mark.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(super) fn has_cookie(cell: &Cell, cookie: u16) -> bool {
        cookie == cell.mark.load(Ordering::Relaxed) as u16
    }
}

/// Bounds of the bytes that are live in a set of cells at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) at_least: u64,
    pub(crate) at_most: u64,
    /// What threads may allocate in addition before they ask again.
    pub(crate) granted: u64,
}

/// An addition by the only writer: a load and a store, no locked instruction. Blocks of
/// terabytes that nobody touches take a counter past its end in a minute: it begins again, and
/// differences stay right.
#[inline(always)]
fn grow(counter: &AtomicU64, by: u64) {
    counter.store(load_own(counter).wrapping_add(by), Ordering::Release);
}

#[inline(always)]
fn add_to(sum: &mut u64, counter: &AtomicU64) {
    *sum = sum.wrapping_add(counter.load(Ordering::Acquire));
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use crate::owner::Slot;

    fn cell(counted: u64) -> Cell {
        let cell = Cell::shared(Slot::UNATTRIBUTED.mark());
        cell.preset(0, counted);
        cell
    }

    fn live(cell: &Cell) -> (u64, u64) {
        let mut usage = Usage::default();
        cell.add_freed(&mut usage);
        cell.add_allocated(&mut usage);
        (usage.bytes(), usage.blocks())
    }

    #[test]
    fn what_is_live_is_right_past_the_end_of_the_counters() {
        let cell = cell(u64::MAX - 1);
        cell.charge(100);
        cell.charge_shared(10);
        assert_eq!(live(&cell), (110, 2));
        cell.refund(100);
        assert_eq!(live(&cell), (10, 1));
        cell.refund_shared(10);
        assert_eq!(live(&cell), (0, 0));
        assert!(!cell.has_grown(10, 1 << 20));
    }

    /// And so not where the counter begins again either, far below a threshold.
    #[test]
    fn the_threshold_stays_lowered_once_a_counter_has_come_far() {
        for counted in [UNCHECKED_SIZES, UNCHECKED_SIZES + 5, u64::MAX - 50, u64::MAX] {
            let cell = cell(counted);
            for size in [1, 100, isize::MAX as usize] {
                cell.raise_threshold(size as u64, 1 << 20);
                assert!(
                    cell.needs_slow_path(1)
                        && cell.needs_slow_path(size)
                        && cell.needs_grant(1)
                        && cell.needs_grant(size)
                );
                cell.extend_shared(1 << 20);
                assert!(cell.needs_grant(1) && cell.needs_grant(size));
                assert_eq!(cell.granted(), 0);
            }
            cell.raise_threshold(100, 1 << 20);
            cell.charge(100);
            assert!(cell.needs_slow_path(1) && cell.needs_grant(1));
        }
        let cell = cell(UNCHECKED_SIZES - 10);
        cell.raise_threshold(1, 1 << 20);
        assert!(
            !cell.needs_slow_path(9) && cell.needs_slow_path(10) && cell.needs_slow_path(isize::MAX as usize)
        );
        // It has begun again.
        let cell = self::cell(7);
        cell.raise_threshold(1, 1 << 20);
        assert!(!cell.needs_slow_path(100) && !cell.needs_grant(100) && cell.needs_slow_path(2 << 20));
    }

    #[test]
    fn a_cell_is_ones_own_for_its_mark_alone() {
        let marks = [0, 1, 255, 256, 65_000].map(|slot| Slot::new(slot).unwrap().mark());
        for mark in marks {
            let cell = Cell::shared(mark);
            assert!(!cell.is_own_for(mark) && cell.has_cookie(mark), "shared");
            cell.claim(mark);
            for other in marks {
                let is_same = mark == other;
                assert_eq!((cell.is_own_for(other), cell.has_cookie(other)), (is_same, is_same));
            }
            cell.abandon();
            assert!(!cell.is_own_for(Mark::NONE), "a cookie of zeros");
            assert!(!marks.iter().any(|&mark| cell.is_own_for(mark) || cell.has_cookie(mark)), "unclaimed");
        }
    }

    #[test]
    fn scopes_are_counted_beyond_32_bits_and_below_none() {
        for before in [(1 << 32) - 1, (1 << 33) - 1, 1 << 62] {
            let cell = cell(0);
            cell.preset(before, 0);
            cell.enter();
            cell.enter_shared();
            assert_eq!(cell.scopes(), before + 2);
            cell.leave();
            cell.leave_shared();
            assert_eq!(cell.scopes(), before);
        }
        // Entered in the cell that threads share, and left in one's own.
        let (shared, own) = (cell(0), cell(0));
        shared.enter_shared();
        own.leave();
        assert_eq!(shared.scopes().wrapping_add(own.scopes()), 0);
    }
}

//! One service's counters in one place: the unit the ledger is made of.

use crate::cookie::{Mark, UNCHECKED_SIZES};
use crate::sync::{AtomicU32, AtomicU64, Ordering, const_unless_loom};
use crate::usage::Usage;

/// Four counters that only grow, and the door. One cache line, so that no two
/// services share one.
///
/// All zeros is a valid cell that nobody has claimed: it has no mark, its door
/// is shut, and adding it to a sum changes nothing.
///
/// A cell in a shard has a single writer, the thread that has the shard, which
/// therefore needs no read-modify-write. The *shared* cell of a service, in its
/// record, is for threads that have no shard, and takes atomic additions.
#[repr(C, align(64))]
pub(crate) struct Cell {
    allocated_bytes: AtomicU64,
    allocated_blocks: AtomicU64,
    freed_bytes: AtomicU64,
    freed_blocks: AtomicU64,
    /// An allocation that would take `allocated_bytes` to this leaves the hot path.
    door: AtomicU64,
    /// What a block of this service is marked with; 0 while unclaimed.
    mark: AtomicU32,
}

const _: () = assert!(cfg!(dogtag_loom) || size_of::<Cell>() == 64);

/// A door that only sizes can reach whose layout needs checking.
const OPEN: u64 = UNCHECKED_SIZES;
/// A door that every allocation reaches.
const SHUT: u64 = 0;

impl Cell {
    const_unless_loom! {
        /// A service's shared cell: its door is shut, because who counts there
        /// needs atomic additions.
        pub(crate) fn shared(mark: Mark) -> Self {
            Self {
                allocated_bytes: AtomicU64::new(0),
                allocated_blocks: AtomicU64::new(0),
                freed_bytes: AtomicU64::new(0),
                freed_blocks: AtomicU64::new(0),
                door: AtomicU64::new(SHUT),
                mark: AtomicU32::new(mark.bits()),
            }
        }
    }

    /// Makes an unclaimed cell in a shard that mark's. A long mark's cell keeps
    /// its door shut: the hot path writes short cookies only.
    pub(super) fn claim(&self, mark: Mark) {
        self.claim_shared(mark);
        if mark != Mark::LONG {
            self.door.store(OPEN, Ordering::Relaxed);
        }
    }

    /// Makes a zeroed cell that mark's shared one, as [`shared`](Self::shared).
    pub(super) fn claim_shared(&self, mark: Mark) {
        self.mark.store(mark.bits(), Ordering::Relaxed);
    }

    /// Whether an allocation of `size` bytes has to go through the door.
    #[inline(always)]
    pub(crate) fn stops(&self, size: usize) -> bool {
        // Cannot wrap: a layout's size is below 2^63, and so is the counter for
        // decades. When it has passed the open door's 2^61, every allocation
        // goes through the door, more slowly and as exactly.
        self.allocated_bytes.load(Ordering::Relaxed) + size as u64 >= self.door.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(crate) fn mark(&self) -> Mark {
        Mark::from_bits(self.mark.load(Ordering::Relaxed))
    }

    /// Counts an allocation. Only the thread that has this cell may call it.
    #[inline(always)]
    pub(crate) fn charge(&self, size: usize) {
        grow(&self.allocated_bytes, size as u64);
        grow(&self.allocated_blocks, 1);
    }

    /// Counts a free. Only the thread that has this cell may call it.
    #[inline(always)]
    pub(crate) fn refund(&self, size: usize) {
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

    /// Adds what was freed here. A reader does this with every cell of a
    /// service before the first [`add_allocated`](Self::add_allocated): then
    /// the allocation of every block whose free it saw happened before, and
    /// the difference of the sums is never negative.
    #[inline(always)]
    pub(super) fn add_freed(&self, usage: &mut Usage) {
        usage.freed_bytes += self.freed_bytes.load(Ordering::Acquire);
        usage.freed_blocks += self.freed_blocks.load(Ordering::Acquire);
    }

    /// Adds what was allocated here.
    #[inline(always)]
    pub(super) fn add_allocated(&self, usage: &mut Usage) {
        usage.allocated_bytes += self.allocated_bytes.load(Ordering::Acquire);
        usage.allocated_blocks += self.allocated_blocks.load(Ordering::Acquire);
    }
}

/// An addition by the only writer: a load and a store, no locked instruction.
#[inline(always)]
fn grow(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Release);
}

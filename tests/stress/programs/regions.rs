//! Regions of mapped memory, alone and with the system's allocator behind them.

use crate::engine::collection::Collection;
use crate::engine::ensure;
use crate::engine::memory::{Memory as _, Refusal};
use dogtag::Dogtag;
use dogtag_mapped::{Fallback, MappedRegion};
use std::alloc::{Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Blocks keep it, so it goes with the last of them.
pub struct Region {
    memory: Memory,
    /// Blocks that it has, wherever they are.
    blocks: AtomicU64,
}

/// It is full then.
pub const REFUSAL: Refusal = Refusal::More;

enum Memory {
    Alone(MappedRegion),
    FallsBack(Box<Dogtag<Fallback<MappedRegion, System>>>),
}

/// With memory-check freed blocks stay for a while, and are larger.
const CHECKED: bool = cfg!(feature = "memory-check");

impl Region {
    pub fn new(pages: usize, falls_back: bool) -> Self {
        let region = MappedRegion::anonymous(pages << 12).unwrap();
        let memory = if falls_back {
            Memory::FallsBack(Box::new(Dogtag::with_backend(Fallback::new(region, System))))
        } else {
            Memory::Alone(region)
        };
        Self { memory, blocks: AtomicU64::new(0) }
    }

    fn region(&self) -> &MappedRegion {
        match &self.memory {
            Memory::Alone(region) => region,
            Memory::FallsBack(allocator) => allocator.backend().primary(),
        }
    }

    pub fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: a layout may be empty here.
        let block = unsafe {
            match &self.memory {
                Memory::Alone(region) => Collection(region, REFUSAL).allocate(layout, is_zeroed),
                Memory::FallsBack(both) => Collection(&**both, REFUSAL).allocate(layout, is_zeroed),
            }
        };
        self.blocks.fetch_add(u64::from(!block.is_null()), SeqCst);
        block
    }

    /// # Safety
    ///
    /// It must be a block of this region's with that layout.
    pub unsafe fn reallocate(&self, block: *mut u8, old: Layout, new: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: the block is live, of that layout, and this region's.
        unsafe {
            match &self.memory {
                Memory::Alone(region) => Collection(region, REFUSAL).reallocate(block, old, new, is_zeroed),
                Memory::FallsBack(both) => {
                    Collection(&**both, REFUSAL).reallocate(block, old, new, is_zeroed)
                }
            }
        }
    }

    /// # Safety
    ///
    /// As for [`reallocate`](Self::reallocate).
    pub unsafe fn free(&self, block: *mut u8, layout: Layout) {
        self.blocks.fetch_sub(1, SeqCst);
        // SAFETY: the block is live, of that layout, and this region's.
        unsafe {
            match &self.memory {
                Memory::Alone(region) => Collection(region, REFUSAL).free(block, layout),
                Memory::FallsBack(both) => Collection(&**both, REFUSAL).free(block, layout),
            }
        }
    }

    /// Where nobody else does anything, and a block was not had.
    pub fn check_full(&self, layout: Layout) {
        ensure!(matches!(self.memory, Memory::Alone(_)), "the system had no {layout:?}");
        let space = self.region().stats().largest_free;
        ensure!(CHECKED || space < layout.size() + layout.align() + 64, "{layout:?} was not had: {self:?}");
    }

    /// While nobody does anything.
    pub fn check(&self) {
        let stats = self.region().stats();
        assert_eq!(stats.used + stats.free, stats.size, "{self:?}");
        ensure!(stats.free >= stats.largest_free && stats.peak >= stats.used, "{self:?}");
        let blocks = self.blocks.load(SeqCst);
        match &self.memory {
            _ if CHECKED => {}
            Memory::Alone(_) => assert_eq!(stats.blocks as u64, blocks, "{self:?}"),
            Memory::FallsBack(allocator) => {
                let went = allocator.backend().stats();
                ensure!(stats.blocks as u64 <= blocks && went.failures == 0, "{self:?}, {went:?}");
                ensure!(
                    went.primary_blocks + went.secondary_blocks >= blocks + went.moved_blocks,
                    "{went:?}"
                );
            }
        }
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} with {:?} blocks", self.region(), self.blocks)
    }
}

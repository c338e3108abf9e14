//! Where blocks come from: the heap or a region.

#[cfg(target_os = "linux")]
use super::regions::Region;
use crate::engine::account::Account;
use crate::engine::block;
use crate::engine::memory::{Heap, Memory, Refusal};
use std::alloc::Layout;
use std::sync::Arc;

pub type Block = block::Block<Home, Arc<Account>>;

/// Whose memory it is.
#[derive(Clone)]
pub enum Home {
    Heap,
    #[cfg(target_os = "linux")]
    Region(Arc<Region>),
}

impl Memory for Home {
    const ENDS: usize = 256;

    unsafe fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        match self {
            // SAFETY: the layout is not empty.
            Self::Heap => unsafe { Heap.allocate(layout, is_zeroed) },
            #[cfg(target_os = "linux")]
            Self::Region(region) => region.allocate(layout, is_zeroed),
        }
    }

    unsafe fn reallocate(&self, block: *mut u8, old: Layout, new: Layout, is_zeroed: bool) -> *mut u8 {
        match self {
            // SAFETY: the block is live and of that layout, and the new size is not 0.
            Self::Heap => unsafe { Heap.reallocate(block, old, new, is_zeroed) },
            #[cfg(target_os = "linux")]
            // SAFETY: the block is live, of that layout, and this region's.
            Self::Region(region) => unsafe { region.reallocate(block, old, new, is_zeroed) },
        }
    }

    unsafe fn free(&self, block: *mut u8, layout: Layout) {
        match self {
            // SAFETY: the block is live and of that layout.
            Self::Heap => unsafe { Heap.free(block, layout) },
            #[cfg(target_os = "linux")]
            // SAFETY: the block is live, of that layout, and this region's.
            Self::Region(region) => unsafe { region.free(block, layout) },
        }
    }

    fn may_refuse(&self) -> Refusal {
        if matches!(self, Self::Heap) { Refusal::Nothing } else { Refusal::More }
    }

    fn check_refusal(&self, layout: Layout) {
        match self {
            Self::Heap => panic!("{layout:?} was not had, though nothing denies it"),
            #[cfg(target_os = "linux")]
            Self::Region(region) => region.check_full(layout),
        }
    }
}

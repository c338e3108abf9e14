//! Blocks, what is in them, and where they come from: the heap or a region.

use super::known::Known;
#[cfg(target_os = "linux")]
use super::regions::Region;
use super::world::ensure;
use std::alloc::{self, Layout};
use std::sync::Arc;

pub struct Block {
    pub address: usize,
    pub layout: Layout,
    pub owner: Arc<Known>,
    pub home: Home,
    value: u8,
}

/// Whose memory it is.
#[derive(Clone)]
pub enum Home {
    Heap,
    #[cfg(target_os = "linux")]
    Region(Arc<Region>),
}

/// Bytes at either end that are written and looked at.
const END: usize = 256;
/// Zeros that are looked at.
const MOST_ZEROS: usize = 64 << 10;

impl Block {
    /// A new block, which is written to.
    pub fn fill(address: usize, layout: Layout, owner: Arc<Known>, home: Home) -> Self {
        ensure!(address.is_multiple_of(layout.align()), "misaligned");
        let value = (address >> 4) as u8 ^ layout.size() as u8;
        let block = Self { address, layout, owner, home, value };
        let end = layout.size().min(END);
        // SAFETY: the block is new and that long.
        unsafe {
            block.pointer().write_bytes(value, end);
            block.pointer().add(layout.size() - end).write_bytes(value, end);
        }
        block
    }

    pub fn pointer(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.address)
    }

    /// Nobody else has written to it.
    pub fn check(&self) {
        let size = self.layout.size();
        check(self.pointer(), 0, size.min(END), self.value);
        check(self.pointer(), size - size.min(END), size, self.value);
    }

    /// What fits of it has moved along.
    pub fn check_moved(&self, to: *const u8, size: usize) {
        check(to, 0, size.min(self.layout.size()).min(END), self.value);
        if size >= self.layout.size() {
            check(to, size.min(self.layout.size()).saturating_sub(END), self.layout.size(), self.value);
        }
    }
}

fn check(block: *const u8, from: usize, to: usize, value: u8) {
    // SAFETY: the block is live and that long, and was written to there.
    let bytes = unsafe { std::slice::from_raw_parts(block.add(from), to - from) };
    ensure!(bytes.iter().all(|byte| *byte == value), "a block was written to by somebody else");
}

/// It is zero, as far as it is looked at.
///
/// # Safety
///
/// The block must be that long, and have been asked for with zeros.
pub unsafe fn check_zeros(block: *const u8, size: usize) {
    // SAFETY: the block is that long, and zeros are initialized bytes.
    let bytes = unsafe { std::slice::from_raw_parts(block, size) };
    let (head, tail) = bytes.split_at(size.min(MOST_ZEROS));
    let tail = &tail[tail.len().saturating_sub(MOST_ZEROS)..];
    ensure!(head.iter().chain(tail).all(|byte| *byte == 0), "it is not zero");
}

impl Home {
    /// # Safety
    ///
    /// As for [`alloc::alloc`].
    pub unsafe fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        match self {
            // SAFETY: the layout is not empty.
            Self::Heap if is_zeroed => unsafe { alloc::alloc_zeroed(layout) },
            // SAFETY: the layout is not empty.
            Self::Heap => unsafe { alloc::alloc(layout) },
            #[cfg(target_os = "linux")]
            Self::Region(region) => region.allocate(layout, is_zeroed),
        }
    }

    /// # Safety
    ///
    /// As for [`alloc::realloc`].
    pub unsafe fn reallocate(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match self {
            // SAFETY: the block is live and of that layout, and the new size is not 0.
            Self::Heap => unsafe { alloc::realloc(block, layout, size) },
            #[cfg(target_os = "linux")]
            // SAFETY: the block is live, of that layout, and this region's.
            Self::Region(region) => unsafe { region.reallocate(block, layout, size) },
        }
    }

    /// # Safety
    ///
    /// As for [`alloc::dealloc`].
    pub unsafe fn free(&self, block: *mut u8, layout: Layout) {
        match self {
            // SAFETY: the block is live and of that layout.
            Self::Heap => unsafe { alloc::dealloc(block, layout) },
            #[cfg(target_os = "linux")]
            // SAFETY: the block is live, of that layout, and this region's.
            Self::Region(region) => unsafe { region.free(block, layout) },
        }
    }

    /// Whether it may be the region's being full that a block is not had.
    pub fn may_be_full(&self) -> bool {
        !matches!(self, Self::Heap)
    }

    /// In turn, where a block was not had though no limit denies it: the region is full.
    pub fn check_full(&self, layout: Layout) {
        match self {
            Self::Heap => panic!("{layout:?} was not had, though nothing denies it"),
            #[cfg(target_os = "linux")]
            Self::Region(region) => region.check_full(layout),
        }
    }
}

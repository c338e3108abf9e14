//! Two allocators, of which the second serves what does not fit in the first.

use std::alloc::{GlobalAlloc, Layout};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// An allocator that knows its own blocks by their addresses.
///
/// # Safety
///
/// [`owns`](Self::owns) must return `true` for every live block of this allocator, and `false` for all
/// other addresses that another allocator has handed out.
pub unsafe trait Owns: GlobalAlloc {
    /// Returns whether a block is one of its own. Called at each free, so it must be quick.
    fn owns(&self, block: *const u8) -> bool;
}

/// An allocator that tries a first allocator, and if that fails a second one.
///
/// A free goes to the allocator that owns the address. A block that cannot grow in the first moves to
/// the second. [`stats`](Self::stats) counts what each of them got, by two atomic operations for each
/// allocation.
///
/// ```
/// use dogtag::Dogtag;
/// use dogtag_mapped::{Fallback, MappedRegion};
/// use std::alloc::System;
///
/// let window = MappedRegion::anonymous(1 << 16)?;
/// let memory = Dogtag::with_backend(Fallback::new(window, System));
/// let mut numbers = allocator_api2::vec::Vec::new_in(&memory);
/// (0_u64..10_000).for_each(|number| numbers.push(number));
/// assert!(memory.backend().stats().secondary_blocks > 0, "it has grown out of the window");
/// # Ok::<(), dogtag_mapped::MapError>(())
/// ```
#[derive(Default)]
pub struct Fallback<Primary, Secondary> {
    primary: Primary,
    secondary: Secondary,
    figures: Figures,
}

#[derive(Default)]
struct Figures {
    primary: Figure,
    secondary: Figure,
    moved_blocks: AtomicU64,
    failures: AtomicU64,
}

#[derive(Default)]
struct Figure {
    blocks: AtomicU64,
    bytes: AtomicU64,
}

/// What each allocator of a [`Fallback`] got since the beginning, returned by [`Fallback::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct FallbackStats {
    /// Blocks that the first allocator returned.
    pub primary_blocks: u64,
    /// Bytes of these blocks when they were allocated, and by which they grew since.
    pub primary_bytes: u64,
    /// Blocks that the second allocator returned.
    pub secondary_blocks: u64,
    /// Bytes of these blocks when they were allocated, and by which they grew since.
    pub secondary_bytes: u64,
    /// How many of the second allocator's blocks came from the first, where they could not grow.
    pub moved_blocks: u64,
    /// Allocations that both allocators refused.
    pub failures: u64,
}

impl<Primary, Secondary> Fallback<Primary, Secondary> {
    /// Makes an allocator of a first and a second one.
    #[must_use]
    pub const fn new(primary: Primary, secondary: Secondary) -> Self {
        Self { primary, secondary, figures: Figures::new() }
    }

    /// Returns the first allocator.
    pub const fn primary(&self) -> &Primary {
        &self.primary
    }

    /// Returns the second allocator.
    pub const fn secondary(&self) -> &Secondary {
        &self.secondary
    }

    /// Returns what each allocator got since the beginning.
    #[must_use]
    pub fn stats(&self) -> FallbackStats {
        let Figures { primary, secondary, moved_blocks, failures } = &self.figures;
        FallbackStats {
            primary_blocks: primary.blocks.load(Ordering::Relaxed),
            primary_bytes: primary.bytes.load(Ordering::Relaxed),
            secondary_blocks: secondary.blocks.load(Ordering::Relaxed),
            secondary_bytes: secondary.bytes.load(Ordering::Relaxed),
            moved_blocks: moved_blocks.load(Ordering::Relaxed),
            failures: failures.load(Ordering::Relaxed),
        }
    }
}

// SAFETY: both allocators keep to the contract, and `Owns` tells whose a block is, so each block goes
// back to the one that returned it, with its layout.
unsafe impl<Primary: Owns, Secondary: GlobalAlloc> GlobalAlloc for Fallback<Primary, Secondary> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout and the block fit, as for this method; `owns` says whose the block is.
        unsafe {
            let block = self.primary.alloc(layout);
            if !block.is_null() {
                return self.figures.first(block, layout.size());
            }
            self.figures.second(self.secondary.alloc(layout), layout.size())
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout and the block fit, as for this method; `owns` says whose the block is.
        unsafe {
            let block = self.primary.alloc_zeroed(layout);
            if !block.is_null() {
                return self.figures.first(block, layout.size());
            }
            self.figures.second(self.secondary.alloc_zeroed(layout), layout.size())
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the layout and the block fit, as for this method; `owns` says whose the block is.
        unsafe {
            if self.primary.owns(block) {
                self.primary.dealloc(block, layout);
            } else {
                self.secondary.dealloc(block, layout);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Figures { primary, secondary, .. } = &self.figures;
        // SAFETY: the layout and the block fit, as for this method; `owns` says whose the block is.
        unsafe {
            if !self.primary.owns(block) {
                let moved = self.secondary.realloc(block, layout, new_size);
                return self.figures.grown(secondary, moved, layout.size(), new_size);
            }
            let moved = self.primary.realloc(block, layout, new_size);
            if !moved.is_null() {
                return self.figures.grown(primary, moved, layout.size(), new_size);
            }
            // `new_size` rounded up to the alignment fits an `isize`, as for `GlobalAlloc::realloc`.
            let new = Layout::from_size_align_unchecked(new_size, layout.align());
            let moved = self.figures.second(self.secondary.alloc(new), new_size);
            if !moved.is_null() {
                self.figures.moved_blocks.fetch_add(1, Ordering::Relaxed);
                ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                self.primary.dealloc(block, layout);
            }
            moved
        }
    }
}

impl Figures {
    const fn new() -> Self {
        let [primary, secondary] =
            [const { Figure { blocks: AtomicU64::new(0), bytes: AtomicU64::new(0) } }; 2];
        Self { primary, secondary, moved_blocks: AtomicU64::new(0), failures: AtomicU64::new(0) }
    }

    fn first(&self, block: *mut u8, bytes: usize) -> *mut u8 {
        self.primary.count(bytes);
        block
    }

    fn second(&self, block: *mut u8, bytes: usize) -> *mut u8 {
        if block.is_null() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        } else {
            self.secondary.count(bytes);
        }
        block
    }

    fn grown(&self, figure: &Figure, block: *mut u8, from: usize, to: usize) -> *mut u8 {
        if block.is_null() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        } else if to > from {
            figure.bytes.fetch_add((to - from) as u64, Ordering::Relaxed);
        }
        block
    }
}

impl Figure {
    fn count(&self, bytes: usize) {
        self.blocks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: a live block of this allocator is live in one of the two, which says so; others are in neither.
unsafe impl<Primary: Owns, Secondary: Owns> Owns for Fallback<Primary, Secondary> {
    fn owns(&self, block: *const u8) -> bool {
        self.primary.owns(block) || self.secondary.owns(block)
    }
}

impl<Primary: fmt::Debug, Secondary: fmt::Debug> fmt::Debug for Fallback<Primary, Secondary> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("primary", &self.primary)
            .field("secondary", &self.secondary)
            .field("stats", &self.stats())
            .finish()
    }
}

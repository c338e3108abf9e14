//! The backend of all allocators here: the default one, or a window with that behind it,
//! which notes what it gives and gets back.

use super::common::CHECKED;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

#[cfg(feature = "jemalloc")]
use dogtag::Jemalloc as Inner;
#[cfg(not(feature = "jemalloc"))]
use std::alloc::System as Inner;

/// Blocks, and the bytes that the program asked for, of all backends.
pub static BLOCKS: AtomicI64 = AtomicI64::new(0);
/// Nothing is said of these with memory-check, which has more around a block.
pub static BYTES: AtomicI64 = AtomicI64::new(0);

/// Of the global allocator, and without fields, as most are: from 4 KiB on its blocks have
/// no cookie.
pub struct Booked;

/// The bytes that the program asked for; blocks of 4094 and 4095 bytes are taken for larger
/// ones.
fn asked_for(outer: usize) -> i64 {
    (if CHECKED || outer >= super::common::LARGE { outer } else { outer - 2 }) as i64
}

// SAFETY: the default backend does the work.
unsafe impl GlobalAlloc for Booked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        note(unsafe { Inner.alloc(layout) }, asked_for(layout.size()))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        note(unsafe { Inner.alloc_zeroed(layout) }, asked_for(layout.size()))
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        forget(asked_for(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { Inner.dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let moved = unsafe { Inner.realloc(block, layout, new_size) };
        if !moved.is_null() {
            forget(asked_for(layout.size()));
        }
        note(moved, asked_for(new_size))
    }
}

fn note(block: *mut u8, bytes: i64) -> *mut u8 {
    if !block.is_null() {
        BLOCKS.fetch_add(1, SeqCst);
        BYTES.fetch_add(bytes, SeqCst);
    }
    block
}

fn forget(bytes: i64) {
    BLOCKS.fetch_sub(1, SeqCst);
    BYTES.fetch_sub(bytes, SeqCst);
}

/// Of a region: it has fields, so all of its blocks have cookies.
#[cfg(feature = "mapped")]
pub struct Window(pub dogtag::mapped::Fallback<dogtag::mapped::MappedRegion, Inner>);

#[cfg(feature = "mapped")]
impl Window {
    pub fn new(len: usize) -> Option<Self> {
        let region = dogtag::mapped::MappedRegion::builder(len).name("soak").map().ok()?;
        Some(Self(dogtag::mapped::Fallback::new(region, Inner)))
    }
}

// SAFETY: the region and the default backend do the work.
#[cfg(feature = "mapped")]
unsafe impl GlobalAlloc for Window {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        note(unsafe { self.0.alloc(layout) }, layout.size() as i64 - 2)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        forget(layout.size() as i64 - 2);
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(block, layout) };
    }
}

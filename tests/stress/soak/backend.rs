//! The backend of allocators beside the global one: a window with the default one behind it, which
//! notes what it gives and gets back.
#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

#[cfg(feature = "jemalloc")]
use dogtag::Jemalloc as Inner;
#[cfg(not(feature = "jemalloc"))]
use std::alloc::System as Inner;

/// Blocks, and the bytes that the program asked for, of all windows.
pub static BLOCKS: AtomicI64 = AtomicI64::new(0);
/// Nothing is said of these with memory-check, which has more around a block.
pub static BYTES: AtomicI64 = AtomicI64::new(0);

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
pub struct Window(pub dogtag_mapped::Fallback<dogtag_mapped::MappedRegion, Inner>);

impl Window {
    pub fn new(len: usize) -> Option<Self> {
        let region = dogtag_mapped::MappedRegion::builder(len).name("soak").map().ok()?;
        Some(Self(dogtag_mapped::Fallback::new(region, Inner)))
    }
}

// SAFETY: the region and the default backend do the work.
unsafe impl GlobalAlloc for Window {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the block and the layout are those that the caller has promised, passed on as they are.
        note(unsafe { self.0.alloc(layout) }, layout.size() as i64 - 2)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        forget(layout.size() as i64 - 2);
        // SAFETY: the block and the layout are those that the caller has promised, passed on as they are.
        unsafe { self.0.dealloc(block, layout) };
    }
}

//! skynet's original design, written anew from its description: process-wide
//! atomic counters, a table of 65,536 slots that services may share, and a
//! cookie of 4 bytes at the end of the block's usable size.

#[path = "../no_services.rs"]
mod services;
#[path = "../workloads/mod.rs"]
mod workloads;

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use tikv_jemallocator::{Jemalloc, usable_size};

#[global_allocator]
static ALLOC: Skynet = Skynet;

struct Skynet;

struct Slot {
    handle: AtomicU32,
    allocated: AtomicI64,
}

static USED_MEMORY: AtomicI64 = AtomicI64::new(0);
static MEMORY_BLOCKS: AtomicI64 = AtomicI64::new(0);
static SLOTS: [Slot; 0x10000] =
    [const { Slot { handle: AtomicU32::new(0), allocated: AtomicI64::new(0) } }; 0x10000];

thread_local! {
    static CURRENT: Cell<u32> = const { Cell::new(0) };
}

const COOKIE: usize = size_of::<u32>();

fn count(handle: u32, bytes: i64) {
    USED_MEMORY.fetch_add(bytes, Ordering::SeqCst);
    MEMORY_BLOCKS.fetch_add(bytes.signum(), Ordering::SeqCst);
    let slot = &SLOTS[handle as usize % SLOTS.len()];
    let owner = slot.handle.load(Ordering::SeqCst);
    if owner != handle && (owner == 0 || slot.allocated.load(Ordering::SeqCst) <= 0) {
        // A slot that is free, or whose service holds nothing, changes hands.
        let _ = slot.handle.compare_exchange(owner, handle, Ordering::SeqCst, Ordering::SeqCst);
    }
    slot.allocated.fetch_add(bytes, Ordering::SeqCst);
}

unsafe fn tag(block: *mut u8) -> *mut u8 {
    if block.is_null() {
        return block;
    }
    let handle = CURRENT.get();
    // SAFETY: the block was requested with space for a cookie at its end.
    unsafe {
        let size = usable_size(block);
        count(handle, size as i64);
        block.add(size - COOKIE).cast::<u32>().write_unaligned(handle);
    }
    block
}

unsafe fn untag(block: *mut u8) {
    // SAFETY: the block is live and `tag` wrote its cookie.
    unsafe {
        let size = usable_size(block);
        let handle = block.add(size - COOKIE).cast::<u32>().read_unaligned();
        count(handle, -(size as i64));
    }
}

fn with_cookie(layout: Layout) -> Layout {
    Layout::from_size_align(layout.size() + COOKIE, layout.align()).unwrap()
}

// SAFETY: every block is jemalloc's, requested a few bytes larger.
unsafe impl GlobalAlloc for Skynet {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is not empty: `GlobalAlloc::alloc` requires it; the block has space for a
        // cookie behind it.
        unsafe { tag(Jemalloc.alloc(with_cookie(layout))) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is not empty: `GlobalAlloc::alloc_zeroed` requires it; the block has space for a cookie
        // behind it.
        unsafe { tag(Jemalloc.alloc_zeroed(with_cookie(layout))) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is live and was requested above, with a cookie behind that layout.
        unsafe {
            untag(block);
            Jemalloc.dealloc(block, with_cookie(layout));
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the block is live and was requested above, with a cookie behind that layout; the new
        // size is not 0.
        unsafe {
            untag(block);
            tag(Jemalloc.realloc(block, with_cookie(layout), new_size + COOKIE))
        }
    }
}

fn main() {
    CURRENT.set(0x0100_0001);
    workloads::main(services::NoServices);
}

//! The way Saluki (DataDog's agent) sees memory per component, written anew from its description: a pointer
//! to its group's counters behind each block, where it is aligned, and four counters a group that all
//! threads share. Its zeroed and growing blocks are `GlobalAlloc`'s default.

#[path = "../no_services.rs"]
mod services;
#[path = "../workloads/mod.rs"]
mod workloads;

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: Grouped = Grouped;

struct Grouped;

struct Group {
    allocated_bytes: AtomicUsize,
    allocated_blocks: AtomicUsize,
    freed_bytes: AtomicUsize,
    freed_blocks: AtomicUsize,
}

impl Group {
    const fn new() -> Self {
        let [allocated_bytes, allocated_blocks, freed_bytes, freed_blocks] =
            [const { AtomicUsize::new(0) }; 4];
        Self { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks }
    }
}

static ROOT: Group = Group::new();
static WORKLOAD: Group = Group::new();

thread_local! {
    static CURRENT: Cell<&'static Group> = const { Cell::new(&ROOT) };
}

/// The layout with a pointer behind the block, and where that is.
fn with_pointer(layout: Layout) -> Option<(Layout, usize)> {
    let (outer, at) = layout.extend(Layout::new::<&Group>()).ok()?;
    Some((outer.pad_to_align(), at))
}

// SAFETY: every block is jemalloc's, requested a few bytes larger.
unsafe impl GlobalAlloc for Grouped {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((outer, at)) = with_pointer(layout) else { return std::ptr::null_mut() };
        // SAFETY: the layout is not empty, and has space for the pointer, aligned.
        unsafe {
            let block = Jemalloc.alloc(outer);
            if !block.is_null() {
                let group = CURRENT.get();
                group.allocated_bytes.fetch_add(outer.size(), Relaxed);
                group.allocated_blocks.fetch_add(1, Relaxed);
                block.add(at).cast::<&Group>().write(group);
            }
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some((outer, at)) = with_pointer(layout) else { return };
        // SAFETY: the block came from `alloc`, with that layout.
        unsafe {
            let group = *block.add(at).cast::<&Group>();
            group.freed_bytes.fetch_add(outer.size(), Relaxed);
            group.freed_blocks.fetch_add(1, Relaxed);
            Jemalloc.dealloc(block, outer);
        }
    }
}

fn main() {
    CURRENT.set(&WORKLOAD);
    workloads::main(services::NoServices);
    assert!(WORKLOAD.allocated_bytes.load(Relaxed) >= WORKLOAD.freed_bytes.load(Relaxed));
}

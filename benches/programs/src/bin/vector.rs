//! The way Vector (the observability pipeline) sees memory per component,
//! written anew from its description: a group's id of one byte behind each block, a
//! stack of entered groups for each thread, and for each thread an array of
//! atomic counters for 128 groups. Its zeroed and growing blocks are
//! `GlobalAlloc`'s default: they are allocated, cleared or copied, and freed.

#[path = "../no_services.rs"]
mod services;
#[path = "../workloads/mod.rs"]
mod workloads;

use std::alloc::{GlobalAlloc, Layout, handle_alloc_error};
use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: Grouped = Grouped;

struct Grouped;

const GROUPS: usize = 128;

struct Counters {
    allocated: [AtomicU64; GROUPS],
    freed: [AtomicU64; GROUPS],
}

static IS_TRACKING: AtomicBool = AtomicBool::new(false);
static ALL: Mutex<Vec<&'static Counters>> = Mutex::new(Vec::new());

thread_local! {
    static ENTERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static COUNTERS: &'static Counters = {
        let counters = Box::leak(Box::new(Counters {
            allocated: [const { AtomicU64::new(0) }; GROUPS],
            freed: [const { AtomicU64::new(0) }; GROUPS],
        }));
        ALL.lock().unwrap().push(counters);
        counters
    };
}

/// Does nothing while the thread's list of groups is borrowed: then it is the
/// counting itself that allocates.
fn with_group(count: impl FnOnce(u8)) {
    let _ = ENTERED.try_with(|entered| {
        if let Ok(entered) = entered.try_borrow_mut() {
            count(entered.last().copied().unwrap_or(0));
        }
    });
}

// SAFETY: every block is jemalloc's, requested a byte larger.
unsafe impl GlobalAlloc for Grouped {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Ok((outer, id)) = layout.extend(Layout::new::<u8>()) else { handle_alloc_error(layout) };
        // SAFETY: the layout is not empty, and has space for the id.
        unsafe {
            let block = Jemalloc.alloc(outer);
            if block.is_null() {
                handle_alloc_error(layout);
            }
            block.add(id).write(0);
            if IS_TRACKING.load(Ordering::Relaxed) {
                with_group(|group| {
                    block.add(id).write(group);
                    let _ = COUNTERS.try_with(|counters| {
                        counters.allocated[group as usize].fetch_add(outer.size() as u64, Ordering::Relaxed)
                    });
                });
            }
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Ok((outer, id)) = layout.extend(Layout::new::<u8>()) else { return };
        // SAFETY: the block came from `alloc`, with that layout.
        unsafe {
            if IS_TRACKING.load(Ordering::Relaxed) {
                let group = block.add(id).read();
                with_group(|_| {
                    let _ = COUNTERS.try_with(|counters| {
                        counters.freed[group as usize].fetch_add(outer.size() as u64, Ordering::Relaxed)
                    });
                });
            }
            Jemalloc.dealloc(block, outer);
        }
    }
}

fn main() {
    ENTERED.with_borrow_mut(|entered| entered.push(1));
    IS_TRACKING.store(true, Ordering::Relaxed);
    workloads::main(services::NoServices);
    let sum = |of: fn(&Counters) -> &AtomicU64| -> u64 {
        ALL.lock().unwrap().iter().map(|counters| of(counters).load(Ordering::Relaxed)).sum()
    };
    assert!(sum(|counters| &counters.allocated[1]) >= sum(|counters| &counters.freed[1]));
}

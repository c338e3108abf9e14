//! tracking-allocator with a tracker that keeps four atomic counters a group,
//! which is what its users write, in a group.

#[path = "../no_services.rs"]
mod services;
#[path = "../workloads/mod.rs"]
mod workloads;

use std::sync::atomic::{AtomicU64, Ordering};
use tikv_jemallocator::Jemalloc;
use tracking_allocator::{
    AllocationGroupId, AllocationGroupToken, AllocationRegistry, AllocationTracker, Allocator,
};

#[global_allocator]
static ALLOC: Allocator<Jemalloc> = Allocator::from_allocator(Jemalloc);

#[derive(Default)]
struct Group {
    allocated_bytes: AtomicU64,
    allocated_blocks: AtomicU64,
    freed_bytes: AtomicU64,
    freed_blocks: AtomicU64,
}

struct Counters([Group; 128]);

impl Counters {
    fn group(&self, id: AllocationGroupId) -> &Group {
        &self.0[id.as_usize().get() % self.0.len()]
    }
}

impl AllocationTracker for Counters {
    fn allocated(&self, _: usize, size: usize, _: usize, group: AllocationGroupId) {
        let group = self.group(group);
        group.allocated_bytes.fetch_add(size as u64, Ordering::Relaxed);
        group.allocated_blocks.fetch_add(1, Ordering::Relaxed);
    }

    fn deallocated(&self, _: usize, size: usize, _: usize, owner: AllocationGroupId, _: AllocationGroupId) {
        let group = self.group(owner);
        group.freed_bytes.fetch_add(size as u64, Ordering::Relaxed);
        group.freed_blocks.fetch_add(1, Ordering::Relaxed);
    }
}

fn main() {
    AllocationRegistry::set_global_tracker(Counters(std::array::from_fn(|_| Group::default())))
        .expect("no tracker is set yet");
    AllocationRegistry::enable_tracking();
    let mut group = AllocationGroupToken::register().expect("a group is left");
    let _guard = group.enter();
    workloads::main(services::NoServices);
}

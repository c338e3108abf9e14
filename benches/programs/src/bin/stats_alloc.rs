//! stats_alloc: six process-wide counters, no services.

#[path = "../no_services.rs"]
mod services;
#[path = "../workloads/mod.rs"]
mod workloads;

use stats_alloc::StatsAlloc;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: StatsAlloc<Jemalloc> = StatsAlloc::new(Jemalloc);

fn main() {
    workloads::main(services::NoServices);
}

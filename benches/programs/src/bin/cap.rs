//! cap: one process-wide counter, no services.

#[path = "../no_services.rs"]
mod services;
#[path = "../workloads/mod.rs"]
mod workloads;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: cap::Cap<Jemalloc> = cap::Cap::new(Jemalloc, usize::MAX);

fn main() {
    workloads::main(services::NoServices);
}

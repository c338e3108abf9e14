//! The limit: jemalloc itself.

#[path = "../workloads/mod.rs"]
mod workloads;

#[global_allocator]
static ALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    workloads::main(workloads::NoServices);
}

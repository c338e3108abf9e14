//! dogtag with memory-check, in a service.

#[path = "../workloads.rs"]
mod workloads;

#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();

fn main() {
    let service = dogtag::Service::register("workload").unwrap();
    service.run(workloads::main);
}

//! dogtag with an owner table, in a service.

#[path = "../dogtag.rs"]
mod services;
#[path = "../workloads/mod.rs"]
mod workloads;

#[global_allocator]
static ALLOC: dogtag::Dogtag<dogtag::DefaultBackend, dogtag::OwnerTable> = dogtag::Dogtag::with_owner_table();

fn main() {
    let service = dogtag::Service::register("workload").unwrap();
    service.run(|| workloads::main(services::Dogtag));
}

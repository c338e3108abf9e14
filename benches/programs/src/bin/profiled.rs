//! dogtag with its profiler, which `DOGTAG_PROFILE` starts, in a service.

#[path = "../dogtag.rs"]
mod services;
#[path = "../workloads/mod.rs"]
mod workloads;

#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();

fn main() {
    dogtag::profile::Profiler::from_env().unwrap();
    let service = dogtag::Service::register("workload").unwrap();
    service.run(|| workloads::main(services::Dogtag));
}

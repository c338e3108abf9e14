//! dogtag with its sampled guard, which `DOGTAG_SAMPLED_GUARD` starts, in a service.

#[path = "../dogtag.rs"]
mod services;
#[path = "../workloads/mod.rs"]
mod workloads;

#[global_allocator]
static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();

fn main() {
    dogtag::sampled_guard::SampledGuard::from_env().unwrap();
    let service = dogtag::Service::register("workload").unwrap();
    service.run(|| workloads::main(services::Dogtag));
}

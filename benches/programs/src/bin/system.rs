//! The system's allocator, for orientation.

#[path = "../no_services.rs"]
mod services;
#[path = "../workloads/mod.rs"]
mod workloads;

fn main() {
    workloads::main(services::NoServices);
}

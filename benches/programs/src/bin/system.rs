//! The system's allocator, for orientation.

#[path = "../workloads/mod.rs"]
mod workloads;

fn main() {
    workloads::main(workloads::NoServices);
}

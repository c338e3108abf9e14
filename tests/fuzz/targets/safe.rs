//! Programs of safe code only, on two threads: whatever they do, none of them reaches freed memory,
//! as memory-check has it, or is in a service that nobody holds.

#![no_main]

#[path = "../../stress/safe/program.rs"]
mod program;

use dogtag::Dogtag;
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

fuzz_target!(init: program::heed_panics(), |bytes: &[u8]| program::run(bytes));

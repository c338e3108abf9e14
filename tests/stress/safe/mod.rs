//! Random programs of safe code only: whatever they do, none of them reaches freed memory. Memory-check
//! sees that (run this with the feature) and valgrind (`.ci/sanitize memcheck safe::`); the
//! same programs are fuzzed by `.ci/fuzz 60 safe`.
//!
//! `DOGTAG_PROGRAM` has the one run that a failure has shown.
#![forbid(unsafe_code)]

mod program;

use crate::random::Random;
use std::time::Instant;

#[test]
fn safe_programs_stay_within_their_memory() {
    alone!();
    if let Ok(program) = std::env::var("DOGTAG_PROGRAM") {
        program::heed_panics();
        let bytes = program.as_bytes().chunks(2).map(|byte| {
            let byte = std::str::from_utf8(byte).expect("text");
            u8::from_str_radix(byte, 16).expect("two digits for a byte")
        });
        return program::run(&bytes.collect::<Vec<_>>());
    }
    let end = Instant::now() + crate::random::seconds(5.0);
    let first = crate::random::seed();
    program::heed_panics();
    let mut programs = 0;
    while programs < 100 || Instant::now() < end {
        let mut random = Random::nth(first, programs);
        let bytes: Vec<u8> = (0..1 + random.below(600)).map(|_| random.next() as u8).collect();
        program::run(&bytes);
        programs += 1;
        if programs % 1000 == 0 {
            println!("{programs} programs");
        }
    }
    println!("{programs} programs");
}

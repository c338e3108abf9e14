//! Random programs of safe code only: whatever they do, none of them reaches freed memory. Memory-check
//! sees that (run this with the feature) and valgrind (`.ci/sanitize memcheck safe`); the
//! same programs are fuzzed by `.ci/fuzz 60 safe`.
//!
//! `DOGTAG_MODEL_SECONDS` sets for how long (5 by default), `DOGTAG_SEED` which programs;
//! `DOGTAG_PROGRAM` has the one run that a failure has shown.
#![forbid(unsafe_code)]

mod program;

use crate::random::Random;
use std::time::{Duration, Instant};

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
    let seconds =
        std::env::var("DOGTAG_MODEL_SECONDS").map_or(5, |seconds| seconds.parse().expect("seconds"));
    let end = Instant::now() + Duration::from_secs(seconds);
    let first = crate::random::seed();
    program::heed_panics();
    let mut programs = 0;
    while programs < 10 || Instant::now() < end {
        let mut random = Random::nth(first, programs);
        let bytes: Vec<u8> = (0..1 + random.below(600)).map(|_| random.next() as u8).collect();
        program::run(&bytes);
        programs += 1;
        if programs % 1000 == 0 {
            println!("{programs} programs");
        }
    }
    println!("{programs} programs in {seconds} s");
}

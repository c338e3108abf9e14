//! Contestants that run by turns, for the benches that are one program.

use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 21;

/// A name, and what returns the seconds that one operation takes.
pub type Contestant<'a> = (&'a str, &'a mut dyn FnMut() -> f64);

/// How many rounds the command line asks for. Prints what the tables are to be read by.
pub fn asked_for() -> usize {
    let rounds = std::env::args().find_map(|it| it.parse().ok()).filter(|it| *it > 0).unwrap_or(ROUNDS);
    println!("medians of {rounds} rounds; × the first of each table in the same round");
    rounds
}

/// Prints a table of medians, in ns or µs; the first contestant is the yardstick.
pub fn compare(what: &str, unit: &str, rounds: usize, contestants: &mut [Contestant]) {
    let count = contestants.len();
    let mut times = vec![vec![]; count];
    contestants.iter_mut().for_each(|(_, run)| _ = run());
    for round in 0..rounds {
        for turn in 0..count {
            let who = (round + turn) % count;
            times[who].push(contestants[who].1());
        }
    }
    let scale = if unit == "ns" { 1e9 } else { 1e6 };
    println!("\n{what}");
    for ((name, _), of) in contestants.iter().zip(&times) {
        let each = median(of.iter().map(|time| time * scale));
        let ratio = median(of.iter().zip(&times[0]).map(|(time, base)| time / base));
        println!("    {name:<31} {each:>10.2} {unit}  {ratio:>7.3}×");
    }
}

/// Seconds that one of so many takes.
pub fn each<R>(times: usize, mut work: impl FnMut() -> R) -> f64 {
    timed(|| (0..times).for_each(|_| _ = black_box(work()))) / times as f64
}

/// Seconds that it takes.
pub fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// The same numbers each time, each below what is asked for.
pub fn random() -> impl FnMut(usize) -> usize {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as usize % below
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

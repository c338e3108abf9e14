//! What it costs real programs: the time, and the peak RSS.

use crate::settings::{Contestant, build_as, by_turns, geometric_mean, median, path_of};

const WORKLOADS: [&str; 10] =
    ["json", "strings", "words", "sort", "index", "regex", "lru", "requests", "merge", "log"];

/// Program, the guard's settings, and what it is called.
const CONTESTANTS: [(&str, &str, &str); 5] = [
    ("dogtag", "", "without the feature"),
    ("guarded", "", "with it, off"),
    ("guarded", "1", "on, 1 in 5,000"),
    ("guarded", "per-second=0", "on, however many a second"),
    ("guarded", "rate=1000", "on, 1 in 1,000"),
];
/// The one that others are measured by.
const OFF: usize = 1;

pub fn measure(rounds: usize, only: &[String]) {
    let programs = [("dogtag", "dogtag"), ("guarded", "sampled-guard")]
        .map(|(name, feature)| (name, build_as(&format!("sampled-guard-{name}"), name, feature)));
    let contestants = CONTESTANTS.map(|(name, setting, _)| Contestant {
        program: path_of(&programs, name),
        setting: ("DOGTAG_SAMPLED_GUARD", setting),
    });
    println!("\ntime, as a multiple of the same program with the guard off, and peak RSS, as KiB above it\n");
    print!("| {:<10} ", "");
    CONTESTANTS.iter().for_each(|(.., label)| print!("| {label:>21} "));
    println!("|\n|{}|{}", "-".repeat(12), format!("{}:|", "-".repeat(22)).repeat(CONTESTANTS.len()));
    let mut all = vec![(Vec::new(), Vec::new()); CONTESTANTS.len()];
    for workload in WORKLOADS {
        if WORKLOADS.iter().any(|known| only.iter().any(|it| it == known))
            && !only.iter().any(|it| it == workload)
        {
            continue;
        }
        let measured = by_turns(workload, rounds, &contestants);
        print!("| {workload:<10} ");
        for (who, (times, memory)) in all.iter_mut().enumerate() {
            let pairs = || measured[who].iter().zip(&measured[OFF]);
            let time = median(pairs().map(|(own, off)| own.time / off.time));
            let more = median(pairs().map(|(own, off)| (own.memory - off.memory) / 1024.0));
            print!("| {:>21} ", format!("{time:.3}× {more:+.0} KiB"));
            times.push(time);
            memory.push(more);
        }
        println!("|");
    }
    print!("| {:<10} ", "mean, most");
    for (times, memory) in &all {
        let most = memory.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        print!("| {:>21} ", format!("{:.3}× {most:+.0} KiB", geometric_mean(times)));
    }
    println!("|");
}

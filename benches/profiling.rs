//! What a heap profile that is always on costs real programs: dogtag's, and jemalloc's own.
//!
//! `cargo bench --bench profiling [-- ROUNDS [WORKLOAD ...]]`
//!
//! Every measurement is a fresh process; the contestants take turns within a round. What is shown is
//! the median over the rounds of the ratio to the same allocator without a profiler in the same round:
//! of the time, and of the peak RSS.

#[path = "programs/builder.rs"]
mod builder;
#[path = "programs/settings.rs"]
mod settings;

use settings::{Run, build_as, by_turns, geometric_mean, median, path_of};

const ROUNDS: usize = 11;
const WORKLOADS: [&str; 7] = ["json", "strings", "regex", "lru", "requests", "merge", "log"];

/// A program, with which setting, and what it is called.
struct Contestant {
    program: &'static str,
    setting: (&'static str, &'static str),
    label: &'static str,
    /// Whom it is measured by.
    yardstick: usize,
}

const fn contestant(
    program: &'static str,
    setting: (&'static str, &'static str),
    label: &'static str,
    yardstick: usize,
) -> Contestant {
    Contestant { program, setting, label, yardstick }
}

/// The program `bare`, with a jemalloc that can profile.
const JEMALLOC: &str = "jemalloc_profiled";

const OURS: &str = "DOGTAG_PROFILE";
const JEMALLOCS: &str = "_RJEM_MALLOC_CONF";

const CONTESTANTS: [Contestant; 6] = [
    contestant("dogtag", (OURS, ""), "dogtag without the feature", 0),
    contestant("profiled", (OURS, ""), "with it, off", 0),
    contestant("profiled", (OURS, "interval=512K"), "on, 512 KiB", 0),
    contestant("profiled", (OURS, "interval=64K"), "on, 64 KiB", 0),
    contestant(JEMALLOC, (JEMALLOCS, "prof:false"), "jemalloc, off", 4),
    contestant(JEMALLOC, (JEMALLOCS, "prof:true,lg_prof_sample:19"), "jemalloc, 512 KiB", 4),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| it != "--bench").collect();
    let rounds = arguments.iter().find_map(|it| it.parse().ok()).unwrap_or(ROUNDS);
    let asked_for = |workload: &&str| arguments.iter().any(|it| it == workload);
    let mut workloads: Vec<&str> = WORKLOADS.into_iter().filter(asked_for).collect();
    if workloads.is_empty() {
        workloads = WORKLOADS.to_vec();
    }
    // Each with the features that it needs, and none that another one needs.
    let programs = [
        ("dogtag", "dogtag", "dogtag"),
        ("profiled", "profiled", "profile"),
        (JEMALLOC, "bare", "jemalloc-profiling"),
    ];
    let programs = programs
        .map(|(name, binary, feature)| (name, build_as(&format!("profiling-{name}"), binary, feature)));
    let contestants = CONTESTANTS
        .each_ref()
        .map(|it| settings::Contestant { program: path_of(&programs, it.program), setting: it.setting });

    print!("| {:<10} ", "");
    CONTESTANTS.iter().for_each(|contestant| print!("| {:>26} ", contestant.label));
    println!("|\n|{}|{}", "-".repeat(12), format!("{}:|", "-".repeat(27)).repeat(CONTESTANTS.len()));
    let mut all = vec![(Vec::new(), Vec::new()); CONTESTANTS.len()];
    for workload in workloads {
        let measured = by_turns(workload, rounds, &contestants);
        print!("| {workload:<10} ");
        for (who, contestant) in CONTESTANTS.iter().enumerate() {
            let base = &measured[contestant.yardstick];
            let ratio = |of: fn(&Run) -> f64| {
                median(measured[who].iter().zip(base).map(|(own, base)| of(own) / of(base)))
            };
            let (time, memory) = (ratio(|run| run.time), ratio(|run| run.memory));
            print!("| {:>26} ", format!("{time:.3}× {memory:.3}×"));
            all[who].0.push(time);
            all[who].1.push(memory);
        }
        println!("|");
    }
    print!("| {:<10} ", "mean");
    for (times, memory) in &all {
        print!("| {:>26} ", format!("{:.3}× {:.3}×", geometric_mean(times), geometric_mean(memory)));
    }
    println!("|");
}

//! What it costs real programs: the time, and the peak RSS.

use crate::programs::{build, fail};
use std::path::{Path, PathBuf};
use std::process::Command;

const WORKLOADS: [&str; 10] =
    ["json", "strings", "words", "sort", "index", "regex", "lru", "requests", "merge", "log"];

/// Program, the guard's settings, and what it is called.
const CONTESTANTS: [(&str, &str, &str); 4] = [
    ("dogtag", "", "without the feature"),
    ("guarded", "", "with it, off"),
    ("guarded", "1", "on, 1 in 5,000"),
    ("guarded", "rate=1000", "on, 1 in 1,000"),
];
/// The one that others are measured by.
const OFF: usize = 1;

pub fn measure(rounds: usize, only: &[String]) {
    let programs = [("dogtag", "dogtag"), ("guarded", "sampled-guard")].map(|(name, feature)| {
        let folder = build(&["--features", feature, "--bin", name]);
        (name, kept(&folder.join(name), &folder.join(format!("sampled-guard-{name}"))))
    });
    let program = |name: &str| {
        let found = programs.iter().find(|(known, _)| *known == name);
        found.map_or_else(|| fail(name), |(_, path)| path.as_path())
    };
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
        let mut measured = vec![Vec::new(); CONTESTANTS.len()];
        for round in 0..rounds {
            for turn in 0..CONTESTANTS.len() {
                let who = (round + turn) % CONTESTANTS.len();
                let (name, setting, _) = CONTESTANTS[who];
                measured[who].push(run(program(name), setting, workload));
            }
        }
        print!("| {workload:<10} ");
        for (who, (times, memory)) in all.iter_mut().enumerate() {
            let pairs = || measured[who].iter().zip(&measured[OFF]);
            let time = median(pairs().map(|(own, off)| own.0 / off.0));
            let more = median(pairs().map(|(own, off)| (own.1 - off.1) / 1024.0));
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

/// The program, under a name that the next build does not overwrite.
fn kept(program: &Path, kept: &Path) -> PathBuf {
    match std::fs::copy(program, kept) {
        Ok(_) => kept.to_owned(),
        Err(error) => fail(&format!("{}: {error}", kept.display())),
    }
}

/// Nanoseconds for one operation, and the process's peak RSS in bytes.
fn run(program: &Path, setting: &str, workload: &str) -> (f64, f64) {
    let output = match Command::new(program).arg(workload).env("DOGTAG_SAMPLED_GUARD", setting).output() {
        Ok(output) => output,
        Err(error) => fail(&format!("{}: {error}", program.display())),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(time)), Some(Ok(memory))) if output.status.success() => (time, memory),
        _ => fail(&format!("{} {workload}: {}", program.display(), output.status)),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

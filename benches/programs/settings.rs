//! Programs under several settings, by turns, for the benches that compare those.

use super::builder::{build, fail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program, and what the environment has for it.
pub struct Contestant<'a> {
    pub program: &'a Path,
    pub setting: (&'a str, &'a str),
}

/// What a run took: nanoseconds for one operation, and the process's peak RSS in bytes.
#[derive(Clone, Copy)]
pub struct Run {
    pub time: f64,
    pub memory: f64,
}

/// Builds a program with a feature, and keeps it under a name that the next build does not overwrite.
pub fn build_as(name: &str, binary: &str, feature: &str) -> PathBuf {
    let folder = build(&["--features", feature, "--bin", binary]);
    let kept = folder.join(name);
    match std::fs::copy(folder.join(binary), &kept) {
        Ok(_) => kept,
        Err(error) => fail(&format!("{}: {error}", kept.display())),
    }
}

/// Runs all contestants so many times, each run a fresh process; they take turns within a round. Returns the runs of
/// each.
pub fn by_turns(workload: &str, rounds: usize, contestants: &[Contestant]) -> Vec<Vec<Run>> {
    let mut runs = vec![Vec::new(); contestants.len()];
    for round in 0..rounds {
        for turn in 0..contestants.len() {
            let who = (round + turn) % contestants.len();
            runs[who].push(run(&contestants[who], workload));
        }
    }
    runs
}

fn run(Contestant { program, setting: (name, value) }: &Contestant, workload: &str) -> Run {
    let output = match Command::new(program).arg(workload).env(name, value).output() {
        Ok(output) => output,
        Err(error) => fail(&format!("{}: {error}", program.display())),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(time)), Some(Ok(memory))) if output.status.success() => Run { time, memory },
        _ => fail(&format!("{} {workload}: {}", program.display(), output.status)),
    }
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

/// The path of a program that was built.
pub fn path_of<'a>(programs: &'a [(&str, PathBuf)], name: &str) -> &'a Path {
    let found = programs.iter().find(|(known, _)| *known == name);
    found.map_or_else(|| fail(name), |(_, path)| path.as_path())
}

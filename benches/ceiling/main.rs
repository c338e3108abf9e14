//! What a guard achieves, and what it costs: eight queries, one of which grows by a GiB a second, below a
//! ceiling of one GiB.
//!
//! `cargo bench --features guard --bench ceiling -- [RUNS] [ROUNDS] [QUERIES]`
//!
//! Each run is a process of its own. `RUNS` (3) of the load, `ROUNDS` (5) of the programs without a need for a
//! guard, `QUERIES` (1000) that are cancelled one after the other. It fails when another query than the
//! runaway is cancelled, or the runaway is not, or anything is left of those that were cancelled.

mod cost;
mod eight_queries;
#[path = "../../tests/guard/load.rs"]
mod load;
mod one_by_one;
mod process;

use cost::{cost, count, the_cost};
use dogtag::Dogtag;
use dogtag::guard::{Ceiling, Guard};
use eight_queries::{Eighth, load, the_end_without, the_load};
use one_by_one::{budget, drift, the_budget, the_drift};
use process::limit_addresses;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const CEILING: u64 = 1 << 30;
const A_SECOND: u64 = 1 << 30;
const OTHERS: usize = 7;

fn main() {
    if let Ok(task) = std::env::var("DOGTAG_CEILING_TASK") {
        return run(&task);
    }
    let mut numbers = std::env::args().skip(1).filter_map(|number| number.parse::<usize>().ok());
    let mut next = |default| numbers.next().unwrap_or(default);
    let (runs, rounds, queries) = (next(3), next(5), next(1000));
    let is_well = the_load(runs) & the_budget(runs.min(20)) & the_end_without(1);
    the_cost(rounds);
    assert!(the_drift(queries) && is_well, "a promise is broken");
}

/// Runs this program again, for a task. What it prints are numbers; `None` if it is ended.
fn again(task: &str) -> Option<Vec<f64>> {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).env("DOGTAG_CEILING_TASK", task).output().unwrap();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let why = why.lines().find(|line| !line.is_empty()).unwrap_or_default();
        let signal = output.status.signal().map_or(String::new(), |signal| format!(" (signal {signal})"));
        println!("    ended: {}{signal} {why}", output.status);
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.split_whitespace().map(|number| number.parse().unwrap()).collect())
}

fn run(task: &str) {
    let (name, argument) = task.split_once(' ').unwrap_or((task, ""));
    let number = || argument.parse().unwrap();
    let numbers = match name {
        "load" => load(Some(guard()), Eighth::Runaway, number()),
        "high" => load(Some(too_high()), Eighth::Led, number()),
        "led" => load(None, Eighth::Led, number()),
        "writes" => load(None, Eighth::Writes, number()),
        "ordinary" => load(None, Eighth::Ordinary, number()),
        "alone" => load(Some(guard()), Eighth::Nobody, number()),
        "bare" => load(None, Eighth::Nobody, number()),
        "unguarded" => {
            limit_addresses();
            load(None, Eighth::Runaway, number())
        }
        "limited" => {
            limit_addresses();
            load(Some(guard()), Eighth::Runaway, number())
        }
        "budget" => budget(argument == "busy"),
        "cost" => cost(number()),
        "count" => count(argument),
        "drift" => drift(number()),
        _ => unreachable!("{task}"),
    };
    let numbers: Vec<String> = numbers.iter().map(f64::to_string).collect();
    println!("{}", numbers.join(" "));
}

fn guard() -> Guard {
    // Nobody is late because the machine has other things to do.
    let grace = Duration::from_secs(5);
    Guard::builder().ceiling(Ceiling::bytes(CEILING)).grace(grace).start().unwrap()
}

/// A guard that looks, but has nothing to do.
fn too_high() -> Guard {
    Guard::builder().ceiling(Ceiling::bytes(4 * CEILING)).start().unwrap()
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

/// Prints the median of a column, with the least and the most.
fn row(name: &str, runs: &[Vec<f64>], column: usize) {
    let mut numbers: Vec<f64> = runs.iter().map(|run| run[column]).collect();
    numbers.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (numbers.first(), numbers.last()) else { return };
    let median = numbers[numbers.len() / 2];
    println!("{name:<72} {median:>8.2} ({least:.2} to {most:.2})");
}

//! Eight queries at once, the eighth of which may be the runaway: who is cancelled, how soon, and what the others
//! notice of it.

use crate::load::{MIB, NOT_COUNTED, SORTED, grows, query, sorts, spawn, writes};
use crate::process::{Resident, Used, kib};
use crate::{A_SECOND, CEILING, OTHERS, again, row, runtime};
use dogtag::guard::{CancelReason, Guard};
use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What runs beside the seven queries.
#[derive(Clone, Copy, PartialEq)]
pub enum Eighth {
    Nobody,
    /// One like the others, whose rows do not count.
    Ordinary,
    /// One that does what the runaway does, but keeps to 4 MiB that it has.
    Writes,
    /// The runaway.
    Runaway,
    /// The runaway, which the program itself cancels at the ceiling.
    Led,
}

/// Seven queries and an eighth: whether that was cancelled by a guard, how many others were; by how many MiB the
/// ceiling was passed; milliseconds from passing it to the error, and until less is used; the rows that the seven
/// sorted in a second, while the eighth is there, and over all; milliseconds that it was there; those that the
/// process's threads and the system for it had the cores meanwhile, and those of the guard's thread; thousands
/// of page faults. Each of the others sorts `times` tables.
pub fn load(guard: Option<Guard>, eighth: Eighth, times: usize) -> Vec<f64> {
    let runtime = runtime();
    let others: Vec<_> = (0..OTHERS).map(|i| query(&format!("query {i}"))).collect();
    let runaway = query("runaway");
    let passed: Arc<Mutex<Option<Instant>>> = Arc::default();
    let resident = Resident::new();
    runtime.block_on(async {
        let began = Instant::now();
        let tasks: Vec<_> = others.iter().map(|query| spawn(query, sorts(250_000, times, &SORTED))).collect();
        let (mut is_cancelled, mut to_error, mut to_less) = (0.0, f64::NAN, f64::NAN);
        // They have what they need.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = (Instant::now(), SORTED.load(Relaxed), Used::now());
        // As long as the runaway takes, and no longer.
        let a_while = || tokio::time::sleep(Duration::from_millis(950));
        let outcome = match eighth {
            Eighth::Nobody => {
                a_while().await;
                None
            }
            Eighth::Ordinary => {
                let task = spawn(&runaway, sorts(250_000, usize::MAX, &NOT_COUNTED));
                a_while().await;
                task.abort();
                None
            }
            Eighth::Writes => {
                let task = spawn(&runaway, writes(256 << 10, A_SECOND));
                a_while().await;
                task.abort();
                None
            }
            Eighth::Runaway | Eighth::Led => {
                let watches = {
                    let (passed, resident, runaway) = (Arc::clone(&passed), Resident::new(), runaway.clone());
                    move |_| {
                        let bytes = resident.bytes();
                        if bytes >= CEILING {
                            passed.lock().unwrap().get_or_insert_with(Instant::now);
                            if eighth == Eighth::Led {
                                runaway.cancel("it has got so far");
                            }
                        }
                        // Without a guard the system is to end it, but not the machine.
                        bytes > CEILING + CEILING / 2 * 3
                    }
                };
                Some(spawn(&runaway, grows(256 << 10, A_SECOND, watches)).await.unwrap())
            }
        };
        let now = Instant::now();
        let took = (now - before.0).as_secs_f64();
        let during = (SORTED.load(Relaxed) - before.1) as f64 / took;
        let used = Used::now();
        if let Some(outcome) = outcome {
            if let Err(cancelled) = outcome
                && matches!(cancelled.reason, CancelReason::Ceiling { .. })
            {
                is_cancelled = 1.0;
            }
            let passed = passed.lock().unwrap().unwrap_or(now);
            to_error = (now - passed).as_secs_f64() * 1e3;
            while resident.bytes() >= CEILING {
                std::thread::sleep(Duration::from_micros(100));
            }
            to_less = passed.elapsed().as_secs_f64() * 1e3;
        }
        let mut others_cancelled = 0.0;
        for task in tasks {
            others_cancelled += f64::from(u8::from(task.await.unwrap().is_err()));
        }
        let over_all = SORTED.load(Relaxed) as f64 / began.elapsed().as_secs_f64();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let over = kib(&status, "VmHWM:") as f64 / 1024.0 - CEILING as f64 / MIB as f64;
        drop(guard);
        let mut numbers =
            vec![is_cancelled, others_cancelled, over, to_error, to_less, during, over_all, took * 1e3];
        numbers.extend(used.since(&before.2));
        numbers
    })
}

/// What the others' throughput is compared with.
const COMPARED: [(&str, &str); 5] = [
    ("alone 240", "a run without it"),
    ("ordinary 110", "a run with an ordinary eighth"),
    ("writes 110", "a run with an eighth that writes as much, to 4 MiB"),
    ("led 110", "a run without a guard, in which the program ends it there"),
    ("high 110", "the same, with a guard that has nothing to do"),
];

pub fn the_load(runs: usize) -> bool {
    println!("eight queries, one of which grows by 1 GiB/s; ceiling 1 GiB; {runs} runs");
    let mut load = Vec::new();
    let mut compared: [Vec<Vec<f64>>; COMPARED.len()] = Default::default();
    for run in 0..runs {
        load.push(again("load 240"));
        // Interleaved, so that all have the same machine.
        for ((task, _), runs) in COMPARED.iter().zip(&mut compared).take(if run < 20 { 5 } else { 1 }) {
            runs.extend(again(task));
        }
    }
    let ended = load.iter().filter(|run| run.is_none()).count();
    let load: Vec<Vec<f64>> = load.into_iter().flatten().collect();
    let sum = |runs: &[Vec<f64>], column: usize| runs.iter().map(|run| run[column]).sum::<f64>();
    let right = sum(&load, 0);
    let wrong = sum(&load, 1) + compared.iter().map(|runs| sum(runs, 1)).sum::<f64>();
    println!("  the runaway is cancelled / others / processes that ended   {right} / {wrong} / {ended}");
    row("  highest RSS above the ceiling, MiB", &load, 2);
    row("  from passing the ceiling to Err, ms (all cores busy)", &load, 3);
    row("  from passing it until less is used, ms", &load, 4);
    row("  the time in which it grows, ms", &load, 7);
    row("  of the cores' time meanwhile: all threads, ms", &load, 8);
    row("    the system for them (page faults), ms", &load, 9);
    row("    dogtag's own threads, ms", &load, 10);
    println!("  the seven others' rows a second while the eighth grows, of those in");
    for ((_, name), runs) in COMPARED.iter().zip(&compared) {
        row(&format!("    {name}"), &ratios(&load, runs, 5), 0);
    }
    row("  and over the whole run, of a run without it", &ratios(&load, &compared[0], 6), 0);
    right == runs as f64 && wrong == 0.0 && ended == 0
}

/// Of pairs of runs.
fn ratios(load: &[Vec<f64>], alone: &[Vec<f64>], column: usize) -> Vec<Vec<f64>> {
    load.iter().zip(alone).map(|(load, alone)| vec![load[column] / alone[column]]).collect()
}

pub fn the_end_without(runs: usize) -> bool {
    println!("\nthe same load under a limit of addresses (ulimit -v), half as much again as the ceiling");
    let mut is_well = true;
    for _ in 0..runs {
        println!("  without a guard:");
        let without = again("unguarded 60");
        println!("  with one:");
        let with = again("limited 60");
        is_well &= without.is_none() && with.as_ref().is_some_and(|run| run[0] == 1.0 && run[1] == 0.0);
        if is_well {
            println!("    the runaway is cancelled, the others finish");
        }
    }
    is_well
}

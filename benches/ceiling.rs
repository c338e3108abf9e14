//! What a guard achieves, and what it costs: eight queries, one of which grows by a GiB a second, below a
//! ceiling of one GiB.
//!
//! `cargo bench --features guard --bench ceiling -- [RUNS] [ROUNDS] [QUERIES]`
//!
//! Each run is a process of its own. `RUNS` (3) of the load, `ROUNDS` (5) of the programs without a need for a
//! guard, `QUERIES` (1000) that are cancelled one after the other. It fails when another query than the
//! runaway is cancelled, or the runaway is not, or anything is left of those that were cancelled.

#[path = "../tests/guard/load.rs"]
mod load;

use dogtag::guard::{CancelReason, Ceiling, Guard};
use dogtag::{Dogtag, Service};
use load::{MIB, SORTED, block, grows, query, sorts, spawn};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
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
        "load" => load(Some(guard()), true, number()),
        "alone" => load(Some(guard()), false, number()),
        "unguarded" => {
            limit_addresses();
            load(None, true, number())
        }
        "limited" => {
            limit_addresses();
            load(Some(guard()), true, number())
        }
        "budget" => budget(argument == "busy"),
        "cost" => cost(number()),
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

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

/// As `ulimit -v` does: what there is, and half as much again as the ceiling.
fn limit_addresses() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let most = kib(&status, "VmSize:") * 1024 + CEILING / 2 * 3;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: a limit of this process's own, read where it stands.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
}

fn kib(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What this process has in memory, read without an allocation.
struct Resident(File);

impl Resident {
    fn new() -> Self {
        Self(File::open("/proc/self/statm").unwrap())
    }

    fn bytes(&self) -> u64 {
        let mut text = [0; 200];
        let len = self.0.read_at(&mut text, 0).unwrap();
        let text = str::from_utf8(&text[..len]).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }
}

/// Eight queries: whether the runaway was cancelled, how many others were; by how many MiB the ceiling was
/// passed; milliseconds from passing it to the error, and until less is used; the rows that the others sorted in
/// a second, while the runaway grows, and over all. Each of the others sorts `times` tables.
fn load(guard: Option<Guard>, has_runaway: bool, times: usize) -> Vec<f64> {
    let runtime = runtime();
    let others: Vec<_> = (0..OTHERS).map(|i| query(&format!("query {i}"))).collect();
    let runaway = query("runaway");
    let passed: Arc<Mutex<Option<Instant>>> = Arc::default();
    let resident = Resident::new();
    runtime.block_on(async {
        let began = Instant::now();
        let tasks: Vec<_> = others.iter().map(|query| spawn(query, sorts(250_000, times))).collect();
        let (mut is_cancelled, mut to_error, mut to_less) = (0.0, f64::NAN, f64::NAN);
        let during;
        if has_runaway {
            let watches = {
                let (passed, resident) = (Arc::clone(&passed), Resident::new());
                move |_| {
                    let bytes = resident.bytes();
                    if bytes >= CEILING {
                        passed.lock().unwrap().get_or_insert_with(Instant::now);
                    }
                    // Without a guard the system is to end it, but not the machine.
                    bytes > CEILING + CEILING / 2 * 3
                }
            };
            let (at, rows) = (Instant::now(), SORTED.load(Relaxed));
            let outcome = spawn(&runaway, grows(256 << 10, A_SECOND, watches)).await.unwrap();
            let now = Instant::now();
            during = (SORTED.load(Relaxed) - rows) as f64 / at.elapsed().as_secs_f64();
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
        } else {
            // As long as that takes, and no longer.
            let (at, rows) = (Instant::now(), SORTED.load(Relaxed));
            tokio::time::sleep(Duration::from_millis(900)).await;
            during = (SORTED.load(Relaxed) - rows) as f64 / at.elapsed().as_secs_f64();
        }
        let mut others_cancelled = 0.0;
        for task in tasks {
            others_cancelled += f64::from(u8::from(task.await.unwrap().is_err()));
        }
        let over_all = SORTED.load(Relaxed) as f64 / began.elapsed().as_secs_f64();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let over = kib(&status, "VmHWM:") as f64 / 1024.0 - CEILING as f64 / MIB as f64;
        drop(guard);
        vec![is_cancelled, others_cancelled, over, to_error, to_less, during, over_all]
    })
}

fn the_load(runs: usize) -> bool {
    println!("eight queries, one of which grows by 1 GiB/s; ceiling 1 GiB; {runs} runs");
    let (mut load, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        load.push(again("load 240"));
        // Interleaved, so that both have the same machine.
        alone.extend(again("alone 240"));
    }
    let ended = load.iter().filter(|run| run.is_none()).count();
    let load: Vec<Vec<f64>> = load.into_iter().flatten().collect();
    let sum = |column: usize| load.iter().map(|run| run[column]).sum::<f64>();
    let (right, wrong) = (sum(0), sum(1) + alone.iter().map(|run| run[1]).sum::<f64>());
    println!("  the runaway is cancelled / others / processes that ended   {right} / {wrong} / {ended}");
    row("  highest RSS above the ceiling, MiB", &load, 2);
    row("  from passing the ceiling to Err, ms (all cores busy)", &load, 3);
    row("  from passing it until less is used, ms", &load, 4);
    row("  others' rows a second while the runaway grows, of a run without it", &ratios(&load, &alone, 5), 0);
    row("  others' rows a second over the whole run, of a run without it", &ratios(&load, &alone, 6), 0);
    right == runs as f64 && wrong == 0.0 && ended == 0
}

/// Of pairs of runs.
fn ratios(load: &[Vec<f64>], alone: &[Vec<f64>], column: usize) -> Vec<Vec<f64>> {
    load.iter().zip(alone).map(|(load, alone)| vec![load[column] / alone[column]]).collect()
}

fn row(name: &str, runs: &[Vec<f64>], column: usize) {
    let mut numbers: Vec<f64> = runs.iter().map(|run| run[column]).collect();
    numbers.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (numbers.first(), numbers.last()) else { return };
    let median = numbers[numbers.len() / 2];
    println!("{name:<72} {median:>8.2} ({least:.2} to {most:.2})");
}

/// One query with a budget: milliseconds from passing it to the error. When that is there, all is freed.
fn budget(is_busy: bool) -> Vec<f64> {
    const BUDGET: usize = 64 * MIB;

    let runtime = runtime();
    let stops = Arc::new(AtomicBool::new(false));
    runtime.block_on(async {
        let mut tasks = Vec::new();
        let mut spins = Vec::new();
        if is_busy {
            let others = (0..OTHERS).map(|i| query(&format!("query {i}")));
            tasks.extend(others.map(|query| spawn(&query, sorts(250_000, 1_000_000))));
            for _ in 0..2 {
                let stops = Arc::clone(&stops);
                spins.push(std::thread::spawn(move || while !stops.load(Relaxed) {}));
            }
        }
        let mut times = Vec::new();
        for i in 0..20 {
            let runaway =
                Service::builder(format!("runaway {i}")).cancel_at(BUDGET as u64).register().unwrap();
            let passed: Arc<Mutex<Option<Instant>>> = Arc::default();
            let watches = {
                let passed = Arc::clone(&passed);
                move |bytes| {
                    // (With what its list of blocks takes.)
                    if bytes >= BUDGET {
                        passed.lock().unwrap().get_or_insert_with(Instant::now);
                    }
                    false
                }
            };
            let outcome = spawn(&runaway, grows(256 << 10, A_SECOND, watches)).await.unwrap();
            let now = Instant::now();
            assert!(outcome.is_err() && runaway.usage().bytes() < 1 << 16);
            let passed = passed.lock().unwrap().expect("it is cancelled when it has passed the budget");
            times.push((now - passed).as_secs_f64() * 1e3);
        }
        stops.store(true, Relaxed);
        spins.into_iter().for_each(|thread| thread.join().unwrap());
        tasks.iter().for_each(|task| task.abort());
        times
    })
}

fn the_budget(runs: usize) -> bool {
    println!("\na query with a budget of 64 MiB passes it, at 1 GiB/s; 20 times in each of {runs} runs");
    let mut is_well = true;
    for (task, name) in [("budget idle", "idle"), ("budget busy", "busy: 7 others, and 2 threads that spin")]
    {
        let times: Vec<Vec<f64>> =
            (0..runs).filter_map(|_| again(task)).flatten().map(|time| vec![time]).collect();
        is_well &= times.len() == 20 * runs;
        row(&format!("  from passing it to Err, and all freed, ms ({name})"), &times, 0);
    }
    is_well
}

fn the_end_without(runs: usize) -> bool {
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

/// Programs that need no guard.
const PROGRAMS: [(&str, fn()); 4] = [
    ("JSON", json),
    ("index of strings", index),
    ("sorted strings", strings),
    ("tokio, four threads", tasks),
];

fn json() {
    let rows: Vec<_> = (0..4000)
        .map(|i| serde_json::json!({"id": i, "name": format!("row {i}"), "tags": ["a", "b", "c"]}))
        .collect();
    let text = serde_json::to_string(&rows).unwrap();
    black_box(serde_json::from_str::<serde_json::Value>(&text).unwrap());
}

fn index() {
    let map: BTreeMap<String, Vec<u32>> =
        (0..20_000_u32).map(|i| (format!("key {}", i.wrapping_mul(2_654_435_761)), vec![i; 8])).collect();
    black_box(map);
}

fn strings() {
    let mut strings: Vec<String> =
        (0..40_000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_string()).collect();
    strings.sort_unstable();
    black_box(strings);
}

fn tasks() {
    let runtime = Builder::new_multi_thread().worker_threads(4).build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> =
            (0..2000_usize).map(|i| tokio::spawn(async move { block(i % 1000 + 1000).len() })).collect();
        for task in tasks {
            black_box(task.await.unwrap());
        }
    });
}

/// The time of each program with a guard that has nothing to do, of the time without.
fn cost(rounds: usize) -> Vec<f64> {
    // As any server has one: the C library and the kernel have shorter ways for a process with one thread.
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
    let timed = |program: fn()| {
        let began = Instant::now();
        (0..5).for_each(|_| program());
        began.elapsed().as_secs_f64()
    };
    PROGRAMS
        .iter()
        .map(|(_, program)| {
            timed(*program);
            let mut ratios: Vec<f64> = (0..rounds)
                .map(|round| {
                    let with = || {
                        let guard = Guard::builder().ceiling(Ceiling::bytes(4 << 30)).start().unwrap();
                        let time = timed(*program);
                        drop(guard);
                        time
                    };
                    // In turns, whoever is first.
                    if round % 2 == 0 {
                        let with = with();
                        with / timed(*program)
                    } else {
                        let without = timed(*program);
                        with() / without
                    }
                })
                .collect();
            ratios.sort_by(f64::total_cmp);
            ratios[ratios.len() / 2]
        })
        .collect()
}

fn the_cost(rounds: usize) {
    println!("\nprograms that need no guard: time with one, of the time without; medians of {rounds} pairs");
    let Some(ratios) = again(&format!("cost {rounds}")) else { return };
    for ((name, _), ratio) in PROGRAMS.iter().zip(&ratios) {
        println!("  {name:<70} {ratio:>8.4}");
    }
    let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64;
    println!("  {:<70} {:>8.4}", "geometric mean", mean.exp());
}

/// Bytes and services that are left of so many cancelled queries, and by how many KiB RSS has grown in the
/// second half of them.
fn drift(queries: usize) -> Vec<f64> {
    let runtime = runtime();
    let _guard = guard();
    let resident = Resident::new();
    let one = |i: usize| {
        let query = query(&format!("query {i}"));
        let outcome = runtime.block_on(async {
            let work = async {
                let _rows: Vec<_> = (0..100).map(|row| block(row * 10 + 1)).collect();
                std::future::pending::<()>().await;
            };
            let task = spawn(&query, work);
            tokio::task::yield_now().await;
            assert!(query.cancel("enough"));
            task.await.unwrap()
        });
        assert!(outcome.is_err());
    };
    // Whatever is kept for the next one.
    (0..100).for_each(one);
    let figures = || {
        let snapshot = dogtag::snapshot();
        (snapshot.rows.len() as f64, dogtag::totals().bytes() as f64, resident.bytes() as f64 / 1024.0)
    };
    (0..queries / 2).for_each(one);
    let before = figures();
    (queries / 2..queries).for_each(one);
    let after = figures();
    vec![after.1 - before.1, after.0 - before.0, after.2 - before.2]
}

fn the_drift(queries: usize) -> bool {
    println!("\n{queries} queries that are cancelled one after the other, under a guard");
    let Some(left) = again(&format!("drift {queries}")) else { return false };
    println!(
        "  bytes, services, KiB of RSS that the second half leaves behind      {} / {} / {}",
        left[0], left[1], left[2]
    );
    left[1] == 0.0 && left[0].abs() < 4096.0
}

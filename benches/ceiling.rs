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
use load::{MIB, NOT_COUNTED, SORTED, block, grows, query, sorts, spawn, writes};
use std::any::Any;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
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

/// What runs beside the seven queries.
#[derive(Clone, Copy, PartialEq)]
enum Eighth {
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
fn load(guard: Option<Guard>, eighth: Eighth, times: usize) -> Vec<f64> {
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

/// What the process has used: its threads' and the system's milliseconds of the cores, those of dogtag's own
/// threads, and thousands of page faults.
struct Used([f64; 4]);

impl Used {
    fn now() -> Self {
        // SAFETY: plain numbers, for which 0 is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: writes there.
        assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) }, 0);
        let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
        let own = |task: std::io::Result<fs::DirEntry>| {
            let path = task.ok()?.path();
            let is_own = fs::read_to_string(path.join("comm")).ok()?.trim() == "dogtag";
            let on_core = fs::read_to_string(path.join("schedstat")).ok()?;
            let nanoseconds: f64 = on_core.split(' ').next()?.parse().ok()?;
            is_own.then_some(nanoseconds / 1e6)
        };
        let dogtag = fs::read_dir("/proc/self/task").unwrap().filter_map(own).sum();
        Self([ms(usage.ru_utime), ms(usage.ru_stime), dogtag, usage.ru_minflt as f64 / 1e3])
    }

    fn since(&self, before: &Self) -> [f64; 4] {
        std::array::from_fn(|i| self.0[i] - before.0[i])
    }
}

/// What the others' throughput is compared with.
const COMPARED: [(&str, &str); 5] = [
    ("alone 240", "a run without it"),
    ("ordinary 110", "a run with an ordinary eighth"),
    ("writes 110", "a run with an eighth that writes as much, to 4 MiB"),
    ("led 110", "a run without a guard, in which the program ends it there"),
    ("high 110", "the same, with a guard that has nothing to do"),
];

fn the_load(runs: usize) -> bool {
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
            tasks.extend(others.map(|query| spawn(&query, sorts(250_000, 1_000_000, &SORTED))));
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

/// What there is beside a program that needs no guard.
const BESIDE: [&str; 3] = ["nothing", "a thread that wakes ten times a second", "a guard"];

/// Begins that; it ends with what is returned.
fn beside(what: usize) -> Box<dyn Any> {
    /// What a guard is, without dogtag.
    struct Wakes(Arc<AtomicBool>, Option<JoinHandle<()>>);

    impl Drop for Wakes {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
            let thread = self.1.take().unwrap();
            thread.thread().unpark();
            thread.join().unwrap();
        }
    }

    match what {
        0 => Box::new(()),
        1 => {
            let stops = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&stops);
            let thread = std::thread::spawn(move || {
                while !seen.load(Relaxed) {
                    std::thread::park_timeout(Duration::from_millis(100));
                }
            });
            Box::new(Wakes(stops, Some(thread)))
        }
        _ => Box::new(too_high()),
    }
}

/// As any server has one: the C library and the kernel have shorter ways for a process with one thread.
fn second_thread() {
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
}

/// A program, so many times, with or without a guard: for whoever counts its instructions.
fn count(what: &str) -> Vec<f64> {
    let mut numbers = what.split(' ').map(|number| number.parse::<usize>().unwrap());
    let (program, what, times) = (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap());
    second_thread();
    let beside = beside(what);
    (0..times).for_each(|_| PROGRAMS[program].1());
    drop(beside);
    Vec::new()
}

/// The time of each program with what there may be beside it, of the time with nothing: medians, and the ratio of
/// the shortest times.
fn cost(rounds: usize) -> Vec<f64> {
    second_thread();
    let timed = |program: fn(), what: usize| {
        let beside = beside(what);
        let began = Instant::now();
        (0..5).for_each(|_| program());
        let time = began.elapsed().as_secs_f64();
        drop(beside);
        time
    };
    let median = |ratios: &mut Vec<f64>| {
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    };
    let mut results = Vec::new();
    for (_, program) in &PROGRAMS {
        timed(*program, 0);
        // In turns, whoever is first.
        let mut times: [Vec<f64>; BESIDE.len() + 1] = Default::default();
        for round in 0..rounds {
            for turn in 0..times.len() {
                let one = (turn + round) % times.len();
                times[one].push(timed(*program, one.saturating_sub(1)));
            }
        }
        let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        let [bare, others @ ..] = &times;
        for one in others {
            let mut ratios: Vec<f64> = one.iter().zip(bare).map(|(one, bare)| one / bare).collect();
            results.extend([median(&mut ratios), least(one) / least(bare)]);
        }
    }
    results
}

fn the_cost(rounds: usize) {
    println!("\nprograms that need no guard: time with something beside them, of the time with nothing;");
    println!("medians of {rounds} rounds, and of the shortest times");
    let Some(ratios) = again(&format!("cost {rounds}")) else { return };
    println!("  {:<24} {}", "", BESIDE.map(|what| format!("{what:>40}")).join(""));
    let line = |name: &str, ratios: &[f64]| {
        let pairs = ratios.chunks(2).map(|pair| format!("{:>30.4} {:>9.4}", pair[0], pair[1]));
        println!("  {name:<24} {}", pairs.collect::<String>());
    };
    let each: Vec<&[f64]> = ratios.chunks(2 * BESIDE.len()).collect();
    for ((name, _), ratios) in PROGRAMS.iter().zip(&each) {
        line(name, ratios);
    }
    let mean = |column: usize| {
        let sum: f64 = each.iter().map(|ratios| ratios[column].ln()).sum();
        (sum / each.len() as f64).exp()
    };
    line("geometric mean", &(0..2 * BESIDE.len()).map(mean).collect::<Vec<_>>());
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

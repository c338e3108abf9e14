//! What a guard costs programs that need none.

use crate::load::block;
use crate::{again, too_high};
use std::any::Any;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;

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
pub fn count(what: &str) -> Vec<f64> {
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
pub fn cost(rounds: usize) -> Vec<f64> {
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

pub fn the_cost(rounds: usize) {
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

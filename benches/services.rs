//! Services at scale: what they cost, a million of them, coming and going, and
//! under limits.
//!
//! `cargo bench --bench services`
//!
//! Medians of interleaved rounds. The yardstick for registering and dropping is a
//! `DashMap<String, u32>` into which as many names are inserted, and removed.
//!
//! `cargo bench --bench services -- count map|services|brief` does that once, for counting its instructions.

use dashmap::DashMap;
use dogtag::{Dogtag, Service};
use std::hint::black_box;
use std::time::Instant;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const ROUNDS: usize = 21;
const BATCH: usize = 100_000;
const MANY: usize = 1_000_000;
const PAIRS: usize = 200_000;

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "count").skip(1);
    if let Some(what) = arguments.next() {
        return count(&what);
    }
    coming_and_going();
    warm_paths();
    a_million();
}

fn names(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("service {i}")).collect()
}

fn coming_and_going() {
    let names = names(0..BATCH);
    let (mut map, mut services, mut busy, mut brief) = (vec![], vec![], vec![], vec![]);
    let known: DashMap<String, u32> = DashMap::new();
    for _ in 0..ROUNDS {
        map.push(timed(|| {
            names.iter().zip(0..).for_each(|(name, i)| _ = known.insert(name.clone(), i));
            names.iter().for_each(|name| drop(known.remove(name)));
        }));
        services.push(timed(|| drop(names.iter().map(register).collect::<Vec<_>>())));
        // One at a time, as queries come.
        brief.push(timed(|| {
            names.iter().for_each(|name| drop(register(name)));
        }));
        busy.push(timed(|| {
            names.iter().for_each(|name| {
                let service = register(name);
                drop(service.run(|| black_box(Box::new([0_u8; 100]))));
            });
        }));
    }
    println!("registering and dropping, ns for one of {BATCH}; medians of {ROUNDS} rounds\n");
    let each = |times: &[f64]| median(times.to_vec()) * 1e9 / BATCH as f64;
    for (what, times) in [
        ("DashMap<String, u32>: insert all, remove all", &map),
        ("services: register all, drop all", &services),
        ("services: one after the other", &brief),
        ("services: the same, each with a block", &busy),
    ] {
        println!("{what:<46} {:>7.0} ns  {:>5.2}×", each(times), ratio(times, &map));
    }
}

/// Registers and drops as many as there are in a batch, or none.
fn count(what: &str) {
    let names = names(0..BATCH);
    let known: DashMap<String, u32> = DashMap::new();
    match what {
        "none" => {}
        "map" => {
            names.iter().zip(0..).for_each(|(name, i)| _ = known.insert(name.clone(), i));
            names.iter().for_each(|name| drop(known.remove(name)));
        }
        "services" => drop(names.iter().map(register).collect::<Vec<_>>()),
        "brief" => names.iter().for_each(|name| drop(register(name))),
        other => panic!("{other:?} is not among: none, map, services, brief"),
    }
}

/// A pair of allocation and free, in services that have limits or have none.
fn warm_paths() {
    let free = register("free");
    let hard = Service::builder("hard").hard_limit(1 << 30).register().unwrap();
    let near = Service::builder("near").hard_limit(256 << 10).register().unwrap();
    let soft = Service::builder("soft").soft_limit(1 << 30).register().unwrap();
    let tenant = Service::builder("tenant").hard_limit(1 << 30).register().unwrap();
    let child = Service::builder("child").parent(&tenant).register().unwrap();
    let (_far, _near) = (hard.run(|| vec![0_u8; 1 << 20]), near.run(|| vec![0_u8; 128 << 10]));
    let rows = [
        ("no limit", &free),
        ("hard limit, far away", &hard),
        ("hard limit, 128 KiB away", &near),
        ("soft limit, far away", &soft),
        ("a parent's hard limit", &child),
    ];
    let mut times = vec![vec![]; rows.len()];
    for _ in 0..ROUNDS * 5 {
        for ((_, service), times) in rows.iter().zip(&mut times) {
            times.push(
                service.run(|| timed(|| (0..PAIRS).for_each(|_| drop(black_box(Box::new([0_u8; 64])))))),
            );
        }
    }
    println!("\na pair of allocation and free, 64 B; medians of {} rounds\n", ROUNDS * 5);
    for ((what, _), of) in rows.iter().zip(&times) {
        let each = median(of.clone()) * 1e9 / PAIRS as f64;
        println!("{what:<46} {each:>7.2} ns  {:>5.3}×", ratio(of, &times[0]));
    }
}

fn a_million() {
    let few: Vec<Service> = names(0..1000).iter().map(register).collect();
    few.iter().for_each(|service| service.run(|| drop(black_box(Box::new(1)))));
    let usage = |services: &[Service]| {
        let time = timed(|| services[..1000].iter().map(|service| service.usage().bytes()).sum::<u64>());
        time * 1e9 / 1000.0
    };
    let before: Vec<f64> = (0..ROUNDS).map(|_| usage(&few)).collect();

    // Names that take the smallest block of jemalloc's that the cookie fits into.
    const NAME: usize = 16;
    let names: Vec<String> = (0..MANY).map(|i| format!("{i:07}")).collect();
    let mut services = Vec::with_capacity(MANY);
    let resident_before = resident();
    let registering = timed(|| services.extend(names.iter().map(register)));
    let each = (resident() - resident_before - (size_of::<Service>() + NAME) * MANY) / MANY;
    let resident_before = resident();
    services.iter().for_each(|service| service.run(|| drop(black_box(Box::new(1)))));
    let touched = (resident() - resident_before) / MANY;
    let after: Vec<f64> = (0..ROUNDS).map(|_| usage(&few)).collect();
    println!("\n{MANY} services\n");
    println!("{:<46} {:>7.2} s", "registering them", registering);
    println!("{:<46} {each:>7} B a service, without its name", "memory");
    println!("{:<46} {touched:>7} B a service", "and for a thread that has touched them");
    println!(
        "{:<46} {:>7.1} ns before, {:.1} ns now",
        "usage() of one of the first",
        median(before),
        median(after)
    );
    println!("{:<46} {:>7.2} s", "a snapshot", timed(|| drop(dogtag::snapshot())));
    println!("{:<46} {:>7.2} s", "dropping them", timed(|| drop(services)));
}

fn register(name: impl AsRef<str>) -> Service {
    Service::register(name).unwrap()
}

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn timed<R>(work: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    black_box(work());
    start.elapsed().as_secs_f64()
}

fn ratio(times: &[f64], base: &[f64]) -> f64 {
    median(times.iter().zip(base).map(|(time, base)| time / base).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

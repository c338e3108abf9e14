//! What asking costs: one service's usage, and a snapshot of all.
//!
//! `cargo bench --bench query`
//!
//! The yardstick is a plain array with as many counters, summed service by
//! service in the same run. Medians of interleaved rounds.

use dogtag::{Dogtag, Service, Usage};
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const SERVICES: usize = 10_000;
const THREADS: usize = 64;
const ROUNDS: usize = 31;

fn main() {
    let services: Vec<Service> =
        (0..SERVICES).map(|i| Service::register(format!("service {i}")).unwrap()).collect();
    let (touched, end) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| {
                for service in &services {
                    service.run(|| drop(black_box(Box::new(1))));
                }
                touched.wait();
                end.wait();
            });
        }
        touched.wait();
        measure(&services);
        end.wait();
    });
}

fn measure(services: &[Service]) {
    // A thread's four counters of a service, thread by thread, as the shards are.
    let counters = vec![[1_u64; 4]; SERVICES * THREADS];
    let (mut plain, mut snapshot, mut totals, mut usage) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        plain.push(timed(|| sum(&counters)));
        snapshot.push(timed(dogtag::snapshot));
        totals.push(timed(dogtag::totals));
        usage.push(timed(|| services.iter().map(Service::usage).sum::<Usage>()));
    }
    let ratio = |times: &[f64]| median(times.iter().zip(&plain).map(|(time, plain)| time / plain).collect());
    println!("{SERVICES} services, {THREADS} threads, all cells touched; medians of {ROUNDS} rounds\n");
    for (name, times) in [("plain array", &plain), ("totals()", &totals), ("snapshot()", &snapshot)] {
        println!("{name:<12} {:>8.2} ms  {:>5.2}×", median(times.clone()) * 1e3, ratio(times));
    }
    let each = median(usage) * 1e9 / SERVICES as f64;
    println!(
        "\nusage()      {each:>8.0} ns  {:>5.1} ns a thread, each cell from memory",
        each / THREADS as f64
    );
    let hot = median(
        (0..ROUNDS)
            .map(|_| {
                timed(|| {
                    for _ in 0..1000 {
                        black_box(services[7].usage());
                    }
                })
            })
            .collect(),
    );
    let hot = hot * 1e9 / 1000.0;
    println!(
        "the same     {hot:>8.0} ns  {:>5.1} ns a thread, each cell from the cache",
        hot / THREADS as f64
    );
}

/// One sum for each service, as a plain implementation would have them.
fn sum(counters: &[[u64; 4]]) -> Vec<[u64; 4]> {
    let mut sums = vec![[0; 4]; SERVICES];
    for thread in counters.chunks(SERVICES) {
        for (sum, counters) in sums.iter_mut().zip(thread) {
            sum.iter_mut().zip(counters).for_each(|(sum, counter)| *sum += counter);
        }
    }
    sums
}

fn timed<R>(work: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    let result = black_box(work());
    let time = start.elapsed().as_secs_f64();
    drop(result);
    time
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

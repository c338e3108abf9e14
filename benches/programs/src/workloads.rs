//! What the programs do: `PROGRAM WORKLOAD` runs one workload and prints the
//! nanoseconds that one operation took.
//!
//! A module of each program rather than a library, so that it is compiled as a
//! user's own code is: an allocator that can be inlined into it, will be.

use std::alloc::{Layout, alloc, dealloc, realloc};
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

type Workload = fn() -> f64;

const WORKLOADS: [(&str, Workload); 10] = [
    ("pair-16", || pair(16)),
    ("pair-64", || pair(64)),
    ("pair-1024", || pair(1024)),
    ("small-1k-live", || churn(1, 1..=128, 1_000)),
    ("two-threads", || churn(2, 1..=256, 1_000)),
    ("hand-over", hand_over),
    ("cold", || churn(1, 1..=1024, 100_000)),
    ("vec-growth", vec_growth),
    ("realloc-doubling", realloc_doubling),
    ("json", json),
];

/// Runs the workload that the command line names.
pub fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    let Some((_, workload)) = WORKLOADS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = WORKLOADS.iter().map(|(known, _)| *known).collect();
        eprintln!("name a workload: {}", known.join(", "));
        std::process::exit(2);
    };
    println!("{}", workload());
}

/// Times `operations` of `work` in slices, after one to warm up, and gives the
/// median slice: a moment in which the machine did something else is left out.
fn timed(operations: usize, mut work: impl FnMut(usize)) -> f64 {
    const SLICES: usize = 9;

    let operations = operations / SLICES;
    work(operations);
    let mut times = [0.0; SLICES];
    for time in &mut times {
        let start = Instant::now();
        work(operations);
        *time = start.elapsed().as_secs_f64() * 1e9 / operations as f64;
    }
    times.sort_by(f64::total_cmp);
    times[SLICES / 2]
}

/// A block is allocated and freed at once.
fn pair(size: usize) -> f64 {
    let layout = Layout::from_size_align(size, 8).unwrap();
    timed(9_000_000, |operations| {
        for _ in 0..operations {
            // SAFETY: the layout is not empty, and the block is freed with it.
            unsafe {
                let block = black_box(alloc(layout));
                *block = 1;
                dealloc(block, layout);
            }
        }
    })
}

/// Each thread keeps `live` blocks of random sizes and replaces random ones.
fn churn(threads: usize, sizes: std::ops::RangeInclusive<usize>, live: usize) -> f64 {
    let operations = 2_700_000;
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let (barrier, sizes) = (&barrier, sizes.clone());
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(worker as u64);
                    let mut fresh = move || {
                        let layout = Layout::from_size_align(random.usize(sizes.clone()), 1).unwrap();
                        // SAFETY: sizes begin at 1.
                        let block = unsafe { alloc(layout) };
                        // SAFETY: the block is at least a byte long.
                        unsafe { *block = 1 };
                        (block, layout, random.usize(..live))
                    };
                    let mut blocks: Vec<_> = (0..live).map(|_| fresh()).collect();
                    barrier.wait();
                    let time = timed(operations, |operations| {
                        for _ in 0..operations {
                            let new = fresh();
                            let (old, layout, _) = std::mem::replace(&mut blocks[new.2], new);
                            // SAFETY: it came from `fresh` and left the list.
                            unsafe { dealloc(old, layout) };
                        }
                    });
                    for (block, layout, _) in blocks {
                        // SAFETY: each block in the list is live.
                        unsafe { dealloc(block, layout) };
                    }
                    time
                })
            })
            .collect();
        let times: Vec<f64> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        times.iter().sum::<f64>() / threads as f64
    })
}

/// One thread allocates boxes of 48 bytes, another frees them.
fn hand_over() -> f64 {
    const BATCH: usize = 1_000;
    timed(4_500_000, |operations| {
        // A batch at a time, so that what is measured is not the channel.
        let (full, boxes) = sync_channel::<Vec<Box<[u64; 6]>>>(4);
        let (empty, emptied) = sync_channel::<Vec<Box<[u64; 6]>>>(8);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for mut batch in boxes {
                    batch.clear();
                    let _ = empty.try_send(batch);
                }
            });
            for batch in 0..operations / BATCH {
                let mut boxes = emptied.try_recv().unwrap_or_else(|_| Vec::with_capacity(BATCH));
                boxes.extend((0..BATCH).map(|i| Box::new([(batch + i) as u64; 6])));
                full.send(boxes).unwrap();
            }
            drop(full);
        });
    })
}

/// Numbers are pushed to a vector that begins empty.
fn vec_growth() -> f64 {
    const LENGTH: usize = 100_000;
    timed(18_000_000, |operations| {
        for _ in 0..operations / LENGTH {
            let mut numbers = Vec::new();
            for i in 0..LENGTH {
                numbers.push(black_box(i));
            }
            black_box(&numbers);
        }
    })
}

/// A block grows from 16 bytes to 8 KiB by doubling, and is freed.
fn realloc_doubling() -> f64 {
    const STEPS: usize = 10;
    timed(4_500_000, |operations| {
        for _ in 0..operations / STEPS {
            let mut size = 16;
            // SAFETY: each step passes the layout that the block has by then.
            unsafe {
                let layout = |size| Layout::from_size_align_unchecked(size, 8);
                let mut block = black_box(alloc(layout(size)));
                while size < 8192 {
                    block = black_box(realloc(block, layout(size), 2 * size));
                    size *= 2;
                }
                dealloc(block, layout(size));
            }
        }
    })
}

/// A document of 5 MB is parsed and dropped; an operation is one byte of it.
fn json() -> f64 {
    let document = document(5_000_000);
    timed(9 * document.len(), |bytes| {
        for _ in 0..bytes / document.len() {
            black_box(serde_json::from_slice::<serde_json::Value>(black_box(&document)).unwrap());
        }
    })
}

/// Orders with customers, items and notes: objects, arrays, strings of many
/// lengths, and numbers, as services send them to each other.
fn document(size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut word = |longest: usize| -> String {
        let length = random.usize(1..=longest);
        (0..length).map(|_| random.lowercase()).collect()
    };
    let mut orders = Vec::new();
    let mut length = 0;
    while length < size {
        let items: Vec<_> = (0..orders.len() % 7 + 1)
            .map(|i| serde_json::json!({ "sku": word(12), "count": i, "price": i as f64 * 1.25, "tags": [word(6), word(9)] }))
            .collect();
        let order = serde_json::json!({
            "id": orders.len(),
            "customer": { "name": word(20), "mail": word(30), "active": true },
            "items": items,
            "note": word(120),
            "parent": null,
        });
        length += order.to_string().len();
        orders.push(order);
    }
    serde_json::to_vec(&orders).unwrap()
}

//! Spans in services under load: a thousand tasks that hop between threads.

use crate::common::elsewhere;
use dogtag::{Service, ServiceLayer, UnattributedExt, Usage};
use std::hint::black_box;
use std::io;
use tracing::{Instrument, debug, info_span};
use tracing_subscriber::{fmt, prelude::*, registry};

const TASKS: usize = 1000;
const ROUNDS: usize = 100;
/// Allocations in a round: a hundred, of which some in nested spans.
const BLOCKS: usize = 100;
const SERVICES: [&str; 5] = ["gateway", "auth", "search", "cache", "billing"];

/// What a service should have allocated, and hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Books {
    allocated_bytes: u64,
    allocated_blocks: u64,
    freed_bytes: u64,
    freed_blocks: u64,
}

type Model = [Books; SERVICES.len()];

/// Allocates a block, for the service that should be the current one, and frees it or
/// keeps it.
fn allocate(model: &mut Model, kept: &mut Vec<Vec<u8>>, service: usize, size: usize, keep: bool) {
    let block = black_box(vec![service as u8; size]);
    let books = &mut model[service];
    books.allocated_bytes += size as u64;
    books.allocated_blocks += 1;
    if keep {
        kept.push(block);
    } else {
        books.freed_bytes += size as u64;
        books.freed_blocks += 1;
    }
}

/// A task: spans in spans, some without a service of their own, one that a library
/// made elsewhere.
async fn task(number: usize, mut kept: Vec<Vec<u8>>) -> (Model, Vec<Vec<u8>>) {
    let mut model = Model::default();
    let outer = number % SERVICES.len();
    for round in 0..ROUNDS {
        let inner = (number + round) % SERVICES.len();
        let size = |i: usize| 1 + (number * 31 + round * 17 + i * 7) % 600;
        for i in 0..BLOCKS / 4 {
            allocate(&mut model, &mut kept, outer, size(i), i == 0);
        }
        elsewhere().await;
        let nested = async {
            for i in 0..BLOCKS / 4 {
                allocate(&mut model, &mut kept, inner, size(i), i == 0);
            }
            debug!(round, "an event with a text of {} bytes", 40);
            elsewhere().await;
            // Runs in its parent's.
            let plain = async {
                for i in 0..BLOCKS / 4 {
                    allocate(&mut model, &mut kept, inner, size(i), false);
                }
                elsewhere().await;
            };
            plain.instrument(info_span!("a step", round)).await;
        };
        nested.instrument(info_span!("nested", service = SERVICES[inner], number)).await;
        for i in 0..BLOCKS / 4 {
            allocate(&mut model, &mut kept, outer, size(i), false);
        }
    }
    (model, kept)
}

#[test]
fn ten_million_allocations_in_spans_are_counted_to_the_byte() {
    alone!();
    registry().with(fmt::layer().with_writer(io::sink)).with(ServiceLayer::new()).unattributed().init();
    count(TASKS);
}

/// Some of the spans are left out of the log, and some of those are entered in others that are not.
#[test]
fn allocations_in_spans_that_are_left_out_are_counted_to_the_byte() {
    alone!();
    let log = fmt().with_env_filter("off,[nested]=info").with_writer(io::sink).finish();
    dogtag::attributed(log).with_layer(ServiceLayer::new()).init();
    count(TASKS / 5);
}

/// Counts what so many tasks allocate.
fn count(tasks: usize) {
    let services = SERVICES.map(|name| Service::register(name).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let mut model = Model::default();
    let mut all_kept = Vec::with_capacity(tasks);
    runtime.block_on(async {
        let running: Vec<_> = (0..tasks)
            .map(|number| {
                let service = SERVICES[number % SERVICES.len()];
                let kept = Vec::with_capacity(2 * ROUNDS);
                tokio::spawn(task(number, kept).instrument(info_span!("task", service, number)))
            })
            .collect();
        for task in running {
            let (books, kept) = task.await.unwrap();
            all_kept.push(kept);
            for (sum, books) in model.iter_mut().zip(books) {
                sum.allocated_bytes += books.allocated_bytes;
                sum.allocated_blocks += books.allocated_blocks;
                sum.freed_bytes += books.freed_bytes;
                sum.freed_blocks += books.freed_blocks;
            }
        }
    });
    assert_eq!(model.iter().map(|books| books.allocated_blocks).sum::<u64>(), tasks as u64 * 10_000);
    for ((service, books), name) in services.iter().zip(model).zip(SERVICES) {
        let Usage { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks, .. } = service.usage();
        assert_eq!(Books { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks }, books, "{name}");
    }
    drop(all_kept);
    for service in &services {
        assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0), "{service:?}");
    }
}

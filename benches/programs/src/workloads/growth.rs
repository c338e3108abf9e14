//! The same work among more: more threads, more services.

use super::{Services, micro, timed};
use std::hint::black_box;
use std::sync::mpsc::channel;

/// One thread at work while others are alive, and have allocated something.
pub fn alive(threads: usize) -> f64 {
    let (ready, all_ready) = channel();
    let (ends, threads): (Vec<_>, Vec<_>) = (1..threads)
        .map(|_| {
            let (end, ended) = channel::<()>();
            let ready = ready.clone();
            let thread = std::thread::spawn(move || {
                let kept = black_box(Box::new([0_u8; 64]));
                ready.send(()).unwrap();
                let _ = ended.recv();
                drop(kept);
            });
            (end, thread)
        })
        .unzip();
    ends.iter().for_each(|_| all_ready.recv().unwrap());
    let time = micro::churn(1..=256, 1_000);
    drop(ends);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    time
}

/// Messages of 100 allocations and frees each, to a random one of so many
/// services.
pub fn services(services: impl Services, number: usize) -> f64 {
    const MESSAGE: usize = 100;

    let all: Vec<_> = (0..number as u64).map(|number| services.service(number)).collect();
    let mut random = fastrand::Rng::with_seed(1);
    let mut live: Vec<Option<Box<[u8]>>> = (0..1_000).map(|_| None).collect();
    timed(1_800_000, |operations| {
        for _ in 0..operations / MESSAGE {
            let receiver = &all[random.usize(..number)];
            services.run(receiver, || {
                for _ in 0..MESSAGE {
                    let block = vec![1; random.usize(1..=256)].into_boxed_slice();
                    live[random.usize(..1_000)] = Some(block);
                }
            });
        }
    })
}

/// Blocks of so many services, which take turns block by block.
pub fn turns(services: impl Services, number: usize) -> f64 {
    let all: Vec<_> = (0..number as u64).map(|number| services.service(number)).collect();
    let mut random = fastrand::Rng::with_seed(2);
    let mut live: Vec<Option<Box<[u8]>>> = (0..10_000).map(|_| None).collect();
    timed(1_800_000, |operations| {
        for operation in 0..operations {
            services.run(&all[operation % number], || {
                let block = vec![1; random.usize(1..=256)].into_boxed_slice();
                live[random.usize(..10_000)] = Some(block);
            });
        }
    })
}

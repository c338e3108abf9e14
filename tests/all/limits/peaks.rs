//! Peaks, and what a piece of code allocates.

use super::{KIB, MIB, register, reserve};
use dogtag::Service;
use std::hint::black_box;
use std::sync::Barrier;

#[test]
fn peak_is_seen_where_less_is_live_than_there_once_was() {
    let service = Service::register("once larger").unwrap();
    let allocate = |mib: usize| service.run(|| black_box(Vec::<u8>::with_capacity(mib * MIB)));
    // This thread has seen 100 MiB of its own, and frees them.
    drop(allocate(100));
    let elsewhere = std::thread::scope(|scope| scope.spawn(|| allocate(100)).join().unwrap());
    drop(allocate(5));
    assert_eq!(service.usage().peak_bytes, 105 * MIB as u64);
    drop(elsewhere);
}

#[test]
fn peak_is_no_lower_than_it_may_be() {
    const THREADS: usize = 4;

    let service = register("climber");
    let (up, down) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| {
                let blocks: Vec<_> = (0..1000).map(|_| reserve(&service, 10 * KIB)).collect();
                up.wait();
                drop(blocks);
                down.wait();
            });
        }
        up.wait();
        down.wait();
    });
    let truth = (THREADS * 1000 * 10 * KIB) as u64;
    let peak = service.usage().peak_bytes;
    assert!(peak <= truth && peak + (THREADS * MIB) as u64 >= truth, "{peak} of {truth}");
    service.reset_peak();
    assert_eq!(service.usage().peak_bytes, 0);
    // Large blocks are seen at once.
    drop(reserve(&service, 5 * MIB));
    assert_eq!(service.usage().peak_bytes, 5 * MIB as u64);
}

#[test]
fn peak_is_seen_though_the_backend_has_refused() {
    let service = register("greedy for nothing");
    assert!(reserve(&service, isize::MAX as usize / 4).is_none());
    let blocks: Vec<_> = (0..5000).map(|_| reserve(&service, KIB)).collect();
    drop(blocks);
    let peak = service.usage().peak_bytes;
    assert!(peak > 3 * MIB as u64, "{peak}");
}

#[test]
fn measure_of_a_piece_of_code() {
    let (service, other) = (register("measured"), register("measured too"));
    let before = service.usage();
    let (block, usage) = dogtag::measure(|| {
        let one = service.run(|| vec![0_u8; 100]);
        let two = other.run(|| vec![0_u8; 23]);
        std::thread::spawn(|| drop(black_box(vec![0_u8; 77_777]))).join().unwrap();
        drop(two);
        one
    });
    // The thread's own, not the other thread's; starting a thread allocates, too.
    assert!(usage.allocated_bytes >= 123 && usage.freed_bytes >= 23);
    assert!(usage.allocated_bytes < 77_777);
    assert_eq!(service.usage().since(&before).allocated_bytes, 100, "attribution changed");
    let (_, usage) = dogtag::measure(|| drop(block));
    assert_eq!((usage.allocated_blocks, usage.freed_blocks, usage.freed_bytes), (0, 1, 100));
    let (_, usage) = dogtag::measure(|| {
        let blocks = [1, 2, 3].map(Box::new);
        drop(black_box(blocks));
    });
    assert_eq!((usage.allocated_blocks, usage.freed_blocks, usage.allocated_bytes), (3, 3, 12));
}

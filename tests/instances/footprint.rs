//! What the ledger itself needs: alone in its process, which is not dogtag's
//! otherwise, so that nothing else is measured.

use dogtag::{Dogtag, Service};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Barrier;

static ALLOC: Dogtag<System> = Dogtag::with_backend(System);

/// The process's address space and resident memory, in bytes.
fn memory() -> (isize, isize) {
    let memory = crate::child::watch::memory();
    (memory.mapped as isize, memory.resident as isize)
}

#[test]
fn shards_are_reused() {
    alone!();
    const THREADS: isize = 2_000;

    let run = |threads| {
        for _ in 0..threads {
            let layout = Layout::from_size_align(64, 8).unwrap();
            let work = move || {
                // SAFETY: the block is freed with its layout.
                unsafe { ALLOC.dealloc(ALLOC.alloc(layout), layout) };
            };
            std::thread::spawn(work).join().unwrap();
        }
    };
    run(100);
    let (before, _) = memory();
    run(THREADS);
    let (after, _) = memory();
    // A shard and its first chunk are 20 KiB.
    assert!(after - before < THREADS * (20 << 10) / 4, "{} bytes", after - before);
}

#[test]
fn a_thousand_threads_with_ten_services_stay_under_40_mib() {
    alone!();
    const THREADS: usize = 1_000;
    const LIMIT: isize = 40 << 20;

    let services: Vec<Service> =
        (0..10).map(|i| Service::register(format!("footprint {i}")).unwrap()).collect();
    let layout = Layout::from_size_align(64, 8).unwrap();
    // Everything but the ledger is there before the first figure is taken: the
    // threads, their stacks, and the system allocator's arenas.
    let (ready, go) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    let (done, end) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| {
                let block = std::hint::black_box(Box::new([1_u8; 64]));
                ready.wait();
                go.wait();
                for service in &services {
                    // SAFETY: the block is freed with its layout.
                    service.run(|| unsafe { ALLOC.dealloc(ALLOC.alloc(layout), layout) });
                }
                done.wait();
                end.wait();
                drop(block);
            });
        }
        ready.wait();
        let (_, before) = memory();
        go.wait();
        done.wait();
        let (_, counted) = memory();
        // The figures are read while all threads are there, which maps no more.
        let usages: Vec<_> = services.iter().map(Service::usage).collect();
        let totals = dogtag::totals();
        let (_, read) = memory();
        end.wait();

        let mib = |bytes: isize| bytes as f64 / (1 << 20) as f64;
        println!("{:.1} MiB for {THREADS} threads and 10 services", mib(counted - before));
        assert!(usages.iter().all(|usage| usage.allocated_blocks == THREADS as u64));
        assert!(totals.allocated_blocks >= 10 * THREADS as u64);
        assert!(counted - before < LIMIT, "{:.1} MiB", mib(counted - before));
        assert!(read - before < LIMIT, "{:.1} MiB once it was read", mib(read - before));
    });
}

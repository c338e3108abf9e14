//! What the ledger itself needs: alone in its process, which is not dogtag's
//! otherwise, so that nothing else is measured.

use dogtag::{Dogtag, Service};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Barrier;

static ALLOC: Dogtag<System> = Dogtag::with_backend(System);

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    // SAFETY: asks for a number.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize
}

#[test]
fn a_thousand_threads_with_ten_services_stay_under_40_mib() {
    const THREADS: usize = 1_000;
    const LIMIT: usize = 40 << 20;

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
        let before = resident();
        go.wait();
        done.wait();
        let ledger = resident() - before;
        // The figures are read while all threads are there, which maps no more.
        assert!(services.iter().all(|service| service.usage().allocated_blocks == THREADS as u64));
        assert!(dogtag::totals().allocated_blocks >= 10 * THREADS as u64);
        let read = resident() - before;
        println!("{:.1} MiB for {THREADS} threads and 10 services", ledger as f64 / (1 << 20) as f64);
        end.wait();
        assert!(ledger < LIMIT, "{ledger} bytes");
        assert!(read < LIMIT, "{read} bytes once it was read");
    });
}

//! The balance of a process: every part is where it belongs, and they add up to RSS.
#![cfg(target_os = "linux")]

use dogtag::{Balance, Dogtag, Service, balance};
use std::hint::black_box;
use std::sync::mpsc;
use std::thread;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const MIB: u64 = 1 << 20;

/// A sheet whose parts add up, and that explains what it should.
fn checked() -> Balance {
    let balance = balance();
    let sum: i64 = balance.lines().iter().map(|line| line.bytes).sum();
    assert_eq!(sum, balance.resident.unwrap() as i64, "{balance}");
    // Not in percent: this process has little.
    assert!(balance.unexplained().unsigned_abs() < MIB, "{balance}");
    balance
}

/// What a part has become more by.
fn more(before: u64, after: u64) -> f64 {
    (after as f64 - before as f64) / MIB as f64
}

#[track_caller]
fn assert_near(more: f64, expected: f64, balance: &Balance) {
    assert!((more - expected).abs() < 1.5, "{more:.1} MiB instead of {expected} MiB\n{balance}");
}

/// One after the other, so that nobody else allocates.
#[test]
fn every_part_is_where_it_belongs() {
    let resident = |balance: &Balance| balance.resident.unwrap();
    let service = Service::register("holder").unwrap();
    let start = checked();

    // Live blocks, small and large.
    let blocks: Vec<Vec<u8>> = service.run(|| (0..4000).map(|i| vec![i as u8; 10_000]).collect());
    let full = checked();
    assert_eq!(full.services - start.services, service.usage().bytes());
    assert_near(more(start.services, full.services), 38.2, &full);
    assert_near(
        more(resident(&start), resident(&full)),
        if cfg!(feature = "memory-check") { 42.0 } else { 39.5 },
        &full,
    );
    if cfg!(feature = "jemalloc-stats") && !cfg!(feature = "memory-check") {
        assert!(full.rounding > start.rounding + 4000 * 200, "10,000 bytes take 10,240\n{full}");
    }

    // What nobody has written to is not in memory.
    if !cfg!(feature = "memory-check") {
        let untouched = service.run(|| vec![0_u8; 64 << 20]);
        let lazy = checked();
        assert_near(more(full.services, lazy.services), 64.0, &lazy);
        assert_near(more(resident(&full), resident(&lazy)), 0.0, &lazy);
        if cfg!(feature = "jemalloc-stats") {
            // Some pages that jemalloc has mapped beside it are not in memory either.
            let beside = more(full.metadata, lazy.metadata) + more(full.dirty_pages, lazy.dirty_pages);
            assert_near(more(full.not_in_memory, lazy.not_in_memory), 64.0 + beside, &lazy);
        }
        drop(black_box(untouched));
    }

    // Freed, and for a while still in memory.
    drop(blocks);
    let freed = checked();
    assert_eq!(freed.services, start.services);

    // A thread's stack, while it waits and when it is gone.
    let before = checked();
    let (tell, told) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let deep = thread::Builder::new()
        .stack_size(16 << 20)
        .spawn(move || {
            let array = black_box([1_u8; 8 << 20]);
            tell.send(array[17]).unwrap();
            let _ = released.recv();
            black_box(&array);
        })
        .unwrap();
    told.recv().unwrap();
    let with_stack = checked();
    assert_near(more(before.stacks, with_stack.stacks), 8.0, &with_stack);
    drop(release);
    deep.join().unwrap();

    // Memory that is not from here.
    let before = checked();
    // SAFETY: a fresh mapping.
    let mapped = unsafe {
        let (read_write, private) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), 8 << 20, read_write, private, -1, 0)
    };
    assert_ne!(mapped, libc::MAP_FAILED);
    // SAFETY: mapped just now.
    unsafe { mapped.cast::<u8>().write_bytes(1, 8 << 20) };
    let foreign = checked();
    assert_near(more(before.other_mappings, foreign.other_mappings), 8.0, &foreign);
    // SAFETY: mapped above.
    unsafe { libc::munmap(mapped, 8 << 20) };

    // The ledger: a cell for each of many services, and a shard.
    let before = checked();
    let services: Vec<Service> =
        (0..20_000).map(|i| Service::register(format!("service {i}")).unwrap()).collect();
    services.iter().for_each(|service| service.run(|| drop(black_box(Box::new(1_u8)))));
    let many = checked();
    let expected = (20_000 * (192 + 64)) as f64 / MIB as f64;
    assert_near(more(before.ledger, many.ledger), expected, &many);
    println!("{}", dogtag::snapshot().with_balance().balance.unwrap());
}

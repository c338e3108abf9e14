//! The balance of a process: every part is where it belongs, and they add up to RSS.

#[cfg(target_os = "linux")]
use dogtag::Dogtag;
use dogtag::{Balance, Service, balance};
use std::hint::black_box;
use std::sync::mpsc;
use std::thread;

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

/// Memory of another allocator, as it were: so many bytes, of which so many are written to. `None` if
/// something is there already.
fn map_like_jemalloc(
    start: usize,
    len: usize,
    flags: libc::c_int,
    written: usize,
) -> Option<*mut libc::c_void> {
    let (read_write, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    // SAFETY: a fresh mapping, which replaces none: no flags here say that it may.
    unsafe {
        let mapped = libc::mmap(std::ptr::without_provenance_mut(start), len, read_write, flags, -1, 0);
        if mapped == libc::MAP_FAILED {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EEXIST), "{error} at {start:#x}, {len:#x} bytes");
            return None;
        }
        mapped.cast::<u8>().write_bytes(1, written);
        Some(mapped)
    }
}

/// Where to map so that the system joins it with the mappings that are like jemalloc's: beneath each
/// and above each, as much as fits between it and the next mapping, 6 MiB at most.
#[cfg(all(target_os = "linux", feature = "jemalloc-stats"))]
fn beside_jemallocs() -> Vec<std::ops::Range<usize>> {
    const MOST: usize = 6 << 20;

    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut mappings = Vec::new();
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let range = range.and_then(|(start, end)| {
            Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
        });
        match range {
            Some(range) => mappings.push((range, false)),
            None if line.starts_with("VmFlags:") => {
                // With memory-check, pages without access may be its lowest.
                mappings.last_mut().unwrap().1 = line.contains(" nr");
            }
            None => {}
        }
    }
    let mut places = Vec::new();
    for pair in mappings.windows(2) {
        let [(below, is_below), (above, is_above)] = pair else { unreachable!() };
        let hole = below.end..above.start;
        if *is_below {
            places.push(hole.start..hole.end.min(hole.start + MOST));
        }
        if *is_above {
            let start = hole.start.max(hole.end.saturating_sub(MOST));
            places.push(if *is_below { start.max(hole.end.min(hole.start + MOST)) } else { start }..hole.end);
        }
    }
    places.retain(|place| !place.is_empty());
    places
}

/// What is the others' is found wherever it is joined with jemalloc's own, its bookkeeping too.
#[cfg(all(target_os = "linux", feature = "jemalloc-stats"))]
#[test]
fn other_allocators_are_found_on_every_side_of_jemallocs_mappings() {
    alone!();
    // With memory-check nothing is reserved beside jemalloc's mappings then.
    let most = libc::rlimit { rlim_cur: 1 << 46, rlim_max: 1 << 46 };
    // SAFETY: sets a limit, which is more than there are addresses.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &most) }, 0);
    let blocks: Vec<Vec<u8>> = (0..4000).map(|i| vec![i as u8; 10_000]).collect();
    let large = vec![1_u8; 9 << 20];
    drop(black_box(blocks));
    let mut more = Vec::new();
    // With memory-check this one parts the mapping that it is in.
    drop(black_box(vec![1_u8; 4 << 20]));
    let before = checked();
    // What others have is found, but for what may have come since jemalloc was asked. What else is
    // found is what others had before, and some of jemalloc's bookkeeping.
    let len = |mapped: &[std::ops::Range<usize>]| mapped.iter().map(|place| place.len() as u64).sum::<u64>();
    let check = |mapped: &[std::ops::Range<usize>]| {
        let mapped = len(mapped);
        let (balance, slack) = (checked(), MIB / 4);
        let found = balance.other_allocators;
        assert!(found + slack >= mapped, "{found} of {mapped}\n{balance}");
        let most = mapped + before.other_allocators + slack + balance.metadata;
        assert!(found <= most, "{found} of {mapped}\n{balance}");
        mapped
    };
    let mut mapped = Vec::new();
    for _ in 0..10 {
        for place in beside_jemallocs() {
            // To look at it maps memory, too, which may be just there.
            if map_like_jemalloc(place.start, place.len(), libc::MAP_FIXED_NOREPLACE, place.len()).is_some() {
                mapped.push(place);
            }
            // Not each: the last of many are like the first.
            if mapped.len() < 8 {
                check(&mapped);
            }
        }
        if len(&mapped) > MIB {
            break;
        }
        // Others are beneath the lowest: one more is beneath those.
        more.push(vec![1_u8; 16 << 20]);
    }
    // There is free space beneath the lowest at least.
    assert!(check(&mapped) > MIB, "{mapped:x?}");
    for place in mapped {
        // SAFETY: mapped above.
        unsafe { libc::munmap(std::ptr::without_provenance_mut(place.start), place.len()) };
    }
    let after = checked();
    assert!(after.other_allocators <= before.other_allocators + MIB, "{after}");

    // Nor is jemalloc's own taken for the others' where they have more addresses than can be looked
    // through, as sanitizers and JavaScript engines do, far beneath.
    let length = 32 << 30;
    let reserved = map_like_jemalloc(1 << 44, length, 0, 1 << 20).unwrap();
    let balance = checked();
    assert!(balance.other_allocators >= MIB, "{balance}");
    assert!(balance.other_allocators <= 3 * MIB + balance.metadata, "{balance}");
    // SAFETY: mapped above.
    unsafe { libc::munmap(reserved, length) };
    drop((large, more));
}

/// What is in regions is a service's, or the region's own, in whatever way it was allocated.
#[cfg(target_os = "linux")]
fn regions() {
    use allocator_api2::alloc::Allocator;
    use dogtag_mapped::{Fallback, MappedRegion};
    use std::alloc::{GlobalAlloc, Layout, System};

    let mib = |mib: usize| Layout::from_size_align(mib << 20, 16).unwrap();
    let service = Service::register("in regions").unwrap();
    let start = checked();
    // The heap's own is more than what is in regions, so that rounding has space for mistakes.
    let heap = service.run(|| vec![1_u8; 64 << 20]);
    let region = MappedRegion::anonymous(64 << 20).unwrap();
    let unused = MappedRegion::deferred(1 << 20);
    let before = checked();
    let same = |balance: &Balance, regions: f64, services: f64| {
        assert_near(more(before.regions, balance.regions), regions, balance);
        assert_near(more(before.services, balance.services), services, balance);
        assert_near(more(before.rounding, balance.rounding), 0.0, balance);
        assert_near(more(before.not_in_memory, balance.not_in_memory), 0.0, balance);
        assert_near(more(before.cookies, balance.cookies), 0.0, balance);
    };

    // SAFETY: blocks are live until they are freed, and of the layouts that are said.
    unsafe {
        let uncounted = region.alloc(mib(32));
        uncounted.write_bytes(1, 32 << 20);
        same(&checked(), 32.0, 0.0);
        let counted = service.run(|| (&region).allocate(mib(8)).unwrap().cast::<u8>());
        counted.write_bytes(1, 8 << 20);
        same(&checked(), 32.0, 8.0);
        let uncounted = region.realloc(uncounted, mib(32), 16 << 20);
        assert!(region.trim() >= 15 << 20);
        same(&checked(), 16.0, 8.0);
        let counted = service.run(|| (&region).shrink(counted, mib(8), mib(4)).unwrap().cast::<u8>());
        region.trim();
        if !cfg!(feature = "memory-check") {
            // There what is freed is kept back.
            same(&checked(), 16.0, 4.0);
        }
        (&region).deallocate(counted, mib(4));
        region.dealloc(uncounted, mib(16));

        // Two instances, of which one has another allocator behind its region, and one the region
        // without either.
        let beside = Dogtag::with_backend(Fallback::new(MappedRegion::anonymous(16 << 20).unwrap(), System));
        let first = service.run(|| beside.alloc(mib(12)));
        first.write_bytes(1, 12 << 20);
        let uncounted = beside.backend().primary().alloc(mib(2));
        uncounted.write_bytes(1, 2 << 20);
        drop(region);
        if !cfg!(feature = "memory-check") {
            same(&checked(), 2.0, 12.0);
        }
        beside.backend().primary().dealloc(uncounted, mib(2));
        beside.dealloc(first, mib(12));
    }
    drop((unused, heap));
    let end = checked();
    assert_near(more(start.services, end.services), 0.0, &end);
    assert_near(more(start.regions, end.regions), 0.0, &end);
}

/// One after the other, so that nobody else allocates.
#[test]
fn every_part_is_where_it_belongs() {
    alone!();
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

    // Nor is what is mapped as jemalloc does it; the system joins what is beside each other.
    if cfg!(feature = "jemalloc-stats") {
        let before = checked();
        let mapped: Vec<_> = (0..4).map(|_| map_like_jemalloc(0, 6 << 20, 0, 6 << 20).unwrap()).collect();
        let foreign = checked();
        assert_near(more(before.other_allocators, foreign.other_allocators), 24.0, &foreign);
        assert_near(more(before.not_in_memory, foreign.not_in_memory), 0.0, &foreign);
        // SAFETY: mapped above.
        mapped.into_iter().for_each(|mapped| _ = unsafe { libc::munmap(mapped, 6 << 20) });
    }

    #[cfg(target_os = "linux")]
    regions();

    // The ledger: a cell for each of many services, and a shard.
    let before = checked();
    let services: Vec<Service> =
        (0..20_000).map(|i| Service::register(format!("service {i}")).unwrap()).collect();
    services.iter().for_each(|service| service.run(|| drop(black_box(Box::new(1_u8)))));
    let many = checked();
    let expected = (20_000 * (192 + 64)) as f64 / MIB as f64;
    // Tables of samples are bookkeeping, too.
    if !crate::child::is_every_block_sampled() {
        assert_near(more(before.ledger, many.ledger), expected, &many);
    }
    println!("{}", dogtag::snapshot().with_balance().balance.unwrap());
}

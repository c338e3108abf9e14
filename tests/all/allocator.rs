//! The allocator as the global one: every layout, every failure, every phase
//! of a thread and of the process.

use crate::watch;
use dogtag::Service;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::cell::RefCell;

fn service(name: &str) -> Service {
    Service::register(name).unwrap()
}

#[test]
fn every_size_and_alignment() {
    let service = service("every layout");
    let _scope = service.enter();
    let small = 1..=130;
    let powers = (3..=30).flat_map(|shift| [(1 << shift) - 1, 1 << shift, (1 << shift) + 1]);
    // memory-check fills every byte, twice.
    let largest = if cfg!(feature = "memory-check") { 1 << 24 } else { 1 << 30 };
    for size in small.chain(powers).filter(|&size| size <= largest) {
        for shift in 0..=21 {
            // The largest blocks with a few alignments only: they take long to copy.
            if (size > 1 << 22 && shift % 7 != 0) || (size > 1 << 26 && shift % 21 != 0) {
                continue;
            }
            let layout = Layout::from_size_align(size, 1 << shift).unwrap();
            let before = service.usage();
            // SAFETY: the block is written within its size, and freed with its layout.
            unsafe {
                let block = alloc(layout);
                assert!(!block.is_null() && (block as usize).is_multiple_of(layout.align()), "{layout:?}");
                assert_eq!(service.usage().since(&before).bytes(), size as u64, "{layout:?}");
                block.write(1);
                block.add(size - 1).write(2);
                dealloc(block, layout);

                let block = alloc_zeroed(layout);
                assert!(!block.is_null() && (block as usize).is_multiple_of(layout.align()), "{layout:?}");
                assert_eq!((block.read(), block.add(size / 2).read(), block.add(size - 1).read()), (0, 0, 0));
                block.add(size - 1).write(3);
                // To twice the size and back to less than it was.
                let larger = if size <= 1 << 24 { size * 2 } else { size + 1 };
                let block = realloc(block, layout, larger);
                assert!(!block.is_null() && (block as usize).is_multiple_of(layout.align()), "{layout:?}");
                assert_eq!(block.add(size - 1).read(), 3, "{layout:?}");
                block.add(larger - 1).write(4);
                let layout = Layout::from_size_align(larger, layout.align()).unwrap();
                let smaller = size.div_ceil(2);
                block.add(smaller - 1).write(5);
                let block = realloc(block, layout, smaller);
                assert!(!block.is_null() && (block as usize).is_multiple_of(layout.align()), "{layout:?}");
                assert_eq!(block.add(smaller - 1).read(), 5, "{layout:?}");
                assert_eq!(service.usage().since(&before).bytes(), smaller as u64, "{layout:?}");
                dealloc(block, Layout::from_size_align(smaller, layout.align()).unwrap());
            }
            assert_eq!(service.usage().bytes(), before.bytes(), "{layout:?}");
        }
    }
    assert_eq!(service.usage().blocks(), 0);
}

/// Pages and buffers have no cookie, which would take them to the next size class.
#[cfg(all(feature = "jemalloc", not(feature = "memory-check")))]
#[test]
fn large_blocks_fill_their_size_class() {
    for size in [4096, 8192, 16 << 10, 64 << 10, 1 << 20] {
        let block = std::hint::black_box(Vec::<u8>::with_capacity(size));
        // SAFETY: the block is live, and jemalloc's.
        let usable = unsafe { tikv_jemalloc_sys::malloc_usable_size(block.as_ptr().cast()) };
        assert_eq!(usable, size);
    }
}

#[test]
fn impossible_sizes_are_refused_and_leave_no_trace() {
    let service = service("impossible");
    let mut kept = service.run(|| vec![7_u8; 100]);
    let before = service.usage();
    service.run(|| {
        let mut bytes: Vec<u8> = Vec::new();
        for size in [isize::MAX as usize, isize::MAX as usize - 1, isize::MAX as usize / 2, 1 << 61, 1 << 50]
        {
            assert!(bytes.try_reserve_exact(size).is_err(), "{size}");
            assert!(kept.try_reserve_exact(size - 100).is_err(), "{size}");
        }
        for shift in [40, 61, 62] {
            for size in [1, (1 << 62) - 1, 1 << 61] {
                let Ok(layout) = Layout::from_size_align(size, 1 << shift) else { continue };
                // SAFETY: the layouts are not empty; what is there is freed.
                unsafe {
                    let block = alloc(layout);
                    if !block.is_null() {
                        // A byte at an alignment of 1 TiB may well be had.
                        assert!((block as usize).is_multiple_of(layout.align()));
                        dealloc(block, layout);
                    }
                }
            }
        }
    });
    assert_eq!(service.usage().bytes(), before.bytes());
    assert_eq!(service.usage().blocks(), before.blocks());
    assert!(kept.iter().all(|&byte| byte == 7));
}

#[test]
fn scopes_nest_and_survive_panics() {
    let (outer, inner) = (service("outer"), service("inner"));
    assert_eq!(Service::current(), Service::unattributed());
    let outer_scope = outer.enter();
    let caught = std::panic::catch_unwind(|| {
        let _inner = inner.enter();
        assert_eq!(Service::current(), inner);
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(caught.is_err());
    assert_eq!(Service::current(), outer);
    inner.run(|| outer.run(|| inner.run(|| assert_eq!(Service::current(), inner))));
    assert_eq!(Service::current(), outer);
    drop(outer_scope);
    assert_eq!(Service::current(), Service::unattributed());
}

#[test]
fn enter_by_many_threads_at_once() {
    let shared = service("shared by threads");
    let barrier = std::sync::Barrier::new(8);
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                let _scope = shared.enter();
                barrier.wait();
                for _ in 0..1000 {
                    drop(std::hint::black_box(Box::new([0_u8; 10])));
                }
            });
        }
    });
    let usage = shared.usage();
    assert_eq!((usage.allocated_blocks, usage.allocated_bytes, usage.bytes()), (8000, 80_000, 0));
}

#[test]
fn realloc_moves_a_block_to_the_current_service() {
    let (first, second) = (service("first owner"), service("second owner"));
    let mut bytes = first.run(|| Vec::<u8>::with_capacity(100));
    assert_eq!(first.usage().bytes(), 100);
    second.run(|| bytes.reserve_exact(5000));
    assert_eq!((first.usage().bytes(), second.usage().bytes()), (0, 5000));
    drop(bytes);
    assert_eq!((first.usage().blocks(), second.usage().blocks()), (0, 0));
}

/// Allocates and frees while the thread is torn down, after and before others.
struct Late {
    service: Service,
    block: Option<Box<[u8; 300]>>,
}

impl Drop for Late {
    fn drop(&mut self) {
        drop(self.block.take());
        self.service.run(|| drop(std::hint::black_box(Box::new([0_u8; 77]))));
        let again = self.service.run(|| Box::new([1_u8; 1000]));
        drop(std::hint::black_box(again));
    }
}

#[test]
fn thread_local_destructors_are_counted() {
    thread_local! {
        static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
    }
    let late = service("late");
    for _ in 0..100 {
        let service = late.clone();
        std::thread::spawn(move || {
            let block = service.run(|| Some(Box::new([0_u8; 300])));
            LATE.with(|slot| *slot.borrow_mut() = Some(Late { service, block }));
        })
        .join()
        .unwrap();
    }
    let usage = late.usage();
    assert_eq!((usage.allocated_blocks, usage.allocated_bytes), (300, 100 * 1377));
    assert_eq!((usage.freed_blocks, usage.freed_bytes), (300, 100 * 1377));
}

/// A pthread key's destructor that runs after ours has given the shard away:
/// keys are destroyed over and over while destructors set them again. Meanwhile
/// other threads have got those shards.
#[test]
fn the_very_last_destructors_are_counted() {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    const BLOCKS: u64 = 5_000;

    static LAST: OnceLock<Service> = OnceLock::new();
    static KEY: OnceLock<libc::pthread_key_t> = OnceLock::new();
    static RUNS: AtomicU64 = AtomicU64::new(0);

    fn allocate_and_free() {
        let _scope = LAST.get().unwrap().enter();
        for _ in 0..BLOCKS {
            drop(std::hint::black_box(Box::new([0_u8; 50])));
        }
        RUNS.fetch_add(1, Ordering::Relaxed);
    }

    unsafe extern "C" fn destructor(value: *mut libc::c_void) {
        allocate_and_free();
        // SAFETY: the key exists; a value keeps the destructor coming.
        unsafe { libc::pthread_setspecific(*KEY.get().unwrap(), value) };
    }

    let last = LAST.get_or_init(|| service("last"));
    KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: `key` is a place for the result.
        assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(destructor)) }, 0);
        key
    });
    for _ in 0..50 {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    allocate_and_free();
                    // SAFETY: the key exists; the value is never read.
                    unsafe { libc::pthread_setspecific(*KEY.get().unwrap(), std::ptr::dangling()) };
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
    let runs = RUNS.load(Ordering::Relaxed);
    assert!(runs >= 2 * 200 + 200, "the destructors did not come back: {runs}");
    let usage = last.usage();
    assert_eq!((usage.allocated_blocks, usage.freed_blocks), (runs * BLOCKS, runs * BLOCKS));
    assert_eq!((usage.allocated_bytes, usage.bytes()), (runs * BLOCKS * 50, 0));
}

#[cfg(not(feature = "memory-check"))]
#[test]
fn an_overwritten_cookie_is_counted_as_lost_and_harms_nobody() {
    alone!();
    let (careless, neighbour) = (service("careless"), service("neighbour"));
    let kept = neighbour.run(|| vec![1_u8; 1000]);
    let before = dogtag::snapshot().lost;
    let layout = Layout::from_size_align(30, 1).unwrap();
    for overrun in [&[0][..], b"a", b"~", &[0xff], &[0, 0], &[0xff, 0xff], b"AB", &[1, 0]] {
        // SAFETY: the two bytes behind the block are its cookie's, not its
        // neighbour's: wrong, but nobody's memory.
        unsafe {
            let block = careless.run(|| alloc(layout));
            block.add(30).copy_from_nonoverlapping(overrun.as_ptr(), overrun.len());
            dealloc(block, layout);
        }
    }
    // Through `realloc` the block gets a fresh cookie, and keeps its bytes.
    // SAFETY: the two bytes behind the block are its cookie's: wrong, but nobody's memory.
    unsafe {
        let block = careless.run(|| alloc(layout));
        block.write(42);
        block.add(30).cast::<[u8; 2]>().write_unaligned([0, 0]);
        let block = careless.run(|| realloc(block, layout, 100));
        assert_eq!(block.read(), 42);
        dealloc(block, Layout::from_size_align(100, 1).unwrap());
    }
    let lost = dogtag::snapshot().lost;
    assert_eq!((lost.blocks - before.blocks, lost.bytes - before.bytes), (9, 270));
    assert_eq!(careless.usage().bytes(), 270, "what is lost stays in its service's figures");
    assert_eq!(neighbour.usage().bytes(), 1000);
    drop(kept);
}

#[test]
fn fork_goes_on_with_its_parents_figures() {
    alone!();
    let service = service("forked");
    let block = service.run(|| vec![0_u8; 1234]);
    // Another thread's shard is in the ledger too when the process forks.
    let other = std::thread::spawn({
        let service = service.clone();
        move || service.run(|| vec![0_u8; 4321])
    });
    let other = other.join().unwrap();
    let before = service.usage();
    assert_eq!(before.bytes(), 5555);
    // SAFETY: the child touches nothing but the allocator and ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let same = service.usage() == before;
        let more = service.run(|| vec![0_u8; 100]);
        let grown = service.usage().bytes() == 5655;
        drop((more, block, other));
        let freed = service.usage().bytes() == 0;
        let code = if same && grown && freed { 0 } else { 1 };
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(code) };
    }
    assert!(child > 0);
    assert_eq!(watch::ended(child).code(), Some(0), "the child's figures were wrong");
    assert_eq!(service.usage(), before, "the child changed its parent's ledger");
    drop((block, other));
}

#[test]
fn usage_is_never_negative_while_others_run() {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    let service = service("handed on");
    let stop = AtomicBool::new(false);
    let mut readings = Vec::with_capacity(21_000);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            let (sender, receiver) = channel::<Box<[u8; 40]>>();
            let (service, stop) = (&service, &stop);
            threads.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let block = service.run(|| Box::new([0_u8; 40]));
                    sender.send(block).unwrap();
                }
            });
            threads.spawn(move || receiver.iter().for_each(drop));
        }
        readings.extend((0..20_000).map(|_| service.usage()));
        for _ in 0..200 {
            let rows = dogtag::snapshot().rows;
            readings.extend(rows.iter().find(|row| row.name == "handed on").map(|row| row.usage));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(readings.len(), 20_200);
    for usage in readings {
        assert!(usage.freed_bytes <= usage.allocated_bytes, "{usage:?}");
        assert!(usage.freed_blocks <= usage.allocated_blocks, "{usage:?}");
    }
    assert_eq!(service.usage().blocks(), 0);
}

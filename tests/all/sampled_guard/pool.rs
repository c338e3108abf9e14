//! Which blocks are guarded, in how many slots, and that all are charged and refunded.

use super::{LAYOUT, PAGE, PLACES, Place, SIZE, TABLE, allocates, frees};
use crate::child;
use crate::watch::random::Random;
use dogtag::Service;
use dogtag::sampled_guard::{Reaction, SampledGuard, figures, is_guarded};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// In the child nobody goes on with what another thread of the parent's was at.
#[test]
fn a_child_can_start_and_stop_whatever_others_did_at_the_fork() {
    alone!();
    SampledGuard::builder().start().unwrap();
    let is_over = AtomicBool::new(false);
    let again = || {
        if let Some(guard) = SampledGuard::running() {
            guard.stop();
        }
        _ = SampledGuard::builder().start();
    };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                again();
            }
        });
        for _ in 0..200 {
            // SAFETY: the child does no more than change what is sampled, and ends.
            unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    again();
                    libc::_exit(0);
                }
                let mut status = 0;
                libc::waitpid(pid, &mut status, 0);
                assert_eq!(status, 0);
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// Who starts the guard is not charged with what that takes.
#[test]
fn a_start_is_nobodys() {
    alone!();
    let service = Service::register("starts").unwrap();
    service.run(|| SampledGuard::builder().start().unwrap());
    // Neither with what stays nor with what is freed again.
    assert_eq!(service.usage().allocated_blocks, 0, "{:?}", service.usage());
}

/// Blocks are guarded while there are slots, and the slot that was freed first is used again first.
#[test]
fn the_pool_is_bounded_and_freed_slots_wait_for_longest() {
    alone!();
    const SLOTS: usize = 32;
    let guard = SampledGuard::builder().rate(1).per_second(0).slots(SLOTS).start().unwrap();
    assert_eq!((guard.rate(), guard.slots(), SampledGuard::running()), (1, SLOTS, Some(guard)));
    assert!(SampledGuard::builder().start().is_err());
    // SAFETY: blocks of that layout, each freed once.
    unsafe {
        let blocks: Vec<*mut u8> = (0..100).map(|_| std::alloc::alloc(LAYOUT)).collect();
        let at_most = |figures: dogtag::sampled_guard::Figures| figures.guarded as usize <= SLOTS;
        assert!(at_most(figures()) && figures().refused >= 50, "{:?}", figures());
        blocks.iter().for_each(|&block| child::dealloc(block, LAYOUT));
        // Others come and go, but the slots of these wait for their turn.
        let mut last = BTreeMap::new();
        for turn in 0..200 {
            let block = std::alloc::alloc(LAYOUT);
            if is_guarded(block)
                && let Some(before) = last.insert(block.addr() / PAGE, turn)
            {
                assert!(turn - before >= SLOTS / 3, "{last:?}");
            }
            child::dealloc(block, LAYOUT);
        }
        assert!(last.len() >= SLOTS / 3, "{last:?}");
    }
    let snapshot = dogtag::snapshot();
    assert!(snapshot.regions.iter().any(|region| region.name == "dogtag::sampled_guard"));
    guard.stop();
    assert_eq!(SampledGuard::running(), None);
    let block = Box::new([0_u8; SIZE]);
    assert!(!is_guarded(block.as_ptr()));
    // There may be fewer slots then, not more.
    assert!(SampledGuard::builder().slots(SLOTS + 1).start().is_err());
    assert!(SampledGuard::builder().slots(SLOTS).start().is_ok());
}

/// However much is allocated, no more blocks are guarded in a second than may be, but for some at the beginning. A child
/// goes on with what its parent has left.
#[test]
fn blocks_are_guarded_at_most_so_often_in_a_second() {
    alone!();
    const AT_ONCE: u64 = 32;
    let start = Instant::now();
    // The clock that the guard has may be late, by no second.
    let seconds = || start.elapsed().as_secs() + 1;
    let guard = SampledGuard::builder().rate(1).per_second(1).start().unwrap();
    let guarded_of =
        |number: u64| (0..number).filter(|_| is_guarded(&raw const *black_box(Box::new(7_u8)))).count();
    let own = guarded_of(10_000) as u64;
    let all = figures();
    assert!(own > 0 && (AT_ONCE..=AT_ONCE + seconds()).contains(&all.ever), "{own}, {all:?}");
    assert!(all.throttled >= 10_000 - own && all.refused == 0, "{own}, {all:?}");
    // SAFETY: the child does no more than allocate, and ends.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let more = guarded_of(1000) as u64;
            libc::_exit(i32::from(more > seconds()));
        }
        let mut status = 0;
        libc::waitpid(pid, &mut status, 0);
        assert_eq!(status, 0, "the child begins anew");
    }
    // A start does.
    guard.stop();
    SampledGuard::builder().rate(1).per_second(1).start().unwrap();
    guarded_of(1000);
    assert!(figures().ever >= all.ever + AT_ONCE, "{:?}", figures());
}

/// A live block takes a page of memory. A freed one takes none while it waits for its slot to be used again, but for
/// 512 KiB of them.
#[test]
fn the_memory_of_freed_blocks_is_the_systems_but_for_some() {
    const KEPT: usize = (512 << 10) / PAGE;

    /// Whether there is memory for the page that an address is in.
    fn has_memory(address: usize) -> bool {
        let page = std::ptr::without_provenance_mut(address / PAGE * PAGE);
        let mut resident = 0;
        // SAFETY: one page, which stays mapped, and a byte for it.
        assert_eq!(unsafe { libc::mincore(page, PAGE, &mut resident) }, 0);
        resident & 1 == 1
    }

    alone!();
    SampledGuard::builder().rate(1).per_second(0).slots(KEPT + 64).start().unwrap();
    let while_live_and_freed = |place| {
        let block = allocates(place);
        // SAFETY: the block is live.
        unsafe { block.write_bytes(1, SIZE) };
        let with_block = has_memory(block.addr());
        frees(block, LAYOUT, place);
        (with_block, has_memory(block.addr()))
    };
    for place in PLACES {
        assert_eq!(while_live_and_freed(place), (true, true), "{place:?}");
    }
    // Slots are first used in their order, each once before one is used again.
    // SAFETY: blocks of that layout, each freed once.
    let others: Vec<*mut u8> = (0..KEPT).map(|_| unsafe { std::alloc::alloc(LAYOUT) }).collect();
    for place in PLACES {
        assert_eq!(while_live_and_freed(place), (true, false), "{place:?}");
    }
    // SAFETY: as above.
    others.into_iter().for_each(|block| unsafe { child::dealloc(block, LAYOUT) });
}

/// A write to the block's page beside the block is found at the free, wherever it was; none is where there was none.
#[test]
fn all_of_the_page_is_looked_at_when_its_block_is_freed() {
    alone!();
    let guard = SampledGuard::builder().rate(1).per_second(0).slots(4096).patience(Duration::ZERO);
    guard.reaction(Reaction::Continue).start().unwrap();
    let mut caught = 0;
    for place in [Place::NearEnd, Place::Beginning, Place::Table] {
        for at in (0..PAGE).step_by(61).chain((PAGE - 2 * SIZE..PAGE).step_by(7)) {
            let block = allocates(place);
            let page = block.wrapping_sub(block.addr() % PAGE);
            let is_beside = !(block.addr() % PAGE..block.addr() % PAGE + SIZE + 2).contains(&at);
            if is_beside {
                // SAFETY: within the page, which nobody else has.
                unsafe { page.add(at).write(1) };
            }
            frees(block, LAYOUT, place);
            caught += u64::from(is_beside);
            assert_eq!(figures().caught, caught, "byte {at}, {place:?}");
        }
    }
    assert!(caught > 150);
}

/// Whatever is guarded, all is charged and refunded to the byte; contents stay.
#[test]
fn books_are_exact_with_every_block_guarded() {
    alone!();
    SampledGuard::builder().rate(1).per_second(0).slots(64).start().unwrap();
    let services: Vec<Service> = (0..3).map(|i| Service::register(format!("books {i}")).unwrap()).collect();
    struct Block(*mut u8, Layout, u8, usize);
    // SAFETY: the test's, and freed once.
    unsafe impl Send for Block {}
    let common = Mutex::new(Vec::<Block>::new());
    std::thread::scope(|threads| {
        for seed in 0..2_u64 {
            let (services, common) = (&services, &common);
            threads.spawn(move || {
                let mut random = Random::new(seed + 1);
                for turn in 0..20_000_u32 {
                    let which = random.below(3);
                    let most_size = if random.once_in(4) { 6000 } else { 300 };
                    let size = 1 + random.below(most_size);
                    let most_align = if random.once_in(9) { 13 } else { 5 };
                    let align = 1_usize << random.below(most_align);
                    let layout = Layout::from_size_align(size, align).unwrap();
                    let allocator: &dyn GlobalAlloc = if which == 2 { &TABLE } else { &crate::ALLOC };
                    let fill = turn as u8;
                    let taken = {
                        let mut common = common.lock().unwrap();
                        let at = random.below(common.len().max(1));
                        if common.len() > 60 || random.below(3) == 0 {
                            (!common.is_empty()).then(|| common.swap_remove(at))
                        } else {
                            None
                        }
                    };
                    // SAFETY: blocks of that allocator's and layout.
                    unsafe {
                        match taken {
                            Some(Block(block, old, fill, owner)) => {
                                assert!((0..old.size()).all(|i| *block.add(i) == fill));
                                let allocator: &dyn GlobalAlloc =
                                    if owner == 2 { &TABLE } else { &crate::ALLOC };
                                if random.below(2) == 0 {
                                    allocator.dealloc(block, old);
                                    continue;
                                }
                                let new = services[owner].run(|| allocator.realloc(block, old, size));
                                assert!((0..old.size().min(size)).all(|i| *new.add(i) == fill));
                                new.write_bytes(fill, size);
                                let layout = Layout::from_size_align(size, old.align()).unwrap();
                                common.lock().unwrap().push(Block(new, layout, fill, owner));
                            }
                            None => {
                                let block = services[which].run(|| {
                                    if fill.is_multiple_of(2) {
                                        allocator.alloc_zeroed(layout)
                                    } else {
                                        allocator.alloc(layout)
                                    }
                                });
                                assert!(block.addr().is_multiple_of(align));
                                assert!(!fill.is_multiple_of(2) || (0..size).all(|i| *block.add(i) == 0));
                                block.write_bytes(fill, size);
                                common.lock().unwrap().push(Block(block, layout, fill, which));
                            }
                        }
                    }
                }
            });
        }
    });
    let left = common.into_inner().unwrap();
    for (which, service) in services.iter().enumerate() {
        let own = || left.iter().filter(|block| block.3 == which);
        let usage = service.usage();
        assert_eq!(usage.blocks() as usize, own().count());
        assert_eq!(usage.bytes() as usize, own().map(|block| block.1.size()).sum::<usize>());
    }
    for Block(block, layout, _, owner) in left {
        let allocator: &dyn GlobalAlloc = if owner == 2 { &TABLE } else { &crate::ALLOC };
        // SAFETY: a block of that allocator's.
        unsafe { allocator.dealloc(block, layout) };
    }
    assert!(services.iter().all(|service| service.usage().bytes() == 0 && service.usage().blocks() == 0));
    let figures = figures();
    assert!(figures.ever > 1000 && figures.caught == 0, "{figures:?}");
}

/// One allocation in so many is guarded, whatever its size, on any thread, in any service.
#[test]
fn the_share_of_guarded_blocks_is_the_rate() {
    alone!();
    const RATE: u64 = 100;
    const N: u64 = 60_000;
    SampledGuard::builder().rate(RATE).per_second(0).start().unwrap();
    let other = Service::register("share").unwrap();
    let sizes = [8_usize, 33, 200, 2000];
    let mut guarded = [0_u64; 4];
    for turn in 0..N {
        let which = (turn % 4) as usize;
        let layout = Layout::from_size_align(sizes[which], 1).unwrap();
        let _scope = (turn % 3 == 0).then(|| other.enter());
        // SAFETY: a block of that layout.
        unsafe {
            let block = black_box(std::alloc::alloc(layout));
            guarded[which] += u64::from(is_guarded(block));
            std::alloc::dealloc(block, layout);
        }
    }
    let expected = (N / 4) as f64 / RATE as f64;
    for guarded in guarded {
        // Seven standard errors.
        assert!((guarded as f64 - expected).abs() < 7.0 * expected.sqrt(), "{guarded} of {expected}");
    }
    assert_eq!((figures().refused, figures().throttled), (0, 0));
}

//! Where memory comes from, limits, blocks, and large allocations.

use crate::{Log, Noisy, service};
use allocator_api2::alloc::Allocator;
use allocator_api2::vec::Vec as PoolVec;
use dogtag::Service;
use dogtag_pool::{Pool, PoolError};
use std::alloc::Layout;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

#[test]
fn memory_runs_out() {
    static TOLD: Mutex<Vec<PoolError>> = Mutex::new(Vec::new());
    let log = Log::default();
    let service = Service::builder("hungry").hard_limit(200_000).register().unwrap();
    let pool = Pool::builder()
        .name("hungry")
        .service(&service)
        .limit(100_000)
        .on_failure(|error| TOLD.lock().unwrap().push(error.clone()))
        .build()
        .unwrap();
    let child = pool.child();
    let held = pool.stats_with_children().held;

    // A limit holds for what is below, and says whose it is.
    let error = child.try_alloc_zeroed(95_000).unwrap_err();
    let PoolError::Limit { pool: Some(name), bytes: 95_000, limit: 100_000, held: told, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!((&**name, *told), ("hungry", held));
    assert!(
        error.to_string().starts_with("the pool \"hungry\" is limited to 100000 bytes and holds "),
        "{error}"
    );
    assert_eq!(*TOLD.lock().unwrap(), [error]);
    // Up to it all goes.
    let mut count = 0;
    while child.try_alloc([0_u64; 8]).is_ok() {
        count += 1;
    }
    assert!((80_000..100_000).contains(&(count * 64)), "{count}");
    assert!(pool.stats_with_children().held <= 100_000);
    assert!(child.try_child().is_err() && pool.try_lasting_child().is_err());
    assert!(child.try_alloc(Noisy(&log, "dropped")).is_err());
    assert_eq!(log.take(), ["dropped"]);
    assert!(child.try_alloc_with(|| -> Noisy<'_> { unreachable!("there is no memory") }).is_err());
    assert!(child.try_cleanup(|| unreachable!("it is not registered")).is_err());
    assert!(PoolVec::<u8, _>::new_in(&*child).try_reserve(90_000).is_err());
    assert!(child.try_alloc_fmt(format_args!("{:1000}", count)).is_err());
    drop(child);
    assert_eq!(pool.stats_with_children().used, 0);

    // The allocator's refusal is another one, and functions without `try_` panic.
    let other = Pool::builder().service(&service).build().unwrap();
    let error = other.try_alloc_bytes(150_000).unwrap_err();
    assert!(matches!(error, PoolError::NoMemory { pool: None, bytes: 150_000, .. }), "{error:?}");
    let panic = catch_unwind(AssertUnwindSafe(|| other.alloc_bytes(150_000).len())).unwrap_err();
    assert_eq!(*panic.downcast::<String>().unwrap(), error.to_string());
    for error in [
        other.try_alloc_slice_fill_with(usize::MAX, |_| 0_u64).unwrap_err(),
        other.try_alloc_slice_fill_copy(usize::MAX, 0_u64).unwrap_err(),
        other.try_alloc_slice_fill_clone(usize::MAX, &0_u64).unwrap_err(),
        other.try_alloc_slice_fill_default::<u64>(usize::MAX).unwrap_err(),
    ] {
        assert!(matches!(error, PoolError::TooLarge { count: usize::MAX, size: 8, .. }), "{error:?}");
    }
    assert!(matches!(other.try_alloc_bytes(usize::MAX), Err(PoolError::TooLarge { .. })));
    let error = other.try_alloc_aligned(8, 24).unwrap_err();
    assert!(matches!(error, PoolError::Alignment { align: 24, .. }), "{error:?}");
    let low = Pool::builder().limit(100).build().unwrap_err();
    assert!(matches!(low, PoolError::Limit { limit: 100, held: 0, .. }), "{low}");
    drop((pool, other));
    assert_eq!(service.usage().bytes(), 0);
}

#[test]
fn close_to_the_limit() {
    // What becomes smaller stays where it is, if it cannot be put elsewhere.
    let pool = Pool::builder().limit(8192).block_size(1024).max_small(2000).build().unwrap();
    let mut list = PoolVec::<u8, _>::with_capacity_in(5000, &pool);
    list.extend([7; 1900]);
    while pool.try_alloc([0_u64; 8]).is_ok() {}
    list.shrink_to_fit();
    assert_eq!(list[..], [7; 1900]);
    drop(list);
    drop(pool);

    // What grows is held to the limit, and takes no more than it needs where that does it.
    let pool = Pool::builder().limit(100_000).build().unwrap();
    let mut list = PoolVec::<u8, _>::with_capacity_in(60_000, &pool);
    assert!(list.try_reserve_exact(99_000).is_err());
    drop(list);
    let [long, short] = [30_000, 5_000].map(|len| "x".repeat(len));
    assert_eq!(pool.alloc_fmt(format_args!("{long}{long}{short}")).len(), 65_000);
    let used = pool.stats().used;
    assert!(pool.try_alloc_fmt(format_args!("{short}{long}{long}")).is_err());
    assert!(pool.stats().used <= used + 100, "unfinished text is given back");
}

/// What could not be moved when its alignment changed is what it was, whatever its owner was told.
#[test]
fn what_stayed_is_freed_as_it_was_allocated() {
    let service = service("stays");
    let pool = &Pool::builder().service(&service).block_size(1024).max_small(2000).build().unwrap();
    let layout = |size, align| Layout::from_size_align(size, align).unwrap();
    let holds = || assert_eq!(pool.stats().held as u64, service.usage().bytes());
    // SAFETY: each block is resized and freed with the layout that it has.
    unsafe {
        let large = pool.allocate(layout(60_000, 4096)).unwrap().cast();
        service.set_hard_limit(Some(1));
        let stays = pool.shrink(large, layout(60_000, 4096), layout(50_000, 8)).unwrap().cast();
        // Moved or not: what does not grow is never denied.
        holds();
        service.set_hard_limit(None);
        let grown = pool.grow(stays, layout(50_000, 8), layout(70_000, 8)).unwrap().cast();
        holds();
        pool.deallocate(grown, layout(70_000, 8));
        holds();
        let large = pool.allocate(layout(60_000, 8)).unwrap().cast();
        service.set_hard_limit(Some(1));
        let stays = pool.shrink(large, layout(60_000, 8), layout(50_000, 2)).unwrap().cast();
        pool.deallocate(stays, layout(50_000, 2));
        holds();

        // A small one that would be large with that alignment is among no large ones.
        service.set_hard_limit(None);
        let any = || pool.allocate(layout(1990, 8)).unwrap().cast::<u8>();
        let small = std::iter::repeat_with(any).find(|it| it.addr().get().is_multiple_of(64)).unwrap();
        service.set_hard_limit(Some(1));
        while pool.try_alloc_bytes(16).is_ok() {}
        assert!(pool.shrink(small, layout(1990, 8), layout(1980, 64)).is_err());
        pool.deallocate(small, layout(1990, 8));
    }
    holds();
}

#[test]
fn blocks_grow_up_to_a_size() {
    let service = service("growth");
    let pool = Pool::builder().service(&service).max_small(1 << 20).build().unwrap();
    pool.alloc_zeroed(1 << 20);
    let blocks = pool.stats().blocks;
    let before = pool.stats().held;
    while pool.stats().blocks < blocks + 10 {
        pool.alloc([0_u64; 8]);
    }
    assert!(pool.stats().held - before <= 10 * (128 << 10));
    // Extremes are taken for what is meant, or refused.
    for extreme in [0, usize::MAX] {
        let small = Pool::builder().block_size(1000).max_small(extreme).build().unwrap();
        assert_eq!(small.alloc_zeroed(5000), [0; 5000]);
        assert_eq!(Pool::builder().max_free(extreme).build().unwrap().alloc_zeroed(5000), [0; 5000]);
        assert_eq!(Pool::builder().block_size(extreme).build().is_ok(), extreme == 0);
        assert_eq!(Pool::builder().limit(extreme).build().is_ok(), extreme != 0);
    }
}

#[test]
fn blocks_that_failed_too_often_are_passed_over() {
    for failures in 1..=8 {
        let pool = Pool::builder().block_size(4096).max_small(4000).build().unwrap();
        let first = pool.alloc_zeroed(3000).as_ptr().addr();
        // There is a new block when something fits in none of the others.
        while pool.stats().blocks <= failures {
            pool.alloc_zeroed(3900);
        }
        // This fits into the first block, when the others are full.
        let is_tried = loop {
            let blocks = pool.stats().blocks;
            if (first..first + 3900).contains(&pool.alloc_zeroed(112).as_ptr().addr()) {
                break true;
            }
            if pool.stats().blocks > blocks {
                break false;
            }
        };
        assert_eq!(is_tried, failures < 5, "after {failures} failures");
    }
}

#[test]
fn large_allocations_are_freed_one_by_one() {
    let service = service("large");
    let pool = Pool::builder().service(&service).block_size(2048).build().unwrap();
    let (small, large) = (Layout::new::<[u8; 2016]>(), Layout::new::<[u8; 2017]>());
    let before = service.usage().blocks();
    let one = pool.alloc_layout(small);
    assert_eq!((pool.stats().large, service.usage().blocks()), (0, before + 1));
    let mut blocks = Vec::new();
    for align in [1, 16, 64, 4096] {
        let layout = large.align_to(align).unwrap();
        let block = pool.alloc_layout(layout);
        // SAFETY: it is as large.
        unsafe { block.write_bytes(align as u8, layout.size()) };
        blocks.push((block, layout));
    }
    assert_eq!((pool.stats().large, service.usage().blocks()), (4, before + 5));
    // From the middle, the ends, and in bulk.
    for i in [1, 2, 0] {
        let (block, layout) = blocks.remove(i);
        // SAFETY: nobody uses it; what is read is as large.
        unsafe {
            let text = std::slice::from_raw_parts(block.as_ptr(), layout.size());
            assert!(text.iter().all(|byte| *byte == layout.align() as u8));
            assert!(pool.free(block, layout));
        }
    }
    assert_eq!((pool.stats().large, service.usage().blocks()), (1, before + 2));
    // What was noted of those is used for others.
    let used = pool.stats().used;
    let again = pool.alloc_layout(large);
    assert_eq!(pool.stats().used, used + large.size());
    // SAFETY: nobody uses it.
    assert!(unsafe { pool.free(again, large) });
    // The last small one is handed out again.
    let last = pool.alloc_layout(Layout::new::<u64>());
    // SAFETY: nobody uses them.
    assert!(!unsafe { pool.free(one, small) || pool.free(last, Layout::new::<u64>()) });
    assert_eq!(pool.alloc_layout(Layout::new::<u32>()), last);
    let mut pool = pool;
    pool.reset();
    assert_eq!((pool.stats().large, pool.stats().used, service.usage().blocks()), (0, 0, before + 1));
}

#[test]
fn memory_is_the_service_s_that_the_pool_was_made_in() {
    let [owner, named, user] = ["pool owner", "pool named", "pool user"].map(service);
    let bytes = || [&owner, &named, &user].map(|service| service.usage().bytes() as usize);
    let mut pool = owner.run(Pool::new);
    assert_eq!(pool.service(), &owner);
    user.run(|| {
        pool.alloc_zeroed(100_000);
        (0..1000).for_each(|_| _ = pool.alloc([0_u64; 8]));
        let mut numbers = PoolVec::<u64, _>::with_capacity_in(10_000, &pool);
        numbers.extend(0..50_000);
        let child = pool.child();
        child.alloc_str("the parent's service");
        assert_eq!(bytes(), [pool.stats_with_children().held, 0, 0]);
        drop((child, numbers));
        let child = Pool::builder().service(&named).child_of(&pool).unwrap();
        child.alloc_zeroed(10_000);
        assert_eq!(bytes(), [pool.stats().held + pool.stats().spare, child.stats().held, 0]);
        assert_eq!(child.child().service(), &named);
    });
    assert_eq!(bytes()[1..], [0, 0]);
    // Whoever clears it, and wherever it is dropped.
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let _scope = user.enter();
            pool.clear();
            pool.alloc_zeroed(50_000);
        });
    });
    assert_eq!(bytes(), [pool.stats().held + pool.stats().spare, 0, 0]);
    let handle = owner.handle();
    drop(owner);
    assert!(Service::by_handle(handle).is_some(), "the pool keeps it");
    std::thread::spawn(move || drop(pool)).join().unwrap();
    assert!(Service::by_handle(handle).is_none());
}

//! What clearing runs, drops and keeps.

use crate::{Log, Noisy, service};
use dogtag::Service;
use dogtag_pool::{Pool, PoolError};
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn clearing_keeps_and_destroying_gives_back() {
    let service = service("kept");
    let mut pool = Pool::builder().service(&service).max_free(100_000).build().unwrap();
    let bytes = || service.usage().bytes() as usize;
    let first = bytes();
    let fill = |pool: &Pool<'_>, bytes: usize| (0..bytes / 64).for_each(|_| _ = pool.alloc([0_u8; 64]));

    // Below the threshold all is kept, and then used again.
    fill(&pool, 20_000);
    let full = bytes();
    pool.clear();
    assert_eq!(bytes(), full);
    assert_eq!((pool.stats().held, pool.stats().spare), (first, full - first));
    fill(&pool, 20_000);
    assert_eq!((bytes(), pool.stats().spare), (full, 0));

    // What goes beyond is freed, unless it is to be kept all the same.
    fill(&pool, 1 << 20);
    let full = bytes();
    pool.reset();
    assert_eq!((bytes(), pool.stats().held), (full, first));
    fill(&pool, 1 << 20);
    assert_eq!(bytes(), full);
    pool.clear();
    assert!((40_000..=100_000).contains(&(bytes() - first)), "{}", bytes());

    // Children take what was kept, and give it back for others.
    let kept = bytes();
    for _ in 0..100 {
        let child = pool.child();
        fill(&child, 20_000);
        assert_eq!(bytes(), kept);
    }
    pool.alloc_zeroed(50_000);
    drop(pool);
    assert_eq!((bytes(), service.usage().blocks()), (0, 0));
}

#[test]
fn cleanups_can_be_cancelled_and_run_early() {
    let log = Log::default();
    let pool = Pool::new();
    let first = pool.cleanup(|| log.note("first"));
    let second = pool.cleanup(|| log.note("second"));
    let value = Noisy(&log, "owned by the third");
    let third = pool.pre_cleanup(move || {
        let owned = value;
        owned.0.note("third");
    });
    let _ = pool.cleanup(|| log.note("fourth"));
    second.run();
    assert_eq!(log.take(), ["second"]);
    third.cancel();
    assert_eq!(log.take(), ["owned by the third"]);
    first.cancel();
    // Those that come and go take no more and more memory.
    let used = pool.stats().used;
    for i in 0..1000_u64 {
        let value = [i; 3];
        pool.cleanup(move || assert_eq!(value, [i; 3])).run();
        pool.cleanup(move || assert_eq!(value, [i; 4][..3])).cancel();
    }
    assert_eq!(pool.stats().used, used);
    drop(pool);
    assert_eq!(log.take(), ["fourth"]);
}

#[test]
fn panics_lose_nothing() {
    let log = Log::default();
    let service = service("panics");
    let mut pool = Pool::builder().service(&service).build().unwrap();
    for _ in 0..2 {
        let child = pool.lasting_child();
        let _ = child.cleanup(|| log.note("child"));
        let _ = child.cleanup(|| panic!("of the child"));
        let _ = pool.cleanup(|| log.note("parent"));
        let _ = pool.cleanup(|| panic!("of the parent"));
        let _ = pool.pre_cleanup(|| log.note("before"));
        pool.alloc_zeroed(100_000);
        let payload = catch_unwind(AssertUnwindSafe(|| pool.clear())).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&"of the child"), "the first one goes on");
        assert_eq!(log.take(), ["before", "child", "parent"]);
        let stats = pool.stats_with_children();
        assert_eq!((stats.pools, stats.used, stats.large), (1, 0, 0));
    }
    // While it unwinds already, a panic of a cleanup is not one too many.
    let payload = catch_unwind(AssertUnwindSafe(|| {
        let pool = pool;
        let _ = pool.cleanup(|| panic!("while it unwinds"));
        let _ = pool.cleanup(|| log.note("while it unwinds"));
        panic!("the cause");
    }));
    assert_eq!(payload.unwrap_err().downcast_ref(), Some(&"the cause"));
    assert_eq!(log.take(), ["while it unwinds"]);
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0));
}

#[test]
fn panics_of_what_panics_leave_behind_lose_nothing_either() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("of a payload");
        }
    }

    let log = Log::default();
    let service = service("bombs");
    let mut pool = Pool::builder().service(&service).build().unwrap();
    for _ in 0..2 {
        let _ = pool.cleanup(|| log.note("the last"));
        let _ = pool.cleanup(|| std::panic::panic_any(Bomb));
        let _ = pool.cleanup(|| panic!("the first"));
        pool.set_data(String::from("gone"));
        let bomb = Bomb;
        let handler = move |_: &PoolError| _ = &bomb;
        let below = Pool::builder().on_failure(handler).lasting_child_of(&pool).unwrap();
        let _ = below.cleanup(|| log.note("below"));
        let payload = catch_unwind(AssertUnwindSafe(|| pool.clear())).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&"of a payload"), "the child's handler is the first");
        assert_eq!(log.take(), ["below", "the last"]);
        assert!(pool.data::<String>().is_none());
        assert_eq!((pool.stats().used, pool.stats_with_children().pools), (0, 1));
    }
    drop(pool);
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0));
}

#[test]
fn what_reset_keeps_is_not_kept_for_good() {
    let service = service("reset");
    let mut pool = Pool::builder().service(&service).max_free(10_000).build().unwrap();
    let fill = |pool: &Pool<'_>| (0..10_000).for_each(|_| _ = pool.alloc([0_u64; 8]));
    fill(&pool);
    pool.reset();
    assert!(pool.stats().spare > 640_000);
    pool.clear();
    assert!(pool.stats().spare <= 10_000);
    let mut child = pool.child();
    fill(&child);
    child.reset();
    assert!(pool.stats().spare > 640_000);
    drop(child);
    assert!(service.usage().bytes() <= 20_000);
}

/// Blocks that suit stand behind many that do not, in each round.
#[test]
fn a_loop_does_not_keep_more_each_time() {
    let service = Service::register("a loop").unwrap();
    let mut pool = Pool::builder().service(&service).build().unwrap();
    let mut before = 0;
    for round in 0..200 {
        let small = || Pool::builder().block_size(1024).child_of(&pool).unwrap();
        drop((0..20).map(|_| small()).collect::<Vec<_>>());
        for _ in 0..2 {
            pool.alloc_bytes(4000);
        }
        pool.reset();
        if round == 10 {
            before = service.usage().bytes();
        }
    }
    assert!(service.usage().bytes() <= before, "{} bytes, and {before} before", service.usage().bytes());
}

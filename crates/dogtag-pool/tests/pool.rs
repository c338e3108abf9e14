//! What pools do, one capability after the other, as the tables of the module have them.

use allocator_api2::alloc::Allocator;
use allocator_api2::vec::Vec as PoolVec;
use dogtag::{Dogtag, Service};
use dogtag_pool::{Pool, PoolError};
use std::alloc::Layout;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

fn service(name: &str) -> Service {
    Service::register(name).unwrap()
}

/// What happens, in order.
#[derive(Default)]
struct Log(Mutex<Vec<&'static str>>);

impl Log {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Says that it is dropped.
struct Noisy<'a>(&'a Log, &'static str);

impl Drop for Noisy<'_> {
    fn drop(&mut self) {
        self.0.note(self.1);
    }
}

#[test]
fn pools_end_in_order() {
    let log = Log::default();
    let mut pool = Pool::new();
    for _ in 0..3 {
        let _ = pool.cleanup(|| log.note("first of the parent"));
        pool.alloc(Noisy(&log, "value of the parent"));
        let _ = pool.pre_cleanup(|| log.note("first before the children"));
        let _ = pool.pre_cleanup(|| log.note("second before the children"));
        let elder = pool.lasting_child();
        let _ = elder.cleanup(|| log.note("elder"));
        let _ = elder.pre_cleanup(|| log.note("before the elder"));
        let grandchild = elder.lasting_child();
        let _ = grandchild.cleanup(|| log.note("grandchild"));
        let younger = pool.lasting_child();
        let _ = younger.cleanup(|| log.note("younger"));
        let _ = pool.cleanup(|| log.note("last of the parent"));
        assert_eq!(log.take(), [""; 0]);
        pool.clear();
        let expected = [
            "second before the children",
            "first before the children",
            "younger",
            "before the elder",
            "grandchild",
            "elder",
            "last of the parent",
            "value of the parent",
            "first of the parent",
        ];
        assert_eq!(log.take(), expected);
        assert_eq!(pool.stats_with_children().pools, 1);
    }
    let _ = pool.cleanup(|| log.note("at the end"));
    let _ = pool.lasting_child().cleanup(|| log.note("child at the end"));
    pool.destroy();
    assert_eq!(log.take(), ["child at the end", "at the end"]);
}

#[test]
fn a_child_ends_when_it_is_dropped() {
    let log = Log::default();
    let parent = Pool::new();
    // It may refer to what its parent has.
    let name = parent.alloc_str("parent");
    {
        let mut child = parent.child();
        let below = child.lasting_child();
        let _ = below.cleanup(|| log.note("below"));
        let _ = child.cleanup(|| assert_eq!(name, "parent"));
        child.alloc_plain(&parent).alloc(Noisy(&log, "made through the child"));
        assert_eq!(parent.stats_with_children().pools, 3);
        child.clear();
        assert_eq!(parent.stats_with_children().pools, 2);
        assert_eq!(log.take(), ["below"]);
        let _ = child.cleanup(|| log.note("child"));
        let grandchild = child.child();
        let _ = grandchild.cleanup(|| log.note("grandchild"));
    }
    assert_eq!(log.take(), ["grandchild", "child"]);
    drop(parent);
    assert_eq!(log.take(), ["made through the child"]);
}

#[test]
fn deep_trees_end_too() {
    let log = Log::default();
    let work = || {
        let pool = Pool::builder().block_size(1024).build().unwrap();
        let mut deepest = pool.lasting_child();
        for _ in 0..3_000 {
            deepest = deepest.lasting_child();
        }
        assert!(pool.is_ancestor(deepest));
        assert_eq!(pool.stats_with_children().pools, 3_002);
        let _ = deepest.cleanup(|| log.note("the deepest"));
        let _ = pool.cleanup(|| log.note("the first"));
    };
    // On a stack that has no room for 3,000 calls.
    std::thread::scope(|threads| {
        std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(threads, work).unwrap();
    });
    assert_eq!(log.take(), ["the deepest", "the first"]);
}

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
fn a_forgotten_child_is_freed_and_nothing_run() {
    let log = Log::default();
    let service = service("forgotten");
    let mut pool = Pool::builder().service(&service).build().unwrap();
    {
        let text = String::from("gone by then");
        let child = pool.child();
        let _ = child.cleanup(|| log.note(if text.is_empty() { "" } else { "child" }));
        let _ = child.lasting_child().cleanup(|| log.note("below it"));
        child.alloc_zeroed(100_000);
        std::mem::forget(child);
    }
    let _ = pool.lasting_child().cleanup(|| log.note("another child"));
    pool.clear();
    assert_eq!(log.take(), ["another child"]);
    assert_eq!(pool.stats_with_children().pools, 1);
    drop(pool);
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0));
}

#[test]
fn names_data_and_kinship() {
    struct Peer(String);

    let mut pool = Pool::builder().name("connection").build().unwrap();
    let child = Pool::builder().name(format!("request {}", 7)).child_of(&pool).unwrap();
    assert_eq!(
        (pool.name(), child.name(), Pool::new().name()),
        (Some("connection"), Some("request 7"), None)
    );
    assert!(pool.is_ancestor(&child) && !child.is_ancestor(&pool) && !pool.is_ancestor(&Pool::new()));
    assert!(format!("{child:?}").contains("request 7"));
    drop(child);

    assert!(pool.data::<Peer>().is_none());
    let first = pool.set_data(Peer("first".to_owned()));
    pool.set_data(42_u64);
    let second = pool.set_data(Peer("second".to_owned()));
    assert_eq!((&*first.0, &*second.0), ("first", "second"));
    assert_eq!(pool.data::<Peer>().map(|peer| &*peer.0), Some("second"));
    assert_eq!(pool.data::<u64>(), Some(&42));
    pool.clear();
    assert!(pool.data::<Peer>().is_none() && pool.data::<u64>().is_none());
}

#[test]
fn bytes_are_told_own_and_with_children() {
    let pool = Pool::new();
    pool.alloc([0_u64; 10]);
    let child = pool.child();
    child.alloc([0_u64; 20]);
    let below = child.lasting_child();
    below.alloc_zeroed(10_000);
    // A large one is noted.
    let note = 40;
    assert_eq!((pool.stats().used, child.stats().used, below.stats().used), (80, 160, 10_000 + note));
    let all = pool.stats_with_children();
    assert_eq!((all.used, all.pools, all.blocks, all.large), (10_240 + note, 3, 3, 1));
    assert_eq!(child.stats_with_children().used, 10_160 + note);
    let held = [pool.stats(), child.stats(), below.stats()].map(|stats| stats.held);
    assert_eq!(held.iter().sum::<usize>(), all.held);
}

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
    let expected = PoolError::Limit { pool: Some("hungry".into()), bytes: 95_000, limit: 100_000, held };
    assert_eq!(error, expected);
    assert!(
        error.to_string().starts_with("the pool \"hungry\" is limited to 100000 bytes and holds "),
        "{error}"
    );
    assert_eq!(*TOLD.lock().unwrap(), [expected]);
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
    assert!(child.try_alloc_with(|| -> Noisy<'_> { unreachable!("there is no room") }).is_err());
    assert!(child.try_cleanup(|| unreachable!("it is not registered")).is_err());
    assert!(PoolVec::<u8, _>::new_in(&*child).try_reserve(90_000).is_err());
    assert!(child.try_alloc_fmt(format_args!("{:1000}", count)).is_err());
    drop(child);
    assert_eq!(pool.stats_with_children().used, 0);

    // The allocator's refusal is another one, and twins without `try_` panic.
    let other = Pool::builder().service(&service).build().unwrap();
    let error = other.try_alloc_bytes(150_000).unwrap_err();
    assert_eq!(error, PoolError::NoMemory { pool: None, bytes: 150_000 });
    let panic = catch_unwind(AssertUnwindSafe(|| other.alloc_bytes(150_000).len())).unwrap_err();
    assert_eq!(*panic.downcast::<String>().unwrap(), error.to_string());
    assert_eq!(
        other.try_alloc_slice_with(usize::MAX, |_| 0_u64).unwrap_err(),
        PoolError::TooLarge { count: usize::MAX, size: 8 }
    );
    assert!(matches!(other.try_alloc_bytes(usize::MAX), Err(PoolError::TooLarge { .. })));
    assert_eq!(other.try_alloc_aligned(8, 24).unwrap_err(), PoolError::Alignment { align: 24 });
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
fn aligned_zeroed_and_copied() {
    let mut pool = Pool::builder().max_small(2000).build().unwrap();
    for round in 0..3 {
        for shift in 0..15 {
            let align = 1 << shift;
            for len in [0, 1, 7, 100, 3000] {
                let bytes = pool.alloc_aligned(len, align);
                assert!(bytes.as_ptr().addr().is_multiple_of(align) && bytes.len() == len);
                bytes.fill(std::mem::MaybeUninit::new(0xEE));
                assert!(pool.alloc_bytes(len).as_ptr().addr().is_multiple_of(16));
                assert_eq!(pool.alloc_zeroed(len), vec![0; len]);
                // So that in the next round it is others that are zeroed.
                pool.alloc_bytes(100 * round).fill(std::mem::MaybeUninit::new(0xEE));
            }
        }
        let one = pool.alloc_unaligned(3).as_ptr();
        assert_eq!(pool.alloc_unaligned(5).as_ptr(), one.wrapping_add(3), "round {round}");

        let copy = pool.alloc_slice(&[1_u16, 2, 3]);
        copy[0] = 9;
        assert_eq!((&*copy, &*pool.alloc_str("text")), (&[9, 2, 3][..], "text"));
        let cloned = pool.alloc_slice_clone(&["a".to_owned(), "b".to_owned()]);
        cloned[1].push('c');
        assert_eq!(cloned, ["a", "bc"]);
        pool.clear();
    }
}

#[test]
fn formats_into_the_pool() {
    /// Allocates while it is formatted.
    struct Busy<'a>(&'a Pool<'static>);

    impl fmt::Display for Busy<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let text = self.0.alloc_fmt(format_args!("{:>100}", 7));
            f.write_str(text)?;
            self.0.alloc_zeroed(100);
            f.write_str("end")
        }
    }

    let pool = Pool::new();
    assert_eq!(pool.alloc_fmt(format_args!("plain")), "plain");
    assert_eq!(pool.alloc_fmt(format_args!("{}", "")), "");
    let before = pool.stats().used;
    assert_eq!(pool.alloc_fmt(format_args!("{}-{}", 12, "ab")), "12-ab");
    assert_eq!(pool.stats().used, before + 5, "what was reserved in vain is handed out again");
    for len in [50, 100, 5000, 60_000] {
        let text = pool.alloc_fmt(format_args!("{:len$}|{:len$}", 1, 2));
        assert_eq!((text.len(), text.trim()), (2 * len + 1, &*format!("1|{:len$}", 2)));
    }
    let busy = pool.alloc_fmt(format_args!("<{}>", Busy(&pool)));
    assert_eq!(*busy, *format!("<{:>100}end>", 7));
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
        // The first block has room for this, when the others have no more.
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
fn values_are_dropped_with_the_pool() {
    let log = Log::default();
    let mut pool = Pool::new();
    pool.alloc(Noisy(&log, "one"));
    pool.alloc_with(|| Noisy(&log, "two"));
    pool.alloc_slice_with(2, |i| Noisy(&log, ["three", "four"][i]));
    let large = pool.alloc((Noisy(&log, "large"), [7_u8; 10_000]));
    assert_eq!(large.1[9_999], 7);
    assert_eq!(log.take(), [""; 0]);
    pool.clear();
    assert_eq!(log.take(), ["large", "three", "four", "two", "one"]);

    // Nothing is dropped that was not made, and what was made is.
    let make = |i| match i {
        2 => panic!("the third"),
        _ => Noisy(&log, ["zero", "first"][i]),
    };
    assert!(catch_unwind(AssertUnwindSafe(|| pool.alloc_slice_with(5, make).len())).is_err());
    assert_eq!(log.take(), ["zero", "first"]);
    assert!(catch_unwind(AssertUnwindSafe(|| _ = pool.alloc_with(|| -> Noisy<'_> { panic!() }))).is_err());
    drop(pool);
    assert_eq!(log.take(), [""; 0]);

    // Without a size there is still a drop.
    static DROPS: AtomicU32 = AtomicU32::new(0);
    struct Nothing;
    impl Drop for Nothing {
        fn drop(&mut self) {
            DROPS.fetch_add(1, Relaxed);
        }
    }
    #[repr(align(8192))]
    struct Aligned {
        _nothing: Nothing,
    }
    let pool = Pool::new();
    pool.alloc(Nothing);
    pool.alloc_slice_with(3, |_| Nothing);
    let aligned = std::ptr::from_ref(pool.alloc(Aligned { _nothing: Nothing }));
    assert!(aligned.addr().is_multiple_of(8192));
    drop(pool);
    assert_eq!(DROPS.load(Relaxed), 5);
}

#[test]
fn collections_live_in_a_pool() {
    let mut pool = Pool::new();
    for _ in 0..3 {
        let mut list = PoolVec::new_in(&pool);
        let mut map =
            hashbrown::HashMap::<_, _, std::hash::RandomState, _>::with_hasher_in(Default::default(), &pool);
        for i in 0..10_000_u32 {
            list.push(i);
            map.insert(i, allocator_api2::boxed::Box::new_in(u64::from(i) * 3, &pool));
        }
        assert!(list.iter().copied().eq(0..10_000) && (0..10_000).all(|i| *map[&i] == u64::from(i) * 3));
        list.truncate(3);
        list.shrink_to_fit();
        list.extend([3; 5]);
        assert_eq!(list[..], [0, 1, 2, 3, 3, 3, 3, 3]);
        let zeroed = allocator_api2::vec![in &pool; 0_u8; 10];
        assert_eq!(zeroed[..], [0; 10]);
        drop((list, zeroed));
        map.retain(|i, _| i % 1000 == 0);
        map.shrink_to_fit();
        assert_eq!(map.len(), 10);
        // Large ones go as they are freed or grow.
        assert_eq!(pool.stats().large, usize::from(map.allocation_size() > 4095));
        drop(map);
        assert_eq!(pool.stats().large, 0);
        pool.clear();
    }
    // What is new is zeroed, where there was something else before.
    pool.alloc_bytes(4000).fill(std::mem::MaybeUninit::new(0xEE));
    pool.clear();
    let (old, new) = (Layout::new::<[u8; 10]>(), Layout::new::<[u8; 3000]>());
    let memory = (&pool).allocate(old).unwrap().cast::<u8>();
    // SAFETY: it is the pool's and of that layout; what is read is as large.
    unsafe {
        memory.write_bytes(1, 10);
        let memory = (&pool).grow_zeroed(memory, old, new).unwrap().cast::<u8>();
        let bytes = std::slice::from_raw_parts(memory.as_ptr(), 3000);
        assert_eq!((&bytes[..10], &bytes[10..]), (&[1; 10][..], &[0; 2990][..]));
    }
    pool.clear();
    // The last one grows where it is.
    let mut text = PoolVec::new_in(&pool);
    text.push(1_u8);
    let place = text.as_ptr();
    text.extend([2; 1000]);
    assert_eq!((place, pool.stats().used), (text.as_ptr(), text.capacity()));
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

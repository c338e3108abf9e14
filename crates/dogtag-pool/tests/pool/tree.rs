//! The tree: who ends before whom, what is lost when a child is forgotten, names and figures.

use crate::{Log, Noisy, service};
use dogtag_pool::Pool;

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
    // On a stack that is too small for 3,000 calls.
    std::thread::scope(|threads| {
        std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(threads, work).unwrap();
    });
    assert_eq!(log.take(), ["the deepest", "the first"]);
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

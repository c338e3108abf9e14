//! What can be in a pool: values, slices, text, bytes, collections.

use crate::{Log, Noisy};
use allocator_api2::alloc::Allocator;
use allocator_api2::vec::Vec as PoolVec;
use dogtag_pool::Pool;
use std::alloc::Layout;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

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

        let copy = pool.alloc_slice_copy(&[1_u16, 2, 3]);
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
fn values_are_dropped_with_the_pool() {
    let log = Log::default();
    let mut pool = Pool::new();
    pool.alloc(Noisy(&log, "one"));
    pool.alloc_with(|| Noisy(&log, "two"));
    pool.alloc_slice_fill_with(2, |i| Noisy(&log, ["three", "four"][i]));
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
    assert!(catch_unwind(AssertUnwindSafe(|| pool.alloc_slice_fill_with(5, make).len())).is_err());
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
    pool.alloc_slice_fill_with(3, |_| Nothing);
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
fn slices_are_filled_and_dropped_with_the_pool() {
    let log = Log::default();
    let mut pool = Pool::new();
    let name = String::from("borrowed");
    for _ in 0..2 {
        // What is `Copy` may refer to anything, the pool included.
        let text = pool.alloc_str("text");
        assert_eq!(pool.alloc_slice_fill_copy(3, &*text), ["text"; 3]);
        assert_eq!(pool.alloc_slice_fill_copy(2, name.as_str()), ["borrowed"; 2]);
        assert_eq!(pool.alloc_slice_fill_copy(1000, 7_u64), [7; 1000]);
        assert_eq!(pool.alloc_slice_fill_clone(3, &"a".to_owned()), ["a"; 3]);
        assert_eq!(pool.alloc_slice_fill_default::<String>(2), ["", ""]);
        assert!(pool.alloc_slice_fill_copy(0, 7_u64).is_empty());
        assert!(pool.alloc_slice_fill_default::<String>(0).is_empty());
        pool.clear();
    }

    /// Says that a clone is dropped.
    struct Cloned<'a>(&'a Log);
    impl Clone for Cloned<'_> {
        fn clone(&self) -> Self {
            self.0.note("cloned");
            Self(self.0)
        }
    }
    impl Drop for Cloned<'_> {
        fn drop(&mut self) {
            self.0.note("dropped");
        }
    }
    let original = Cloned(&log);
    let mut pool = Pool::new();
    pool.alloc_slice_fill_clone(2, &original);
    assert_eq!(log.take(), ["cloned", "cloned"]);
    pool.clear();
    assert_eq!(log.take(), ["dropped", "dropped"]);
}

//! dogtag used directly, with several backends at once: one ledger.

use crate::common::{CHECKED, Counting, around};
use dogtag::{DefaultBackend, Dogtag, Service};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::Ordering::SeqCst;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

#[test]
fn instances_share_one_ledger() {
    static COUNTING: Dogtag<Counting> = Dogtag::with_backend(Counting::new());
    static SYSTEM: Dogtag<System> = Dogtag::with_backend(System);
    static DEFAULT: Dogtag = Dogtag::new();

    let service = Service::register("several backends").unwrap();
    let _scope = service.enter();
    // SAFETY: each block is freed by the instance that it came from, with its layout.
    unsafe {
        let blocks = [COUNTING.alloc(layout(100)), SYSTEM.alloc(layout(200)), DEFAULT.alloc(layout(300))];
        assert!(blocks.iter().all(|block| !block.is_null()));
        assert_eq!((service.usage().bytes(), service.usage().blocks()), (600, 3));
        assert_eq!(COUNTING.backend().live_bytes(), 100 + around(layout(100)));
        COUNTING.dealloc(blocks[0], layout(100));
        SYSTEM.dealloc(blocks[1], layout(200));
        DEFAULT.dealloc(blocks[2], layout(300));
    }
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0));
    assert_eq!(COUNTING.backend().live_blocks(), u64::from(CHECKED), "kept back if checked");
}

/// Whatever features other crates turn on, which this is compiled with in turn.
#[test]
fn dogtag_is_one_type_with_all_features() {
    use std::any::TypeId;
    use std::panic::{RefUnwindSafe, UnwindSafe};

    fn is_plain<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + std::fmt::Debug + 'static>() {}

    assert_eq!(TypeId::of::<Dogtag>(), TypeId::of::<Dogtag<DefaultBackend>>());
    // Impls for both do not collide, whichever it is inside.
    assert_ne!(TypeId::of::<DefaultBackend>(), TypeId::of::<System>());
    #[cfg(feature = "jemalloc")]
    assert_ne!(TypeId::of::<DefaultBackend>(), TypeId::of::<dogtag::Jemalloc>());
    is_plain::<Dogtag>();
    is_plain::<DefaultBackend>();
    // The way around cookies of blocks that are large is for those.
    assert_eq!(size_of::<DefaultBackend>(), 0);
}

#[test]
fn the_backends_own_ways_are_used() {
    static ALLOC: Dogtag<Counting> = Dogtag::with_backend(Counting::new());

    // SAFETY: the block is freed with the layout that it has by then.
    unsafe {
        let block = ALLOC.alloc_zeroed(layout(1000));
        let block = ALLOC.realloc(block, layout(1000), 2000);
        ALLOC.dealloc(block, layout(2000));
    }
    assert_eq!(ALLOC.backend().zeroed_calls.load(SeqCst), 1);
    // Moved in any case if checked, so that old pointers are found out.
    assert_eq!(ALLOC.backend().realloc_calls.load(SeqCst), u64::from(!CHECKED));
    assert_eq!(ALLOC.backend().allocated_blocks.load(SeqCst), 2);
}

#[test]
fn null_means_null() {
    static ALLOC: Dogtag<Counting> = Dogtag::with_backend(Counting::new());

    let service = Service::register("refused").unwrap();
    let _scope = service.enter();
    // On a fresh thread the first allocation goes another way than the second.
    for warm in [false, true] {
        // SAFETY: the block that was allocated is freed with its layout.
        unsafe {
            if warm {
                ALLOC.dealloc(ALLOC.alloc(layout(8)), layout(8));
            }
            ALLOC.backend().refuses.store(true, SeqCst);
            assert!(ALLOC.alloc(layout(100)).is_null());
            assert!(ALLOC.alloc_zeroed(layout(100)).is_null());
            ALLOC.backend().refuses.store(false, SeqCst);

            let block = ALLOC.alloc(layout(100));
            block.write(9);
            let before = service.usage();
            ALLOC.backend().refuses.store(true, SeqCst);
            assert!(ALLOC.realloc(block, layout(100), 200).is_null());
            assert!(ALLOC.realloc(block, layout(100), isize::MAX as usize).is_null());
            ALLOC.backend().refuses.store(false, SeqCst);
            assert_eq!(service.usage(), before);
            assert_eq!(block.read(), 9, "a failed realloc leaves the block as it was");
            ALLOC.dealloc(block, layout(100));
        }
    }
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0));
    // What was freed before the backend refused was given back to it then.
    assert_eq!(ALLOC.backend().live_blocks(), u64::from(CHECKED));
}

#[test]
fn memory_that_is_wrapped_twice_is_counted_twice() {
    static ALLOC: Dogtag<Dogtag<Counting>> = Dogtag::with_backend(Dogtag::with_backend(Counting::new()));

    let service = Service::register("wrapped twice").unwrap();
    let _scope = service.enter();
    // SAFETY: the block is freed with its layout.
    unsafe {
        let block = ALLOC.alloc(layout(100));
        let bytes = 200 + around(layout(100));
        assert_eq!((service.usage().bytes(), service.usage().blocks()), (bytes, 2));
        ALLOC.dealloc(block, layout(100));
    }
    // The outer one keeps the block back if checked, and the inner one serves it.
    assert_eq!(service.usage().blocks(), u64::from(CHECKED));
}

/// The first block of an arena begins where the memory does that the arena has, and
/// another service may own that.
#[cfg(not(feature = "memory-check"))]
#[test]
fn an_arena_in_another_instances_block_has_owners_of_its_own() {
    use std::sync::atomic::AtomicUsize;

    struct Arena(AtomicUsize);

    // SAFETY: what is handed out is part of the arena's block, and never handed out again.
    unsafe impl GlobalAlloc for Arena {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            std::ptr::with_exposed_provenance_mut(self.0.fetch_add(layout.size().next_multiple_of(8), SeqCst))
        }

        unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
    }

    let (owner, tenant) = (Service::register("owner").unwrap(), Service::register("tenant").unwrap());
    let outside = Dogtag::new();
    // SAFETY: each block is freed by the instance that it came from, with its layout.
    unsafe {
        let memory = owner.run(|| outside.alloc(layout(64 << 10)));
        let arena = Dogtag::with_backend(Arena(AtomicUsize::new(memory.expose_provenance())));
        let block = tenant.run(|| arena.alloc(layout(5000)));
        assert_eq!(block, memory);
        assert_eq!((owner.usage().bytes(), tenant.usage().bytes()), (64 << 10, 5000));
        arena.dealloc(block, layout(5000));
        outside.dealloc(memory, layout(64 << 10));
    }
    assert_eq!((owner.usage().bytes(), tenant.usage().bytes()), (0, 0));
}

#[test]
fn an_allocator_that_ends_gives_everything_back() {
    use std::sync::Arc;

    /// A backend that outlives the allocator.
    struct Shared(Arc<Counting>);

    // SAFETY: the other backend does the work.
    unsafe impl GlobalAlloc for Shared {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the layout is not empty: `GlobalAlloc::alloc` requires it.
            unsafe { self.0.alloc(layout) }
        }
        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: the block is live and of that layout: `GlobalAlloc::dealloc` requires it.
            unsafe { self.0.dealloc(block, layout) };
        }
    }

    let backend = Arc::new(Counting::new());
    let alloc = Dogtag::with_backend(Shared(backend.clone()));
    let use_it = |blocks: usize| {
        // SAFETY: the blocks are freed with their layouts.
        unsafe {
            let blocks: Vec<_> = (1..=blocks).map(|size| (alloc.alloc(layout(size)), layout(size))).collect();
            blocks.into_iter().for_each(|(block, layout)| alloc.dealloc(block, layout));
        }
    };
    use_it(1000);
    // Another thread, and one that goes on.
    std::thread::scope(|threads| drop(threads.spawn(|| use_it(10)).join()));
    use_it(5);
    assert_eq!(backend.live_blocks(), if CHECKED { 1015 } else { 0 });
    drop(alloc);
    assert_eq!(backend.live_blocks(), 0);
}

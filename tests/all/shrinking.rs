//! A resize without growth is never denied: the block goes to the service that the thread is in, or
//! stays its former owner's where that service is at its limit.

use crate::common::{CHECKED, Counting, before, tail};
use crate::watch;
use dogtag::{Dogtag, Service, Usage};
use std::alloc::{GlobalAlloc, Layout, alloc, dealloc, realloc};
use std::collections::VecDeque;
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;

const MIB: usize = 1 << 20;

/// From one size to another: below and above 4 KiB, where the owner stands elsewhere, and across.
const SIZES: [(usize, usize); 14] = [
    (1, 1),
    (100, 50),
    (100, 99),
    (100, 100),
    (3000, 1),
    (4095, 4094),
    (4096, 4095),
    (4096, 4096),
    (4097, 4096),
    (8192, 4096),
    (8192, 100),
    (MIB, 200_000),
    (MIB, 7),
    (9 * MIB, 9 * MIB),
];

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn register(name: &str) -> Service {
    Service::register(name).unwrap()
}

/// A block whose every byte says where it is.
struct Block(*mut u8, usize);

impl Block {
    fn new(service: &Service, size: usize) -> Self {
        // SAFETY: no size is 0, and the block is as large.
        unsafe {
            let block = service.run(|| alloc(layout(size)));
            assert!(!block.is_null());
            (0..size).for_each(|at| block.add(at).write(at as u8 ^ 0x5A));
            Self(block, size)
        }
    }

    /// Gives it another size, in that service. `false` if it was denied.
    fn resize(&mut self, service: &Service, size: usize) -> bool {
        // SAFETY: the block is live, and of that size.
        let moved = service.run(|| unsafe { realloc(self.0, layout(self.1), size) });
        if !moved.is_null() {
            *self = Self(moved, size.min(self.1));
            self.check();
            self.1 = size;
        }
        !moved.is_null()
    }

    fn check(&self) {
        // SAFETY: so much of it was written to.
        let bytes = unsafe { std::slice::from_raw_parts(self.0, self.1) };
        assert!((0..).zip(bytes).all(|(at, byte): (usize, _)| *byte == at as u8 ^ 0x5A));
    }

    fn free(self) {
        // SAFETY: the block is live and has that layout, and `self` is used no more.
        unsafe { dealloc(self.0, layout(self.1)) };
    }
}

#[track_caller]
fn assert_holds(service: &Service, bytes: usize, denied: u64) {
    let Usage { denied: found, .. } = service.usage();
    assert_eq!((service.usage().bytes(), found), (bytes as u64, denied), "{}", service.name());
}

#[test]
fn realloc_that_does_not_grow_stays_its_owners_where_there_is_no_space() {
    alone!();
    for (old, new) in SIZES {
        let owner = register(&format!("owner of {old}, then {new}"));
        let full = Service::builder(format!("without space for {new} of {old}"))
            .hard_limit(1000)
            .register()
            .unwrap();
        let filling = Block::new(&full, 1000);
        let mut block = Block::new(&owner, old);
        assert!(block.resize(&full, new), "{old} to {new}");
        assert_holds(&full, 1000, 0);
        assert_holds(&owner, new, 0);
        // What grows is denied as ever.
        assert!(!block.resize(&full, 9 * MIB + 1));
        assert_holds(&full, 1000, 1);
        assert!(block.resize(&owner, new + 100));
        block.free();
        assert_holds(&owner, 0, 0);
        let usage = owner.usage();
        assert_eq!((usage.blocks(), usage.allocated_blocks), (0, 3));
        assert!(usage.peak_bytes <= old.max(new + 100) as u64, "{usage:?}");
        assert_eq!(full.usage().peak_bytes, 1000);
        // Where there is space, it goes there.
        full.set_hard_limit(None);
        let mut block = Block::new(&owner, old);
        assert!(block.resize(&full, new));
        assert_holds(&full, 1000 + new, 1);
        assert_holds(&owner, 0, 0);
        // Its own shrinks however far the limit has been lowered.
        full.set_hard_limit(Some(0));
        assert!(block.resize(&full, new.div_ceil(2)));
        assert_holds(&full, 1000 + new.div_ceil(2), 1);
        block.free();
        filling.free();
    }
}

#[test]
fn realloc_that_shrinks_whosever_limit_it_is() {
    alone!();
    let tenant = Service::builder("tenant").hard_limit(10_000).register().unwrap();
    let child = |name, limit: Option<u64>| {
        let builder = Service::builder(name).parent(&tenant);
        limit.into_iter().fold(builder, |builder, limit| builder.hard_limit(limit)).register().unwrap()
    };
    let (one, other, strict) = (child("one", None), child("other", None), child("strict", Some(0)));
    let stranger = register("stranger");
    let filling = Block::new(&one, 9_990);
    for current in [&tenant, &one, &other, &strict] {
        let mut block = Block::new(&stranger, 5000);
        assert!(block.resize(current, 5000) && block.resize(current, 1000));
        assert_holds(&stranger, 1000, 0);
        assert_holds(current, if *current == one { 9_990 } else { 0 }, 0);
        // Until it fits.
        assert!(block.resize(current, 10));
        let stays = *current == strict;
        assert_holds(&stranger, if stays { 10 } else { 0 }, 0);
        assert_eq!(tenant.usage_with_children().bytes(), if stays { 9_990 } else { 10_000 });
        block.free();
    }
    // A relative's is no more for the family.
    let mut block = Block::new(&other, 10);
    assert!(block.resize(&one, 5));
    assert_holds(&other, 0, 0);
    assert_holds(&one, 9_995, 0);
    assert!(block.resize(&strict, 5), "the child has no space of its own");
    assert_holds(&one, 9_995, 0);
    block.free();
    filling.free();
    assert_eq!(tenant.usage_with_children().denied, 0);
}

#[test]
fn a_service_that_has_only_the_block_keeps_it() {
    alone!();
    let full = Service::builder("full since").hard_limit(0).register().unwrap();
    let owner = register("short-lived");
    let handle = owner.handle();
    let holds = || {
        let rows = dogtag::snapshot().rows;
        let row = rows.iter().find(|row| row.handle == handle)?;
        Some((row.usage.bytes(), row.usage.blocks()))
    };
    let mut block = Block::new(&owner, 5000);
    drop(owner);
    for size in [5000, 4000, 4000, 17] {
        assert!(block.resize(&full, size));
        assert_eq!(holds(), Some((size as u64, 1)));
    }
    assert_holds(&full, 0, 0);
    block.free();
    assert_eq!(holds(), None, "it has ended");
}

#[test]
fn a_limit_that_is_passed_by_is_not_crossed() {
    alone!();
    let owner = register("owner of much");
    let (tell, told) = std::sync::mpsc::channel();
    let tell = Mutex::new(tell);
    let careful = Service::builder("careful")
        .soft_limit(10)
        .hard_limit(100)
        .on_soft_limit(move |_| tell.lock().unwrap().send(()).unwrap())
        .register()
        .unwrap();
    let mut block = Block::new(&owner, 5000);
    assert!(block.resize(&careful, 4999));
    assert_holds(&careful, 0, 0);
    assert!(told.recv_timeout(std::time::Duration::from_millis(50)).is_err());
    assert!(block.resize(&careful, 100));
    assert_holds(&careful, 100, 0);
    watch::eventually(|| told.try_recv());
    block.free();
}

#[test]
fn the_standard_librarys_collections_shrink() {
    alone!();
    let owner = register("collector");
    let full = Service::builder("collected").hard_limit(0).register().unwrap();
    macro_rules! shrinks {
        ($new:expr, |$it:ident| $shrunk:expr) => {{
            let $it = owner.run(|| $new);
            let shrunk = full.run(|| $shrunk);
            assert_holds(&full, 0, 0);
            drop(shrunk);
            assert_holds(&owner, 0, 0);
        }};
    }
    fn roomy<T: Clone>(value: T, len: usize) -> Vec<T> {
        let mut roomy = Vec::with_capacity(10 * len);
        roomy.resize(len, value);
        roomy
    }
    let text = |len| String::from_utf8(roomy(b'x', len)).unwrap();
    for len in [1, 30, 500, 5000, 200_000] {
        shrinks!(roomy(7_u64, len), |numbers| {
            let mut numbers = numbers;
            numbers.shrink_to(len + 1);
            numbers.shrink_to_fit();
            numbers.into_boxed_slice()
        });
        shrinks!(VecDeque::from(roomy(7_u8, len)), |queue| {
            let mut queue = queue;
            queue.shrink_to_fit();
            queue
        });
        shrinks!(text(len), |text| text.into_boxed_str());
        shrinks!(text(len), |text| text.into_bytes().into_boxed_slice());
        shrinks!(PathBuf::from(text(len)), |path| path.into_boxed_path());
        shrinks!(
            CString::from_vec_with_nul(roomy(b'x', len).into_iter().chain([0]).collect()).unwrap(),
            |text| { text.into_boxed_c_str() }
        );
        // In place, which may leave less than a whole number of the smaller ones.
        shrinks!(roomy([1_u8; 7], len), |pieces| {
            pieces.into_iter().map(|[first, ..]| [first; 3]).collect::<Vec<_>>()
        });
    }
}

#[test]
fn threads_shrink_each_others_blocks_under_a_limit() {
    alone!();
    const ROUNDS: usize = if CHECKED { 3_000 } else { 20_000 };

    let family = Service::builder("contended").hard_limit(20_000).register().unwrap();
    let services: Vec<Service> = (0..4)
        .map(|i| {
            let builder = Service::builder(format!("contender {i}"));
            if i < 2 { builder.parent(&family) } else { builder }.register().unwrap()
        })
        .collect();
    std::thread::scope(|threads| {
        for thread in 0..3 {
            let services = &services;
            threads.spawn(move || {
                for round in 0..ROUNDS {
                    let at = |step| &services[(round * 7 + thread + step) % 4];
                    let size = 1 + (round * 7919 + thread * 104_729) % 9000;
                    // SAFETY: the block is live until it is freed.
                    let block = at(0).run(|| unsafe { alloc(layout(size)) });
                    if block.is_null() {
                        continue;
                    }
                    // SAFETY: it is as large.
                    (0..size).for_each(|at| unsafe { block.add(at).write(at as u8 ^ 0x5A) });
                    let mut block = Block(block, size);
                    for step in 1..4 {
                        let size = block.1 - block.1 / 5 * (step % 2);
                        assert!(block.resize(at(step), size));
                    }
                    block.free();
                }
            });
        }
    });
    let sum: Usage = services.iter().map(Service::usage).sum();
    assert_eq!((sum.bytes(), sum.blocks()), (0, 0));
    for service in &services {
        assert_eq!(service.usage().bytes(), 0, "{}", service.name());
    }
    assert_eq!(family.headroom(), Some(20_000));
    assert_eq!(services[2].usage().denied + services[3].usage().denied, 0);
}

#[test]
fn services_beyond_the_short_cookies_shrink_as_others() {
    alone!();
    let short = register("with a short cookie");
    let full_and_short = Service::builder("short and full").hard_limit(0).register().unwrap();
    let others: Vec<Service> = (0..66_000).map(|number| register(&format!("other {number}"))).collect();
    let long = register("with a long cookie");
    let full_and_long = Service::builder("long and full").hard_limit(0).register().unwrap();
    drop(others);
    for (old, new) in SIZES {
        for (owner, current) in [(&short, &full_and_long), (&long, &full_and_short), (&long, &full_and_long)]
        {
            let mut block = Block::new(owner, old);
            assert!(block.resize(current, new));
            assert_holds(owner, new, 0);
            assert_holds(current, 0, 0);
            block.free();
            assert_holds(owner, 0, 0);
        }
        let mut block = Block::new(&short, old);
        assert!(block.resize(&long, new));
        assert_holds(&long, new, 0);
        block.free();
    }
}

/// Where the backend has no memory, it is what it was, and can be had again; with memory-check,
/// which moves what it can, it shrinks where it is.
#[test]
fn a_backend_without_memory_denies_no_more_than_it_must() {
    alone!();
    let (owner, other) = (register("owner in need"), register("other in need"));
    let full = Service::builder("full in need").hard_limit(0).register().unwrap();
    for current in [&owner, &other, &full] {
        for (old, new) in SIZES {
            for align in [1, 16, 64, 4096] {
                let backend = Dogtag::with_backend(Counting::new());
                let books = backend.backend();
                let layout = |size| Layout::from_size_align(size, align).unwrap();
                // SAFETY: the block is live, and of the layout that it is said to have.
                unsafe {
                    let block = owner.run(|| backend.alloc(layout(old)));
                    block.write_bytes(7, old);
                    books.refuses.store(true, SeqCst);
                    let shrunk = current.run(|| backend.realloc(block, layout(old), new));
                    books.refuses.store(false, SeqCst);
                    assert!(shrunk == block || shrunk.is_null() && !CHECKED);
                    let size = if shrunk.is_null() { old } else { new };
                    assert!(std::slice::from_raw_parts(block, size).iter().all(|byte| *byte == 7));
                    // Where it is has nothing to do with whose it is.
                    let holder = if shrunk.is_null() || *current == full { &owner } else { current };
                    assert_holds(holder, size, 0);
                    if CHECKED {
                        assert!(!shrunk.is_null());
                        // Again, and then it may move.
                        books.refuses.store(true, SeqCst);
                        assert_eq!(
                            current.run(|| backend.realloc(block, layout(new), new.div_ceil(3))),
                            block
                        );
                        books.refuses.store(false, SeqCst);
                        assert_holds(holder, new.div_ceil(3), 0);
                        let moved = owner.run(|| backend.realloc(block, layout(new.div_ceil(3)), old));
                        assert!(moved != block && *moved == 7);
                        backend.dealloc(moved, layout(old));
                    } else {
                        backend.dealloc(block, layout(size));
                    }
                }
                assert_holds(&owner, 0, 0);
            }
        }
    }
    assert_holds(&full, 0, 0);
    assert_holds(&other, 0, 0);
}

/// By the interface that stands in for the standard library's: of an instance, of a region that
/// is full, and of a pool. What a block is aligned to may change, too.
#[cfg(target_os = "linux")]
#[test]
fn allocators_of_collections_shrink() {
    alone!();
    use allocator_api2::alloc::Allocator;
    use dogtag_mapped::{Fallback, MappedRegion};
    use std::ptr::NonNull;

    fn shrinks(allocator: impl Allocator, owner: &Service, current: &Service, old: Layout, new: Layout) {
        let what = format!("{old:?} to {new:?}");
        let block: NonNull<u8> = owner.run(|| allocator.allocate(old)).unwrap().cast();
        // SAFETY: the block is live, and of the layout that it is said to have.
        unsafe {
            block.write_bytes(7, old.size());
            let shrunk = current.run(|| allocator.shrink(block, old, new));
            let shrunk = shrunk.unwrap_or_else(|_| panic!("{what}")).cast::<u8>();
            assert!(shrunk.addr().get().is_multiple_of(new.align()), "{what}");
            let bytes = NonNull::slice_from_raw_parts(shrunk, new.size());
            assert!(bytes.as_ref().iter().all(|byte| *byte == 7), "{what}");
            assert_holds(owner, new.size(), 0);
            assert_holds(current, 0, 0);
            allocator.deallocate(shrunk, new);
        }
        assert_holds(owner, 0, 0);
    }

    let (owner, full) = (register("owner in a region"), register("full in a region"));
    full.set_hard_limit(Some(0));
    for (old, new) in SIZES.into_iter().chain([(100, 0), (5000, 0)]) {
        for (from, to) in [(8, 8), (64, 8), (8, 64), (4096, 8), (8, 4096), (1, 16)] {
            let layout = |size, align| Layout::from_size_align(size, align).unwrap();
            let (old, new) = (layout(old, from), layout(new, to));
            let region = |len| MappedRegion::anonymous(len).unwrap();
            shrinks(&crate::ALLOC, &owner, &full, old, new);
            shrinks(&Dogtag::with_backend(Counting::new()), &owner, &full, old, new);
            shrinks(&region(32 * MIB), &owner, &full, old, new);
            let window = Fallback::new(region(4096), Counting::new());
            shrinks(&Dogtag::with_backend(window), &owner, &full, old, new);
            // Where there is no space for another one, it stays where it is.
            if from == to {
                let rest = if CHECKED { before(old) + tail(old) } else { 2 };
                let window = region((old.size() + rest).next_multiple_of(4096));
                shrinks(&window, &owner, &full, old, new);
            }
        }
    }
}

/// What a pool has is its service's, which may be at its limit.
#[test]
fn what_is_in_a_pool_shrinks() {
    alone!();
    use allocator_api2::alloc::Allocator;
    use dogtag_pool::Pool;

    let layout = |size| Layout::from_size_align(size, 8).unwrap();
    for (old, new) in SIZES {
        for others in [0, 1, 100, 2000] {
            let service = register(&format!("pool of {old}, then {new}, beside {others}"));
            let full = Service::builder("beside a pool").hard_limit(0).register().unwrap();
            let pool = Pool::builder().service(&service).build().unwrap();
            let block = (&pool).allocate(layout(old)).unwrap().cast::<u8>();
            (0..others).for_each(|_| _ = (&pool).allocate(layout(100)).unwrap());
            let before = service.usage().bytes();
            service.set_hard_limit(Some(before));
            // SAFETY: the block is live, and of the layout that it is said to have.
            unsafe {
                block.write_bytes(7, old);
                let shrunk = full.run(|| (&pool).shrink(block, layout(old), layout(new))).unwrap();
                assert!(shrunk.as_ref()[..new].iter().all(|byte| *byte == 7));
                assert_holds(&full, 0, 0);
                let usage = service.usage();
                // What is large is the allocator's, and is given back.
                let gives_back = old > 4000 && new < old;
                assert_eq!(
                    (usage.denied, usage.bytes() < before),
                    (0, gives_back),
                    "{old} to {new}, {others}"
                );
                let stats = pool.stats();
                assert_eq!((stats.held + stats.spare) as u64, usage.bytes());
                full.run(|| (&pool).deallocate(shrunk.cast(), layout(new)));
            }
            drop(pool);
            assert_holds(&service, 0, 0);
        }
    }
}

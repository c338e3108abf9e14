//! Panics wherever a program's code is called: afterwards the thread is in the service that
//! it was in before, the ledger is exact, and nobody is held who could end.

use crate::random::Random;
use dogtag::{InServiceExt, Service};
use std::cell::Cell;
use std::future::Future;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;

mod left_behind;

fn register(name: &str) -> Service {
    Service::register(name).unwrap()
}

/// Panics without a message.
fn panic_quietly() -> ! {
    resume_unwind(Box::new("on purpose"))
}

/// Whether it panicked.
fn panics(work: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(work)).is_err()
}

/// A service that nothing is left of: neither a block nor a thread that is in it.
#[track_caller]
fn ends(service: Service) {
    let name = service.name().to_owned();
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0), "{name}");
    drop(service);
    // Dogtag's own thread may be looking at it just now.
    let is_gone = || !dogtag::snapshot().rows.iter().any(|row| row.name == name);
    assert!((0..10_000).any(|_| is_gone() || (thread::yield_now(), false).1), "{name} is held");
}

/// Allocates and changes services when it is dropped, and may panic there, too: in vain, if it
/// is dropped by a panic.
struct Guard<'a> {
    service: &'a Service,
    panics: bool,
    _block: Vec<u8>,
}

impl<'a> Guard<'a> {
    fn new(service: &'a Service, panics: bool, size: usize) -> Self {
        Self { service, panics, _block: service.run(|| black_box(vec![1; size])) }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let before = Service::current();
        let work = || {
            let _scope = self.service.enter();
            let _block = black_box(vec![2_u8; 300]);
            if self.panics {
                panic_quietly();
            }
        };
        assert_eq!(panics(work), self.panics);
        assert_eq!(Service::current(), before);
        if self.panics && !thread::panicking() {
            panic_quietly();
        }
    }
}

thread_local! {
    static CAUGHT: Cell<usize> = const { Cell::new(0) };
}

/// Scopes in scopes, guards, and panics that are caught at any depth.
fn nest(random: &mut Random, services: &[Service], depth: usize) {
    let before = Service::current();
    for _ in 0..1 + random.below(3) {
        let service = &services[random.below(services.len())];
        let (is_caught, is_run) = (random.once_in(3), random.once_in(2));
        let panics_here = random.once_in(4);
        let mut work = || {
            let _guard = Guard::new(service, random.once_in(5), 1 + random.below(6_000));
            let _other = services[0].enter();
            let _block = black_box(vec![3_u8; 1 + random.below(100)]);
            if depth > 0 {
                nest(random, services, depth - 1);
            }
            if panics_here {
                panic_quietly();
            }
            assert_eq!(Service::current(), services[0]);
        };
        let mut in_service = || match is_run {
            true => service.run(&mut work),
            false => {
                let _scope = service.enter();
                work();
            }
        };
        if is_caught {
            CAUGHT.with(|caught| caught.set(caught.get() + usize::from(panics(in_service))));
        } else {
            in_service();
        }
        assert_eq!(Service::current(), before, "caught: {is_caught}");
    }
}

#[test]
fn scopes_and_guards() {
    alone!();
    let services = [register("outermost"), register("middle"), register("innermost")];
    let seed = crate::random::seed();
    thread::scope(|threads| {
        for thread in 0..4 {
            let services = &services;
            threads.spawn(move || {
                let mut random = Random::new(seed.wrapping_add(thread));
                for _ in 0..1_000 {
                    let panicked = panics(|| nest(&mut random, services, 4));
                    CAUGHT.with(|caught| caught.set(caught.get() + usize::from(panicked)));
                    assert_eq!(Service::current(), Service::unattributed());
                }
                assert!(CAUGHT.get() > 1_000, "{}", CAUGHT.get());
            });
        }
    });
    services.into_iter().for_each(ends);
}

#[test]
fn threads_that_die_in_a_scope() {
    alone!();
    let service = register("dies");
    for _ in 0..50 {
        let service = service.clone();
        let thread = thread::spawn(move || {
            let _scope = service.enter();
            let _block = black_box(vec![1_u8; 5_000]);
            // Forgotten ones are left by nobody; this one is dropped when it unwinds.
            let _inner = Service::unattributed().run(|| service.enter());
            panic_quietly();
        });
        assert!(thread.join().is_err());
    }
    ends(service);
}

/// Panics when it is polled that often, or dropped.
struct Bomb {
    service: Service,
    polls: usize,
    panics_in_drop: bool,
    block: Option<Vec<u8>>,
}

impl Future for Bomb {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        assert_eq!(Service::current(), self.service);
        self.block = Some(vec![1; 2_000]);
        if self.polls == 0 {
            panic_quietly();
        }
        self.polls -= 1;
        Poll::Pending
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert_eq!(Service::current(), self.service);
        let _block = black_box(vec![2_u8; 5_000]);
        if self.panics_in_drop && !thread::panicking() {
            panic_quietly();
        }
    }
}

#[test]
fn futures_that_panic() {
    alone!();
    let (outer, inner) = (register("outer future"), register("inner future"));
    let caller = register("caller of futures");
    for panics_in_drop in [false, true] {
        for polls in 0..4 {
            let _scope = caller.enter();
            let bomb = Bomb { service: inner.clone(), polls, panics_in_drop, block: None };
            let beside = inner.clone();
            let nested = async move {
                let _kept = black_box(vec![1_u8; 100]);
                bomb.in_service(&beside).await;
            };
            let mut future = Box::pin(nested.in_service(&outer));
            let mut context = Context::from_waker(Waker::noop());
            for poll in 0..=polls {
                let panicked = panics(|| assert!(future.as_mut().poll(&mut context).is_pending()));
                assert_eq!((panicked, Service::current()), (poll == polls, caller.clone()));
            }
            // What is left of it: nothing if it has panicked, and all otherwise.
            panics(|| drop(future));
            assert_eq!(Service::current(), caller);
        }
    }
    // Cancelled before it has panicked, and while something else panics.
    for panics_in_drop in [false, true] {
        let bomb = || Bomb { service: inner.clone(), polls: 9, panics_in_drop, block: Some(vec![0; 10]) };
        let future = bomb().in_service(&inner);
        assert_eq!(panics(|| drop(future)), panics_in_drop);
        assert!(panics(|| {
            let _future = bomb().in_service(&inner);
            panic_quietly();
        }));
        assert_eq!(Service::current(), Service::unattributed());
    }
    [outer, inner, caller].into_iter().for_each(ends);
}

#[test]
fn results_and_measurements() {
    alone!();
    let service = register("measured");
    assert!(panics(|| drop(service.run(|| dogtag::measure(|| -> Vec<u8> { panic_quietly() })))));
    // The result is dropped by the caller, in the caller's service.
    assert!(panics(|| drop(service.run(|| Guard::new(&service, true, 10)))));
    assert_eq!(Service::current(), Service::unattributed());
    ends(service);
}

#[test]
fn names_that_panic() {
    alone!();
    struct Name;

    impl AsRef<str> for Name {
        fn as_ref(&self) -> &str {
            panic_quietly()
        }
    }

    let parent = register("parent of nobody");
    let service = register("registrar of nobody");
    let builder = || Service::builder(Name).parent(&parent).hard_limit(1_000);
    service.run(|| {
        assert!(panics(|| drop(builder().register())));
        assert_eq!(Service::current(), service);
        drop(register("registered afterwards"));
    });
    [parent, service].into_iter().for_each(ends);
}

/// What is called on dogtag's own thread panics, and what it has captured panics when it is
/// dropped; others are called all the same.
#[test]
fn callbacks_that_panic() {
    alone!();
    struct Captured;

    impl Drop for Captured {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, SeqCst);
            panic_quietly();
        }
    }

    static DROPPED: AtomicUsize = AtomicUsize::new(0);

    /// Sends the service that it is dropped in.
    struct Teller<'a>(&'a Mutex<mpsc::Sender<Service>>);

    impl Drop for Teller<'_> {
        fn drop(&mut self) {
            let tell = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            tell.send(Service::current()).unwrap();
        }
    }

    let (tell, told) = mpsc::channel();
    for round in 0..20 {
        let tell = Mutex::new(tell.clone());
        let captured = Captured;
        let careless = Service::builder(format!("careless {round}"))
            .soft_limit(1_000)
            .on_soft_limit(move |service| {
                let _captured = &captured;
                let _tells = Teller(&tell);
                let _scope = service.enter();
                let _block = black_box(vec![0_u8; 100]);
                panic_quietly();
            })
            .register()
            .unwrap();
        let block = careless.run(|| vec![0_u8; 2_000]);
        assert_eq!(told.recv().unwrap(), Service::unattributed());
        drop(block);
        // What it panicked with is freed now, or in a moment.
        while careless.usage().blocks() > 0 {
            thread::yield_now();
        }
        ends(careless);
        assert_eq!(Service::current(), Service::unattributed());
    }
    assert_eq!(DROPPED.load(SeqCst), 20);
}

#[test]
fn pools_in_scopes() {
    alone!();
    use dogtag_pool::Pool;

    let (service, caller) = (register("pool of panics"), register("caller of pools"));
    let mut pool = Pool::builder().service(&service).build().unwrap();
    for round in 0..50 {
        let _scope = caller.enter();
        let child = pool.lasting_child();
        let _ = child.cleanup(|| {
            let _left_by_a_panic = service.enter();
            let _block = black_box(vec![1_u8; 1_000]);
            panic_quietly();
        });
        let _ = pool.pre_cleanup(|| caller.run(|| panic_quietly()));
        pool.alloc(Guard::new(&caller, true, 100));
        assert!(panics(|| _ = pool.alloc_with(|| -> Vec<u8> { service.run(|| panic_quietly()) })));
        assert!(panics(|| _ = pool.alloc_slice_fill_with(10, |i| {
            if i == 7 { service.run(|| panic_quietly()) } else { vec![0_u8; 10] }
        })));
        assert_eq!(Service::current(), caller);
        match round % 3 {
            0 => assert!(panics(|| pool.clear())),
            1 => assert!(panics(|| pool.reset())),
            // While it unwinds already.
            _ => assert!(panics(|| {
                let _pool = std::mem::replace(&mut pool, Pool::builder().service(&service).build().unwrap());
                panic_quietly();
            })),
        }
        assert_eq!(Service::current(), caller);
        assert_eq!((pool.stats_with_children().pools, pool.stats().used), (1, 0));
    }
    drop(pool);
    [service, caller].into_iter().for_each(ends);
}

/// A handler that catches a panic of its own, and one that is in a scope when it goes on.
#[cfg(feature = "memory-check")]
#[test]
fn handlers_that_catch() {
    alone!();
    use dogtag::check::{self, Reaction};
    use std::alloc::{Layout, alloc, dealloc};

    check::set_handler(|_| {
        let service = Service::by_name("victim of a handler").unwrap();
        assert!(panics(|| service.run(|| {
            let _block = black_box(vec![0_u8; 10]);
            panic_quietly()
        })));
        Reaction::Leak
    });
    let victim = register("victim of a handler");
    let layout = Layout::from_size_align(40, 8).unwrap();
    for _ in 0..50 {
        // SAFETY: none. Something is written past the block's end.
        unsafe {
            let block = victim.run(|| black_box(alloc(layout)));
            block.add(40).write(0);
            dealloc(black_box(block), layout);
        }
        assert_eq!(Service::current(), Service::unattributed());
    }
    ends(victim);
}

//! How work is started, who is charged, and how the service is handed on: a test for each row of the
//! guide's table.

use crate::common::elsewhere;
use dogtag::{InServiceExt, Service, thread};
use rayon::prelude::*;
use std::cell::RefCell;
use std::sync::mpsc::{channel, sync_channel};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, LocalSet, spawn_blocking, spawn_local};

/// More than all else that may be freed late, by a thread or runtime that ends.
const SIZE: usize = 777_777;

/// What a job makes, and the service that it finds itself in.
struct Made {
    service: Service,
    block: Vec<u8>,
}

fn make() -> Made {
    Made { service: Service::current(), block: vec![0; SIZE] }
}

async fn make_later() -> Made {
    elsewhere().await;
    make()
}

impl Made {
    /// Checks whose job it was, and that its block was charged to that service.
    #[track_caller]
    fn assert_charged_to(self, service: &Service) {
        assert_eq!(&self.service, service);
        if *service == Service::unattributed() {
            // Others allocate as nobody, too.
            return;
        }
        let before = service.usage();
        drop(self.block);
        let freed = service.usage().since(&before);
        assert!(freed.freed_bytes >= SIZE as u64, "its block was not: {freed:?}");
    }
}

/// A service of the calling test's own.
fn service(name: &str) -> Service {
    Service::register(format!("hands on: {name}")).unwrap()
}

fn nobody() -> Service {
    Service::unattributed()
}

fn workers() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).build().unwrap()
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

#[test]
fn std_threads() {
    let service = service("thread::spawn");
    let [plain, own] = service.run(|| [std::thread::spawn(make), thread::spawn(make)]);
    plain.join().unwrap().assert_charged_to(&nobody());
    own.join().unwrap().assert_charged_to(&service);

    // Named, and with what destructors of thread-locals allocate. (A scoped thread is not waited for
    // until these have run.)
    thread_local! {
        static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
    }

    struct Late(std::sync::mpsc::Sender<Made>);

    impl Drop for Late {
        fn drop(&mut self) {
            self.0.send(make()).unwrap();
        }
    }

    let (sender, late) = channel();
    let before = service.usage();
    let builder =
        thread::Builder::new().name("a thread with a name of 34 bytes..".into()).stack_size(256 << 10);
    let work = move || {
        LATE.set(Some(Late(sender)));
        (make(), std::thread::current().name().map(str::len))
    };
    let thread = service.run(|| builder.spawn(work)).unwrap();
    // What the standard library keeps of the thread.
    assert!(service.usage().since(&before).bytes() > 0);
    let (made, length) = thread.join().unwrap();
    assert_eq!(length, Some(34));
    made.assert_charged_to(&service);
    late.recv().unwrap().assert_charged_to(&service);
}

#[test]
fn a_thread_leaves_nothing_behind() {
    let service = service("leaves nothing");
    for _ in 0..10 {
        service.run(|| thread::spawn(|| drop(make()))).join().unwrap();
        assert!(service.run(|| thread::spawn(|| std::panic::resume_unwind(Box::new(7)))).join().is_err());
    }
    assert_eq!(service.usage().bytes(), 0);
    drop(service);
    let is_there = |row: &dogtag::Row| row.name == "hands on: leaves nothing";
    assert!(!dogtag::snapshot().rows.iter().any(is_there), "a thread that has ended keeps its service");
}

#[test]
fn std_scoped_threads() {
    let [outer, inner] = ["thread::scope", "inside of it"].map(service);
    let sizes = [1_usize, 2, 3];
    outer.run(|| {
        std::thread::scope(|threads| threads.spawn(make).join().unwrap().assert_charged_to(&nobody()));
        thread::scope(|threads| {
            let made = threads.spawn(|| {
                assert_eq!(sizes.len(), 3);
                // The new thread is in a scope, and hands on itself.
                threads.spawn(make).join().unwrap()
            });
            let named = thread::Builder::new().name("borrows".into());
            let named = inner.run(|| named.spawn_scoped(threads, || (make(), &sizes)).unwrap());
            made.join().unwrap().assert_charged_to(&outer);
            named.join().unwrap().0.assert_charged_to(&inner);
        });
    });
    // In no scope there is nothing to hand on.
    thread::spawn(make).join().unwrap().assert_charged_to(&nobody());
    thread::scope(|threads| threads.spawn(make).join().unwrap().assert_charged_to(&nobody()));
    // To be nobody's is handed on, too.
    outer.run(|| nobody().run(|| thread::spawn(make)).join().unwrap().assert_charged_to(&nobody()));
}

#[test]
fn crossbeam_scoped_threads() {
    let service = service("crossbeam::scope");
    service.run(|| {
        crossbeam_utils::thread::scope(|threads| {
            threads.spawn(|_| make()).join().unwrap().assert_charged_to(&nobody());
            let job = Service::current().wrap(make);
            threads.spawn(|_| job()).join().unwrap().assert_charged_to(&service);
        })
        .unwrap();
    });
}

#[test]
fn pools_of_ones_own() {
    let service = service("pool");
    let (give, jobs) = channel::<Box<dyn FnOnce() + Send>>();
    let worker = std::thread::spawn(move || jobs.into_iter().for_each(|job| job()));
    let (send, made) = channel();
    service.run(|| {
        let [plain, own] = [send.clone(), send].map(|send| move || send.send(make()).unwrap());
        give.send(Box::new(plain)).unwrap();
        give.send(Box::new(Service::current().wrap(own))).unwrap();
    });
    made.recv().unwrap().assert_charged_to(&nobody());
    made.recv().unwrap().assert_charged_to(&service);
    drop(give);
    worker.join().unwrap();
}

#[test]
fn a_wrapped_closure_is_dropped_in_its_service() {
    struct Noisy(std::sync::mpsc::Sender<Made>);

    impl Drop for Noisy {
        fn drop(&mut self) {
            self.0.send(make()).unwrap();
        }
    }

    let service = service("wrapped");
    let (send, made) = channel();
    for is_called in [true, false] {
        let noisy = Noisy(send.clone());
        let job = service.wrap(move || drop(noisy));
        if is_called {
            job()
        } else {
            drop(job)
        }
        made.recv().unwrap().assert_charged_to(&service);
    }
    assert!(std::panic::catch_unwind(service.wrap(|| std::panic::resume_unwind(Box::new(())))).is_err());
    assert_eq!(Service::current(), nobody());
}

#[test]
fn tokio_spawn() {
    let service = service("tokio::spawn");
    let runtime = workers();
    let tasks = async {
        // The task's own block is allocated here.
        let before = service.usage();
        let plain = tokio::spawn(make_later());
        assert!(service.usage().since(&before).bytes() > 0);
        (plain.await.unwrap(), tokio::spawn(make_later().in_current_service()).await.unwrap())
    };
    let (plain, own) = runtime.block_on(tasks.in_service(&service));
    plain.assert_charged_to(&nobody());
    own.assert_charged_to(&service);
}

#[test]
fn tokio_spawn_blocking() {
    let service = service("spawn_blocking");
    let jobs = async {
        let plain = spawn_blocking(make).await.unwrap();
        (plain, spawn_blocking(Service::current().wrap(make)).await.unwrap())
    };
    let (plain, own) = workers().block_on(jobs.in_service(&service));
    plain.assert_charged_to(&nobody());
    own.assert_charged_to(&service);
}

#[test]
fn tokio_join_set() {
    let service = service("JoinSet");
    let tasks = async {
        let mut tasks = JoinSet::new();
        tasks.spawn(make_later());
        let plain = tasks.join_next().await.unwrap().unwrap();
        tasks.spawn(make_later().in_current_service());
        tasks.spawn_blocking(Service::current().wrap(make));
        [plain, tasks.join_next().await.unwrap().unwrap(), tasks.join_next().await.unwrap().unwrap()]
    };
    let [plain, task, closure] = workers().block_on(tasks.in_service(&service));
    plain.assert_charged_to(&nobody());
    task.assert_charged_to(&service);
    closure.assert_charged_to(&service);
}

/// Its tasks run where the set is driven.
#[test]
fn tokio_local_set() {
    let [driver, spawner] = ["drives a LocalSet", "spawns there"].map(service);
    let runtime = Builder::new_current_thread().build().unwrap();
    let set = LocalSet::new();
    let (plain, own) =
        spawner.run(|| (set.spawn_local(make_later()), set.spawn_local(make_later().in_current_service())));
    let inside = async {
        let inside = async { spawn_local(make_later().in_current_service()).await.unwrap() };
        inside.in_service(&spawner).await
    };
    let (plain, own, inside) = driver
        .run(|| set.block_on(&runtime, async { (plain.await.unwrap(), own.await.unwrap(), inside.await) }));
    plain.assert_charged_to(&driver);
    own.assert_charged_to(&spawner);
    inside.assert_charged_to(&spawner);
}

/// All tasks run where somebody waits for one of them.
#[test]
fn tokio_current_thread() {
    let [waiter, spawner] = ["blocks on a runtime", "spawns in a runtime"].map(service);
    let runtime = Builder::new_current_thread().build().unwrap();
    let (plain, own) =
        spawner.run(|| (runtime.spawn(make_later()), runtime.spawn(make_later().in_current_service())));
    let both = async { (plain.await.unwrap(), own.await.unwrap()) };
    let (plain, own) = waiter.run(|| runtime.block_on(both));
    plain.assert_charged_to(&waiter);
    own.assert_charged_to(&spawner);

    // Whoever waits does not pay for others where only what it waits for is in its service.
    let plain = runtime.spawn(make_later());
    let awaited = async { (make(), plain.await.unwrap()) }.in_service(&waiter);
    let (own, plain) = runtime.block_on(awaited);
    own.assert_charged_to(&waiter);
    plain.assert_charged_to(&nobody());
}

#[test]
fn rayon_spawn() {
    let service = service("rayon::spawn");
    let (send, made) = channel();
    pool(2).install(move || {
        service.run(|| {
            let [plain, own] = [send.clone(), send].map(|send| move || send.send(make()).unwrap());
            rayon::spawn(Service::current().wrap(own));
            made.recv().unwrap().assert_charged_to(&service);
            rayon::spawn(plain);
            // The other thread runs it; this one does not run jobs while it waits for a channel.
            made.recv().unwrap().assert_charged_to(&nobody());
        });
    });
}

#[test]
fn rayon_scope() {
    let service = service("rayon::scope");
    let pool = pool(2);
    pool.install(|| {
        service.run(|| {
            let own = Service::current();
            let (send, made) = sync_channel(1);
            rayon::scope(|jobs| {
                jobs.spawn(move |_| own.run(|| send.send(make()).unwrap()));
            });
            made.recv().unwrap().assert_charged_to(&service);
        });
    });
    // From outside of the pool, whose threads are in no service.
    let plain = service.run(|| {
        let mut plain = None;
        pool.scope(|jobs| jobs.spawn(|_| plain = Some(make())));
        plain.unwrap()
    });
    plain.assert_charged_to(&nobody());
}

#[test]
fn rayon_join() {
    let service = service("rayon::join");
    let pool = pool(2);
    let [plain, own] = service.run(|| {
        let (plain, _) = pool.join(make, || ());
        let service = Service::current();
        let (own, other) = pool.join(service.wrap(make), service.wrap(make));
        other.assert_charged_to(&service);
        [plain, own]
    });
    plain.assert_charged_to(&nobody());
    own.assert_charged_to(&service);
}

#[test]
fn rayon_parallel_iterators() {
    let service = service("par_iter");
    let (plain, own) = service.run(|| {
        let service = Service::current();
        pool(2).install(|| {
            let plain: Vec<Made> = (0..20).into_par_iter().map(|_| make()).collect();
            let own: Vec<Made> = (0..20).into_par_iter().map(|_| service.run(make)).collect();
            (plain, own)
        })
    });
    plain.into_iter().for_each(|made| made.assert_charged_to(&nobody()));
    own.into_iter().for_each(|made| made.assert_charged_to(&service));
}

/// Runs what `waits` does with somebody else's job on a pool's only thread, which is in the service
/// `waiting`, and returns what the job made meanwhile.
fn stolen(waiting: &Service, waits: fn(Box<dyn FnOnce() + Send>), wrap: Option<&Service>) -> Made {
    let (send, made) = sync_channel(1);
    let job = move || send.send(make()).unwrap();
    let job: Box<dyn FnOnce() + Send> = match wrap {
        Some(service) => Box::new(service.wrap(job)),
        None => Box::new(job),
    };
    pool(1).install(|| waiting.run(|| waits(job)));
    made.recv().unwrap()
}

/// The thread's own closures are in its service, wherever it waits, and everything that it finds
/// meanwhile is in its own, if it is wrapped.
#[test]
fn a_worker_that_waits_charges_what_it_steals_to_whom_it_is_wrapped_for() {
    let [waiting, other] = ["waits for jobs", "is stolen"].map(service);
    let joins = |job| {
        rayon::join(|| rayon::spawn(job), || ());
    };
    stolen(&waiting, joins, None).assert_charged_to(&waiting);
    stolen(&waiting, joins, Some(&other)).assert_charged_to(&other);
    let opens_a_scope = |job: Box<dyn FnOnce() + Send>| {
        rayon::scope(|jobs| {
            jobs.spawn(|_| ());
            rayon::spawn(job);
        });
    };
    stolen(&waiting, opens_a_scope, None).assert_charged_to(&waiting);
    stolen(&waiting, opens_a_scope, Some(&other)).assert_charged_to(&other);

    // Whoever cannot have the others' jobs wrapped waits as nobody.
    let waits_as_nobody = |job| {
        let service = Service::current();
        let made = nobody().run(|| rayon::join(service.wrap(|| (make(), rayon::spawn(job)).0), || ()).0);
        made.assert_charged_to(&service);
    };
    stolen(&waiting, waits_as_nobody, None).assert_charged_to(&nobody());
    stolen(&waiting, waits_as_nobody, Some(&other)).assert_charged_to(&other);
}

#[cfg(feature = "stream")]
#[test]
fn streams() {
    use futures_core::Stream;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    struct Rows {
        left: usize,
        dropped: std::sync::mpsc::Sender<Made>,
    }

    impl Stream for Rows {
        type Item = Made;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Made>> {
            let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
            self.left = left;
            if left == 1 { Poll::Pending } else { Poll::Ready(Some(make())) }
        }

        fn size_hint(&self) -> (usize, Option<usize>) {
            (0, Some(self.left))
        }
    }

    impl Drop for Rows {
        fn drop(&mut self) {
            self.dropped.send(make()).unwrap();
        }
    }

    let service = service("stream");
    let (dropped, made) = channel();
    let rows = |left| Rows { left, dropped: dropped.clone() };
    let mut context = Context::from_waker(Waker::noop());
    {
        let mut stream = pin!(service.run(|| rows(3).in_current_service()));
        assert_eq!(stream.size_hint(), (0, Some(3)));
        let mut next = || stream.as_mut().poll_next(&mut context);
        let Poll::Ready(Some(row)) = next() else { panic!("there are rows") };
        row.assert_charged_to(&service);
        assert!(next().is_pending());
        let Poll::Ready(Some(row)) = next() else { panic!("there are rows") };
        row.assert_charged_to(&service);
        assert!(matches!(next(), Poll::Ready(None)));
        assert_eq!(Service::current(), nobody());
    }
    made.recv().unwrap().assert_charged_to(&service);
    drop(rows(7).in_service(&service));
    made.recv().unwrap().assert_charged_to(&service);
}

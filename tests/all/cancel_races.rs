//! Cancelling beside all else that may happen to a service at that moment: in any order, as a model has it;
//! on several threads; from callbacks; and in a fork.

use crate::random::Random;
use crate::watch;
use dogtag::guard::Cancelled;
use dogtag::{InServiceExt, Service};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Context, Poll, Wake, Waker};

fn register(name: &str) -> Service {
    Service::register(name).unwrap()
}

fn child(name: &str, parent: &Service) -> Service {
    Service::builder(name).parent(parent).register().unwrap()
}

/// Counts how often it is woken.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A service, and what it should be.
struct Modelled {
    service: Service,
    name: String,
    parent: Option<usize>,
    /// Why it was cancelled: the first reason that reached it.
    reason: Option<String>,
}

/// A future, and what it should be.
struct Task {
    future: Pin<Box<dyn Future<Output = Result<usize, Cancelled>>>>,
    service: usize,
    /// What it returns when it is polled next, if anything.
    ready: Rc<Cell<Option<usize>>>,
    counter: Arc<Counter>,
    /// Whether it was polled and waits since, to be woken.
    waits: bool,
    woken: usize,
    /// What it allocates in its first poll, and holds until its end.
    bytes: u64,
    holds: bool,
}

struct Model {
    random: Random,
    program: u64,
    services: Vec<Modelled>,
    tasks: Vec<Task>,
    reasons: usize,
}

impl Model {
    fn any(&mut self) -> Option<usize> {
        (!self.services.is_empty()).then(|| self.random.below(self.services.len()))
    }

    fn is_in(&self, mut service: usize, family: usize) -> bool {
        loop {
            match self.services[service].parent {
                _ if service == family => return true,
                Some(parent) => service = parent,
                None => return false,
            }
        }
    }

    /// Who is found by that name.
    fn known(&self, name: &str) -> Option<usize> {
        self.services.iter().position(|one| one.reason.is_none() && one.name == name)
    }

    fn register(&mut self) {
        let name = format!("modelled {} {}", self.program, self.random.below(4));
        let parent = if self.random.once_in(2) { self.any() } else { None };
        let reason = parent.and_then(|parent| self.services[parent].reason.clone());
        // Below a cancelled one there is always a new one, which has no name to be found by.
        let known = if reason.is_none() { self.known(&name) } else { None };
        let mut builder = Service::builder(&name);
        if let Some(parent) = parent {
            builder = builder.parent(&self.services[parent].service);
        }
        match (builder.register(), known.map(|known| &self.services[known])) {
            (Ok(service), Some(known)) => assert_eq!(service, known.service),
            (Err(error), known) => {
                let has_another = known.is_some_and(|known| parent.is_some() && known.parent != parent);
                assert!(has_another, "{error}");
            }
            (Ok(service), None) => {
                assert!(self.services.iter().all(|one| one.service != service));
                self.services.push(Modelled { service, name, parent, reason });
            }
        }
    }

    fn spawn(&mut self) {
        let Some(service) = self.any() else { return };
        let (bytes, ready) = (self.random.below(5000) + 1, Rc::new(Cell::new(None)));
        let is_ready: Rc<Cell<Option<usize>>> = Rc::clone(&ready);
        let work = async move {
            let rows = vec![1_u8; bytes];
            let number = poll_fn(|_| is_ready.get().map_or(Poll::Pending, Poll::Ready)).await;
            assert_eq!(rows.len(), bytes);
            number
        };
        let future = Box::pin(work.in_service(&self.services[service].service).or_cancelled());
        let (counter, bytes) = (Arc::default(), bytes as u64);
        self.tasks.push(Task {
            future,
            service,
            ready,
            counter,
            waits: false,
            woken: 0,
            bytes,
            holds: false,
        });
    }

    fn poll(&mut self, number: usize) {
        let task = &mut self.tasks[number];
        let waker = Waker::from(Arc::clone(&task.counter));
        let polled = task.future.as_mut().poll(&mut Context::from_waker(&waker));
        drop(waker);
        match (polled, &self.services[task.service].reason, task.ready.get()) {
            (Poll::Pending, None, None) => (task.waits, task.holds) = (true, true),
            (Poll::Ready(Ok(value)), None, Some(ready)) if value == ready => self.end(number),
            // It comes first, whatever else is there.
            (Poll::Ready(Err(error)), Some(reason), _) if error.reason.to_string() == *reason => {
                self.end(number);
            }
            unexpected => panic!("{unexpected:?}"),
        }
    }

    /// Drops a future, that is over or not.
    fn end(&mut self, number: usize) {
        let Task { future, counter, woken, .. } = self.tasks.swap_remove(number);
        drop(future);
        assert_eq!(counter.0.load(SeqCst), woken);
        assert_eq!(Arc::strong_count(&counter), 1, "its waker is left");
    }

    fn cancel(&mut self) {
        let Some(cancelled) = self.any() else { return };
        self.reasons += 1;
        let reason = format!("reason {}", self.reasons);
        let is_first = self.services[cancelled].reason.is_none();
        assert_eq!(self.services[cancelled].service.cancel(reason.clone()), is_first);
        if !is_first {
            return;
        }
        for member in 0..self.services.len() {
            if self.services[member].reason.is_some() || !self.is_in(member, cancelled) {
                continue;
            }
            self.services[member].reason = Some(reason.clone());
            for task in self.tasks.iter_mut().filter(|task| task.service == member && task.waits) {
                (task.waits, task.woken) = (false, task.woken + 1);
            }
        }
    }

    fn check(&self) {
        for (number, one) in self.services.iter().enumerate() {
            let reason = one.service.check().err().map(|error| error.reason.to_string());
            assert_eq!((one.service.is_cancelled(), &reason), (one.reason.is_some(), &one.reason));
            let held = self.tasks.iter().filter(|task| task.service == number && task.holds);
            assert_eq!(one.service.usage().bytes(), held.map(|task| task.bytes).sum::<u64>(), "{}", one.name);
            let known = self.known(&one.name).map(|known| &self.services[known].service);
            assert_eq!(Service::by_name(&one.name).as_ref(), known, "{}", one.name);
        }
        for task in &self.tasks {
            assert_eq!(task.counter.0.load(SeqCst), task.woken);
        }
    }
}

/// Registering, children, futures that wait, are ready, are dropped, and cancelling, in any order: each
/// step has the outcome that a model says.
#[test]
fn in_any_order_each_step_is_as_the_model_says() {
    let seed = crate::random::seed();
    for program in 0..crate::random::times(300) {
        let random = Random::nth(seed, program);
        let mut model = Model { random, program, services: Vec::new(), tasks: Vec::new(), reasons: 0 };
        for _ in 0..60 {
            let task = model.random.next() as usize % model.tasks.len().max(1);
            match model.random.weighed(&[4, 4, 6, 2, 1, 2]) {
                0 => model.register(),
                1 => model.spawn(),
                _ if model.tasks.is_empty() => {}
                2 => model.poll(task),
                3 => model.tasks[task].ready.set(Some(task)),
                4 => model.end(task),
                _ => model.cancel(),
            }
            model.check();
        }
        while !model.tasks.is_empty() {
            model.end(0);
        }
        model.check();
    }
}

/// Of those that cancel one family at the same moment, one is the first for each of its services; and whoever
/// sees one of them cancelled is told a reason that somebody gave.
#[test]
fn of_many_that_cancel_at_once_one_is_the_first() {
    const THREADS: usize = 3;
    const ROUNDS: usize = 300;

    let (begin, end) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    let family = std::sync::RwLock::new(Vec::new());
    let firsts = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            let (begin, end, family, firsts) = (&begin, &end, &family, &firsts);
            threads.spawn(move || {
                for round in 0..ROUNDS {
                    begin.wait();
                    let services: Vec<Service> = Clone::clone(&family.read().unwrap());
                    // Some from above, some from below.
                    let service = &services[(thread + round) % services.len()];
                    let is_first = service.cancel(format!("by {thread}"));
                    firsts.fetch_add(usize::from(is_first), SeqCst);
                    assert!(service.check().unwrap_err().reason.to_string().starts_with("by "));
                    drop(services);
                    end.wait();
                }
            });
        }
        for _ in 0..ROUNDS {
            let root = register("is cancelled by many");
            let middle = child("middle of many", &root);
            *family.write().unwrap() = vec![root.clone(), root.clone(), middle.clone(), root.clone()];
            firsts.store(0, SeqCst);
            begin.wait();
            end.wait();
            // Of the root once; of the one below it once more, if that was before.
            let firsts = firsts.load(SeqCst);
            assert!((1..=2).contains(&firsts), "{firsts}");
            assert!(root.is_cancelled() && middle.is_cancelled());
            assert_eq!(Service::by_name("is cancelled by many"), None);
            family.write().unwrap().clear();
        }
    });
}

/// What is called while a service is cancelled, or because of it, may cancel: the same one, what is above
/// it, and another one.
#[test]
fn callbacks_may_cancel() {
    struct Cancels(Vec<Service>);

    impl Wake for Cancels {
        fn wake(self: Arc<Self>) {
            self.0.iter().for_each(|service| _ = service.cancel("by a waker"));
        }
    }

    impl Drop for Cancels {
        fn drop(&mut self) {
            self.0.iter().for_each(|service| _ = service.cancel("by a drop"));
        }
    }

    let reason = |service: &Service| service.check().unwrap_err().reason.to_string();
    let family = |name: &str| {
        let parent = register(&format!("{name}, above"));
        [child(name, &parent), parent, register(&format!("{name}, beside"))]
    };
    // By a waker, while its service is being cancelled.
    let [service, parent, other] = family("wakes and cancels");
    let mut waits = Box::pin(std::future::pending::<()>().in_service(&service).or_cancelled());
    let all = vec![service.clone(), parent.clone(), other.clone()];
    let waker = Waker::from(Arc::new(Cancels(all)));
    assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert!(service.cancel("first"));
    assert_eq!([&service, &parent, &other].map(reason), ["first", "by a waker", "by a waker"]);

    // By what a future that is given up drops.
    let [service, parent, other] = family("drops and cancels");
    let held = Cancels(vec![parent.clone(), service.clone(), other.clone()]);
    let work = async move {
        std::future::pending::<()>().await;
        drop(held);
    };
    let mut waits = Box::pin(work.in_service(&service).or_cancelled());
    let mut context = Context::from_waker(Waker::noop());
    assert!(waits.as_mut().poll(&mut context).is_pending());
    assert!(service.cancel("first"));
    let Poll::Ready(Err(error)) = waits.as_mut().poll(&mut context) else { panic!("it goes on") };
    assert_eq!(error.reason.to_string(), "first");
    assert_eq!([&service, &parent, &other].map(reason), ["first", "by a drop", "by a drop"]);

    // By the soft limit's callback, on the thread that announces budgets, too.
    let [service, parent, other] = family("announces and cancels");
    service.set_soft_limit(Some(1000));
    service.set_cancel_at(Some(1000));
    let (all, (tell, told)) = ([parent.clone(), other.clone()], mpsc::channel());
    service.set_on_soft_limit(move |service| {
        all.iter().for_each(|one| _ = one.cancel("by a callback"));
        tell.send(service.cancel("by a callback")).unwrap();
    });
    let rows = service.run(|| vec![0_u8; 2000]);
    // By its budget, or with the one above it, whichever was announced first.
    assert!(!watch::eventually(|| told.try_recv()));
    assert_eq!([&parent, &other].map(reason), ["by a callback", "by a callback"]);
    assert!(["by a callback", "it got past its budget of 1000 B"].contains(&&*reason(&service)));
    drop(rows);
}

/// A future is polled to its end, or dropped, on one thread while another one cancels its service.
#[test]
fn a_future_ends_while_its_service_is_cancelled() {
    const ROUNDS: usize = 2000;

    let (give, given) = mpsc::sync_channel::<Service>(0);
    std::thread::scope(|threads| {
        threads.spawn(move || given.iter().for_each(|service| assert!(service.cancel("meanwhile"))));
        let (mut ready, mut cancelled) = (0, 0);
        for round in 0..ROUNDS {
            let query = register("ends meanwhile");
            let counter = Arc::new(Counter::default());
            let waker = Waker::from(Arc::clone(&counter));
            let mut context = Context::from_waker(&waker);
            let mut polls = 0;
            let work = poll_fn(move |_| {
                polls += 1;
                if polls > round % 7 { Poll::Ready(round) } else { Poll::Pending }
            });
            let rows = query.run(|| vec![1_u8; 100]);
            let work = async move {
                let end = work.await;
                drop(rows);
                end
            };
            let mut future = Box::pin(work.in_service(&query).or_cancelled());
            // Whoever is faster; and now and then it ends for certain.
            let ends_first = round % 5 == 0;
            if !ends_first {
                give.send(query.clone()).unwrap();
            }
            if ends_first || round % 3 != 0 {
                match (0..7).map(|_| future.as_mut().poll(&mut context)).find(Poll::is_ready) {
                    Some(Poll::Ready(Ok(number))) => {
                        ready += 1;
                        assert_eq!(number, round);
                    }
                    Some(Poll::Ready(Err(error))) => {
                        cancelled += 1;
                        assert_eq!(error.reason.to_string(), "meanwhile");
                    }
                    _ => panic!("it waits for ever"),
                }
                assert_eq!(query.usage().bytes(), 0);
            }
            drop(future);
            drop(waker);
            if ends_first {
                give.send(query.clone()).unwrap();
            }
            assert_eq!(query.usage().bytes(), 0);
            watch::eventually(|| query.check().err().ok_or("not cancelled"));
            // The other one may be about to wake it still.
            watch::eventually(|| (Arc::strong_count(&counter) == 1).then_some(()).ok_or("its waker is left"));
            assert!(counter.0.load(SeqCst) <= 1);
        }
        assert!(ready > 0, "{ready} and {cancelled}");
        drop(give);
    });
}

/// While threads register and cancel, each child finds everything whole, and cancels for itself.
#[test]
fn children_of_forks_beside_cancelling_threads_cancel_for_themselves() {
    const CHILDREN: usize = 30;

    /// So that the threads end, too, if this one panics.
    struct Ends<'a>(&'a AtomicBool);

    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }

    alone!();
    let ends = AtomicBool::new(false);
    let (query, counter) = (register("forked beside others"), Arc::new(Counter::default()));
    let mut future = Box::pin(std::future::pending::<()>().in_service(&query).or_cancelled());
    let waker = Waker::from(Arc::clone(&counter));
    let mut context = Context::from_waker(&waker);
    assert!(future.as_mut().poll(&mut context).is_pending());
    // Who forks while a thread of std's begins or ends has a child that hangs, without dogtag too.
    let begun = Barrier::new(3);
    std::thread::scope(|threads| {
        for thread in 0..2 {
            let (ends, begun) = (&ends, &begun);
            threads.spawn(move || {
                begun.wait();
                while !ends.load(SeqCst) {
                    let service = register(&format!("beside a fork {}", thread % 2));
                    let below = child(&format!("below it {thread}"), &service);
                    let mut waits = Box::pin(std::future::pending::<()>().in_service(&below).or_cancelled());
                    let mut context = Context::from_waker(Waker::noop());
                    let _ = waits.as_mut().poll(&mut context);
                    service.cancel("the next one");
                    assert!(waits.as_mut().poll(&mut context).is_ready());
                }
            });
        }
        let _ends = Ends(&ends);
        begun.wait();
        for _ in 0..CHILDREN {
            // SAFETY: the child asks dogtag, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let other = register("in the child");
                let is_well = query.cancel("in the child")
                    && counter.0.load(SeqCst) == 1
                    && matches!(future.as_mut().poll(&mut context), Poll::Ready(Err(_)))
                    && other.cancel("too")
                    && dogtag::snapshot().rows.iter().any(|row| row.cancellation.is_some());
                // SAFETY: ends the process, without what others may have locked.
                unsafe { libc::_exit(i32::from(!is_well)) };
            }
            let status = watch::ended(child);
            assert!(status.success(), "{status}");
        }
    });
    assert_eq!((query.check(), counter.0.load(SeqCst)), (Ok(()), 0));
}

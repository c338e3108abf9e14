//! Services that are cancelled: who notices, what is let go of, and what goes on.

use crate::or_cancelled::{Counter, poll};
use crate::watch;
use dogtag::guard::{CancelReason, Cancelled, check, fallible};
use dogtag::{InServiceExt, Service};
use std::cell::Cell;
use std::future::ready;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;

fn register(name: &str) -> Service {
    Service::register(name).unwrap()
}

fn child(name: &str, parent: &Service) -> Service {
    Service::builder(name).parent(parent).register().unwrap()
}

/// A budget is announced by a thread of dogtag's, which may take a moment.
fn cancelled_at_last(service: &Service) -> Cancelled {
    watch::eventually(|| service.check().err().ok_or("not cancelled"))
}

#[test]
fn a_family_is_cancelled_from_there_down_and_for_good() {
    let tenant = register("cancelled tenant");
    let query = child("cancelled query", &tenant);
    let (sort, other) = (child("cancelled sort", &query), child("another query", &tenant));
    let grandchild = child("cancelled run", &sort);
    assert!(query.cancel("too slow"));
    for cancelled in [&query, &sort, &grandchild] {
        let error = cancelled.check().unwrap_err();
        assert!(cancelled.is_cancelled());
        assert_eq!((&*error.service, error.handle), (cancelled.name(), cancelled.handle()));
        assert_eq!(error.reason, CancelReason::Program("too slow".into()));
        assert_eq!(cancelled.run(check), Err(error));
    }
    for goes_on in [&tenant, &other, &Service::unattributed()] {
        assert_eq!(goes_on.check(), Ok(()));
        assert_eq!(goes_on.run(check), Ok(()));
    }
    // Once.
    assert!(!query.cancel("again") && !sort.cancel("and again"));
    assert_eq!(sort.check().unwrap_err().reason.to_string(), "too slow");
    // With the one above it, what is below is cancelled a second time, by nobody's doing.
    assert!(tenant.cancel(String::from("bankrupt")));
    assert_eq!(other.check().unwrap_err().reason.to_string(), "bankrupt");
    assert_eq!(query.check().unwrap_err().reason.to_string(), "too slow");
    assert_eq!(grandchild.check().unwrap_err().reason.to_string(), "too slow");
    assert!(!Service::unattributed().cancel("never"));
}

#[test]
fn name_and_handle_are_free_at_once() {
    let query = Service::builder("cancelled by name").handle(0x4711_0815).register().unwrap();
    let block = query.run(|| black_box(vec![0_u8; 1000]));
    query.cancel("again, please");
    assert_eq!(Service::by_name("cancelled by name"), None);
    assert_eq!(Service::by_handle(0x4711_0815), None);

    let again = Service::builder("cancelled by name").handle(0x4711_0815).register().unwrap();
    assert_ne!(again, query);
    assert_eq!(again.check(), Ok(()));
    assert_eq!((query.usage().bytes(), again.usage().bytes()), (1000, 0));
    // Nor does the former one's end take the new one's name.
    drop((query, block));
    let _ends_what_can_end = dogtag::snapshot();
    assert_eq!(Service::by_name("cancelled by name"), Some(again.clone()));
    assert_eq!(again.check(), Ok(()));
}

#[test]
fn a_child_that_comes_later_is_cancelled_from_the_beginning() {
    let query = register("cancelled before its child");
    query.cancel("too slow");
    let late = child("a late child", &query);
    assert_eq!(late.check().unwrap_err().reason.to_string(), "too slow");
    assert_eq!(Service::by_name("a late child"), None);
    assert_eq!(register("a late child").check(), Ok(()));
    // The parent's reason is there as long as somebody may ask for it.
    drop(query);
    let _ends_what_can_end = dogtag::snapshot();
    assert_eq!(late.check().unwrap_err().reason.to_string(), "too slow");
}

/// Whatever a thread may still allocate in that slot without asking.
#[test]
fn a_child_of_a_cancelled_service_may_not_do_without_from_its_first_allocation_on() {
    std::thread::spawn(|| {
        let query = register("cancelled, and has a child after that");
        let former = register("had the slot before");
        drop(black_box(former.run(|| vec![0_u8; 100])));
        drop(former);
        query.cancel("too slow");
        let late = child("has the slot now", &query);
        late.run(|| assert!(fallible(|| Vec::<u8>::new().try_reserve(1000)).is_err()));
    })
    .join()
    .unwrap();
}

/// The old one's code goes on, and so does the new one's.
#[test]
fn names_below_a_cancelled_service_are_not_those_of_others() {
    let old = register("query with stages");
    old.cancel("again");
    let new = register("query with stages");
    let stage = child("stage", &new);
    let late = child("stage", &old);
    assert!(late.is_cancelled() && !stage.is_cancelled());
    assert_eq!(Service::by_name("stage"), Some(stage));
}

/// Spans find a service by its name, and keep it.
#[cfg(feature = "tracing-layer")]
#[test]
fn spans_of_a_cancelled_services_name_run_in_the_next_one() {
    use tracing_subscriber::prelude::*;

    let subscriber = tracing_subscriber::registry().with(dogtag::ServiceLayer::new());
    tracing::subscriber::with_default(subscriber, || {
        let current =
            || tracing::error_span!("request", service = "acorn, cancelled").in_scope(Service::current);
        let acorn = current();
        assert_eq!((acorn.name(), current() == acorn), ("acorn, cancelled", true));
        acorn.cancel("did not pay");
        let next = current();
        assert_ne!(next, acorn);
        assert_eq!((next.name(), next.check()), (acorn.name(), Ok(())));
        assert_eq!(current(), next);
    });
}

/// The next service of a cancelled one's slot has nothing of it.
#[test]
fn a_slot_is_as_new_for_its_next_service() {
    for round in 0..2000 {
        let service = register(&format!("round {round}"));
        assert_eq!(service.check(), Ok(()), "{round}");
        assert_eq!(service.cancel_at(), None);
        service.set_cancel_at(Some(1 << 40));
        service.cancel("the next one");
    }
}

#[test]
fn allocations_fail_only_for_those_who_say_that_they_may() {
    let query = register("may do without");
    let below = child("may do without, below", &query);
    let mut rows: Vec<u8> = Vec::new();
    // Nothing fails that is not cancelled.
    query.run(|| fallible(|| rows.try_reserve_exact(100)).unwrap());
    query.cancel("too much");
    for (service, denied) in [(&query, 1), (&below, 1)] {
        service.run(|| {
            for size in [200, 5000, 1 << 20] {
                let mut refused: Vec<u8> = Vec::new();
                // Others go on.
                drop(black_box(vec![1_u8; size]));
                assert!(fallible(|| refused.try_reserve_exact(size)).is_err());
                assert!(refused.try_reserve_exact(size).is_ok());
            }
        });
        assert_eq!(service.usage().denied, 3 * denied);
    }
    // What does not grow is never denied; and what is nested is one.
    query.run(|| {
        fallible(|| {
            fallible(|| rows.shrink_to(10));
            assert!(rows.try_reserve_exact(300).is_err());
        });
        assert!(rows.try_reserve_exact(300).is_ok());
    });
    // Another service's allocations are its own.
    let other = register("goes on beside it");
    query.run(|| other.run(|| fallible(|| Vec::<u8>::new().try_reserve(1000)).unwrap()));
    // Nor is a panic the end of it.
    let panics = std::panic::catch_unwind(|| query.run(|| fallible(|| panic!("on purpose"))));
    assert!(panics.is_err());
    query.run(|| assert!(Vec::<u8>::new().try_reserve(1000).is_ok()));
}

#[test]
fn a_budget_cancels_once_and_not_a_byte_too_early() {
    const BUDGET: usize = 1 << 20;

    alone!();
    for sizes in [&[16_usize][..], &[100, 3000, 50_000], &[BUDGET / 2]] {
        let query = Service::builder("has a budget").cancel_at(BUDGET as u64).register().unwrap();
        let stage = child("works for it", &query);
        assert_eq!(query.cancel_at(), Some(BUDGET as u64));
        let mut held = 0;
        let mut rows: Vec<Vec<u8>> = Vec::new();
        for size in sizes.iter().cycle() {
            let size = *size.min(&(BUDGET - held));
            if size == 0 {
                break;
            }
            rows.reserve(1);
            rows.push([&query, &stage][rows.len() % 2].run(|| vec![1; size]));
            held += size;
        }
        assert_eq!(query.usage_with_children().bytes(), BUDGET as u64);
        // Whatever is announced has been by then.
        let barrier = Service::builder("comes later").soft_limit(10).register().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        barrier.set_on_soft_limit(move |_| tell.send(()).unwrap());
        let block = barrier.run(|| Box::new([0_u8; 100]));
        watch::eventually(|| told.try_recv());
        assert_eq!(query.check(), Ok(()), "too early");

        let last = stage.run(|| Box::new(1_u8));
        assert_eq!(cancelled_at_last(&query).reason.to_string(), "it got past its budget of 1.0 MiB");
        assert!(stage.is_cancelled() && !query.cancel("again"));
        // It goes on, and nothing is refused.
        drop(query.run(|| vec![0_u8; 8 * BUDGET]));
        assert_eq!(query.usage_with_children().denied, 0);
        // The name is free for one without.
        assert_eq!(register("has a budget").cancel_at(), None);
        drop((rows, last, block));
    }
}

/// What would have passed it was not made: it counts for nothing, and hides nothing.
#[test]
fn a_refused_allocation_leaves_a_budget_as_it_was() {
    let tenant = Service::builder("has a hard limit").hard_limit(1 << 20).register().unwrap();
    let query = Service::builder("has a budget below").parent(&tenant).cancel_at(500_000).register().unwrap();
    query.run(|| assert!(Vec::<u8>::new().try_reserve_exact(2 << 20).is_err()));
    let alone = Service::builder("asks for too much").cancel_at(500_000).register().unwrap();
    alone.run(|| assert!(Vec::<u8>::new().try_reserve_exact(1 << 60).is_err()));
    for service in [query, alone] {
        let rows: Vec<_> = (0..90).map(|_| service.run(|| vec![1_u8; 6_000])).collect();
        let error = cancelled_at_last(&service);
        assert!(error.usage.bytes() >= 500_000, "{error}");
        drop(rows);
    }
}

#[test]
fn a_budget_holds_for_descendants_at_any_depth() {
    let root = Service::builder("has a deep family").cancel_at(100_000).register().unwrap();
    let mut line = vec![root.clone()];
    for depth in 0..100 {
        line.push(child(&format!("at depth {depth}"), line.last().unwrap()));
    }
    let rows = line.last().unwrap().run(|| vec![0_u8; 200_000]);
    let error = cancelled_at_last(&root);
    assert_eq!(error.usage.bytes(), 200_000);
    assert!(error.to_string().contains("holds 195.3 KiB: it got past its budget of 97.7 KiB"), "{error}");
    watch::eventually(|| line.last().unwrap().check().err().ok_or("goes on"));
    drop(rows);
}

/// While the announcement is under way.
#[test]
fn a_budget_that_is_raised_in_time_cancels_nobody() {
    let query = Service::builder("asks for more").soft_limit(100_000).cancel_at(200_000).register().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let goes_on = std::sync::Mutex::new(goes_on);
    query.set_on_soft_limit(move |query| {
        tell.send(()).unwrap();
        let _ = goes_on.lock().unwrap().recv();
        query.set_cancel_at(Some(1 << 30));
    });
    let mut rows = vec![query.run(|| vec![0_u8; 150_000])];
    watch::eventually(|| told.try_recv());
    rows.push(query.run(|| vec![0_u8; 150_000]));
    go_on.send(()).unwrap();
    // What comes after both announcements.
    let barrier = Service::builder("comes after that").soft_limit(10).register().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    barrier.set_on_soft_limit(move |_| tell.send(()).unwrap());
    let block = barrier.run(|| Box::new([0_u8; 100]));
    watch::eventually(|| told.try_recv());
    assert_eq!(query.check(), Ok(()));
    drop((rows, block));
}

#[test]
fn a_budget_can_be_changed_and_lifted() {
    let query = Service::builder("changes its budget").cancel_at(1000).register().unwrap();
    let error = Service::builder("changes its budget").cancel_at(2000).register().unwrap_err();
    assert!(error.to_string().contains("cancelled at: 1000"), "{error}");
    query.set_cancel_at(None);
    assert_eq!(query.cancel_at(), None);
    let rows = query.run(|| vec![0_u8; 100_000]);
    assert_eq!(query.check(), Ok(()));
    // It holds more already: the next allocation finds that.
    query.set_cancel_at(Some(50_000));
    let block = query.run(|| Box::new(1));
    cancelled_at_last(&query);
    drop((rows, block));
}

/// What cancels, and what is cancelled, come and go on several threads.
#[test]
fn cancelling_races_with_everything() {
    thread_local! {
        static RANDOM: Cell<u64> = const { Cell::new(0) };
    }

    fn below(most: u64) -> u64 {
        RANDOM.set(
            RANDOM.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407),
        );
        (RANDOM.get() >> 33) % most
    }

    const NAMES: u64 = 5;
    const ROUNDS: u64 = 2000;

    let (ended, counter) = (AtomicUsize::new(0), Arc::new(Counter::default()));
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let (ended, counter) = (&ended, &counter);
            threads.spawn(move || {
                RANDOM.set(thread + 1);
                for _ in 0..ROUNDS {
                    let service = register(&format!("raced {}", below(NAMES)));
                    let leaf = match below(3) {
                        0 => Service::builder(format!("below {thread}")).parent(&service).register().unwrap(),
                        _ => service.clone(),
                    };
                    let rows = vec![1_u8; below(3000) as usize];
                    let work = async move {
                        let mut rows = rows;
                        rows.extend_from_slice(&[2; 100]);
                        if below(3) != 0 {
                            std::future::pending::<()>().await;
                        }
                        ready(rows.len()).await
                    };
                    let mut future = Box::pin(work.in_service(&leaf).or_cancelled());
                    let mut result = poll(future.as_mut(), counter);
                    if below(2) == 0 {
                        service.cancel(format!("by {thread}"));
                    }
                    if result.is_pending() && below(4) != 0 {
                        // Whoever does it: this one, or another thread that has the same service.
                        leaf.cancel("the last one");
                        result = poll(future.as_mut(), counter);
                        assert!(matches!(result, Poll::Ready(Err(_))));
                    }
                    ended.fetch_add(usize::from(result.is_ready()), SeqCst);
                }
            });
        }
    });
    assert!(ended.load(SeqCst) > 0);
    assert_eq!(Arc::strong_count(&counter), 1, "a waker is left");
    let _ends_what_can_end = dogtag::snapshot();
    for name in 0..NAMES {
        let fresh = register(&format!("raced {name}"));
        assert_eq!(fresh.check(), Ok(()));
        assert_eq!(fresh.usage().allocated_bytes, 0);
    }
}

/// The child has its own copy of all that.
#[test]
fn a_forked_child_cancels_for_itself() {
    alone!();
    let (query, counter) = (register("forked"), Arc::new(Counter::default()));
    let mut future = Box::pin(std::future::pending::<()>().in_service(&query).or_cancelled());
    assert!(poll(future.as_mut(), &counter).is_pending());
    // SAFETY: the child asks dogtag, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let is_well = query.cancel("in the child")
            && counter.0.load(SeqCst) == 1
            && matches!(poll(future.as_mut(), &counter), Poll::Ready(Err(_)));
        // SAFETY: ends the process, without what others may have locked.
        unsafe { libc::_exit(i32::from(!is_well)) };
    }
    let status = watch::ended(child);
    assert!(status.success(), "{status}");
    assert_eq!(query.check(), Ok(()));
    assert!(poll(future.as_mut(), &counter).is_pending());
    assert_eq!(counter.0.load(SeqCst), 0);
}

//! Cancelled services, as snapshots show them: what they held, when they let go, and what is known when
//! they have ended.

use crate::watch;
use dogtag::guard::fallible;
use dogtag::{Cancellation, Cancellations, InServiceExt, Row, Service};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

fn register(name: &str) -> Service {
    Service::register(name).unwrap()
}

fn child(name: &str, parent: &Service) -> Service {
    Service::builder(name).parent(parent).register().unwrap()
}

fn row(service: &Service) -> Row {
    let is_its = |row: &Row| row.name == service.name() && row.handle == service.handle();
    dogtag::snapshot().rows.into_iter().find(is_its).unwrap()
}

fn cancellation(service: &Service) -> Cancellation {
    row(service).cancellation.expect("it was cancelled")
}

fn counts() -> Cancellations {
    dogtag::snapshot().cancellations.expect("the feature is on")
}

#[test]
fn rows_say_who_is_cancelled_and_what_it_holds_still() {
    let tenant = register("tenant with a query");
    let query = child("its query", &tenant);
    let sort = child("sort of its query", &query);
    let (rows, runs) = (query.run(|| vec![0_u8; 3000]), sort.run(|| vec![0_u8; 5000]));
    for service in [&tenant, &query, &sort] {
        assert_eq!((row(service).is_cancelled, row(service).cancellation), (false, None));
    }
    query.cancel("the client\nis gone");
    // Not what is above it; and below it there is nothing of its own to tell.
    assert_eq!((row(&tenant).is_cancelled, row(&tenant).cancellation), (false, None));
    assert_eq!((row(&sort).is_cancelled, row(&sort).cancellation), (true, None));
    let told = cancellation(&query);
    assert!(row(&query).is_cancelled);
    assert_eq!((&*told.by, &*told.reason, told.bytes), ("program", "the client\nis gone", 8000));
    assert_eq!(told.released_after, None);
    drop(rows);
    assert_eq!(cancellation(&query).released_after, None, "its child holds something");
    // No byte of it is forgotten, whatever it does since.
    let late = query.run(|| vec![0_u8; 100]);
    drop(runs);
    assert_eq!(cancellation(&query).released_after, None);
    drop(late);
    let told = cancellation(&query);
    let after = told.released_after.expect("it holds nothing");
    assert!(after <= told.ago && after > Duration::ZERO);
    // Once: what it does since is something else.
    let again = query.run(|| vec![0_u8; 100]);
    drop(cancellation(&query));
    drop(again);
    assert_eq!(cancellation(&query).released_after, Some(after));
    let table = dogtag::snapshot().to_string();
    let line = table.lines().find(|line| line.contains("its query: cancelled ")).unwrap();
    assert!(line.contains(" ago with 7.8 KiB: the client\\nis gone; let go of all within "), "{line}");
    assert!(table.contains("\nits query (cancelled) "), "{table}");
}

/// Where its memory went, the time is taken, and not where somebody looks later.
#[test]
fn a_future_that_is_given_up_is_when_its_service_lets_go() {
    let query = register("is given up");
    let waits = async {
        let rows = vec![0_u8; 1000];
        std::future::pending::<()>().await;
        drop(rows);
    };
    let mut future = pin!(waits.in_service(&query).or_cancelled());
    let context = &mut Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(context).is_pending());
    query.cancel("enough");
    assert!(matches!(future.as_mut().poll(context), Poll::Ready(Err(_))));
    std::thread::sleep(Duration::from_millis(2));
    let told = cancellation(&query);
    let after = told.released_after.expect("nothing is left");
    assert!(told.ago - after >= Duration::from_millis(2), "{told:?}");
}

#[test]
fn a_future_says_when_its_service_is_cancelled() {
    let query = register("is waited for");
    let mut cancelled = Box::pin(query.cancelled());
    let context = &mut Context::from_waker(Waker::noop());
    assert!(cancelled.as_mut().poll(context).is_pending());
    assert_eq!(cancelled.service(), &query);
    query.cancel("by somebody");
    let Poll::Ready(error) = cancelled.as_mut().poll(context) else { panic!("it waits still") };
    assert_eq!((&*error.service, &*error.reason.to_string()), ("is waited for", "by somebody"));
    // At once, if it is too late; and one that is dropped is woken no more.
    assert!(pin!(query.cancelled()).poll(context).is_ready());
    drop(cancelled);
}

/// The counts are the process's.
#[test]
fn counts_stay_when_the_services_have_ended() {
    alone!();
    assert_eq!(counts(), Cancellations::default());
    let cancel = |name: &str, bytes: usize| {
        let query = register(name);
        let rows = query.run(|| vec![0_u8; bytes]);
        // With it, and not beside it.
        let _below = child("below", &query);
        assert!(query.cancel("by the program"));
        assert!(!query.cancel("again"));
        (query, rows)
    };
    let (first, rows) = cancel("first", 1000);
    let (second, others) = cancel("second", 2000);
    let it = counts();
    assert_eq!((it.by_program, it.by_budget, it.by_guard, it.services()), (2, 0, 0, 2));
    assert_eq!((it.released, it.holding, it.holding_bytes), (0, 2, 3000));
    assert_eq!((it.last_release, it.longest_release), (None, None));
    // Its memory outlives it; then the last of both is gone.
    drop(second);
    assert_eq!((counts().holding, counts().holding_bytes), (2, 3000));
    drop(others);
    let it = counts();
    assert_eq!((it.released, it.holding, it.holding_bytes), (1, 1, 1000));
    let slow = it.longest_release.unwrap();
    assert_eq!(it.last_release, Some(slow));
    drop((first, rows));
    let it = counts();
    assert_eq!((it.released, it.holding), (2, 0));
    assert!(it.longest_release >= it.last_release && it.longest_release >= Some(slow));

    // One that has nothing lets go at once.
    register("third").cancel("nothing is there");
    assert_eq!(counts().last_release, Some(Duration::ZERO));

    let budget = Service::builder("fourth").cancel_at(1000).register().unwrap();
    let rows = budget.run(|| vec![0_u8; 2000]);
    watch::eventually(|| budget.check().err().ok_or("not cancelled"));
    assert_eq!((cancellation(&budget).by, cancellation(&budget).bytes), ("budget".to_owned(), 2000));
    budget.run(|| assert!(fallible(|| Vec::<u8>::new().try_reserve(1000)).is_err()));
    drop((budget, rows));
    let it = counts();
    assert_eq!((it.by_program, it.by_budget, it.services()), (3, 1, 4));
    assert_eq!((it.refused, it.released, it.holding), (1, 4, 0));
    let text = dogtag::snapshot().to_string();
    let line = "cancelled: 3 by the program, 1 by their budgets, 0 by the guard; 1 allocations were refused
  4 let go of all (the slowest within ";
    assert!(text.contains(line) && text.contains("), 0 hold 0 B still\n"), "{text}");
}

/// A slot's next service has nothing of it, and a million of them leave nothing but counts.
#[test]
fn many_that_are_cancelled_leave_nothing() {
    // With memory-check, freed blocks in quarantine keep services from ending.
    alone!("quarantine=0");
    let round = |number: u64| {
        let query = register("one of many");
        let rows = query.run(|| vec![0_u8; 100]);
        assert_eq!(row(&query).cancellation, None, "{number}");
        query.cancel("the next one");
        drop((query, rows));
    };
    // Tables that are used again grow until then, memory-check's most.
    (0..2000).for_each(round);
    let held = dogtag::totals().bytes();
    (2000..4000).for_each(round);
    let _ends_what_can_end = dogtag::snapshot();
    assert!(dogtag::totals().bytes() <= held + 10_000, "{} after {held}", dogtag::totals().bytes());
    let it = counts();
    assert_eq!((it.by_program, it.released, it.holding), (4000, 4000, 0));
}

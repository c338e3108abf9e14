//! When services end, and what their successors inherit: nothing.

use dogtag::{Row, Service, Usage};
use std::hint::black_box;
use std::mem::forget;

fn row(name: &str) -> Option<Row> {
    dogtag::snapshot().rows.into_iter().find(|row| row.name == name)
}

/// Another test's thread may be looking at it just now.
fn is_gone(name: &str) -> bool {
    (0..1000).any(|_| {
        std::thread::yield_now();
        row(name).is_none()
    })
}

fn register(name: &str) -> Service {
    Service::register(name).unwrap()
}

#[test]
fn service_without_blocks_ends_at_once() {
    alone!();
    let service = register("brief");
    let clone = service.clone();
    let handle = service.handle();
    service.run(|| drop(black_box(vec![0_u8; 100])));
    drop(service);
    assert_eq!(Service::by_name("brief"), Some(clone.clone()));
    assert!(row("brief").is_some_and(|row| !row.is_retired && row.usage.allocated_bytes == 100));
    drop(clone);
    assert_eq!((Service::by_name("brief"), Service::by_handle(handle)), (None, None));
    assert!(is_gone("brief"));
    assert_eq!(register("brief").usage(), Usage::default());
}

#[test]
fn service_with_blocks_is_retired_until_the_last_is_freed() {
    alone!();
    let service = register("retiree");
    let (first, second) = service.run(|| (vec![0_u8; 1000], vec![0_u8; 234]));
    drop(service);
    let retired = row("retiree").unwrap();
    assert!(retired.is_retired);
    assert_eq!((retired.usage.bytes(), retired.usage.blocks()), (1234, 2));
    assert!(dogtag::snapshot().to_string().contains("\nretiree (retired) "));

    // The name is free; blocks and figures are not the namesake's.
    let namesake = register("retiree");
    assert_eq!(namesake.usage(), Usage::default());
    let third = namesake.run(|| vec![0_u8; 5]);
    std::thread::spawn(move || drop(first)).join().unwrap();
    assert_eq!((namesake.usage().bytes(), namesake.usage().freed_bytes), (5, 0));
    let rows = dogtag::snapshot().rows.into_iter().filter(|row| row.name == "retiree");
    let mut rows: Vec<_> = rows.map(|row| (row.is_retired, row.usage.bytes())).collect();
    rows.sort_unstable();
    assert_eq!(rows, [(false, 5), (true, 234)]);

    let before = dogtag::snapshot();
    drop(second);
    drop(third);
    let after = dogtag::snapshot();
    let rows: Vec<_> = after.rows.iter().filter(|row| row.name == "retiree").collect();
    assert!(rows.len() == 1 && !rows[0].is_retired && rows[0].usage.bytes() == 0);
    // What has ended is not forgotten.
    assert!(after.ended.freed_bytes - before.ended.freed_bytes >= 1234);
    assert!(after.totals.allocated_bytes >= before.totals.allocated_bytes);
    let mut sum = after.rows.iter().map(|row| row.usage).sum::<Usage>() + after.ended;
    sum.peak_bytes = after.totals.peak_bytes;
    assert_eq!(sum, after.totals);
}

#[test]
fn scope_keeps_its_service() {
    alone!();
    let service = register("scoped");
    forget(service.enter());
    drop(service);
    // No clone is left, but this thread is still in it.
    let block = vec![0_u8; 77];
    assert!(row("scoped").is_some_and(|row| row.is_retired && row.usage.bytes() >= 77));
    let revived = Service::current();
    assert_eq!(revived.name(), "scoped");
    assert_eq!(Service::by_name("scoped"), None, "its name is free");
    drop(block);
    {
        let elsewhere = Service::unattributed();
        let _scope = elsewhere.enter();
        assert!(row("scoped").is_some(), "the outer scope keeps it");
        drop(revived);
        assert!(row("scoped").is_some(), "the outer scope keeps it");
    }
    assert_eq!(Service::current().name(), "scoped");
}

#[test]
fn scope_that_is_left_last_keeps_what_it_goes_back_to() {
    alone!();
    let (outer, inner) = (register("outer"), register("inner"));
    let outer_scope = outer.enter();
    let inner_scope = inner.enter();
    drop(outer_scope);
    assert_eq!(Service::current(), Service::unattributed());
    drop(outer);
    assert!(row("outer").is_some_and(|row| row.is_retired), "the inner scope goes back to it");
    drop(inner_scope);
    assert_eq!(Service::current().name(), "outer");
    forget(Service::unattributed().enter());
    assert!(row("outer").is_some(), "a forgotten scope would go back to it");
}

#[test]
fn service_ends_on_threads_that_have_no_cell_of_it() {
    alone!();
    let service = register("untouched");
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| drop(service.enter()));
        }
    });
    assert!(row("untouched").is_some_and(|row| row.usage == Usage::default()));
    drop(service);
    assert!(is_gone("untouched"));
}

#[test]
fn name_is_whose_it_is_while_many_come_and_go() {
    alone!();
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                for _ in 0..20_000 {
                    let service = register("contested");
                    assert_eq!(Service::by_name("contested").as_ref(), Some(&service));
                    assert_eq!(Service::by_handle(service.handle()).as_ref(), Some(&service));
                }
            });
        }
    });
    assert_eq!(Service::by_name("contested"), None);
}

#[test]
fn future_keeps_its_service() {
    alone!();
    use dogtag::InServiceExt;
    let service = register("future");
    let future = async { Box::new(1) }.in_service(&service);
    drop(service);
    assert!(row("future").is_some_and(|row| !row.is_retired));
    drop(future);
    assert!(is_gone("future"));
}

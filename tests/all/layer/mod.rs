//! Spans in services: one thread or a few at a time, and many ([`load`]).

use crate::random::times;
use crate::watch;
use dogtag::{Service, ServiceLayer, UnattributedExt};
use proptest::prelude::*;
use std::hint::black_box;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use tracing::subscriber::with_default;
use tracing::{Dispatch, Span, Subscriber, info, info_span};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, fmt, prelude::*, registry};

/// A log of everything, which nobody reads. (A layer's type knows its subscriber's.)
macro_rules! log {
    () => {
        fmt::layer().with_span_events(fmt::format::FmtSpan::FULL).with_writer(io::sink)
    };
}

macro_rules! spans_only {
    () => {
        filter_fn(|metadata| metadata.is_span())
    };
}

mod attributed;
mod callsites;
mod filtered;
mod left_out;
mod load;
mod model;
mod reload;
mod services;
mod subscribers;

fn plain() -> impl Subscriber {
    registry().with(ServiceLayer::new()).unattributed()
}

/// The name of the service that the calling thread is in.
fn current() -> String {
    let current = Service::current();
    let _apart = Service::unattributed();
    _apart.run(|| current.name().to_owned())
}

fn within(span: &Span) -> String {
    span.in_scope(current)
}

fn live(name: &str) -> u64 {
    Service::by_name(name).map_or(0, |service| service.usage().bytes())
}

#[test]
fn a_field_names_the_service() {
    alone!();
    with_default(plain(), || {
        assert_eq!(within(&info_span!("a", service = "field str")), "field str");
        assert_eq!(within(&info_span!("a", service = %"field display")), "field display");
        assert_eq!(within(&info_span!("a", service = ?7)), "7");
        assert_eq!(within(&info_span!("a", service = 17_u64)), "17");
        assert_eq!(within(&info_span!("a", other = "x", service = Some("field some"))), "field some");
        assert_eq!(within(&info_span!("a", service = None::<&str>)), "unattributed");
        assert_eq!(within(&info_span!("a", service = "")), "unattributed");
        assert_eq!(within(&info_span!("a")), "unattributed");
        assert_eq!(current(), "unattributed");
    });
    let layer = ServiceLayer::new().with_field("component");
    with_default(registry().with(layer), || {
        assert_eq!(within(&info_span!("a", component = "other field", service = "no")), "other field");
    });
    assert_eq!(Service::by_name("no"), None);
}

#[test]
fn a_name_that_is_none_chooses_no_service() {
    alone!();
    with_default(plain(), || {
        let outer = info_span!("a", service = "outer of odd names");
        let _outer = outer.enter();
        let longest = "x".repeat(Service::MAX_NAME_LEN);
        assert_eq!(within(&info_span!("a", service = longest)), longest);
        let long = "é".repeat(1 << 20);
        for within in [
            within(&info_span!("a", service = "")),
            within(&info_span!("a", service = long)),
            within(&info_span!("a", service = %long)),
            within(&info_span!("a", service = %format_args!("{longest}y"))),
        ] {
            assert_eq!(within, "outer of odd names");
        }
        let (_, usage) = dogtag::measure(|| info_span!("a", service = ?long));
        assert!(usage.allocated_bytes < 100_000, "{usage:?}");
    });
    let rows = dogtag::snapshot().rows;
    assert!(rows.iter().all(|row| !row.name.is_empty() && row.name.len() <= Service::MAX_NAME_LEN));
}

#[test]
fn a_field_may_be_recorded_later() {
    alone!();
    with_default(plain(), || {
        let span = info_span!("a", service = tracing::field::Empty);
        span.in_scope(|| {
            let inner = info_span!("b", service = "inner of later");
            let inner = inner.enter();
            span.record("service", "later");
            assert_eq!(current(), "inner of later");
            drop(inner);
            // From here on, and where it is entered already.
            assert_eq!(current(), "later");
            span.in_scope(|| {
                span.record("service", "even later");
                assert_eq!(current(), "even later");
            });
            assert_eq!(current(), "even later");
        });
        assert_eq!(current(), "unattributed");
        assert_eq!(within(&span), "even later");
        drop(span);
    });
    for name in ["later", "even later", "inner of later"] {
        // The layer is gone, and with it all that held them; unless dogtag's own thread is
        // telling it of something at this moment.
        watch::eventually(|| Service::by_name(name).map_or(Ok(()), |held| Err(format!("{held:?} is held"))));
    }
}

#[test]
fn children_run_in_their_parents_service() {
    alone!();
    with_default(plain(), || {
        let request = info_span!("request", service = "request");
        let child = request.in_scope(|| info_span!("child"));
        let grandchild = info_span!(parent: &child, "grandchild");
        let own = info_span!(parent: &child, "own", service = "own");
        let dispatch = tracing::dispatcher::get_default(Dispatch::clone);
        thread::scope(|threads| {
            threads.spawn(|| {
                tracing::dispatcher::with_default(&dispatch, || {
                    assert_eq!(within(&child), "request");
                    assert_eq!(within(&grandchild), "request");
                    assert_eq!(within(&own), "own");
                    assert_eq!(current(), "unattributed");
                });
            });
        });
        let by_hand = Service::register("by hand").unwrap();
        request.in_scope(|| {
            by_hand.run(|| {
                assert_eq!(within(&child), "by hand");
                assert_eq!(within(&info_span!("another child")), "by hand");
                assert_eq!(within(&own), "own");
                own.in_scope(|| assert_eq!(within(&child), "request"));
                assert_eq!(current(), "by hand");
            });
            assert_eq!(current(), "request");
        });
    });
}

#[test]
fn spans_are_entered_by_many_at_once_and_twice_by_one() {
    alone!();
    let layer = registry().with(ServiceLayer::new()).unattributed();
    with_default(layer, || {
        let span = info_span!("busy", service = "busy");
        let boxes = span.in_scope(|| span.in_scope(|| Box::new([0_u8; 100])));
        let everyone = 4;
        let barrier = std::sync::Barrier::new(everyone);
        let kept: Vec<Box<[u8; 10]>> = thread::scope(|threads| {
            let threads: Vec<_> = (0..everyone)
                .map(|_| {
                    let (span, barrier) = (span.clone(), &barrier);
                    threads.spawn(move || {
                        let _entered = span.entered();
                        barrier.wait();
                        let block = Box::new([0; 10]);
                        barrier.wait();
                        block
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(live("busy"), 100 + 10 * everyone as u64);
        drop((boxes, kept));
        assert_eq!(live("busy"), 0);
    });
}

#[test]
fn spans_may_be_left_in_any_order() {
    alone!();
    with_default(plain(), || {
        let (a, b, c) = (
            info_span!("a", service = "order a"),
            info_span!("b", service = "order b"),
            info_span!("c", service = "order c"),
        );
        let (a, b, c) = (a.entered(), b.entered(), c.entered());
        let a = a.exit();
        assert_eq!(current(), "order c");
        let c = c.exit();
        assert_eq!(current(), "order b");
        let b = b.exit();
        assert_eq!(current(), "unattributed");
        drop((a, b, c));
    });
    assert_eq!(Service::by_name("order a"), None);
    // Nothing of them was left behind.
    let snapshot = dogtag::snapshot();
    assert!(!snapshot.rows.iter().any(|row| row.name.starts_with("order ")), "{snapshot}");
}

#[test]
fn spans_come_and_go_on_several_threads() {
    alone!();
    let dispatch = Dispatch::new(plain());
    let names = ["come a", "come b", "come c"];
    let (send, receive) = std::sync::mpsc::sync_channel::<(usize, Span)>(10);
    let other = thread::spawn(move || {
        for (which, span) in receive {
            assert_eq!(within(&span), names[which]);
        }
    });
    tracing::dispatcher::with_default(&dispatch, || {
        for i in 0..20_000 {
            let which = i * 7 % 5 % 3;
            let span = info_span!("a", service = names[which]);
            // Remembered here, and elsewhere.
            if i % 3 == 0 {
                assert_eq!(within(&span), names[which]);
            }
            let child = info_span!(parent: &span, "child");
            assert_eq!(within(&child), names[which]);
            send.send((which, if i % 2 == 0 { span } else { child })).unwrap();
        }
    });
    drop(send);
    other.join().unwrap();
}

/// The registry uses a number again after 8,191 other spans in the same place.
#[test]
fn numbers_are_used_again() {
    alone!();
    let is_service = |metadata: &tracing::Metadata<'_>| metadata.name() != "hidden";
    let subscriber = || {
        registry()
            .with(log!())
            .with(ServiceLayer::new().keep_services(false).with_filter(filter_fn(is_service)))
    };
    with_default(subscriber(), || {
        let (mut seen, mut again) = (std::collections::HashMap::new(), 0);
        for i in 0..20_000 {
            let name = ["even", "odd"][i % 2];
            let span = info_span!("a", service = name);
            again += usize::from(seen.insert(span.id(), name).is_some_and(|before| before != name));
            assert_eq!(within(&span), name);
            assert_eq!(within(&info_span!(parent: &span, "child")), name);
        }
        assert!(again > 0, "no number was used again for another service, and nothing is shown");
    });
    // A span that the layer does not see has the number of one that it saw.
    with_default(subscriber(), || {
        let span = info_span!("a", service = "long gone");
        let number = span.id();
        drop(span);
        let hidden = (0..20_000).map(|_| info_span!("hidden")).find(|span| span.id() == number);
        let hidden = hidden.expect("the number was not used again, and nothing is shown");
        assert_eq!(within(&hidden), "unattributed");
        assert_eq!(within(&info_span!(parent: &hidden, "child")), "unattributed");
        assert_eq!(hidden.in_scope(|| within(&info_span!("child"))), "unattributed");
        assert_eq!(Service::by_name("long gone"), None);
    });
}

#[test]
fn a_span_changes_its_service_while_others_enter_it() {
    alone!();
    let layer = registry().with(ServiceLayer::new().keep_services(false)).unattributed();
    with_default(layer, || {
        let span = info_span!("a", service = "first of many");
        /// Ends the others, though this thread fails.
        struct Over<'a>(&'a AtomicBool);

        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let is_over = AtomicBool::new(false);
        thread::scope(|threads| {
            for _ in 0..3 {
                threads.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        let name = within(&span);
                        assert!(name == "first of many" || name.starts_with("later "), "{name}");
                    }
                });
            }
            let _over = Over(&is_over);
            for i in 0..2000_i32 {
                let service = Service::register(format!("later {i}")).unwrap();
                assert!(service.attach(&span));
                assert_eq!(within(&span), format!("later {i}"));
                drop(service);
                // The last one is held, and of those before none but for the moment in which
                // others look where they are.
                let before = format!("later {}", i - 1);
                let is_gone = (0..100_000).any(|_| {
                    Service::by_name(&before).is_none() || {
                        thread::yield_now();
                        false
                    }
                });
                assert!(is_gone, "{before} is still held");
            }
        });
        assert_eq!(Service::by_name("first of many"), None);
        drop(span);
        assert_eq!(Service::by_name("later 1999"), None);
    });
}

#[test]
fn a_panic_leaves_the_span() {
    alone!();
    with_default(plain(), || {
        let span = info_span!("a", service = "panics");
        let caught: Result<(), _> = catch_unwind(AssertUnwindSafe(|| {
            span.in_scope(|| std::panic::resume_unwind(Box::new("on purpose")))
        }));
        assert!(caught.is_err());
        assert_eq!(current(), "unattributed");
    });
}

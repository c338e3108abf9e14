//! Spans in services: one thread or a few at a time, and many ([`load`]).

mod filtered;
mod load;
mod reload;

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

#[test]
fn a_span_is_closed_on_another_thread() {
    alone!();
    with_default(plain(), || {
        let span = info_span!("a", service = "closed elsewhere");
        span.in_scope(|| ());
        assert!(Service::by_name("closed elsewhere").is_some());
        thread::spawn(move || drop(span)).join().unwrap();
    });
    assert_eq!(Service::by_name("closed elsewhere"), None);
}

#[test]
fn a_thread_that_ends_in_a_span_leaves_it() {
    alone!();
    let dispatch = Dispatch::new(plain());
    let service = Service::register("ends inside").unwrap();
    thread::spawn({
        let dispatch = dispatch.clone();
        move || {
            tracing::dispatcher::with_default(&dispatch, || {
                std::mem::forget(info_span!("a", service = "ends inside").entered());
                drop(black_box(Box::new([0_u8; 10])));
            });
        }
    })
    .join()
    .unwrap();
    assert_eq!(service.usage().allocated_bytes, 10);
    drop(service);
    // The forgotten span holds the layer's clone of it; without that nobody is in it.
    let holder = Service::by_name("ends inside").unwrap();
    assert_eq!(holder.usage().bytes(), 0);
}

#[test]
fn rules_choose_services() {
    alone!();
    with_default(registry().with(ServiceLayer::by_target()), || {
        assert_eq!(within(&info_span!("a")), module_path!());
        assert_eq!(within(&info_span!(target: "db::pool", "a")), "db::pool");
        assert_eq!(within(&info_span!(target: "db::pool", "a", service = "field first")), "field first");
        info_span!("outer").in_scope(|| {
            assert_eq!(within(&info_span!(target: "db::query", "a")), "db::query");
        });
    });
    with_default(registry().with(ServiceLayer::by_span_name()), || {
        assert_eq!(within(&info_span!("checkout")), "checkout");
    });
    let slow = Service::register("slow ones").unwrap();
    let layer = ServiceLayer::by(move |span| (span.metadata().name() == "slow").then(|| slow.clone()));
    with_default(registry().with(layer), || {
        assert_eq!(within(&info_span!("slow")), "slow ones");
        assert_eq!(within(&info_span!("fast")), "unattributed");
        info_span!("slow").in_scope(|| assert_eq!(within(&info_span!("fast")), "slow ones"));
    });
}

#[test]
fn services_are_kept_or_not() {
    alone!();
    with_default(registry().with(ServiceLayer::new()), || {
        drop(info_span!("a", service = "kept"));
        assert!(Service::by_name("kept").is_some());
    });
    assert_eq!(Service::by_name("kept"), None);
    with_default(registry().with(ServiceLayer::new().keep_services(false)), || {
        let span = info_span!("a", service = "not kept");
        let child = info_span!(parent: &span, "child");
        assert!(Service::by_name("not kept").is_some());
        drop(span);
        assert!(Service::by_name("not kept").is_some());
        drop(child);
        assert_eq!(Service::by_name("not kept"), None);
    });
}

#[test]
fn a_service_is_attached_by_hand() {
    alone!();
    let auth = Service::register("attached").unwrap();
    let other = Service::register("attached first").unwrap();
    let check = |span: &Span| {
        assert!(auth.attach(span));
        assert_eq!(within(span), "attached");
        assert_eq!(within(&info_span!(parent: span, "child")), "attached");
    };
    with_default(plain(), || {
        check(&info_span!("a"));
        check(&info_span!("a", service = "named"));
        let span = info_span!("a");
        assert!(other.attach(&span));
        span.in_scope(|| {
            assert!(auth.attach(&span));
            assert_eq!(current(), "attached");
        });
        assert_eq!(current(), "unattributed");
    });
    with_default(registry().with(ServiceLayer::new().with_filter(LevelFilter::INFO)), || {
        check(&info_span!("a"))
    });
    with_default(registry().with(fmt::layer().with_writer(io::sink)), || {
        assert!(!auth.attach(&info_span!("a")), "there is no layer");
    });
    with_default(registry().with(ServiceLayer::new()).with(LevelFilter::WARN), || {
        assert!(!auth.attach(&info_span!("a")), "the span is disabled");
    });
    assert!(!auth.attach(&info_span!("no subscriber")));
}

#[test]
fn children_keep_what_they_have() {
    alone!();
    let later = Service::register("their parent's later").unwrap();
    with_default(plain(), || {
        let parent = info_span!("parent", service = "their parent's");
        let child = parent.in_scope(|| info_span!("child"));
        parent.in_scope(|| {
            child.in_scope(|| {
                assert!(later.attach(&parent));
                assert_eq!(current(), "their parent's");
                assert_eq!(within(&child), "their parent's");
                assert_eq!(within(&parent), "their parent's later");
                assert_eq!(current(), "their parent's");
            });
            assert_eq!(current(), "their parent's later");
            assert_eq!(within(&child), "their parent's");
        });
        assert_eq!(current(), "unattributed");
        // The same one generation further down, which itself is where its parent is.
        let grandchild = info_span!(parent: &child, "grandchild");
        let parent = info_span!("parent", service = "their parent's");
        let child = info_span!(parent: &parent, "child");
        let grandchildren = [info_span!(parent: &child, "grandchild"), grandchild];
        parent.in_scope(|| {
            child.in_scope(|| {
                grandchildren[0].in_scope(|| {
                    assert!(later.attach(&child));
                    assert_eq!(current(), "their parent's");
                });
                assert_eq!(current(), "their parent's later");
            });
            assert_eq!(current(), "their parent's");
        });
        assert_eq!(current(), "unattributed");
    });
    drop(later);
    let snapshot = dogtag::snapshot();
    assert!(!snapshot.rows.iter().any(|row| row.name.starts_with("their parent's")), "{snapshot}");
}

#[test]
fn two_layers_do_not_take_each_others_spans() {
    alone!();
    let layers = || {
        registry()
            .with(ServiceLayer::new().keep_services(false))
            .with(ServiceLayer::new().with_field("tenant").keep_services(false))
    };
    with_default(layers(), || {
        let span = info_span!("a", service = "of one", tenant = "of two");
        assert_eq!(within(&span), "of one");
        let other = info_span!("a", tenant = "of two");
        assert_eq!(within(&other), "of two");
        span.in_scope(|| assert_eq!(within(&other), "of two"));
        drop((span, other));
        assert_eq!((Service::by_name("of one"), Service::by_name("of two")), (None, None));
    });
}

/// A layer that allocates at every opportunity, and keeps what it allocates.
struct Greedy(std::sync::Mutex<Vec<String>>);

impl Greedy {
    fn eat(&self) {
        self.0.lock().unwrap().push("x".repeat(100));
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Greedy {
    fn on_new_span(&self, _: &tracing::span::Attributes<'_>, _: &tracing::Id, _: Context<'_, S>) {
        self.eat();
    }
    fn on_record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>, _: Context<'_, S>) {
        self.eat();
    }
    fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
        self.eat();
    }
    fn on_enter(&self, _: &tracing::Id, _: Context<'_, S>) {
        self.eat();
    }
    fn on_exit(&self, _: &tracing::Id, _: Context<'_, S>) {
        self.eat();
    }
    fn on_close(&self, _: tracing::Id, _: Context<'_, S>) {
        self.eat();
    }
}

#[test]
fn what_tracing_allocates_is_nobodys() {
    alone!();
    let greedy = || Greedy(Vec::new().into());
    let subscribers: [Dispatch; 3] = [
        registry().with(ServiceLayer::new()).with(greedy()).with(log!()).unattributed().into(),
        registry().with(greedy()).with(log!()).with(ServiceLayer::new()).unattributed().into(),
        registry().unattributed().with(ServiceLayer::new()).with(greedy()).unattributed().into(),
    ];
    for subscriber in &subscribers {
        let service = Service::register("careful").unwrap();
        let before = service.usage().allocated_bytes;
        // Threads that have none of tracing's things yet.
        thread::scope(|threads| {
            threads.spawn(|| {
                tracing::dispatcher::with_default(subscriber, || {
                    let outer = info_span!("outer", service = "careful", what = tracing::field::Empty);
                    let _outer = outer.enter();
                    let mut spans = [const { None }; 40];
                    for (i, place) in spans.iter_mut().enumerate() {
                        let span = info_span!("inner", i, text = "some text").entered();
                        outer.record("what", i);
                        info!(i, "an event with {} words", 5);
                        *place = Some(span);
                    }
                    let allocated = || service.usage().allocated_bytes - before;
                    assert_eq!(allocated(), 0);
                    drop(black_box(Box::new([0_u8; 77])));
                    spans.iter_mut().for_each(|span| drop(span.take()));
                    assert_eq!(allocated(), 77);
                });
            });
        });
    }
}

#[test]
fn the_layers_own_needs_are_nobodys() {
    alone!();
    thread::spawn(|| {
        with_default(registry().with(ServiceLayer::new()), || {
            let service = Service::register("its own").unwrap();
            let outer = info_span!("a", service = "its own");
            // The registry has grown, so that what is counted is the layer's.
            let many = || {
                (0..30).map(|_| info_span!("b", service = "another of them").entered()).collect::<Vec<_>>()
            };
            let vector = many();
            drop(vector);
            let before = service.usage().allocated_bytes;
            outer.in_scope(|| {
                for i in 0..100 {
                    drop(info_span!("b", service = format!("made up {i}")));
                }
            });
            let own = service.usage().allocated_bytes - before;
            // `format!` is ours: ten times 9 bytes, ninety times 10, as it grows.
            let named: u64 = (0..100).map(|i| format!("made up {i}").capacity() as u64).sum();
            assert!(own <= 2 * named, "{own} bytes for {named} of names");
        });
    })
    .join()
    .unwrap();
}

#[test]
fn the_order_of_layers_and_their_filters_do_not_matter() {
    alone!();
    let subscribers: [Dispatch; 6] = [
        registry().with(ServiceLayer::new()).with(log!()).into(),
        registry().with(log!()).with(ServiceLayer::new()).into(),
        registry()
            .with(ServiceLayer::new().with_filter(spans_only!()))
            .with(log!().with_filter(LevelFilter::OFF))
            .into(),
        registry()
            .with(log!().with_filter(LevelFilter::ERROR))
            .with(ServiceLayer::new().with_filter(spans_only!()))
            .into(),
        registry().with(Some(ServiceLayer::new())).with(LevelFilter::INFO).into(),
        registry().with(ServiceLayer::new().and_then(log!()).boxed()).into(),
    ];
    for subscriber in &subscribers {
        tracing::dispatcher::with_default(subscriber, || {
            let span = info_span!("a", service = "filters");
            assert_eq!(within(&span), "filters");
            span.in_scope(|| {
                info!("an event");
                assert_eq!(within(&info_span!("b")), "filters");
            });
            assert_eq!(current(), "unattributed");
        });
    }
    // What the layer does not see does nothing, and hands its parent's service on.
    let only_important = filter_fn(|metadata| metadata.name() != "noise");
    with_default(registry().with(log!()).with(ServiceLayer::new().with_filter(only_important)), || {
        let outer = info_span!("outer", service = "heard");
        outer.in_scope(|| {
            let noise = info_span!("noise", service = "noise");
            assert_eq!(within(&noise), "heard");
            let inner = noise.in_scope(|| info_span!("inner"));
            drop(noise);
            assert_eq!(within(&inner), "heard");
        });
    });
    assert_eq!(Service::by_name("noise"), None);
}

#[test]
fn subscribers_come_and_go() {
    alone!();
    let (first, second) = (Dispatch::new(plain()), Dispatch::new(plain()));
    let outer = tracing::dispatcher::with_default(&first, || info_span!("a", service = "of the first"));
    let outer = outer.entered();
    assert_eq!(current(), "of the first");
    let inner =
        tracing::dispatcher::with_default(&second, || info_span!("b", service = "of the second")).entered();
    // Their numbers are the same, in storages of their own.
    assert_eq!(outer.id(), inner.id());
    assert_eq!(current(), "of the second");
    drop(first);
    let outer = outer.exit();
    assert_eq!(current(), "of the second");
    with_default(Registry::default(), || assert_eq!(current(), "of the second"));
    drop(inner);
    assert_eq!(current(), "unattributed");
    drop((second, outer));
}

/// Spans entered and left in any order: the thread is in the service of the last
/// one that it has entered, not left, and that took it anywhere.
#[test]
fn spans_are_as_a_simple_model_has_them() {
    alone!();
    random_spans();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: times(256) as u32, ..ProptestConfig::default() })]

    fn random_spans(steps in proptest::collection::vec((0..7_usize, any::<bool>(), 0..8_usize), 0..60)) {
        with_default(plain(), || {
            let mut spans = vec![
                info_span!("a", service = "model a"),
                info_span!("b", service = "model b"),
                info_span!("c", service = "model a"),
                info_span!("d"),
            ];
            spans.push(info_span!(parent: &spans[0], "child of a"));
            spans.push(info_span!(parent: &spans[1], "child of b"));
            spans.push(info_span!(parent: &spans[4], "grandchild of a"));
            let names = [Some("model a"), Some("model b"), Some("model a"), None, Some("model a"), Some("model b"), Some("model a")];
            let origins = [0, 1, 2, 9, 0, 1, 0];
            let (mut model, mut entered) = (vec![], vec![]);
            for (span, enters, which) in steps {
                if enters || model.is_empty() {
                    let innermost = model.iter().rev().find_map(|(to, origin): &(Option<&str>, usize)| to.map(|_| *origin));
                    let is_inherited = origins[span] != span;
                    let stays = is_inherited && innermost == Some(origins[span]);
                    model.push((names[span].filter(|_| !stays), origins[span]));
                    entered.push(Some(spans[span].clone().entered()));
                } else {
                    let which = which % model.len();
                    let span = entered.remove(which).unwrap();
                    // Which of a span's several entries goes, tracing does not tell: the last one.
                    let same = entered[which..].iter().rposition(|other| other.as_ref().unwrap().id() == span.id());
                    model.remove(same.map_or(which, |at| which + at + 1));
                    if let Some(at) = same {
                        let last = entered.remove(which + at);
                        entered.insert(which, last);
                    }
                    drop(span);
                }
                let expected = model.iter().rev().find_map(|(to, _)| *to).unwrap_or("unattributed");
                prop_assert_eq!(current(), expected);
            }
            // The guards are dropped in any order, too.
            drop(entered);
            prop_assert_eq!(current(), "unattributed");
            Ok(())
        })?;
        let left = dogtag::snapshot();
        prop_assert!(!left.rows.iter().any(|row| row.name.starts_with("model ")), "{}", left);
    }
}

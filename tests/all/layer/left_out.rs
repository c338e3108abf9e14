//! Services of spans that the program's own filters leave out.

use super::*;
use dogtag::{Attributed, attributed};
use tracing::{Metadata, debug_span, field};

fn off() -> Attributed<impl Subscriber + Send + Sync> {
    attributed(fmt().with_max_level(LevelFilter::OFF).finish()).with_layer(ServiceLayer::new())
}

/// `info` is there, `debug` is hidden.
fn info_only() -> Attributed<impl Subscriber + Send + Sync> {
    let log = fmt().with_env_filter("info").with_writer(io::sink);
    attributed(log.finish()).with_layer(ServiceLayer::new().keep_services(false))
}

#[test]
fn services_are_inherited_by_and_from_spans_that_are_left_out() {
    alone!();
    with_default(info_only(), || {
        let outer = debug_span!("outer", service = "outer");
        let shown = outer.in_scope(|| info_span!("shown"));
        let hidden = info_span!(parent: &shown, "shown too").in_scope(|| debug_span!("hidden"));
        let own = debug_span!(parent: &hidden, "own", service = "own");
        let last = own.in_scope(|| info_span!("last"));
        let dispatch = tracing::dispatcher::get_default(Dispatch::clone);
        let look = || {
            tracing::dispatcher::with_default(&dispatch, || {
                for (span, name) in
                    [(&outer, "outer"), (&shown, "outer"), (&hidden, "outer"), (&own, "own"), (&last, "own")]
                {
                    assert_eq!(within(span), name);
                    assert_eq!(span.in_scope(|| within(&info_span!("child"))), name);
                    assert_eq!(span.in_scope(|| within(&debug_span!("child"))), name);
                    assert_eq!(within(&debug_span!(parent: span, "child")), name);
                    assert_eq!(span.in_scope(|| within(&info_span!(parent: None, "root"))), name);
                    assert_eq!(current(), "unattributed");
                }
            });
        };
        look();
        thread::scope(|threads| threads.spawn(look).join().unwrap());
        // A field that is recorded, and a service that is attached.
        let later = debug_span!("later", service = field::Empty);
        let attached = Service::register("attached to hidden").unwrap();
        later.in_scope(|| {
            later.record("service", "recorded later");
            assert_eq!(current(), "recorded later");
            assert!(attached.attach(&later));
            assert_eq!(current(), "attached to hidden");
            assert_eq!(within(&info_span!("child")), "attached to hidden");
        });
        drop((outer, shown, hidden, own, last, later));
        assert_eq!(
            [Service::by_name("outer"), Service::by_name("own"), Service::by_name("recorded later")],
            [None, None, None]
        );
    });
}

#[test]
fn what_is_handed_on_runs_in_the_service_of_a_span_that_is_left_out() {
    alone!();
    with_default(off(), || {
        let hidden = debug_span!("hidden", service = "handed on");
        let (handed_on, id) = hidden.in_scope(|| (Span::current(), Span::current().id()));
        assert_eq!(id, hidden.id());
        assert_eq!(handed_on.metadata().map(Metadata::name), Some("hidden"));
        assert_eq!(within(&handed_on), "handed on");
        assert!(Span::current().is_none());
    });
    with_default(info_only(), || {
        let shown = info_span!("shown", service = "shown").entered();
        let _hidden = debug_span!("hidden", service = "hidden").entered();
        assert_eq!(Span::current().id(), shown.id());
        assert_eq!(current(), "hidden");
    });
}

/// The registry's places are used again, and nothing is kept of spans that are gone.
#[test]
fn spans_that_are_left_out_are_forgotten() {
    alone!();
    // One at a time: where one wants everything, dogtag tells of all services that come and go.
    let subscribers: [fn() -> Dispatch; 3] =
        [|| off().into(), || info_only().into(), || attributed(registry()).into()];
    for subscriber in subscribers {
        tracing::dispatcher::with_default(&subscriber(), || {
            let round = || {
                for i in 0..10_000 {
                    let span = debug_span!("a", service = ["even", "odd"][i % 2]);
                    let child = span.in_scope(|| info_span!("child"));
                    drop(span.clone());
                    drop(span);
                    child.in_scope(|| drop(debug_span!("grandchild")));
                }
            };
            round();
            let before = dogtag::totals().bytes();
            round();
            let after = dogtag::totals().bytes();
            assert!(after < before + 100_000, "{before} bytes before, {after} after");
        });
    }
}

/// Extensions of spans, such as tracing-opentelemetry's, look their data up in the registry.
#[test]
fn spans_that_are_left_out_are_found_without_data() {
    alone!();
    let dispatch = Dispatch::new(off());
    with_default(&dispatch, || {
        let span = debug_span!("a", service = "found");
        let registry = dispatch.downcast_ref::<Registry>().unwrap();
        let found = registry.span(&span.id().unwrap()).unwrap();
        assert!(found.parent().is_none() && found.extensions().get::<String>().is_none());
    });

    fn with_default(dispatch: &Dispatch, f: impl FnOnce()) {
        tracing::dispatcher::with_default(dispatch, f);
    }
}

#[test]
fn panics_and_spans_that_are_not_left_in_order() {
    alone!();
    with_default(info_only(), || {
        let (a, b) = (debug_span!("a", service = "order a"), info_span!("b", service = "order b"));
        let caught: Result<(), _> = catch_unwind(AssertUnwindSafe(|| {
            a.in_scope(|| b.in_scope(|| std::panic::resume_unwind(Box::new("on purpose"))))
        }));
        assert!(caught.is_err());
        assert_eq!(current(), "unattributed");
        let (a, b, again) = (a.clone().entered(), b.entered(), a.entered());
        let a = a.exit();
        assert_eq!(current(), "order b");
        drop(b);
        assert_eq!(current(), "order a");
        drop(again);
        assert_eq!(current(), "unattributed");
        drop(a);
        assert_eq!([Service::by_name("order a"), Service::by_name("order b")], [None, None]);
    });
}

/// As safe code can, by numbers.
#[test]
fn a_span_that_is_left_out_is_closed_while_a_thread_is_in_it() {
    alone!();
    let dispatch = Dispatch::new(info_only());
    tracing::dispatcher::with_default(&dispatch, || {
        let span = debug_span!("a", service = "closed within");
        let id = span.id().unwrap();
        std::mem::forget(span.enter());
        assert_eq!(current(), "closed within");
        drop(span);
        assert_eq!(current(), "unattributed");
        assert_eq!(Service::by_name("closed within"), None);
        // Of which there is no span any more.
        dispatch.exit(&id);
        dispatch.exit(&id);
        assert!(dispatch.current_span().id().is_none());
        let span = debug_span!("b", service = "closed elsewhere");
        let id = span.id().unwrap();
        let child = span.in_scope(|| info_span!("child"));
        dispatch.enter(&id);
        thread::scope(|threads| assert!(threads.spawn(|| dispatch.try_close(id.clone())).join().unwrap()));
        assert_eq!(current(), "closed elsewhere");
        assert!(dispatch.current_span().id().is_none());
        assert_eq!(within(&info_span!("after")), "closed elsewhere");
        dispatch.exit(&id);
        assert_eq!((current(), within(&child)), ("unattributed".to_owned(), "closed elsewhere".to_owned()));
        std::mem::forget(span);
        drop(child);
        assert_eq!(Service::by_name("closed elsewhere"), None);
    });
}

#[test]
fn what_tracing_allocates_for_spans_that_are_left_out_is_nobodys() {
    alone!();
    let (off, info_only) = (Dispatch::new(off()), Dispatch::new(info_only()));
    for subscriber in [&off, &info_only] {
        let service = Service::register("careful").unwrap();
        let before = service.usage().allocated_bytes;
        thread::scope(|threads| {
            threads.spawn(|| {
                tracing::dispatcher::with_default(subscriber, || {
                    let outer = debug_span!("outer", service = "careful", what = field::Empty);
                    let _outer = outer.enter();
                    let mut spans = [const { None }; 40];
                    for (i, place) in spans.iter_mut().enumerate() {
                        let span = if i % 2 == 0 { debug_span!("inner", i) } else { info_span!("inner", i) }
                            .entered();
                        outer.record("what", i);
                        info!(parent: &span, text = ?[i; 10], "an event with {} words", 5);
                        *place = Some(span);
                    }
                    drop(black_box(Box::new([0_u8; 77])));
                    spans.iter_mut().for_each(|span| drop(span.take()));
                    // What is formatted inside of an event's own text is its caller's.
                    assert_eq!(service.usage().allocated_bytes - before, 77);
                });
            });
        });
    }
}

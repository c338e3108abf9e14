//! Layers that are exchanged and taken away while spans are there, and are entered.
#![forbid(unsafe_code)]

use dogtag::{Service, ServiceLayer, UnattributedExt};
use std::mem;
use std::thread;
use tracing::dispatcher::with_default;
use tracing::{Dispatch, Span, Subscriber, info_span};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::{Layer, Registry, prelude::*, registry, reload};

type Handle<L> = reload::Handle<L, Registry>;

fn reloadable<L: Layer<Registry> + Send + Sync>(layer: L) -> (Dispatch, Handle<L>) {
    let (layer, handle) = reload::Layer::new(layer);
    (Dispatch::new(registry().with(layer)), handle)
}

fn unkept() -> ServiceLayer {
    ServiceLayer::new().keep_services(false)
}

/// The name of the service that the calling thread is in.
fn current() -> String {
    let current = Service::current();
    Service::unattributed().run(|| current.name().to_owned())
}

fn within(span: &Span) -> String {
    span.in_scope(current)
}

/// Has two subscribers' layers exchange their places.
fn exchange<L: Layer<Registry> + Send + Sync + 'static>(one: &Handle<L>, other: &Handle<L>, mut third: L) {
    one.modify(|layer| mem::swap(layer, &mut third)).unwrap();
    other.modify(|layer| mem::swap(layer, &mut third)).unwrap();
    one.modify(|layer| mem::swap(layer, &mut third)).unwrap();
}

/// Spans of two subscribers, which have the same number; their layers change places.
fn spans_keep_their_services<L: Layer<Registry> + Send + Sync + 'static>(make: impl Fn() -> L, name: &str) {
    let ((one, one_handle), (other, other_handle)) = (reloadable(make()), reloadable(make()));
    let none = with_default(&other, || info_span!("none"));
    let some = with_default(&one, || info_span!("some", service = name));
    assert_eq!(none.id(), some.id(), "the numbers are not the same, and nothing is shown");
    exchange(&one_handle, &other_handle, make());
    assert_eq!((within(&none), within(&some)), ("unattributed".to_owned(), name.to_owned()));
    let (none_child, some_child) = (
        with_default(&other, || info_span!(parent: &none, "child")),
        with_default(&one, || info_span!(parent: &some, "child")),
    );
    exchange(&one_handle, &other_handle, make());
    assert_eq!((within(&none_child), within(&some_child)), ("unattributed".to_owned(), name.to_owned()));
    // One within the other, left in the order in which they were entered.
    let entered = some.enter();
    exchange(&one_handle, &other_handle, make());
    let inner = none.enter();
    assert_eq!(current(), name);
    exchange(&one_handle, &other_handle, make());
    drop(inner);
    assert_eq!(current(), name);
    exchange(&one_handle, &other_handle, make());
    drop(entered);
    assert_eq!(current(), "unattributed");
    // The service ends with its last span, whichever layer it is that is told.
    with_default(&one, || drop((some, some_child)));
    assert_eq!(Service::by_name(name), None);
    assert_eq!((within(&none), within(&none_child)), ("unattributed".to_owned(), "unattributed".to_owned()));
}

#[test]
fn spans_keep_their_services_when_layers_change_places() {
    alone!();
    spans_keep_their_services(unkept, "changes places");
}

#[test]
fn spans_keep_their_services_when_boxed_layers_change_places() {
    alone!();
    spans_keep_their_services(|| unkept().boxed(), "changes places in a box");
    spans_keep_their_services(|| Some(Box::new(unkept())), "changes places in an option");
    spans_keep_their_services(|| vec![unkept().boxed()], "changes places in a vector");
}

/// A span is made, and closed, while its layer is elsewhere.
#[test]
fn a_layer_that_was_away_does_not_know_what_was_meanwhile() {
    alone!();
    let (layer, handle) = reload::Layer::new(Some(unkept()));
    // Without another layer there are no spans while there is none.
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::sink);
    with_default(&Dispatch::new(registry().with(layer).with(log)), || {
        let mut away = None;
        let span = info_span!("a", service = "before it was away");
        assert_eq!(within(&span), "before it was away");
        let number = span.id();
        handle.modify(|layer| mem::swap(layer, &mut away)).unwrap();
        drop(span);
        assert_eq!(Service::by_name("before it was away"), None);
        let other =
            (0..20_000).map(|_| info_span!("b", service = "nobody's")).find(|span| span.id() == number);
        let other = other.expect("the number was not used again, and nothing is shown");
        handle.modify(|layer| mem::swap(layer, &mut away)).unwrap();
        assert_eq!(within(&other), "unattributed");
        assert_eq!(within(&info_span!(parent: &other, "child")), "unattributed");
        let auth = Service::register("after it was away").unwrap();
        assert!(auth.attach(&other));
        assert_eq!(within(&other), "after it was away");
    });
}

#[test]
fn a_span_is_left_though_its_layer_was_exchanged() {
    alone!();
    let (subscriber, handle) = reloadable(ServiceLayer::new());
    with_default(&subscriber, || {
        let span = info_span!("a", service = "exchanged within");
        let child = span.in_scope(|| {
            handle.reload(ServiceLayer::new()).unwrap();
            assert_eq!(current(), "exchanged within");
            let child = info_span!("child");
            assert_eq!(within(&child), "exchanged within");
            assert_eq!(current(), "exchanged within");
            child
        });
        assert_eq!(current(), "unattributed");
        assert_eq!((within(&span), within(&child)), ("exchanged within".into(), "exchanged within".into()));
        // Out of order, and twice.
        let (outer, inner) = (span.clone().entered(), child.clone().entered());
        let again = span.clone().entered();
        handle.reload(ServiceLayer::new()).unwrap();
        drop(outer);
        handle.reload(ServiceLayer::new()).unwrap();
        drop(inner);
        assert_eq!(current(), "exchanged within");
        drop(again);
        assert_eq!(current(), "unattributed");
    });
}

#[test]
fn a_layer_that_is_taken_away_takes_the_thread_out() {
    alone!();
    let (subscriber, handle) = reloadable(Some(ServiceLayer::new()));
    with_default(&subscriber, || {
        let span = info_span!("a", service = "taken away");
        span.in_scope(|| handle.reload(None).unwrap());
        // Other tests have layers, so whether there is one that is told of this is not known. As
        // soon as there is one:
        handle.reload(ServiceLayer::new()).unwrap();
        let other = info_span!("b");
        assert_eq!(within(&other), "unattributed");
        assert_eq!(current(), "unattributed");
        // Nobody is told, and then the span is closed.
        let span = info_span!("a", service = "taken away");
        span.in_scope(|| handle.reload(None).unwrap());
        drop(span);
        assert_eq!(current(), "unattributed");
    });
}

/// Nor does a scope bring it back there that was entered by hand, and in which the layer was
/// taken away.
#[test]
fn a_scope_within_a_span_does_not_keep_the_thread_there() {
    alone!();
    let (subscriber, handle) = reloadable(Some(ServiceLayer::new()));
    let by_hand = Service::register("by hand in the span").unwrap();
    with_default(&subscriber, || {
        let span = info_span!("a", service = "around a scope");
        span.in_scope(|| {
            by_hand.run(|| {
                handle.reload(None).unwrap();
                assert_eq!(current(), "by hand in the span");
            });
        });
        drop(span);
        assert_eq!(current(), "unattributed");
        handle.reload(ServiceLayer::new()).unwrap();
        let span = info_span!("a", service = "around a scope");
        span.in_scope(|| by_hand.run(|| handle.reload(ServiceLayer::new()).unwrap()));
        assert_eq!(current(), "unattributed");
    });
}

/// A layer that is in nobody's hands while a span is left, and comes back.
#[test]
fn what_a_layer_was_not_told_it_asks_for() {
    alone!();
    let (subscriber, handle) = reloadable(Some(ServiceLayer::new()));
    with_default(&subscriber, || {
        let mut away = None;
        let span = info_span!("a", service = "not told");
        let outer = info_span!("outer", service = "not told, outer");
        span.in_scope(|| handle.modify(|layer| mem::swap(layer, &mut away)).unwrap());
        handle.modify(|layer| mem::swap(layer, &mut away)).unwrap();
        assert_eq!(within(&info_span!("b")), "unattributed");
        assert_eq!(current(), "unattributed");
        outer.in_scope(|| {
            span.in_scope(|| handle.modify(|layer| mem::swap(layer, &mut away)).unwrap());
            handle.modify(|layer| mem::swap(layer, &mut away)).unwrap();
            info_span!("b").in_scope(|| ());
            assert_eq!(current(), "not told, outer");
        });
        assert_eq!(current(), "unattributed");
    });
}

/// Another layer, whose subscriber is another one, is no reason to leave a span.
#[test]
fn other_subscribers_change_nothing() {
    alone!();
    let (subscriber, handle) = reloadable(ServiceLayer::new());
    let (other, other_handle) = reloadable(Some(ServiceLayer::new()));
    let span = with_default(&subscriber, || info_span!("a", service = "of this subscriber"));
    let others = with_default(&other, || info_span!("a", service = "of the other subscriber"));
    assert_eq!(span.id(), others.id());
    span.in_scope(|| {
        others.in_scope(|| {
            other_handle.reload(ServiceLayer::new()).unwrap();
            assert_eq!(current(), "of the other subscriber");
        });
        assert_eq!(current(), "of this subscriber");
        others.in_scope(|| other_handle.reload(None).unwrap());
        // Who is left to tell, tells of this one only; the next one to be entered or left ends it.
        with_default(&subscriber, || info_span!("child").in_scope(|| ()));
        assert_eq!(current(), "of this subscriber");
        handle.reload(ServiceLayer::new()).unwrap();
        with_default(&Dispatch::new(registry()), || assert_eq!(within(&others), "of this subscriber"));
    });
    assert_eq!(current(), "unattributed");
}

#[test]
fn filters_are_exchanged_while_spans_are_entered() {
    alone!();
    let (filter, handle) = reload::Layer::new(LevelFilter::INFO);
    let layer = ServiceLayer::new().with_filter(filter);
    with_default(&Dispatch::new(registry().with(layer).unattributed()), || {
        let span = info_span!("a", service = "filtered");
        let entered = span.enter();
        handle.reload(LevelFilter::OFF).unwrap();
        assert_eq!(current(), "filtered");
        let hidden = info_span!("hidden", service = "hidden by then");
        assert_eq!(within(&hidden), "filtered");
        drop(entered);
        assert_eq!(current(), "unattributed");
        let entered = hidden.enter();
        handle.reload(LevelFilter::TRACE).unwrap();
        assert_eq!(within(&span), "filtered");
        drop(entered);
        assert_eq!(current(), "unattributed");
        assert_eq!(within(&info_span!(parent: &span, "child")), "filtered");
        assert_eq!(Service::by_name("hidden by then"), None);
    });
}

#[test]
fn a_service_is_attached_through_whatever_is_around_the_layer() {
    alone!();
    let auth = Service::register("attached through").unwrap();
    let other = Service::register("attached before").unwrap();
    let subscribers: [Dispatch; 7] = [
        reloadable(ServiceLayer::new()).0,
        reloadable(Some(ServiceLayer::new()).boxed()).0,
        reloadable(vec![ServiceLayer::new()]).0,
        reloadable(ServiceLayer::new().with_filter(LevelFilter::INFO)).0,
        registry().with(reload::Layer::new(ServiceLayer::new()).0).unattributed().into(),
        registry().with(ServiceLayer::new().with_filter(reload::Layer::new(LevelFilter::INFO).0)).into(),
        {
            let (layer, handle) = reload::Layer::new(ServiceLayer::new());
            let dispatch = Dispatch::new(registry().with(layer).with(LevelFilter::INFO));
            handle.reload(ServiceLayer::by_target()).unwrap();
            dispatch
        },
    ];
    for subscriber in &subscribers {
        with_default(subscriber, || {
            let span = info_span!("a");
            assert!(other.attach(&span));
            span.in_scope(|| {
                assert_eq!(current(), "attached before");
                assert!(auth.attach(&span));
                assert_eq!(current(), "attached through");
                assert_eq!(within(&info_span!("child", service = "attached child")), "attached child");
            });
            assert_eq!(current(), "unattributed");
            thread::scope(|threads| {
                threads.spawn(|| assert_eq!(within(&span), "attached through")).join().unwrap();
            });
        });
    }
    let hidden = ServiceLayer::new().with_filter(filter_fn(|metadata| metadata.name() != "a"));
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::sink);
    with_default(&Dispatch::new(registry().with(hidden).with(log)), || {
        assert!(!auth.attach(&info_span!("a")), "the layer's filter hides the span");
    });
    with_default(&reloadable(None::<ServiceLayer>).0, || {
        assert!(!auth.attach(&info_span!("a")), "there is no layer");
    });
    assert!(!auth.attach(&Span::none()));
}

/// As safe code can: by its number, though nobody has it any more.
#[test]
fn a_span_is_closed_while_a_thread_is_in_it() {
    alone!();
    let dispatch = Dispatch::new(registry().with(unkept()));
    with_default(&dispatch, || {
        let span = info_span!("a", service = "closed within");
        let id = span.id().unwrap();
        mem::forget(span.enter());
        assert_eq!(current(), "closed within");
        drop(span);
        assert_eq!(current(), "unattributed");
        assert_eq!(Service::by_name("closed within"), None);
        // What there is no span of.
        dispatch.enter(&id);
        assert_eq!(current(), "unattributed");
        dispatch.exit(&id);
        dispatch.exit(&id);
        assert_eq!(current(), "unattributed");
    });
    let span = with_default(&dispatch, || info_span!("a", service = "closed elsewhere"));
    let elsewhere = thread::scope(|threads| {
        threads
            .spawn(|| {
                let id = span.id().unwrap();
                dispatch.enter(&id);
                thread::scope(|threads| {
                    threads.spawn(|| _ = dispatch.try_close(id.clone())).join().unwrap();
                });
                // It is in it, and holds the service.
                let name = current();
                dispatch.exit(&id);
                (name, current())
            })
            .join()
            .unwrap()
    });
    assert_eq!(elsewhere, ("closed elsewhere".into(), "unattributed".into()));
    assert_eq!(Service::by_name("closed elsewhere"), None);
    mem::forget(span);
}

/// A subscriber that is one only, with a layer that several subscribers share.
struct Shared(std::sync::Arc<ServiceLayer>);

impl<S> Layer<S> for Shared
where
    S: Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
{
    fn on_new_span(
        &self,
        attributes: &tracing::span::Attributes<'_>,
        id: &tracing::Id,
        context: tracing_subscriber::layer::Context<'_, S>,
    ) {
        self.0.on_new_span(attributes, id, context);
    }
    fn on_enter(&self, id: &tracing::Id, context: tracing_subscriber::layer::Context<'_, S>) {
        self.0.on_enter(id, context);
    }
    fn on_exit(&self, id: &tracing::Id, context: tracing_subscriber::layer::Context<'_, S>) {
        self.0.on_exit(id, context);
    }
}

#[test]
fn a_layer_that_subscribers_share_tells_their_spans_apart() {
    alone!();
    let layer = std::sync::Arc::new(unkept());
    let [one, other] = [(), ()].map(|()| Dispatch::new(registry().with(Shared(layer.clone()))));
    let some = with_default(&one, || info_span!("a", service = "shared layer"));
    let none = with_default(&other, || info_span!("a"));
    assert_eq!(some.id(), none.id());
    assert_eq!((within(&some), within(&none)), ("shared layer".into(), "unattributed".into()));
    let (some_entered, none_entered) = (some.enter(), none.enter());
    drop(some_entered);
    assert_eq!(current(), "unattributed");
    drop(none_entered);
    drop(some);
    assert_eq!((within(&none), Service::by_name("shared layer")), ("unattributed".into(), None));
}

#[test]
fn a_subscriber_is_gone_while_its_span_is_entered() {
    alone!();
    let span = {
        let dispatch = Dispatch::new(registry().with(unkept()));
        let span = with_default(&dispatch, || info_span!("a", service = "of one that is gone"));
        let id = span.id().unwrap();
        dispatch.enter(&id);
        drop(span);
        id
    };
    // The last one who had it.
    assert_eq!(current(), "unattributed");
    assert_eq!(Service::by_name("of one that is gone"), None);
    let dispatch = Dispatch::new(registry().with(unkept()));
    dispatch.exit(&span);
    assert_eq!(current(), "unattributed");
}

/// A thread ends within spans of which nobody has told their layer that they were left.
#[test]
fn a_thread_ends_in_spans_of_exchanged_layers() {
    alone!();
    let (subscriber, handle) = reloadable(ServiceLayer::new().keep_services(false));
    let service = Service::register("ends within exchanged").unwrap();
    thread::scope(|threads| {
        threads.spawn(|| {
            with_default(&subscriber, || {
                let span = info_span!("a", service = "ends within exchanged");
                mem::forget(span.enter());
                handle.reload(unkept()).unwrap();
                let child = info_span!("child");
                mem::forget(child.enter());
                assert_eq!(current(), "ends within exchanged");
                mem::forget((span, child));
            });
        });
    });
    drop((subscriber, handle));
    assert_eq!(service.usage().bytes(), 0);
}

#[test]
fn spans_of_no_subscriber_are_none() {
    alone!();
    with_default(&Dispatch::new(registry().with(ServiceLayer::new())), || {
        assert_eq!(within(&Span::none()), "unattributed");
        let span = info_span!("a", service = "around none");
        span.in_scope(|| assert_eq!(within(&Span::none()), "around none"));
        // Entered under another subscriber, or under none.
        with_default(&Dispatch::new(registry().with(ServiceLayer::new())), || {
            assert_eq!(within(&span), "around none");
            assert_eq!(within(&info_span!("b")), "unattributed");
        });
        with_default(&Dispatch::none(), || assert_eq!(within(&span), "around none"));
        assert_eq!(current(), "unattributed");
    });
}

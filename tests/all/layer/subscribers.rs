//! The layer among others, and subscribers that come and go.

use super::*;

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

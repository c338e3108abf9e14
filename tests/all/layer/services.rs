//! Which service a span runs in, and how long that lives.

use super::*;

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
fn targets_are_cut_to_their_first_segments() {
    alone!();
    with_default(registry().with(ServiceLayer::by_crate()), || {
        assert_eq!(within(&info_span!("a")), module_path!().split("::").next().unwrap());
        assert_eq!(within(&info_span!(target: "h2::codec::framed_read", "a")), "h2");
        assert_eq!(within(&info_span!(target: "no path", "a")), "no path");
        assert_eq!(within(&info_span!(target: "::odd", "a")), "unattributed");
        assert_eq!(within(&info_span!(target: "h2::codec", "a", service = "field first")), "field first");
    });
    with_default(registry().with(ServiceLayer::by_target_prefix(2)), || {
        assert_eq!(within(&info_span!(target: "h2::codec::framed_read", "a")), "h2::codec");
        assert_eq!(within(&info_span!(target: "h2", "a")), "h2");
    });
}

/// A callsite of a span that is made while the program runs.
fn callsite(target: String) -> &'static tracing::Metadata<'static> {
    use tracing::callsite::Identifier;
    use tracing::field::FieldSet;
    use tracing::metadata::Kind;
    use tracing::subscriber::Interest;

    struct Callsite(std::sync::OnceLock<tracing::Metadata<'static>>);

    impl tracing::callsite::Callsite for Callsite {
        fn set_interest(&self, _: Interest) {}
        fn metadata(&self) -> &tracing::Metadata<'_> {
            self.0.get().unwrap()
        }
    }

    let callsite: &'static Callsite = Box::leak(Box::new(Callsite(std::sync::OnceLock::new())));
    let target = String::leak(target);
    let fields = FieldSet::new(&[], Identifier(callsite));
    callsite.0.get_or_init(|| {
        tracing::Metadata::new("a", target, tracing::Level::INFO, None, None, None, fields, Kind::SPAN)
    })
}

/// How often dogtag has said this.
#[derive(Clone, Default)]
struct Told(std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl<S: Subscriber> Layer<S> for Told {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Text(String);

        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{value:?} ");
            }
        }

        let mut text = Text(String::new());
        event.record(&mut text);
        if text.0.contains("names too many services") {
            assert!(text.0.contains("\"unlike4095\"") && text.0.contains("4096"), "{}", text.0);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_rule_that_names_too_many_services_is_bounded() {
    alone!();
    let unlike = |target: String| {
        let metadata = callsite(target);
        Span::new(metadata, &metadata.fields().value_set(&[]))
    };
    let services = || dogtag::snapshot().rows.iter().filter(|row| row.name.starts_with("unlike")).count();
    // It is told to the global one.
    let told = Told::default();
    registry().with(told.clone()).init();
    with_default(registry().with(ServiceLayer::by_crate()), || {
        info_span!(target: "around", "a").in_scope(|| {
            for i in 0..10_000 {
                let within = within(&unlike(format!("unlike{i}::module")));
                assert_eq!(within, if i < 4095 { format!("unlike{i}") } else { "around".to_owned() });
            }
            // Those that are known stay what they are, and fields name what they like.
            assert_eq!(within(&unlike("unlike7".to_owned())), "unlike7");
            assert_eq!(within(&info_span!("a", service = "unlike all others")), "unlike all others");
            // A name of 1 MB is none.
            assert_eq!(within(&unlike("unlike".repeat(200_000))), "around");
        });
        assert_eq!(services(), 4096);
        let count = || told.0.load(Ordering::Relaxed);
        watch::eventually(|| if count() == 1 { Ok(()) } else { Err(format!("told {} times", count())) });
    });
    assert_eq!(services(), 0);
    with_default(registry().with(ServiceLayer::by_crate().keep_services(false)), || {
        for i in 0..5000 {
            assert_eq!(within(&unlike(format!("unlike{i}"))), format!("unlike{i}"));
        }
        assert_eq!(services(), 0);
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

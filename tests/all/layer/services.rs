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

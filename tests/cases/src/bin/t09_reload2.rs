//! A span that is entered while its layer is exchanged: where is the thread afterwards, and what is charged.
use dogtag::{Service, ServiceLayer, UnattributedExt};
use tracing::info_span;
use tracing_subscriber::{
    filter::{LevelFilter, filter_fn},
    prelude::*,
    reload,
};
#[global_allocator]
static A: dogtag::Dogtag = dogtag::Dogtag::new();
fn here() -> String {
    Service::current().name().to_owned()
}
fn main() {
    match std::env::args().nth(1).unwrap_or_default().as_str() {
        // the exchanged layer; afterwards 10 requests without a service
        "new" => {
            let (layer, handle) = reload::Layer::new(ServiceLayer::new());
            tracing_subscriber::registry().with(layer).unattributed().init();
            let s = info_span!("request", service = "auth");
            s.in_scope(|| handle.reload(ServiceLayer::new()).unwrap());
            let auth = Service::by_name("auth").unwrap();
            let before = auth.usage().bytes();
            let kept: Vec<Vec<u8>> = (0..10).map(|_| vec![0u8; 1000]).collect();
            println!(
                "no span is entered: thread is in {}; charged to auth: {}",
                here(),
                auth.usage().bytes() - before
            );
            drop(s);
            drop(kept);
        }
        // the filter beside the layer is exchanged, with the layer as it is: what one does to log more for a while
        "filter" => {
            let (filter, handle) = reload::Layer::new(LevelFilter::INFO);
            tracing_subscriber::registry()
                .with(ServiceLayer::new().with_filter(filter))
                .unattributed()
                .init();
            let s = info_span!("request", service = "auth");
            let g = s.enter();
            println!("in {}", here());
            handle.reload(LevelFilter::OFF).unwrap();
            drop(g);
            println!("left after the filter went off: {}", here());
            let t = info_span!("request", service = "two");
            let g = t.enter();
            println!("off: {}", here());
            handle.reload(LevelFilter::TRACE).unwrap();
            drop(g);
            println!("left: {}", here());
            let c = info_span!(parent: &t, "child");
            c.in_scope(|| println!("child of a span that was filtered out: {}", here()));
            let c = info_span!(parent: &s, "child");
            c.in_scope(|| println!("child of one that was not: {}", here()));
            println!("end {}", here());
        }
        // parents that a filter hides
        "hidden" => {
            tracing_subscriber::registry()
                .with(ServiceLayer::new().with_filter(filter_fn(|m| *m.level() <= tracing::Level::INFO)))
                .with(tracing_subscriber::fmt::layer().with_writer(std::io::sink))
                .unattributed()
                .init();
            let r = tracing::debug_span!("root", service = "hidden");
            let c = info_span!(parent: &r, "child");
            c.in_scope(|| println!("child of a hidden root: {}", here()));
            let o = info_span!("outer", service = "outer");
            let g = o.enter();
            let d = tracing::debug_span!("mid", service = "mid");
            let gd = d.enter();
            println!("in a hidden one within outer: {}", here());
            let i = info_span!("inner");
            i.in_scope(|| println!("inner: {}", here()));
            drop(gd);
            drop(g);
            println!("end {}", here());
        }
        "env" => {
            tracing_subscriber::registry()
                .with(ServiceLayer::new())
                .with(
                    tracing_subscriber::fmt::layer()
                        .with_writer(std::io::sink)
                        .with_filter(tracing_subscriber::EnvFilter::new("off")),
                )
                .unattributed()
                .init();
            info_span!("x", service = "auth").in_scope(|| println!("fmt off: {}", here()));
        }
        _ => {}
    }
}

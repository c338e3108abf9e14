//! A span names a new service under a subscriber, global as in most programs, whose
//! outer layer filters that span out: what is told of the new service must not come in
//! between.

use dogtag::{Service, ServiceLayer};
use std::io;
use tracing::{debug_span, info_span, level_filters::LevelFilter};
use tracing_subscriber::{Layer, fmt, prelude::*, registry};

#[test]
fn a_filter_outside_of_the_layer_sees_whole_spans() {
    alone!();
    let log = fmt::layer().with_writer(io::sink).with_filter(LevelFilter::INFO);
    registry().with(ServiceLayer::by_target()).with(log).init();
    for i in 0..100 {
        let name = format!("new service {i}");
        let span = debug_span!("a", service = name);
        let inner = span.in_scope(|| info_span!("b", service = format!("inner {i}")));
        let block = inner.in_scope(|| Box::new([0_u8; 50]));
        assert_eq!(Service::by_name(&format!("inner {i}")).unwrap().usage().bytes(), 50);
        drop((span, inner, block));
    }
    assert_eq!(Service::current(), Service::unattributed());
}

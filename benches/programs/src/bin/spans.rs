//! Spans with dogtag's layer, and services entered by hand.

#[path = "../spans.rs"]
mod spans;

use dogtag::{Dogtag, Service, ServiceLayer, UnattributedExt};
use spans::{Contestant, measure, rounds, timed};
use std::hint::black_box;
use tracing::dispatcher::with_default;
use tracing::info_span;
use tracing_subscriber::{prelude::*, registry};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

fn main() {
    let contestants = [
        Contestant::new("the registry alone", registry()),
        Contestant::new("ServiceLayer", registry().with(ServiceLayer::new())),
        Contestant::new("ServiceLayer, unattributed()", registry().with(ServiceLayer::new()).unattributed()),
    ];
    measure(&contestants);
    rounds("making and closing a span with a service", &contestants, |contestant| {
        with_default(&contestant.subscriber, || timed(2000, || drop(info_span!("a", service = "bench"))))
    });

    let service = Service::register("by hand").unwrap();
    let by_hand = [Contestant::new("by hand", registry())];
    rounds("entering and leaving a span", &by_hand, |_| timed(5000, || drop(black_box(service.enter()))));
    let pairs = || timed(5000, || drop(black_box(Box::new([0_u8; 64]))));
    rounds("a pair of 64 B within", &contestants, |contestant| contestant.span.in_scope(pairs));
    rounds("a pair of 64 B within", &by_hand, |_| service.run(pairs));
}

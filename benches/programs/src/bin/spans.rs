//! Spans with dogtag's layer, and services entered by hand.

#[path = "../spans.rs"]
mod spans;

use dogtag::{Dogtag, Service, ServiceLayer, UnattributedExt};
use spans::{Contestant, measure, rounds, timed};
use std::hint::black_box;
use tracing::dispatcher::with_default;
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, info, info_span};
use tracing_subscriber::{prelude::*, registry};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// What the program's filter leaves out. It is cheap as long as no other subscriber wants it.
fn left_out() {
    type Contestant = (&'static str, fn() -> Dispatch);
    let contestants: [Contestant; 2] = [
        ("the registry alone", || registry().with(LevelFilter::WARN).into()),
        ("attributed()", || dogtag::attributed(registry().with(LevelFilter::WARN)).into()),
    ];
    for (name, subscriber) in contestants {
        with_default(&subscriber(), || {
            let span = info_span!("a", service = "bench");
            let crates = info_span!("of its crate");
            let row = |row: &str, work: &dyn Fn()| {
                let mut times: Vec<f64> = (0..31).map(|_| timed(5000, work)).collect();
                times.sort_by(f64::total_cmp);
                println!("{row}, which is left out\t{name}\t{}", times[15]);
            };
            row("entering and leaving a span", &|| drop(black_box(span.enter())));
            row("entering and leaving a span without a field", &|| drop(black_box(crates.enter())));
            row("making and closing a child of it", &|| drop(black_box(info_span!("child"))));
            row("an event", &|| info!(number = black_box(1), "text"));
        });
    }
}

fn main() {
    left_out();
    let contestants = [
        Contestant::new("the registry alone", registry()),
        Contestant::new("ServiceLayer", registry().with(ServiceLayer::new())),
        Contestant::new("ServiceLayer, unattributed()", registry().with(ServiceLayer::new()).unattributed()),
        Contestant::new("attributed()", dogtag::attributed(registry())),
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

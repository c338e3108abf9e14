//! Spans with tracking-allocator's layer, under its allocator.

#[path = "../spans.rs"]
mod spans;

use spans::{Contestant, measure, rounds, timed};
use tikv_jemallocator::Jemalloc;
use tracing::dispatcher::with_default;
use tracing::info_span;
use tracing_subscriber::{prelude::*, registry};
use tracking_allocator::{AllocationGroupToken, AllocationLayer, Allocator};

#[global_allocator]
static ALLOC: Allocator<Jemalloc> = Allocator::from_allocator(Jemalloc);

fn main() {
    let contestants = [
        Contestant::new("the registry alone", registry()),
        Contestant::new("AllocationLayer", registry().with(AllocationLayer::new())),
    ];
    AllocationGroupToken::register().unwrap().attach_to_span(&contestants[1].span);
    measure(&contestants);
    rounds("making and closing a span with a service", &contestants, |contestant| {
        // A token is for one span, and its group is never given back: few will do.
        const SPANS: usize = 200;
        let has_tokens = contestant.name == "AllocationLayer";
        let mut tokens: Vec<_> =
            (0..SPANS).filter(|_| has_tokens).filter_map(|_| AllocationGroupToken::register()).collect();
        with_default(&contestant.subscriber, || {
            timed(SPANS, || {
                let span = info_span!("a", service = "bench");
                tokens.pop().into_iter().for_each(|token| token.attach_to_span(&span));
            })
        })
    });
}

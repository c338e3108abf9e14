//! What the programs about spans measure, and how they tell: a line for each figure,
//! with the row, the contestant, and nanoseconds for one operation.

use std::hint::black_box;
use std::time::Instant;
use tracing::dispatcher::with_default;
use tracing::{Dispatch, Span, info_span};

const ROUNDS: usize = 31;
const TIMES: usize = 5_000;

/// A subscriber, and a span of its that runs in a service or a group.
pub struct Contestant {
    pub name: &'static str,
    pub subscriber: Dispatch,
    pub span: Span,
}

impl Contestant {
    pub fn new(name: &'static str, subscriber: impl Into<Dispatch>) -> Self {
        let subscriber = subscriber.into();
        let span = with_default(&subscriber, || info_span!("a", service = "bench"));
        Self { name, subscriber, span }
    }
}

/// Enters and leaves each contestant's span, and makes children of it.
pub fn measure(contestants: &[Contestant]) {
    rounds("entering and leaving a span", contestants, |contestant| {
        timed(TIMES, || drop(black_box(contestant.span.enter())))
    });
    rounds("making and closing a child of it", contestants, |contestant| {
        with_default(&contestant.subscriber, || {
            contestant.span.in_scope(|| timed(TIMES, || drop(black_box(info_span!("child")))))
        })
    });
}

/// Prints the median of what each contestant needs, in rounds side by side.
pub fn rounds(row: &str, contestants: &[Contestant], work: impl Fn(&Contestant) -> f64) {
    let mut times = vec![vec![]; contestants.len()];
    for _ in 0..ROUNDS {
        for (contestant, times) in contestants.iter().zip(&mut times) {
            times.push(work(contestant));
        }
    }
    for (contestant, mut times) in contestants.iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!("{row}\t{}\t{}", contestant.name, times[ROUNDS / 2]);
    }
}

/// Nanoseconds for one of so many.
pub fn timed(times: usize, mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        work();
    }
    start.elapsed().as_nanos() as f64 / times as f64
}

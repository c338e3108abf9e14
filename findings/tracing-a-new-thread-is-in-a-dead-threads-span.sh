#!/usr/bin/env bash
# tracing-subscriber 0.3.23: the registry keeps what span a thread is in in a slot of the crate
# thread_local 1.1.9, which gives the slots of threads that have ended to new ones with what is in
# them. A thread that ends within a span (its guard was forgotten, as `mem::forget` and a leaked
# future may) hands the span to a thread that has never heard of it: what that one logs, and the
# spans it makes, are the dead thread's span's children.
#
# Seen: `Span::current()` on a thread that has entered nothing is `work`, in which another thread has
# ended before; and a new span there has `work` as its parent.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
thread_local = "=1.1.9"
tracing = "=0.1.44"
tracing-subscriber = "=0.3.23"
TOML
cat > src/main.rs <<'RUST'
use std::thread;
use tracing::span::{Attributes, Id};
use tracing_subscriber::{layer::Context, prelude::*, registry::LookupSpan};

/// Says whose child a new span is.
struct Parents;

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Parents {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map_or("nothing", |parent| parent.name());
        println!("{} is a child of {parent}", span.name());
    }
}

fn current() -> &'static str {
    tracing::Span::current().metadata().map_or("nothing", |span| span.name())
}

fn main() {
    tracing_subscriber::registry().with(Parents).init();
    let work = tracing::info_span!("work");
    thread::scope(|scope| {
        scope.spawn(|| std::mem::forget(work.enter())).join().unwrap();
        scope.spawn(|| {
            println!("a new thread is in {}", current());
            tracing::info_span!("another");
        });
    });
    println!("main is in {}", current());
}
RUST
seen=$(cargo run --quiet --release)
echo "$seen"
[ "$seen" = "work is a child of nothing
a new thread is in work
another is a child of work
main is in nothing" ]

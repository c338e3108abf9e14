//! A server with a mistake that nothing notices, and the sampled guard, as it would run in production.
//!
//! `cargo run --release --features sampled-guard --example sampled_guard [-- continue]`
//!
//! Each request uses a session after it was dropped. Of 5,000 allocations the guard takes one, so the mistake is found
//! within some thousands of requests, and ends the process by SIGABRT with a report. With `continue` the process goes
//! on after each, for 100,000 requests, and shows how many were found; the status is 0 if that is as many as
//! there should be.

use dogtag::sampled_guard::{Reaction, SampledGuard, figures};
use dogtag::{Dogtag, Service};
use std::hint::black_box;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const REQUESTS: u64 = 100_000;

struct Session {
    hits: u64,
    _name: [u8; 56],
}

/// The session of a request, which nobody should use any more when this returns.
#[inline(never)]
fn log_in_and_out(sessions: &Service) -> *mut Session {
    let session = sessions.run(|| Box::new(Session { hits: 0, _name: [b'x'; 56] }));
    let kept = black_box(&raw const *session);
    drop(session);
    kept.cast_mut()
}

#[inline(never)]
fn count_hit(session: *mut Session) {
    // SAFETY: none: this is the mistake. Without the guard it writes to memory that is somebody else's by and by.
    unsafe { (&raw mut (*session).hits).write_volatile(1) };
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let goes_on = std::env::args().nth(1).is_some_and(|argument| argument == "continue");
    let reaction = if goes_on { Reaction::Continue } else { Reaction::Abort };
    // As `DOGTAG_SAMPLED_GUARD` says, or one in 5,000.
    if SampledGuard::from_env()?.is_none() {
        SampledGuard::builder().reaction(reaction).start()?;
    }
    let (sessions, search) = (Service::register("sessions")?, Service::register("search")?);
    for _ in 0..REQUESTS {
        let session = log_in_and_out(&sessions);
        search.run(|| count_hit(session));
    }
    let caught = figures().caught;
    println!("{}", dogtag::snapshot());
    println!("{REQUESTS} requests with a mistake each; the sampled guard has found {caught} of them.");
    // One in 5,000 of them, and five standard errors.
    let is_as_expected = (1..=43).contains(&caught);
    std::process::exit(i32::from(!is_as_expected))
}

//! Everything at once, for as long as one likes: threads, services, pools, regions, futures
//! and snapshots come and go, blocks of all sizes go from thread to thread. Again and again
//! all stop for a moment, and then the ledger is what the test's own books say, to the byte,
//! and no more memory is needed than at the beginning.

#[cfg(target_os = "linux")]
mod backend;
mod books;
mod memory;
#[cfg(feature = "profile")]
mod profiler;
#[cfg(not(feature = "profile"))]
#[path = "no_profiler.rs"]
mod profiler;
mod seat;
mod work;

use books::Books;
use seat::Seats;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Operations after which there is of all as much as there ever will be.
const WARM: u64 = 100_000;

/// Threads that work at the same time, beside short ones.
const SEATS: usize = 4;

#[test]
fn nothing_drifts_and_nothing_grows() {
    alone!();
    let whole = crate::random::seconds(2.0);
    let pause = (whole / 12).clamp(Duration::from_millis(100), Duration::from_secs(2));
    let seed = crate::random::seed();

    crate::abort_after_a_panic();

    let books = Books::default();
    let seats = Seats::new(seed);
    let start = Instant::now();
    let (mut memory, mut samples) = (memory::Watch::default(), profiler::Watch::default());
    std::thread::scope(|threads| {
        for seat in 0..SEATS {
            let (seats, books) = (&seats, &books);
            threads.spawn(move || seats.sit(seat, books));
        }
        while start.elapsed() < whole {
            std::thread::sleep(pause);
            seats.stopped(|| {
                books.compare();
                let is_warm = start.elapsed() > whole / 3 && books.operations.load(Relaxed) > WARM;
                samples.look();
                memory.look(is_warm);
                println!("{:>6.1} s  {}  {memory}{samples}", start.elapsed().as_secs_f64(), books.line());
            });
        }
        seats.end();
    });
    // All is freed by now, also what was still on its way.
    samples.end();
    books.compare();
    assert_eq!(books.live(), (0, 0), "the test itself leaks");
    println!("{:>6.1} s  {}{samples}", start.elapsed().as_secs_f64(), books.line());
}

//! Handlers of violations, which a program sets and takes.

use super::{culprit, twice};
use dogtag::check::{self, Reaction, Violation};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A handler may be a closure, and can be taken.
#[test]
fn handler_may_be_a_closure_and_can_be_taken() {
    survives!("", "double free");
    let found = Arc::new(AtomicUsize::new(0));
    let counting = |by: usize| {
        let found = Arc::clone(&found);
        move |_: &Violation| {
            found.fetch_add(by, Ordering::Relaxed);
            Reaction::Leak
        }
    };
    // Nobody has set one: what is taken is the default.
    let default = check::take_handler();
    check::set_handler(counting(1));
    twice(culprit());
    assert_eq!(found.load(Ordering::Relaxed), 1);
    check::set_handler(counting(10));
    assert_eq!(Arc::strong_count(&found), 2, "the former one is kept");
    let former = check::take_handler();
    // One that asks another one, and is replaced while it runs.
    check::set_handler(move |violation| {
        check::set_handler(|_| Reaction::Leak);
        let _: Reaction = default(violation);
        former(violation)
    });
    twice(culprit());
    assert_eq!(found.load(Ordering::Relaxed), 11);
    assert_eq!(Arc::strong_count(&found), 1, "it was not dropped when it returned");
    twice(culprit());
    assert_eq!(found.load(Ordering::Relaxed), 11);
}

#[test]
fn handler_is_whole_while_others_exchange_it() {
    survives!("reaction=leak");
    const VIOLATIONS: usize = 300;

    /// What a handler has captured, which is whole as long as it may be called.
    struct Captured(Arc<AtomicUsize>, Vec<u8>);

    impl Drop for Captured {
        fn drop(&mut self) {
            self.1.fill(0);
        }
    }

    let (found, is_over) = (Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
    let set = || {
        let captured = Captured(Arc::clone(&found), vec![7; 100]);
        check::set_handler(move |_| {
            assert!(captured.1.iter().all(|byte| *byte == 7), "the handler was dropped");
            captured.0.fetch_add(1, Ordering::Relaxed);
            Reaction::Leak
        });
    };
    set();
    std::thread::scope(|threads| {
        let criminals = [(); 2].map(|()| {
            threads.spawn(|| {
                for _ in 0..VIOLATIONS {
                    twice(culprit());
                }
            })
        });
        threads.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                set();
                let taken = check::take_handler();
                check::set_handler(move |violation| taken(violation));
            }
        });
        criminals.into_iter().for_each(|criminal| criminal.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
    });
    // Some have found no handler set, which reports.
    let found = found.load(Ordering::Relaxed);
    assert!((1..=2 * VIOLATIONS).contains(&found), "{found}");
}

/// A child is forked while another thread finds or exchanges the handler, and finds it all the same.
#[test]
fn handler_is_found_by_forked_children() {
    survives!("");
    const CHILDREN: usize = 30;

    let leak = |_: &Violation| Reaction::Leak;
    check::set_handler(leak);
    twice(culprit());
    let (is_over, mut ends) = (AtomicBool::new(false), Vec::new());
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                check::set_handler(leak);
            }
        });
        threads.spawn(|| {
            // What is leaked is copied by forks.
            for _ in 0..100_000 {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                twice(culprit());
            }
        });
        for _ in 0..CHILDREN {
            // SAFETY: the child uses dogtag, which heeds forks, and ends without the parent's destructors.
            let child = unsafe { libc::fork() };
            if child == 0 {
                twice(culprit());
                let found = Arc::new(AtomicUsize::new(0));
                let counter = Arc::clone(&found);
                check::set_handler(move |_| {
                    counter.fetch_add(1, Ordering::Relaxed);
                    Reaction::Leak
                });
                twice(culprit());
                let is_well = found.load(Ordering::Relaxed) == 1;
                // SAFETY: ends the process.
                unsafe { libc::_exit(if is_well { 7 } else { 1 }) };
            }
            let mut status = 0;
            // SAFETY: a child of this process, and a place for its status.
            let ended = unsafe { libc::waitpid(child, &mut status, 0) } == child;
            ends.push(ended && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(ends, [true; CHILDREN]);
}

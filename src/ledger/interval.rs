//! The mean distance of bytes that are sampled for the profile, the share of allocations that the sampled guard
//! takes, and how both are changed while threads sample.

use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, shared};
use std::sync::PoisonError;

shared! {
    /// By which threads sample; 0 while nothing is sampled, or while it is changed.
    static INTERVAL: AtomicU64 = AtomicU64::new(0);

    /// By which they are to sample.
    static WANTED: AtomicU64 = AtomicU64::new(0);

    /// The sampled guard takes one allocation in so many; 0 for none.
    static RATE: AtomicU64 = AtomicU64::new(0);

    /// How often one of them was changed.
    static CHANGES: AtomicU64 = AtomicU64::new(1);

    static CHANGING: Mutex<()> = Mutex::new(());
}

/// The mean distance of sampled bytes; 0 while nothing is sampled.
#[inline]
pub(crate) fn interval() -> u64 {
    INTERVAL.load(Ordering::Relaxed)
}

/// By what threads sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rates {
    /// The mean distance of bytes that are sampled for the profile; 0 for none.
    pub(super) interval: u64,
    /// The sampled guard takes one allocation in so many; 0 for none.
    pub(super) rate: u64,
}

impl Rates {
    /// Whether nothing is sampled.
    #[inline]
    pub(crate) fn are_zero(self) -> bool {
        self.interval | self.rate == 0
    }
}

/// By what threads sample now.
#[inline]
pub(crate) fn rates() -> Rates {
    Rates { interval: interval(), rate: rate() }
}

/// The sampled guard takes one allocation in so many; 0 for none.
#[inline]
pub(crate) fn rate() -> u64 {
    RATE.load(Ordering::Relaxed)
}

/// How often the interval was changed. What [`interval`] returns later is no older.
#[inline]
pub(super) fn changes() -> u64 {
    CHANGES.load(Ordering::Acquire)
}

/// The interval that was set last; 0 if sampling was stopped.
pub(crate) fn wanted() -> u64 {
    WANTED.load(Ordering::Relaxed)
}

/// Held by whoever starts or stops sampling or changes the interval: a change is whole before the next one
/// begins, so that in the end it is as the last one said.
pub(crate) struct Changing(#[allow(dead_code, reason = "is held")] MutexGuard<'static, ()>);

/// Waits until nobody else changes the interval.
pub(crate) fn change() -> Changing {
    Changing(CHANGING.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Changing {
    /// Has every thread sample by that interval from its next allocation on; not at all by 0. `lower`
    /// sends each thread's next allocation to the slow path.
    pub(crate) fn set(&mut self, interval: u64, lower: impl Fn()) {
        WANTED.store(interval, Ordering::Relaxed);
        // First nobody samples, so that no byte which was chosen by the former interval stands for what
        // the new one says.
        for step in [0, interval] {
            if step != self::interval() {
                INTERVAL.store(step, Ordering::Relaxed);
                CHANGES.fetch_add(1, Ordering::Release);
                lower();
            }
        }
    }

    /// Has the sampled guard take one allocation in `rate` from now on; none by 0.
    #[cfg(feature = "sampled-guard")]
    pub(crate) fn set_rate(&mut self, rate: u64, lower: impl Fn()) {
        for step in [0, rate] {
            if step != self::rate() {
                RATE.store(step, Ordering::Relaxed);
                CHANGES.fetch_add(1, Ordering::Release);
                lower();
            }
        }
    }
}

/// Forks while others change what is sampled: the child could not, ever. The profiler's own hook does the same.
#[cfg(all(feature = "sampled-guard", not(any(feature = "profile", dogtag_loom))))]
mod fork {
    use super::{Changing, change};
    use crate::sys::fork::{ForkHook, ForkOrder, Held, at_load, register_fork_hook};

    fn register() {
        register_fork_hook(&HOOK);
    }

    at_load!(register);

    static HOOK: ForkHook =
        ForkHook { order: ForkOrder::Profiler, before, in_parent: after, in_child: after };
    static HELD: Held<Changing> = Held::new();

    fn before() {
        // SAFETY: this is the hook's `before`.
        unsafe { HELD.keep(change()) };
    }

    fn after() {
        // SAFETY: this is the hook's `in_parent` and `in_child`.
        drop(unsafe { HELD.take() });
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::model;
    use loom::thread;

    /// Two threads change the interval, one of them twice.
    #[test]
    fn threads_sample_by_the_interval_that_was_set_last() {
        model(|| {
            let other = thread::spawn(|| {
                change().set(20, || {});
                change().set(0, || {});
            });
            change().set(30, || {});
            other.join().unwrap();
            assert_eq!(interval(), wanted());
            assert!(matches!(interval(), 0 | 30), "{}", interval());
        });
    }
}

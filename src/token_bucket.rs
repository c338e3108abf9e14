//! At most so many a second, of all threads together.

use crate::sync::{AtomicU64, Ordering, const_unless_loom};

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;

/// A token bucket: it holds `BURST` tokens, and so many come to it in a second while it is not full.
///
/// One word says when it will be full again (the generic cell rate algorithm), so that a token is taken by one
/// compare-and-swap: by any number of threads, in signal handlers, and in a child that was forked in the middle of it.
pub(crate) struct TokenBucket<const BURST: u64> {
    /// Nanoseconds in which a token comes; 0 if there is no bound.
    period: AtomicU64,
    /// When it is full, in nanoseconds of the callers' clock.
    full_at: AtomicU64,
}

impl<const BURST: u64> TokenBucket<BURST> {
    const_unless_loom! {
        /// One without a bound.
        pub(crate) fn new() -> Self {
            Self { period: AtomicU64::new(0), full_at: AtomicU64::new(0) }
        }
    }

    /// Has so many tokens come in a second from now on; 0 for no bound. The bucket is full.
    pub(crate) fn set(&self, per_second: u64) {
        // Rounded up: never more than that.
        let period = if per_second == 0 { 0 } else { SECOND.div_ceil(per_second) };
        self.period.store(period, Ordering::Relaxed);
        // Whoever takes one just now has the former period: of that it takes a token at most.
        self.full_at.store(0, Ordering::Relaxed);
    }

    /// Takes a token, if there is one now: `milliseconds` is a clock, which is not asked if there is no bound.
    pub(crate) fn take(&self, milliseconds: impl FnOnce() -> u64) -> bool {
        if self.period.load(Ordering::Relaxed) == 0 {
            return true;
        }
        let now = milliseconds().saturating_mul(MILLISECOND);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let period = self.period.load(Ordering::Relaxed);
            let with_one_less = full_at.max(now).checked_add(period);
            let Some(with_one_less) = with_one_less.filter(|at| at - now <= BURST * period) else {
                return false;
            };
            match self.full_at.compare_exchange(full_at, with_one_less, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(others) => full_at = others,
            }
        }
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BURST: u64 = 5;

    fn bucket(per_second: u64) -> TokenBucket<BURST> {
        let bucket = TokenBucket::new();
        bucket.set(per_second);
        bucket
    }

    /// How many tokens there are, of so many.
    fn taken(bucket: &TokenBucket<BURST>, most: u64, now: u64) -> u64 {
        (0..most).filter(|_| bucket.take(|| now)).count() as u64
    }

    #[test]
    fn it_is_full_first_and_fills_by_and_by() {
        let bucket = bucket(250);
        for start in [0, 1_000_000] {
            assert_eq!(taken(&bucket, 100, start), BURST);
            assert_eq!(taken(&bucket, 100, start + 3), 0);
            assert_eq!(taken(&bucket, 100, start + 4), 1);
            assert_eq!(taken(&bucket, 100, start + 15), 2);
            assert_eq!(taken(&bucket, 100, start + 16), 1);
            // No more than it holds, however long nobody comes.
            assert_eq!(taken(&bucket, 100, start + 500_000), BURST);
        }
        bucket.set(1);
        assert_eq!(taken(&bucket, 100, 0), BURST, "a new bound begins with a full one");
        assert_eq!([taken(&bucket, 100, 999), taken(&bucket, 100, 1000)], [0, 1]);
    }

    #[test]
    fn without_a_bound_nobody_asks_for_the_time() {
        for bucket in [TokenBucket::<BURST>::new(), bucket(0)] {
            assert!((0..1000).all(|_| bucket.take(|| panic!("the time"))));
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        for per_second in [1, SECOND - 1, SECOND, SECOND + 1, u64::MAX] {
            let bucket = bucket(per_second);
            for now in [0, 1, u64::MAX / MILLISECOND, u64::MAX] {
                assert!(taken(&bucket, BURST + 2, now) <= BURST);
            }
        }
    }

    proptest! {
        /// As many as of a bucket that is filled at each step, and in no stretch of time more than that allows.
        #[test]
        fn it_is_as_a_bucket_that_is_filled_at_each_step(
            per_second in 1_u64..5000,
            steps in prop::collection::vec((0_u64..40, 1_u64..9), 1..60),
        ) {
            let bucket = bucket(per_second);
            let period = SECOND.div_ceil(per_second);
            let mut now = 77;
            // In nanoseconds, too: a token is a period of them.
            let mut filled = BURST * period;
            let mut times = Vec::new();
            for (passed, tries) in steps {
                now += passed;
                filled = (filled + passed * MILLISECOND).min(BURST * period);
                for _ in 0..tries {
                    let is_there = filled >= period;
                    prop_assert_eq!(bucket.take(|| now), is_there);
                    if is_there {
                        filled -= period;
                        times.push(now);
                    }
                }
            }
            for (from, start) in times.iter().enumerate() {
                for (to, end) in times.iter().enumerate().skip(from) {
                    let most = BURST + (end - start) * per_second / 1000;
                    let taken = (to - from) as u64 + 1;
                    prop_assert!(taken <= most, "{} from {} to {}", taken, start, end);
                }
            }
        }
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::whole_model;
    use loom::thread;
    use std::sync::Arc;

    /// Threads take tokens at once: there are as many as there are, and none is lost.
    #[test]
    fn threads_take_no_more_than_there_are() {
        whole_model(|| {
            let bucket = Arc::new(TokenBucket::<2>::new());
            bucket.set(1000);
            let take = |bucket: &TokenBucket<2>| (0..2).filter(|_| bucket.take(|| 50)).count();
            let others = Arc::clone(&bucket);
            let other = thread::spawn(move || take(&others));
            let own = take(&bucket);
            assert_eq!(own + other.join().unwrap(), 2);
            assert!(bucket.take(|| 51) && !bucket.take(|| 51));
        });
    }
}

//! A parker: wakes a thread that waits for it, from anywhere, inside an allocation too. So it
//! neither locks nor allocates.

// Not from `sync`: the kernel looks at the word, too.
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
#[cfg(any(feature = "guard", feature = "report"))]
use std::time::Instant;

/// For one thread that waits. Rung while nobody waits, it wakes the next who would.
pub(crate) struct Parker {
    rung: AtomicU32,
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    waiter: std::sync::OnceLock<std::thread::Thread>,
}

impl Parker {
    pub(crate) const fn new() -> Self {
        Self {
            rung: AtomicU32::new(0),
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            waiter: std::sync::OnceLock::new(),
        }
    }

    /// The accesses before this happen before those of the thread that is woken.
    pub(crate) fn unpark(&self) {
        if self.rung.swap(1, Ordering::SeqCst) == 0 {
            self.wake();
        }
    }

    /// Waits until it has been rung since this was called last.
    pub(crate) fn park(&self) {
        while self.rung.swap(0, Ordering::SeqCst) == 0 {
            self.sleep(None);
        }
    }

    /// Waits until it has been rung since this was called last, or until that time.
    #[cfg(any(feature = "guard", feature = "report"))]
    pub(crate) fn park_until(&self, until: Option<Instant>) {
        let Some(until) = until else { return self.park() };
        while self.rung.swap(0, Ordering::SeqCst) == 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.sleep(Some(left));
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Parker {
    fn wake(&self) {
        const WAKE: libc::c_int = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: an address that is only waited for.
        unsafe { libc::syscall(libc::SYS_futex, self.rung.as_ptr(), WAKE, 1) };
    }

    /// Until it is rung, for so long at most, or for no reason.
    fn sleep(&self, longest: Option<Duration>) {
        const WAIT: libc::c_int = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let longest = longest.map(|longest| libc::timespec {
            tv_sec: longest.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        });
        let longest = longest.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: reads that word and that time, if there is one, which are there.
        unsafe { libc::syscall(libc::SYS_futex, self.rung.as_ptr(), WAIT, 0, longest) };
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl Parker {
    fn wake(&self) {
        if let Some(waiter) = self.waiter.get() {
            waiter.unpark();
        }
    }

    /// Until it is rung, for so long at most, or for no reason.
    fn sleep(&self, longest: Option<Duration>) {
        // Who rings before the thread is known has made it look again.
        if self.waiter.get().is_none() {
            self.waiter.get_or_init(std::thread::current);
        } else {
            longest.map_or_else(std::thread::park, std::thread::park_timeout);
        }
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// Nobody rings: the time comes.
    #[cfg(any(feature = "guard", feature = "report"))]
    #[test]
    fn a_time_ends_the_waiting() {
        let parker = Parker::new();
        parker.park_until(Some(Instant::now() + Duration::from_millis(1)));
        parker.unpark();
        // Rung, so there is nothing to wait for.
        parker.park_until(None);
        assert_eq!(parker.rung.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn whoever_rings_is_heard() {
        const ROUNDS: usize = 10_000;
        static PARKERS: [Parker; 2] = [Parker::new(), Parker::new()];
        static BALL: AtomicUsize = AtomicUsize::new(0);

        // Back and forth: who is not heard ends the game.
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for round in 0..ROUNDS {
                    PARKERS[0].park();
                    assert_eq!(BALL.swap(2 * round + 2, Ordering::Relaxed), 2 * round + 1);
                    PARKERS[1].unpark();
                }
            });
            for round in 0..ROUNDS {
                BALL.store(2 * round + 1, Ordering::Relaxed);
                PARKERS[0].unpark();
                PARKERS[1].park();
                assert_eq!(BALL.load(Ordering::Relaxed), 2 * round + 2);
            }
        });
        // Rung twice, and heard once.
        PARKERS[0].unpark();
        PARKERS[0].unpark();
        PARKERS[0].park();
        assert_eq!(PARKERS[0].rung.load(Ordering::Relaxed), 0);
    }
}

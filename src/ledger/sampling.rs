//! Which allocations are sampled: each byte with the same probability, one in [`interval`] on average.
//!
//! The bytes that are sampled are points of a Poisson process, as tcmalloc, Go and jemalloc have it:
//! the distance from one to the next is exponential, and what is left of it does not depend on how far
//! it has come. So each cell can have points of its own, wherever its bytes go; and a point that is
//! forgotten before it is reached may be chosen anew from there on.
//!
//! A cell's threshold is at its next point, if that comes before the end of the grant
//! ([`Cell::pending_point`]). Where every allocation takes the slow path anyway, in cells of long slots
//! and in those that threads share, the thread counts down to its next point.

use crate::ledger::account::Account;
use crate::ledger::cell::{Cell, Pending};
use crate::ledger::interval::{changes, interval};
use crate::ledger::samples::{self, Sample};
use crate::ledger::slots::Record;
use crate::ledger::thread::Word;
#[cfg(not(feature = "memory-check"))]
use crate::owner::Named;
use crate::owner::{Mark, SampleId};
use crate::sync::{AtomicPtr, AtomicU64, Ordering};
use std::ptr;

/// What is called for a sampled allocation, inside of it.
#[derive(Debug)]
pub(crate) struct Hooks {
    /// Takes the calling thread's call stack, and returns its number; 0 for none.
    pub(crate) take_stack: fn() -> u32,
    /// Counts a sampled allocation that was made.
    pub(crate) count: fn(&Sample),
}

static HOOKS: AtomicPtr<Hooks> = AtomicPtr::new(ptr::null_mut());

/// Has these called from now on.
pub(crate) fn set_hooks(hooks: &'static Hooks) {
    HOOKS.store(ptr::from_ref(hooks).cast_mut(), Ordering::Release);
}

fn hooks() -> Option<&'static Hooks> {
    // SAFETY: null, or what `set_hooks` was given.
    unsafe { HOOKS.load(Ordering::Acquire).as_ref() }
}

/// The service of which nothing is sampled; null for none.
static UNSAMPLED: AtomicPtr<Record> = AtomicPtr::new(ptr::null_mut());

/// Has no allocation of that service sampled any more.
pub(crate) fn never_sample(record: &'static Record) {
    UNSAMPLED.store(ptr::from_ref(record).cast_mut(), Ordering::Relaxed);
}

/// An allocation that may be sampled. To be [finished](Self::finish) when it is counted; otherwise the
/// next one takes its place.
#[must_use]
pub(crate) struct Decision {
    account: Account,
    /// What it was decided with, if anything is sampled.
    looked: Option<Looked>,
    sampled: Option<Sampled>,
}

struct Looked {
    point: Point,
    /// The bytes that the block was expected to be charged with.
    size: u64,
    /// Whether the point is among them.
    is_reached: bool,
    interval: u64,
    changes: u64,
}

enum Point {
    /// A position in the account's cell.
    At(u64),
    /// The bytes that are left in the thread's countdown.
    In(u64),
}

struct Sampled {
    id: SampleId,
    record: &'static Record,
    stack: u32,
}

impl Decision {
    /// Decides whether an allocation of `size` bytes by the calling thread is sampled. A sampled block
    /// of C's may be charged with a few bytes more or less; what it stands for is decided here.
    #[inline]
    pub(crate) fn of(account: Account, record: &'static Record, size: usize) -> Self {
        let mut decision = Self { account, looked: None, sampled: None };
        let interval = interval();
        if interval != 0 {
            decision.decide(record, size as u64, interval);
        }
        decision
    }

    #[cold]
    fn decide(&mut self, record: &'static Record, size: u64, interval: u64) {
        let changes = changes();
        let (point, is_reached) = match own_short(self.account) {
            Some(cell) => {
                let point = match cell.pending_point() {
                    Pending::At(point) => point,
                    Pending::After(start) => start.saturating_add(distance(interval)),
                };
                (Point::At(point), cell.allocated().saturating_add(size) >= point)
            }
            None => {
                let is_of_now = Word::SamplingChanges.get() == changes;
                let left = if is_of_now { Word::NextSample.get() } else { distance(interval) };
                (Point::In(left), size >= left)
            }
        };
        self.looked = Some(Looked { point, size, is_reached, interval, changes });
        if is_reached && !ptr::eq(record, UNSAMPLED.load(Ordering::Relaxed)) {
            self.sampled = samples::reserve().map(|id| Sampled { id, record, stack: take_stack() });
        }
    }

    /// The block's sample, if it is sampled.
    #[cfg(feature = "memory-check")]
    #[inline]
    pub(crate) fn sample(&self) -> Option<SampleId> {
        self.sampled.as_ref().map(|sampled| sampled.id)
    }

    /// What is to be kept with the block.
    #[cfg(not(feature = "memory-check"))]
    #[inline]
    pub(crate) fn named(&self, record: &'static Record) -> Named {
        match &self.sampled {
            Some(sampled) => Named::Sample(sampled.id),
            None => Named::Slot(record.slot()),
        }
    }

    /// Notes that the block was allocated and charged with so many bytes, and where the next point is.
    #[inline]
    pub(crate) fn finish(mut self, block: *mut u8, charged: usize) {
        if let Some(looked) = self.looked.take() {
            self.go_on(&looked, block, charged);
        } else if let Some(cell) = own_short(self.account)
            && matches!(cell.pending_point(), Pending::At(_))
        {
            // Of the time when something was sampled.
            cell.set_point(u64::MAX);
        }
    }

    #[cold]
    fn go_on(&mut self, looked: &Looked, block: *mut u8, charged: usize) {
        let interval = interval();
        let next = |is_over: bool, rest: u64| match interval {
            0 => u64::MAX,
            _ if is_over || interval != looked.interval => distance(interval),
            _ => rest,
        };
        match (&looked.point, own_short(self.account)) {
            (Point::At(point), Some(cell)) => {
                let allocated = cell.allocated();
                let is_over = looked.is_reached || allocated >= *point;
                cell.set_point(allocated.saturating_add(next(is_over, point.wrapping_sub(allocated))));
            }
            (Point::In(left), _) => {
                Word::NextSample.set(next(looked.is_reached, left.wrapping_sub(looked.size)));
                Word::SamplingChanges.set(looked.changes);
            }
            (Point::At(_), None) => {}
        }
        if let Some(Sampled { id, record, stack }) = self.sampled.take() {
            let (slot, generation) = (record.slot(), record.generation());
            let (size, interval) = (looked.size, looked.interval);
            let more = (charged as u64).wrapping_sub(size) as i64;
            let more = i32::try_from(more).unwrap_or(0);
            let sample = Sample { slot, generation, size, more, interval, stack };
            samples::publish(id, block, sample);
            if let Some(hooks) = hooks() {
                (hooks.count)(&sample);
            }
        }
    }
}

/// Takes the calling thread's call stack; none inside of taking one, should that allocate.
fn take_stack() -> u32 {
    let Some(hooks) = hooks() else { return 0 };
    if Word::IsTakingStack.replace(1) != 0 {
        return 0;
    }
    let stack = (hooks.take_stack)();
    Word::IsTakingStack.set(0);
    stack
}

impl Drop for Decision {
    #[inline]
    fn drop(&mut self) {
        if let Some(sampled) = self.sampled.take() {
            samples::release(sampled.id);
        }
    }
}

/// The calling thread's own cell, if its threshold is ever raised.
#[inline]
fn own_short(account: Account) -> Option<&'static Cell> {
    match account {
        Account::Own(cell) if cell.mark() != Mark::LONG => Some(cell),
        _ => None,
    }
}

/// The distance to the next sampled byte, 1 at least: exponential, with that mean.
fn distance(interval: u64) -> u64 {
    if interval == 1 {
        return 1;
    }
    // Of the open interval from 0 to 1, since the logarithm of 0 is none.
    let uniform = ((random() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    // From f64 to u64 it stays within u64.
    ((-uniform.ln() * interval as f64).ceil() as u64).max(1)
}

/// A random number of the calling thread's: SplitMix64.
fn random() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(0);

    let mut state = Word::Random.get();
    if state == 0 {
        let thread = THREADS.fetch_add(1, Ordering::Relaxed);
        let here = ptr::from_ref(&state).addr() as u64;
        state = mix(here ^ mix(thread.wrapping_add(GOLDEN))) | 1;
    }
    state = state.wrapping_add(GOLDEN);
    Word::Random.set(state);
    mix(state)
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_exponential() {
        const N: usize = 200_000;
        let interval = 1 << 19;
        let mut distances: Vec<u64> = (0..N).map(|_| distance(interval)).collect();
        distances.sort_unstable();
        let mean = distances.iter().sum::<u64>() as f64 / N as f64;
        // Its standard error is 0.22 %.
        assert!((mean / interval as f64 - 1.0).abs() < 0.015, "{mean}");
        // Kolmogorov and Smirnov: one in a million is beyond 2.7.
        let largest = distances.iter().enumerate().map(|(i, &distance)| {
            let expected = 1.0 - (-(distance as f64) / interval as f64).exp();
            (expected - i as f64 / N as f64).abs().max((expected - (i + 1) as f64 / N as f64).abs())
        });
        let largest = largest.fold(0.0, f64::max) * (N as f64).sqrt();
        assert!(largest < 2.7, "{largest}");
        assert!(distance(1) == 1 && distance(2) >= 1 && distance(u64::MAX) >= 1);
    }
}

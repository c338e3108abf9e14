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
//!
//! The sampled guard takes one allocation in so many, whatever their sizes. It has such points, too, and takes an
//! allocation that has one with the probability that makes up for its size. Points of both are
//! chosen together: of two Poisson processes in one, each point is one's or the other's by chance.

use crate::ledger::account::Account;
use crate::ledger::cell::{Cell, Pending};
use crate::ledger::interval::{Rates, changes, rates};
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
    #[cfg_attr(feature = "memory-check", allow(dead_code, reason = "memory-check looks at every block"))]
    is_guarded: bool,
}

struct Looked {
    point: Point,
    /// The bytes that the block was expected to be charged with.
    size: u64,
    /// Whether the point is among them.
    is_reached: bool,
    rates: Rates,
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
        let mut decision = Self { account, looked: None, sampled: None, is_guarded: false };
        let rates = rates();
        if !rates.are_zero() {
            decision.decide(record, size as u64, rates);
        }
        decision
    }

    #[cold]
    fn decide(&mut self, record: &'static Record, size: u64, rates: Rates) {
        let changes = changes();
        let (point, beyond) = match own_short(self.account) {
            Some(cell) => {
                let point = match cell.pending_point() {
                    Pending::At(point) => point,
                    Pending::After(start) => start.saturating_add(rates.distance()),
                };
                (Point::At(point), cell.allocated().saturating_add(size).checked_sub(point))
            }
            None => {
                let is_of_now = Word::SamplingChanges.get() == changes;
                let left = if is_of_now { Word::NextSample.get() } else { rates.distance() };
                (Point::In(left), size.checked_sub(left))
            }
        };
        let is_reached = beyond.is_some();
        self.looked = Some(Looked { point, size, is_reached, rates, changes });
        let Some(beyond) = beyond else { return };
        let (is_profiled, is_guarded) = rates.kinds(size, beyond);
        self.is_guarded = is_guarded;
        if is_profiled && !ptr::eq(record, UNSAMPLED.load(Ordering::Relaxed)) {
            self.sampled = samples::reserve().map(|id| Sampled { id, record, stack: take_stack() });
        }
    }

    /// Whether the sampled guard is to take the block.
    #[cfg(not(feature = "memory-check"))]
    #[inline]
    pub(crate) fn is_guarded(&self) -> bool {
        self.is_guarded
    }

    /// The block's sample, if it is sampled for the profile.
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
        let rates = rates();
        let next = |is_over: bool, rest: u64| {
            if rates.are_zero() {
                u64::MAX
            } else if is_over || rates != looked.rates {
                rates.distance()
            } else {
                rest
            }
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
            let (size, interval) = (looked.size, looked.rates.interval);
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

impl Rates {
    /// The bytes of which each allocation of them has a point of the sampled guard's often enough: smaller ones
    /// are taken less often, in proportion.
    const GRANULE: f64 = 8.0;

    /// How many points of the profile's there are in a byte: infinitely many where every allocation is sampled.
    fn profile_density(self) -> f64 {
        match self.interval {
            0 => 0.0,
            1 => f64::INFINITY,
            interval => 1.0 / interval as f64,
        }
    }

    /// How many points of the sampled guard's there are in a byte.
    fn guard_density(self) -> f64 {
        match self.rate {
            0 => 0.0,
            1 => f64::INFINITY,
            rate => -(-1.0 / rate as f64).ln_1p() / Self::GRANULE,
        }
    }

    /// The distance to the next point, 1 at least.
    fn distance(self) -> u64 {
        if self.rate == 0 {
            return distance(self.interval);
        }
        let density = self.profile_density() + self.guard_density();
        if density.is_infinite() { 1 } else { exponential(1.0 / density) }
    }

    /// What an allocation of `size` bytes is taken for that has a point, and `beyond` bytes after it: for the profile,
    /// and by the sampled guard.
    fn kinds(self, size: u64, beyond: u64) -> (bool, bool) {
        if self.rate == 0 {
            return (true, false);
        }
        let (profile, guard) = (self.profile_density(), self.guard_density());
        let (is_profiled, has_guards_point) = if (profile + guard).is_infinite() {
            // Every allocation has a point.
            let has = |density: f64| density.is_infinite() || has_point(density, size);
            (has(profile), has(guard))
        } else {
            let first_is_profiles = uniform() * (profile + guard) < profile;
            (first_is_profiles || has_point(profile, beyond), !first_is_profiles || has_point(guard, beyond))
        };
        // Larger allocations have points more often than they are to be taken.
        let is_taken = || self.rate == 1 || uniform() * has_one(guard, size) < 1.0 / self.rate as f64;
        (is_profiled, has_guards_point && is_taken())
    }
}

/// The probability that so many bytes have a point.
fn has_one(density: f64, bytes: u64) -> f64 {
    -(-density * bytes as f64).exp_m1()
}

/// Whether so many bytes have a point.
fn has_point(density: f64, bytes: u64) -> bool {
    uniform() < has_one(density, bytes)
}

/// The distance to the next sampled byte, 1 at least: exponential, with that mean.
fn distance(interval: u64) -> u64 {
    if interval == 1 { 1 } else { exponential(interval as f64) }
}

fn exponential(mean: f64) -> u64 {
    // From f64 to u64 it stays within u64.
    ((-uniform().ln() * mean).ceil() as u64).max(1)
}

/// A random number of the open interval from 0 to 1, since the logarithm of 0 is none.
fn uniform() -> f64 {
    ((random() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
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

    /// Goes through allocations of random sizes as a cell does, and counts which of them are taken.
    #[test]
    fn the_profile_and_the_guard_take_their_shares_together() {
        const N: u64 = 400_000;
        let sizes = [8_u64, 24, 64, 500, 4000];
        for rates in [
            Rates { interval: 0, rate: 50 },
            Rates { interval: 2000, rate: 50 },
            Rates { interval: 1, rate: 50 },
            Rates { interval: 2000, rate: 1 },
        ] {
            let mut taken = [[0_u64; 2]; 5];
            let mut left = rates.distance();
            for turn in 0..N {
                let kind = (turn % 5) as usize;
                let Some(beyond) = sizes[kind].checked_sub(left) else {
                    left -= sizes[kind];
                    continue;
                };
                let (is_profiled, is_guarded) = rates.kinds(sizes[kind], beyond);
                taken[kind][0] += u64::from(is_profiled);
                taken[kind][1] += u64::from(is_guarded);
                left = rates.distance();
            }
            for (&size, taken) in sizes.iter().zip(taken) {
                let expected = [has_one(rates.profile_density(), size), 1.0 / rates.rate as f64];
                for (taken, expected) in taken.into_iter().zip(expected) {
                    let n = (N / 5) as f64;
                    let error = (n * expected * (1.0 - expected)).sqrt();
                    // Six standard errors, and what rounding distances up to bytes costs.
                    let tolerance = 6.0 * error + 0.04 * n * expected;
                    let off = taken as f64 - n * expected;
                    assert!(off.abs() <= tolerance, "{rates:?}, {size}: {taken} of {}", n * expected);
                }
            }
        }
    }
}

//! Budgets: how much of a limit is left, and which threads may use it.
//!
//! Threads count for themselves, so nobody knows what a service holds without
//! adding its cells up. To do that for every allocation would be slow, and not
//! to do it would let the limit pass unnoticed. So it is done now and then: who
//! adds up learns what is left, takes a *grant* of it for its own next
//! allocations, and leaves the rest as *credit*, of which others take theirs
//! with one atomic operation. When the credit is used up, somebody adds up again
//! and finds what was freed meanwhile. Nothing is written down for good, so
//! nothing can drift.
//!
//! Threads may hold grants of many services, and keep them for long. So they count
//! as used while the limit is far; where it is not, they are taken back before it
//! is added up.
//!
//! A concurrent sum is not a consistent snapshot, but it gives bounds: frees first and allocations
//! second gives no less than what was live at the moment in between, the other order no more. Grants are given by the
//! former, denials by the latter; where they differ so much that neither says, it
//! is done again. What may be wrong is what others allocate meanwhile, without
//! having drawn it meanwhile, for that changes the credit word: each thread can be
//! using one grant that it has drawn before. That is 64 KiB for each, either way.

use crate::ledger::cell::Live;
use crate::sync::{AtomicBool, AtomicU64, Ordering, const_unless_loom, spin};

/// A service's limits, on what it and its descendants hold.
#[derive(Debug)]
pub(crate) struct Budget {
    hard: AtomicU64,
    soft: AtomicU64,
    /// Where the service is cancelled.
    cancel: AtomicU64,
    /// The bytes that may be allocated before the cells are added up again: a [`CreditWord`].
    word: AtomicU64,
    /// How often that was changed, or was about to be: what the word counts itself comes round
    /// in less than a second.
    changes: AtomicU64,
    /// Whether the soft limit was crossed, and not undershot since.
    is_above: AtomicBool,
    /// Whether it got past where it is cancelled: from then on that counts no more.
    has_passed: AtomicBool,
}

/// No limit.
pub(crate) const NONE: u64 = u64::MAX;

/// The most that a thread is granted at once: how far each thread may take a
/// service past its limit.
pub(crate) const GRANT: u64 = 64 << 10;

/// An allocation that may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Bytes that the thread may allocate, this allocation's among them.
    pub(crate) bytes: u64,
    /// Whether this crosses the soft limit, upwards.
    pub(crate) crosses: bool,
    /// Whether this is the one by which the service is cancelled.
    pub(crate) cancels: bool,
}

impl Granted {
    fn of(bytes: u64) -> Self {
        Self { bytes, crosses: false, cancels: false }
    }
}

impl Budget {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self {
                hard: AtomicU64::new(NONE),
                soft: AtomicU64::new(NONE),
                cancel: AtomicU64::new(NONE),
                word: AtomicU64::new(0),
                changes: AtomicU64::new(0),
                is_above: AtomicBool::new(false),
                has_passed: AtomicBool::new(false),
            }
        }
    }

    pub(crate) fn hard(&self) -> u64 {
        self.hard.load(Ordering::Relaxed)
    }

    pub(crate) fn soft(&self) -> u64 {
        self.soft.load(Ordering::Relaxed)
    }

    /// Where the service is cancelled.
    pub(crate) fn cancel_at(&self) -> u64 {
        self.cancel.load(Ordering::Relaxed)
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.hard() != NONE || self.soft() != NONE || self.cancel_at() != NONE
    }

    /// Changes where the service is cancelled. What was granted before is not taken back.
    pub(crate) fn set_cancel_at(&self, bytes: u64) {
        if self.cancel.swap(bytes, Ordering::Relaxed) != bytes {
            self.has_passed.store(false, Ordering::Relaxed);
        }
        self.withdraw();
    }

    /// Changes the limits. What was granted before is not taken back.
    pub(crate) fn set(&self, hard: u64, soft: u64) {
        self.hard.store(hard, Ordering::Relaxed);
        if self.soft.swap(soft, Ordering::Relaxed) != soft {
            self.is_above.store(false, Ordering::Relaxed);
        }
        self.withdraw();
    }

    /// Takes the credit back.
    fn withdraw(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let no_credit = |word| Some(CreditWord(word).with_credit(0).0);
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, no_credit);
    }

    /// A large allocation was counted in a cell, or will not be made.
    pub(crate) fn land(&self, size: u64) {
        self.word.fetch_sub(CreditWord::in_flight(size), Ordering::Release);
    }

    /// For a forked child, which does not have the threads that would land.
    pub(crate) fn land_all(&self) {
        let none = |word| Some(CreditWord(word).with_none_taken_off().0);
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, none);
    }

    /// The allocation that crossed the soft limit will not be made.
    pub(crate) fn uncross(&self) {
        self.is_above.store(false, Ordering::Relaxed);
    }

    /// The allocation that would have had the service cancelled will not be made.
    pub(crate) fn unpass(&self) {
        self.has_passed.store(false, Ordering::Relaxed);
        // It left credit as if nothing were to come any more.
        self.withdraw();
    }

    /// Whether it got past where the service is cancelled, as that is now.
    #[cfg_attr(not(feature = "guard"), allow(dead_code))]
    pub(crate) fn has_passed(&self) -> bool {
        self.has_passed.load(Ordering::Relaxed)
    }

    /// Counts `size` bytes that are in no cell, until they have [landed](Self::land).
    pub(crate) fn take_off(&self, size: u64) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.word.fetch_add(CreditWord::in_flight(size).wrapping_add(CreditWord::CHANGE), Ordering::AcqRel);
    }

    /// Asks for `size` bytes, all or none; `None` if they are denied. `live` adds
    /// up. `announced` bytes, no more than [`LARGEST`], are [taken
    /// off](Self::take_off) with it, as should be for allocations that are larger
    /// than a grant.
    pub(crate) fn draw(
        &self,
        size: u64,
        announced: u64,
        mut live: impl FnMut(Grants) -> Option<Live>,
    ) -> Option<Granted> {
        let wanted = size.max(GRANT);
        let taken_off = CreditWord::in_flight(announced);
        let mut attempt = 0;
        loop {
            let changes = self.changes.load(Ordering::Acquire);
            let credit = CreditWord(self.word.load(Ordering::Acquire));
            let replace = |new: CreditWord| {
                self.changes.fetch_add(1, Ordering::Relaxed);
                let new = new.0.wrapping_add(taken_off);
                self.word.compare_exchange(credit.0, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            let (hard, soft) = (self.hard(), self.soft());
            let cancel = if self.has_passed.load(Ordering::Relaxed) { NONE } else { self.cancel_at() };
            let fits_in_flight = credit.taken_off() + announced < 2 * LARGEST - GRANT;
            if let Some(rest) = credit.credit().checked_sub(wanted.next_multiple_of(GRANT))
                && fits_in_flight
            {
                if replace(credit.with_credit(rest)) {
                    return Some(Granted::of(wanted));
                }
                continue;
            }
            // First as if all that was granted were used. If that is too much, or
            // would be a crossing, what was granted is taken back.
            let was_above = self.is_above.load(Ordering::Relaxed);
            let most = hard.min(cancel).min(if was_above { NONE } else { soft });
            let alone = |live: Live| live.at_most.saturating_add(size);
            let after =
                |live: Live| alone(live).saturating_add(live.granted).saturating_add(credit.taken_off());
            let mut sum = live(Grants::Count);
            if sum.is_none_or(|live| after(live) > most) {
                sum = live(Grants::TakeBack);
            }
            if let Some(live) = sum.filter(|live| after(*live) <= hard && fits_in_flight) {
                let after = after(live);
                // What is in flight may be counted twice.
                let (is_above, passes) = (alone(live) > soft, alone(live) > cancel);
                // Above the soft limit there is little credit, so that it is
                // noticed when it is undershot.
                let soft_left = if after > soft { (soft / 8).max(GRANT) } else { soft - after };
                let cancel_left = if passes { NONE } else { cancel.saturating_sub(after) };
                let left = soft_left.min(cancel_left).min(hard - after);
                let grant = wanted.min(size.saturating_add(left));
                if replace(credit.with_credit(left - (grant - size))) {
                    if self.changes.load(Ordering::Relaxed).wrapping_sub(changes) >= CreditWord::MOST_CHANGES
                    {
                        // It is another one than there was, and only looks the same.
                        self.withdraw();
                        self.land(announced);
                        continue;
                    }
                    let was_above = self.is_above.swap(is_above, Ordering::Relaxed);
                    return Some(Granted {
                        bytes: grant,
                        crosses: is_above && !was_above,
                        cancels: passes && !self.has_passed.swap(true, Ordering::Relaxed),
                    });
                }
                // Others have drawn, and so they get on.
                continue;
            }
            // If others have drawn meanwhile, something was left; and what they hold now
            // may have been counted with what was freed for it.
            let is_of_one_moment = self.word.load(Ordering::Acquire) == credit.0;
            let is_too_much = |live: Live| live.at_least.saturating_add(size) > hard;
            if is_of_one_moment && sum.is_some_and(is_too_much) {
                return None;
            }
            if attempt >= ATTEMPTS {
                // Nothing is known. Without a hard limit nothing is denied.
                if hard != NONE {
                    return None;
                }
                self.take_off(announced);
                return Some(Granted::of(size));
            }
            spin(attempt);
            attempt += 1;
        }
    }
}

/// Says how grants count while the cells are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grants {
    /// They count as if they were used.
    Count,
    /// They are taken back, so that their threads have to ask again.
    TakeBack,
}

/// The most that can be announced: 512 GiB. What is larger is not.
pub(crate) const LARGEST: u64 = 1 << 39;

/// How often it is tried where the bounds do not decide, because others allocate
/// and free more than what is left, or are about to land: about a second long.
const ATTEMPTS: u32 = if cfg!(dogtag_loom) { 3 } else { 1000 };

/// Credit (16 bits), large allocations that were let through but are in no cell yet
/// (24), both in grants, and a count of the changes (24): so that nobody takes a
/// later word for the one that was there before the sum. (What is in flight beyond
/// a TiB adds to the changes, until it has landed.)
#[derive(Clone, Copy)]
struct CreditWord(u64);

impl CreditWord {
    const CREDIT: u64 = (1 << 16) - 1;
    const TAKEN_OFF: u32 = 16;
    const CHANGES: u32 = 40;
    const CHANGE: u64 = 1 << Self::CHANGES;
    const MOST_CHANGES: u64 = 1 << (u64::BITS - Self::CHANGES);

    /// Rounded down, and no more than 4 GiB.
    fn with_credit(self, bytes: u64) -> Self {
        let changes = (self.0 >> Self::CHANGES).wrapping_add(1);
        let taken_off = self.taken_off() / GRANT;
        Self(changes << Self::CHANGES | taken_off << Self::TAKEN_OFF | (bytes / GRANT).min(Self::CREDIT))
    }

    fn credit(self) -> u64 {
        (self.0 & Self::CREDIT) * GRANT
    }

    fn taken_off(self) -> u64 {
        (self.0 >> Self::TAKEN_OFF & ((1 << (Self::CHANGES - Self::TAKEN_OFF)) - 1)) * GRANT
    }

    fn with_none_taken_off(self) -> Self {
        Self(self.0 - ((self.taken_off() / GRANT) << Self::TAKEN_OFF))
    }

    /// What a large allocation adds, rounded up.
    fn in_flight(bytes: u64) -> u64 {
        bytes.div_ceil(GRANT) << Self::TAKEN_OFF
    }
}

const _: () = assert!(2 * LARGEST / GRANT <= 1 << 24);

#[cfg(dogtag_loom)]
impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, dogtag_loom))]
mod model;
#[cfg(all(test, not(dogtag_loom)))]
mod tests;

//! The threshold, and the questions on the slow path behind it.
//!
//! The hot path has one branch, `allocated_bytes + size >= threshold` of the current cell
//! ([`Cell::needs_slow_path`]). Everything rare hides behind it:
//!
//! | what | why the threshold is reached |
//! | --- | --- |
//! | a thread's first allocation | it begins at the unattributed service's shared cell, whose threshold is 0 |
//! | a thread's first allocation in a service | it is at that service's shared cell |
//! | a thread that ends, or got no memory for a shard | it is at shared cells, which take atomic additions |
//! | a service with a long slot | its cells' thresholds stay 0: the hot path writes short cookies only |
//! | a byte that is sampled (`sampling`), for the profile or by the sampled guard | the threshold is there, if that is before the end of the grant |
//! | a peak | the threshold is no more than 256 KiB ahead |
//! | a hard or soft limit | the threshold is at the end of the thread's grant, 64 KiB ahead at most |
//! | a cancelled service | its cells' thresholds are not raised any more |
//! | a limit that was changed, a grant that was taken back | the thresholds were lowered to 0 |
//! | a thread that may belong to another service by now | it has lowered its own threshold |
//! | a thread that has not looked at its name long ago (`thread::names`) | its grant is that small |
//! | a size whose layout has to be checked, a counter beyond 2^61 | no threshold is above 2^61 |
//!
//! [`ask`] answers for each allocation that gets here whether the limits of its service and of those
//! above it allow it, and how much more the thread may allocate before it has to ask again. It also
//! looks at what is live now, lest a peak pass unseen; for a service without limits, only that.

use crate::ledger::account::Account;
use crate::ledger::budget::{Budget, GRANT, Grants, LARGEST};
use crate::ledger::cell::{Cell, Live};
#[cfg(feature = "guard")]
use crate::ledger::nudge;
use crate::ledger::pending_events::{self, EventFlags};
use crate::ledger::shard::SHARDS;
use crate::ledger::slots::{self, Moment, Record};
#[cfg(not(dogtag_loom))]
use crate::ledger::thread;
use crate::ledger::tree::{self, Tree};
use crate::sync::{AtomicU64, Ordering, fence, shared};
use std::iter;
use std::ptr;

/// How much each thread allocates for a service before it asks itself whether
/// its peak has to be looked at.
const PEAK_INTERVAL: u64 = 256 << 10;

/// By how much what is live in the thread's own cell has grown when it has to be,
/// which takes time in proportion to the threads there are. With what is allocated
/// before a thread asks itself, at either end, and what a sum may be uncertain by, a
/// peak is reported too low by no more than a MiB for each thread.
const PEAK_GROWTH: u64 = (1 << 20) - 2 * PEAK_INTERVAL - 2 * GRANT;

/// An allocation that may be made. To be kept until it is counted.
#[must_use]
pub(crate) struct Admitted {
    account: Account,
    record: &'static Record,
    size: u64,
    /// What is freed for it.
    replaced: Option<Replaced>,
    /// Whose limits it is announced to: a bit for each service from the current one
    /// upwards.
    announced: u64,
    /// Whose soft limits it crosses, in the same way.
    crossed: u64,
    /// Which ones it has cancelled, in the same way.
    cancels: u64,
    /// Whether the threshold was raised for it.
    has_asked: bool,
}

/// A block that is freed when the new one is there.
#[derive(Clone, Copy)]
pub(crate) struct Replaced {
    pub(crate) owner: &'static Record,
    pub(crate) size: usize,
    /// Whether it stays its owner's where the current service's limits do not allow for the new one,
    /// since that is no larger. Then nothing is denied.
    pub(crate) stays: bool,
}

/// Asks whether the current service's limits allow for a block of `size` bytes,
/// which may take another one's place. `None` if they do not.
#[inline]
pub(crate) fn ask(
    account: Account,
    record: &'static Record,
    size: usize,
    replaced: Option<Replaced>,
) -> Option<Admitted> {
    let mut admitted = Admitted {
        account,
        record,
        size: size as u64,
        replaced,
        announced: 0,
        crossed: 0,
        cancels: 0,
        has_asked: false,
    };
    if account.cell().needs_grant(size) {
        admitted.ask()?;
    }
    Some(admitted)
}

impl Admitted {
    #[cold]
    fn ask(&mut self) -> Option<()> {
        let changes = CHANGES.load(Ordering::Acquire);
        #[cfg(not(dogtag_loom))]
        let mut grant = PEAK_INTERVAL.min(thread::next_look(self.record));
        #[cfg(dogtag_loom)]
        let mut grant = PEAK_INTERVAL;
        let stays = self.replaced.is_some_and(|old| old.stays);
        if self.record.family().is_cancelled() {
            if is_fallible() && !stays {
                self.record.deny();
                REFUSED.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            // The next one is asked about, too.
            grant = 0;
        }
        for (step, record, budget) in limited(self.record) {
            let more = self.more(record);
            // What is large would be missed by others until it is counted. And what
            // replaces another block is in no cell for a moment, while that is in
            // none any more. (Under a limit that is 64 steps above or more, large allocations
            // are as exact as small ones.)
            let is_announced = (more > GRANT || self.replaced.is_some() || self.is_shared())
                && self.size <= LARGEST
                && step < NEAR;
            let announced = if is_announced { self.size } else { 0 };
            if more == 0 {
                // What shrinks is never denied, and nothing is granted with it.
                budget.take_off(announced);
                grant = 0;
            } else {
                let Some(granted) = budget.draw(more, announced, |grants| live(record, None, grants)) else {
                    if !stays {
                        self.record.deny();
                        pending_events::push_denial(record);
                    }
                    return None;
                };
                grant = grant.min(granted.bytes.saturating_sub(more));
                self.crossed |= bit(step, granted.crosses);
                self.cancels |= bit(step, granted.cancels);
                if granted.cancels && step >= NEAR {
                    // Too far up to wait until it is counted.
                    pending_events::push(record, EventFlags::PASSED);
                }
            }
            self.announced |= bit(step, is_announced);
        }
        self.has_asked = true;
        #[cfg(feature = "guard")]
        nudge::note(self.size.saturating_add(grant));
        match self.account {
            Account::Own(cell) => cell.raise_threshold(self.size, grant),
            // Many count there, so under a limit every allocation asks.
            Account::Shared(cell) => cell.extend_shared(if grant < PEAK_INTERVAL { 0 } else { grant }),
        }
        // A thread that changes a limit counts that first and lowers the thresholds then: either
        // this sees the change, or the threshold is lowered after it was raised.
        fence(Ordering::SeqCst);
        if CHANGES.load(Ordering::Relaxed) != changes {
            self.account.cell().lower_threshold();
        }
        Some(())
    }

    /// By how much a service and all below it will hold more. While the block that
    /// is replaced is live, and its owner with it.
    fn more(&self, limited: &'static Record) -> u64 {
        match self.replaced {
            Some(old)
                if ptr::eq(old.owner, self.record)
                    || tree::limited_ancestors(old.owner).any(|above| ptr::eq(above, limited)) =>
            {
                self.size.saturating_sub(old.size as u64)
            }
            _ => self.size,
        }
    }

    fn is_shared(&self) -> bool {
        matches!(self.account, Account::Shared(_))
    }

    /// Calls `each` for some of the services from the current one upwards.
    #[cold]
    fn each(&self, some: u64, mut each: impl FnMut(&'static Record, &'static Budget)) {
        for (step, record) in (0..NEAR).zip(tree::ancestors(self.record)) {
            // Nobody loses a limit_group.
            if let Some(limit_group) = record.family().limit_group()
                && some & bit(step, true) != 0
            {
                each(record, &limit_group.budget);
            }
        }
    }

    /// Counts the block that was allocated. What it replaces is freed already.
    #[inline]
    pub(crate) fn charge(mut self, size: usize) {
        self.account.charge(size);
        self.has_asked = false;
        if self.crossed != 0 {
            self.each(self.crossed, |record, _| pending_events::push(record, EventFlags::CROSSED));
            self.crossed = 0;
        }
        if self.cancels != 0 {
            self.each(self.cancels, |record, _| pending_events::push(record, EventFlags::PASSED));
            self.cancels = 0;
        }
        if self.account.cell().has_grown(size, PEAK_GROWTH) {
            note_peak(self.record);
        }
    }
}

impl Drop for Admitted {
    #[inline]
    fn drop(&mut self) {
        if self.announced | self.crossed | self.cancels != 0 {
            self.each(self.announced, |_, budget| budget.land(self.size));
            // It was not made.
            self.each(self.crossed, |_, budget| budget.uncross());
            self.each(self.cancels, |_, budget| budget.unpass());
        }
        if self.has_asked {
            // Nor is there a reason for the grant that was drawn for it.
            self.account.cell().lower_threshold();
        }
    }
}

/// Whether the calling thread can do without what it asks for, if its service is cancelled.
#[cfg(not(dogtag_loom))]
fn is_fallible() -> bool {
    // What a panic needs on its way cannot be done without.
    thread::Word::Fallible.get() != 0 && !std::thread::panicking()
}

#[cfg(dogtag_loom)]
fn is_fallible() -> bool {
    true
}

/// A service's bit, that many steps above the current one.
fn bit(step: u32, is_set: bool) -> u64 {
    if is_set { 1_u64.checked_shl(step).unwrap_or(0) } else { 0 }
}

#[cold]
fn note_peak(record: &'static Record) {
    // Again, if so much was freed meanwhile that the bound is none, or the peak was reset.
    for _ in 0..4 {
        let moment = Moment::begin();
        let live = live_alone(record);
        if record.note(moment.with_at_least(live.at_least)) >= live.at_least
            && live.at_most - live.at_least <= GRANT
        {
            return;
        }
    }
}

/// Sums up what is live of a service, which the caller holds, and its descendants; without what
/// threads allocate meanwhile of earlier grants. `None` if the family changed meanwhile.
pub(crate) fn live(record: &'static Record, lock: Option<&Tree>, grants: Grants) -> Option<Live> {
    if grants == Grants::TakeBack && !lower_in_family(record, lock) {
        return None;
    }
    let mut sum = Live { at_least: 0, at_most: 0, granted: 0 };
    // Who joins meanwhile has been granted nothing; who has ended holds nothing.
    let is_whole = tree::descendants(record, lock, |member| {
        let live = live_alone(member);
        sum.at_least += live.at_least;
        sum.at_most += live.at_most;
        if grants == Grants::Count {
            sum.granted += SHARDS.cells(member.slot(), member.shared()).map(Cell::granted).sum::<u64>();
        }
    });
    is_whole.then_some(sum)
}

/// Lowers the thresholds of the service and its descendants in all threads, so that the next
/// allocation of each draws a grant. Call it after a limit was changed, holding the service.
pub(crate) fn lower_all(lock: &Tree, record: &'static Record) {
    CHANGES.fetch_add(1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    lower_in_family(record, Some(lock));
}

/// Lowers the thresholds of a service and its descendants. `false` if the family changed meanwhile.
fn lower_in_family(record: &'static Record, lock: Option<&Tree>) -> bool {
    tree::descendants(record, lock, |member| {
        SHARDS.cells(member.slot(), member.shared()).for_each(Cell::lower_threshold);
    })
}

/// Sends every thread's next allocation to the slow path, whatever service it is for.
pub fn lower_every_threshold() {
    let tree = Tree::lock();
    for record in slots::all() {
        record.lifecycle().pinned(|| lower_all(&tree, record));
    }
}

/// Whether the service is under a limit, its own or of one above it.
pub(crate) fn is_limited(record: &'static Record) -> bool {
    limited(record).next().is_some()
}

shared! {
    /// How often a limit was changed.
    static CHANGES: AtomicU64 = AtomicU64::new(0);

    /// How many allocations of cancelled services have failed since they may.
    static REFUSED: AtomicU64 = AtomicU64::new(0);
}

/// How many allocations of cancelled services have failed since their callers can do without.
#[cfg(feature = "guard")]
pub(crate) fn refused() -> u64 {
    REFUSED.load(Ordering::Relaxed)
}

/// The services whose limits count for this one, and how many steps above it they are: of those
/// that are [`NEAR`] or more, only that. So it takes no more steps than that and one for each limit.
fn limited(record: &'static Record) -> impl Iterator<Item = (u32, &'static Record, &'static Budget)> {
    let start = record.nearest_limited().map(|_| (0, record));
    let above = |(step, record): &(u32, &'static Record)| {
        let above = record.parent()?;
        let nearest = above.nearest_limited()?;
        Some(if step + 1 < NEAR { (step + 1, above) } else { (NEAR, nearest) })
    };
    iter::successors(start, above).filter_map(|(step, record)| {
        let budget = &record.family().limit_group()?.budget;
        budget.is_limited().then_some((step, record, budget))
    })
}

/// Steps that an [`Admitted`] can distinguish.
const NEAR: u32 = u64::BITS;

fn live_alone(record: &'static Record) -> Live {
    SHARDS.live(record.slot(), record.shared())
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::ledger::{budget, slots};
    use crate::sync::model;
    use loom::thread;

    /// A limit is set while a thread raises its threshold.
    #[test]
    fn who_was_let_in_while_a_limit_changed_asks_again() {
        model(|| {
            let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
            record.begin("limited".into(), 0);
            let limit_group = record.family().limit_group_or_new();
            let other = thread::spawn(move || {
                let cell = SHARDS.acquire().unwrap().claim(record.slot()).unwrap();
                if let Some(admitted) = ask(Account::Own(cell), record, 16, None) {
                    admitted.charge(16);
                }
                cell
            });
            limit_group.budget.set(10, budget::NONE);
            let lock = Tree::lock();
            lock.note_limits(record);
            lower_all(&lock, record);
            let cell = other.join().unwrap();
            assert!(cell.needs_grant(1), "it would not notice the limit");
        });
    }

    /// A service is cancelled while a thread raises its threshold: from then on each allocation asks, and
    /// those that may fail do.
    #[test]
    fn who_was_let_in_while_its_service_was_cancelled_asks_again() {
        model(|| {
            let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
            record.begin("cancelled".into(), 0);
            let other = thread::spawn(move || {
                let cell = SHARDS.acquire().unwrap().claim(record.slot()).unwrap();
                if let Some(admitted) = ask(Account::Own(cell), record, 16, None) {
                    admitted.charge(16);
                }
                cell
            });
            let families = Tree::lock();
            families.cancel(record, |_| {});
            lower_all(&families, record);
            drop(families);
            let cell = other.join().unwrap();
            for _ in 0..2 {
                assert!(cell.needs_grant(1), "it would not notice");
                assert!(ask(Account::Own(cell), record, 1, None).is_none(), "it may do without");
            }
        });
    }

    /// Thresholds are lowered while a thread sets the next byte to be sampled, before the end of its
    /// grant.
    #[test]
    fn a_sampled_byte_does_not_raise_a_threshold_that_was_lowered() {
        model(|| {
            let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
            record.begin("sampled".into(), 0);
            let cell = SHARDS.acquire().unwrap().claim(record.slot()).unwrap();
            cell.raise_threshold(16, 1000);
            let other = thread::spawn(move || cell.set_point(500));
            lower_in_family(record, None);
            other.join().unwrap();
            assert!(cell.needs_grant(1) && cell.needs_slow_path(1), "it would go on as before");
        });
    }
}

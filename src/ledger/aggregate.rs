//! The reader's side: adding the cells up.
//!
//! Frees first, allocations second, each over all shards. A free that was seen
//! happened after its block's allocation, so that allocation is seen too, and
//! a live figure is never negative, however many threads go on meanwhile. Then frees once more: what
//! is live by those is no more than was live at one moment, and so may be a peak.

use crate::ledger::shard::{CELLS, Place, SHARDS};
use crate::ledger::slots::{self, Moment, Record};
use crate::owner::Slot;
use crate::sync::{AtomicU64, Ordering, shared};
use crate::usage::Usage;

/// Sums up one service, which the caller holds or has pinned. Reads one cell in each shard: there
/// are as many shards as threads were alive at the busiest moment.
pub fn usage(record: &Record) -> Usage {
    let moment = Moment::begin();
    let usage = SHARDS.sum(record.slot(), record.shared()).usage;
    let freed_after = SHARDS.freed(record.slot(), record.shared());
    record.share_of(usage, moment.with_at_least(live_after(usage, freed_after)))
}

/// Sums up every service, in the order of their slots, and all of them with those that have ended.
///
/// Goes through the shards once for each run of `RUN` slots, so that the
/// second look at a cell finds it in the cache.
pub fn usages(each: impl FnMut(&'static Record, Usage)) -> Usage {
    let (mut total, live) = usages_between(0, u32::MAX, each);
    total.denied = slots::denied();
    total.peak_bytes = PEAK.fetch_max(live, Ordering::Relaxed).max(live).max(total.bytes());
    total
}

/// Sums up the services with slots from `first` to the one before `end`, and all that ever had one of these
/// slots: what they have allocated and freed, and what was live of it at one moment at least. Services up to
/// the next multiple of `RUN` may come with them.
pub(crate) fn usages_between(
    first: u32,
    end: u32,
    mut each: impl FnMut(&'static Record, Usage),
) -> (Usage, u64) {
    let first = first / RUN as u32 * RUN as u32;
    let end = end.min(slots::end());
    let mut total = Usage::default();
    let mut sums = [Usage::default(); RUN];
    let mut freed_after = [0_u64; RUN];
    let mut live = 0_u64;
    for first in (first..end).step_by(RUN) {
        let records = || {
            let slots = (first..slots::end()).take(RUN).filter_map(Slot::new);
            slots.filter_map(|slot| Some((Place::of(slot), slots::any_record(slot)?)))
        };
        let Some((any, _)) = records().next() else { continue };
        let start = any.cell / RUN * RUN;
        let cells = || SHARDS.shards().filter_map(|shard| Some(&shard.chunk(any)?.0[start..start + RUN]));
        // Who is pinned does not share its cells with the next one before they
        // are added up.
        let mut is_pinned = [false; RUN];
        for (place, record) in records() {
            is_pinned[place.cell - start] = record.lifecycle().is_in_use() && record.lifecycle().pin();
        }
        let moment = Moment::begin();
        sums.fill(Usage::default());
        for (place, record) in records() {
            record.shared().add_freed(&mut sums[place.cell - start]);
        }
        for cells in cells() {
            cells.iter().zip(&mut sums).for_each(|(cell, sum)| cell.add_freed(sum));
        }
        for (place, record) in records() {
            record.shared().add_allocated(&mut sums[place.cell - start]);
        }
        for cells in cells() {
            cells.iter().zip(&mut sums).for_each(|(cell, sum)| cell.add_allocated(sum));
        }
        freed_after.fill(0);
        for (place, record) in records() {
            let sum = &mut freed_after[place.cell - start];
            *sum = sum.wrapping_add(record.shared().freed());
        }
        for cells in cells() {
            cells.iter().zip(&mut freed_after).for_each(|(cell, sum)| *sum = sum.wrapping_add(cell.freed()));
        }
        for (place, record) in records() {
            let index = place.cell - start;
            if is_pinned[index] {
                if record.lifecycle().is_in_use() {
                    let live = moment.with_at_least(live_after(sums[index], freed_after[index]));
                    each(record, record.share_of(sums[index], live));
                }
                record.lifecycle().unpin();
            }
        }
        live = sums
            .iter()
            .zip(freed_after)
            .map(|(sum, freed)| live_after(*sum, freed))
            .fold(live, u64::saturating_add);
        total = sums.into_iter().fold(total, Usage::and);
    }
    (total, live)
}

/// Sums up the service that has a slot, if one has.
#[cfg(all(feature = "report", target_os = "linux", not(dogtag_loom)))]
pub(crate) fn usage_in(slot: u32, each: impl FnOnce(&'static Record, Usage)) {
    let Some(record) = Slot::new(slot).and_then(slots::record) else { return };
    if record.lifecycle().pin() {
        if record.lifecycle().is_in_use() {
            each(record, usage(record));
        }
        record.lifecycle().unpin();
    }
}

/// What is live at least, by frees that were added up after the allocations.
fn live_after(usage: Usage, freed_bytes: u64) -> u64 {
    Usage { freed_bytes, ..usage }.bytes()
}

/// Lists an address in the stack of each thread that counts in cells of its own.
pub(crate) fn stacks() -> impl Iterator<Item = usize> {
    SHARDS.shards().map(|shard| shard.stack.load(Ordering::Relaxed))
}

shared! {
    /// The most that was ever found live in sum.
    static PEAK: AtomicU64 = AtomicU64::new(0);
}

/// Slots that are read together: a page of cells. Scrambling keeps an aligned
/// run of slots together, in another order.
const RUN: usize = if cfg!(dogtag_loom) { CELLS } else { 64 };
const _: () = assert!(CELLS.is_multiple_of(RUN));

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::whole_model;
    use loom::thread;
    use std::ptr;

    /// A thread frees what it has and allocates again while somebody reads, in either way.
    #[test]
    fn no_peak_is_higher_than_what_was_live() {
        for reads_all in [false, true] {
            whole_model(move || {
                let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
                record.begin("one".into(), 0);
                let cell = SHARDS.acquire().unwrap().claim(record.slot()).unwrap();
                cell.charge(100);
                let reader = move || if reads_all { usages(|_, _| {}) } else { usage(record) };
                let other = thread::spawn(move || _ = reader());
                cell.refund(100);
                cell.charge(99);
                other.join().unwrap();
                assert!(usage(record).peak_bytes <= 100, "{} bytes", usage(record).peak_bytes);
                assert!(usages(|_, _| {}).peak_bytes <= 100);
            });
        }
    }

    /// A peak is reset while somebody notes what was live before.
    #[test]
    fn no_peak_is_from_before_it_was_reset() {
        whole_model(|| {
            let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
            record.begin("one".into(), 0);
            let cell = SHARDS.acquire().unwrap().claim(record.slot()).unwrap();
            cell.charge(50);
            assert_eq!(usage(record).peak_bytes, 50);
            cell.charge(50);
            let other = thread::spawn(move || _ = usage(record));
            cell.refund(90);
            record.reset_peak();
            other.join().unwrap();
            assert_eq!(usage(record).peak_bytes, 10);
        });
    }

    /// A service ends and another one gets its slot, while figures are read.
    #[test]
    fn each_service_is_seen_with_its_own_figures() {
        whole_model(|| {
            let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
            record.begin("first".into(), 0);
            let shard = SHARDS.acquire().unwrap();
            let cell = shard.claim(record.slot()).unwrap();
            cell.charge(100);
            let other = thread::spawn(move || {
                cell.refund(100);
                record.lifecycle().release();
                if record.end() && record.lifecycle().claim() {
                    record.begin("second".into(), 0);
                    cell.charge(7);
                }
            });
            let total = usages(|seen, usage| {
                if ptr::eq(seen, record) {
                    let all = (usage.allocated_bytes, usage.allocated_blocks);
                    let known = match seen.name() {
                        "first" => all == (100, 1),
                        "second" => all == (0, 0) || all == (7, 0) || all == (0, 1) || all == (7, 1),
                        name => panic!("{name}?"),
                    };
                    assert!(known, "{all:?} of {}", seen.name());
                    assert!(usage.freed_bytes <= usage.allocated_bytes);
                }
            });
            assert!(total.freed_bytes <= total.allocated_bytes && total.allocated_bytes <= 107);
            other.join().unwrap();
        });
    }
}

//! The reader's side: adding the cells up.
//!
//! Frees first, allocations second, each over all shards. A free that was seen
//! happened after its block's allocation, so that allocation is seen too, and
//! a live figure is never negative, however many threads go on meanwhile.

use crate::cookie::Slot;
use crate::ledger::shard::{CELLS, Place, Roster};
use crate::ledger::slots::{self, Record};
use crate::usage::Usage;

/// The shards of this process.
pub(super) static ROSTER: Roster = Roster::new();

/// What one service holds: one cell read a shard, that is, for each thread that
/// was alive at the busiest moment.
pub(crate) fn usage(record: &Record) -> Usage {
    ROSTER.usage(record.slot(), record.shared())
}

/// What every service holds, in the order of their slots.
///
/// Goes through the shards once for each run of [`RUN`] slots, so that the
/// second look at a cell finds it in the cache.
pub(crate) fn usages(mut each: impl FnMut(&'static Record, Usage)) {
    let mut sums = [Usage::default(); RUN];
    for first in (0..slots::end()).step_by(RUN) {
        let records = || (first..).take(RUN).filter_map(Slot::new).filter_map(slots::record);
        let Some(any) = records().next() else { continue };
        sums.fill(Usage::default());
        let place = Place::of(any.slot());
        let start = place.cell / RUN * RUN;
        let sum_of = |record: &Record| Place::of(record.slot()).cell - start;
        let cells = || ROSTER.shards().filter_map(|shard| Some(&shard.chunk(place)?.0[start..start + RUN]));
        for record in records() {
            record.shared().add_freed(&mut sums[sum_of(record)]);
        }
        for cells in cells() {
            cells.iter().zip(&mut sums).for_each(|(cell, sum)| cell.add_freed(sum));
        }
        for record in records() {
            record.shared().add_allocated(&mut sums[sum_of(record)]);
        }
        for cells in cells() {
            cells.iter().zip(&mut sums).for_each(|(cell, sum)| cell.add_allocated(sum));
        }
        for record in records() {
            each(record, sums[sum_of(record)]);
        }
    }
}

/// Slots that are read together: a page of cells. Scrambling keeps an aligned
/// run of slots together, in another order.
const RUN: usize = 64;
const _: () = assert!(CELLS.is_multiple_of(RUN));

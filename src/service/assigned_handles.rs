//! Handles that dogtag assigns: a table whose places they choose, without a lock.
//!
//! An assigned handle is a running number of the upper half, and its place in the table follows from it. A number
//! whose place is taken is passed over. So no two handles have the same place, and to look one up, to assign it and
//! to give it up is one access. The table has twice as many places as there are slots, so that one place of two is
//! free; where there are more slots, a larger table is added, and the older ones stay as they are.

use super::chosen_or_assigned;
use crate::ledger::slots::{self, Record};
use crate::owner::Slot;
use crate::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use crate::sys;

/// The half of the handles from which they are assigned: few programs number their own services there.
pub(super) const UPPER_HALF: u32 = 1 << 31;

/// The next handle of the upper half, with or without its highest bit.
static NEXT_HANDLE: AtomicU32 = AtomicU32::new(0);

/// From the smallest table to the largest, each for four times as many; null where there is none yet. A place has the
/// index of a slot, or 0.
static TABLES: [AtomicPtr<AtomicU32>; LEVELS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; LEVELS];

/// The level of the largest table that there is, or will be in a moment.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

const LEVELS: usize = 8;
const FIRST: usize = 4096;
const _: () = assert!(places(LEVELS - 1) >= 2 * Slot::COUNT as usize);

/// Numbers that follow each other have places in one line.
const LINE: usize = 16;

const fn places(level: usize) -> usize {
    FIRST << (2 * level)
}

/// Gives a handle to a new service, from the one on that it has for now; `None` if the system has no memory for the
/// table.
pub(super) fn assign(record: &'static Record) -> Option<()> {
    let mut level = LARGEST.load(Ordering::SeqCst);
    while places(level) < 2 * slots::end() as usize && level < LEVELS - 1 {
        level += 1;
        LARGEST.fetch_max(level, Ordering::SeqCst);
    }
    // SAFETY: atomics, for which zeros are valid; each table has always the same length.
    let table = unsafe { sys::get_or_map_slice(&TABLES[level], places(level)) }?;
    // Ends: no more than half of the places are taken, as of the numbers.
    loop {
        let handle = record.handle();
        let place = &table[place(handle, level)];
        if place.load(Ordering::Relaxed) == 0
            && !(HAVE_COME_FAR.load(Ordering::Relaxed) && is_in(0..level, handle))
            && chosen_or_assigned::take(place, record.index())
        {
            return Some(());
        }
        record.set_handle(next());
    }
}

/// The next number that may be one's handle.
#[inline]
pub(super) fn next() -> u32 {
    let number = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
    if number & FAR != 0 {
        // Half an hour before they begin again.
        HAVE_COME_FAR.store(true, Ordering::Relaxed);
    }
    UPPER_HALF | number
}

/// Set in half of the numbers, the later ones.
const FAR: u32 = 1 << 30;

/// Whether numbers are given, or will be soon, that were given before.
static HAVE_COME_FAR: AtomicBool = AtomicBool::new(false);

/// Gives that number next, as if all had been given before.
#[cfg(test)]
pub(super) fn preset_next(number: u32) {
    HAVE_COME_FAR.store(true, Ordering::Relaxed);
    NEXT_HANDLE.store(number, Ordering::Relaxed);
}

/// Finds who has that handle by a place in the tables. He may be gone by now, and the handle another's, unless
/// the caller holds him.
pub(super) fn find(handle: u32) -> Option<&'static Record> {
    let taken = tables().filter_map(|level| table(level)?.get(place(handle, level)));
    taken.filter_map(record_in).find(|record| record.handle() == handle)
}

/// Gives the handle of a service up, if it was assigned.
pub(super) fn give_up(record: &'static Record) {
    let (handle, index) = (record.handle(), record.index());
    for level in tables() {
        let place = table(level).and_then(|table| table.get(place(handle, level)));
        // A slot has one place at most. Two threads may do this, and a third one take the place in between.
        if place.is_some_and(|place| chosen_or_assigned::give_up(place, index)) {
            return;
        }
    }
}

/// The levels that have tables, from the largest one down.
#[inline]
fn tables() -> impl Iterator<Item = usize> {
    // Of a table that a thread has put something into, whoever learns of that sees the level.
    (0..=LARGEST.load(Ordering::SeqCst)).rev()
}

/// Whether one of those tables has the handle.
fn is_in(mut levels: std::ops::Range<usize>, handle: u32) -> bool {
    levels.any(|level| {
        let place = table(level).and_then(|table| table.get(place(handle, level)));
        place.and_then(record_in).is_some_and(|record| record.handle() == handle)
    })
}

fn record_in(place: &AtomicU32) -> Option<&'static Record> {
    match chosen_or_assigned::holder(place) {
        0 => None,
        index => slots::any_record(Slot::new(index)?),
    }
}

#[inline]
fn table(level: usize) -> Option<&'static [AtomicU32]> {
    let table = TABLES[level].load(Ordering::Acquire);
    // SAFETY: only `assign` puts a table there, of that many places, which is never unmapped.
    (!table.is_null()).then(|| unsafe { std::slice::from_raw_parts(table, places(level)) })
}

/// The place of a handle: a line by what is above its lowest bits, scrambled so that long runs of numbers in use
/// are spread, and a place in the line by those bits.
#[inline]
fn place(handle: u32, level: usize) -> usize {
    // The golden ratio.
    let scrambled = (handle / LINE as u32).wrapping_mul(0x9E37_79B9);
    let line = scrambled >> (u32::BITS - (places(level) / LINE).trailing_zeros());
    line as usize * LINE + handle as usize % LINE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Service;
    use std::collections::HashSet;

    #[test]
    fn each_number_has_a_place_and_runs_are_spread() {
        for level in [0, 1, 4, LEVELS - 1] {
            let run = places(level).min(1 << 16);
            let first = UPPER_HALF + 12_345;
            let taken: HashSet<usize> = (first..).take(run / 2).map(|handle| place(handle, level)).collect();
            assert!(taken.iter().all(|&place| place < places(level)));
            assert!(taken.len() > run / 3, "{} of {}", taken.len(), run / 2);
            // What comes after a run in use does not meet it at every step.
            let next = (first + run as u32 / 2..).take(run / 2).map(|handle| place(handle, level));
            let longest = next.fold((0, 0), |(longest, run), place| {
                let run = if taken.contains(&place) { run + 1 } else { 0 };
                (usize::max(longest, run), run)
            });
            assert!(longest.0 < 200, "{} numbers in a row", longest.0);
        }
    }

    #[test]
    fn those_of_smaller_tables_are_found_and_not_given_twice() {
        let services: Vec<Service> =
            (0..5000).map(|i| Service::register(format!("early or late {i}")).unwrap()).collect();
        assert!(table(1).is_some());
        for service in &services {
            assert!(find(service.handle()).is_some_and(|found| std::ptr::eq(found, service.record())));
        }
        // The same numbers once more.
        let first = services[0].handle();
        preset_next(first);
        let later: Vec<Service> =
            (0..5000).map(|i| Service::register(format!("later {i}")).unwrap()).collect();
        let handles: HashSet<u32> = services.iter().chain(&later).map(Service::handle).collect();
        assert_eq!(handles.len(), services.len() + later.len());
        for service in services.into_iter().chain(later) {
            let (handle, record) = (service.handle(), service.record());
            assert!(find(handle).is_some_and(|found| std::ptr::eq(found, record)));
            drop(service);
            assert!(find(handle).is_none());
        }
    }
}

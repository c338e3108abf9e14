//! A hash table of slots, for the registry: open addressing, with the hash beside the slot.
//!
//! So growing and removing read no record, and a look-up reads one record, mostly the right one.

use crate::ledger::slots::{self, Record};
use crate::owner::Slot;
use std::collections::TryReserveError;

/// Slots by the hash of what is known of their services, such as the name, which stands in the record alone.
pub(super) struct SlotTable {
    /// [`FREE`], or the hash above the slot's index. Linear probing: what is taken from a hash's place on
    /// is without gaps.
    entries: Vec<u64>,
    taken: usize,
}

/// Not an entry: the first slot is in no table.
const FREE: u64 = 0;

const FEWEST: usize = 8;

/// Where an entry stands in its table, until that is changed.
#[derive(Clone, Copy)]
pub(super) struct Position(usize);

impl SlotTable {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new(), taken: 0 }
    }

    /// Finds what has that hash and is meant, as `is_it` says.
    #[inline]
    pub(super) fn find(
        &self,
        hash: u32,
        mut is_it: impl FnMut(&'static Record) -> bool,
    ) -> Option<(Position, &'static Record)> {
        let mut place = self.home(hash);
        loop {
            // Ends: of the entries some are free, or there are none.
            let entry = self.entries.get(place).copied().filter(|&entry| entry != FREE)?;
            if hash_of(entry) == hash
                && let Some(record) = record_of(entry)
                && is_it(record)
            {
                return Some((Position(place), record));
            }
            place = self.next(place);
        }
    }

    /// Makes room for one more.
    #[inline]
    pub(super) fn try_reserve(&mut self) -> Result<(), TryReserveError> {
        if self.taken * 4 < self.entries.len() * 3 { Ok(()) } else { self.try_grow() }
    }

    #[cold]
    fn try_grow(&mut self) -> Result<(), TryReserveError> {
        let size = (self.entries.len() * 2).max(FEWEST);
        let mut larger = Vec::new();
        larger.try_reserve_exact(size)?;
        larger.resize(size, FREE);
        let former = std::mem::replace(&mut self.entries, larger);
        former.into_iter().filter(|&entry| entry != FREE).for_each(|entry| self.put(entry));
        Ok(())
    }

    /// Adds a service, for which there is [room](Self::try_reserve).
    #[inline]
    pub(super) fn add(&mut self, hash: u32, record: &'static Record) {
        self.put(entry(hash, record));
        self.taken += 1;
    }

    /// Puts another service with the same hash into a place.
    pub(super) fn replace(&mut self, Position(place): Position, record: &'static Record) {
        let there = &mut self.entries[place];
        *there = entry(hash_of(*there), record);
    }

    /// Takes a service out.
    #[inline]
    pub(super) fn remove(&mut self, Position(mut hole): Position) {
        let mut place = hole;
        loop {
            place = self.next(place);
            let entry = self.entries[place];
            if entry == FREE {
                break;
            }
            // What stands behind a gap would not be found: it moves there, unless its home is behind it, too.
            let mask = self.entries.len() - 1;
            let from_home = place.wrapping_sub(self.home(hash_of(entry))) & mask;
            if from_home >= place.wrapping_sub(hole) & mask {
                self.entries[hole] = entry;
                hole = place;
            }
        }
        self.entries[hole] = FREE;
        self.taken -= 1;
    }

    fn put(&mut self, entry: u64) {
        let mut place = self.home(hash_of(entry));
        while self.entries[place] != FREE {
            place = self.next(place);
        }
        self.entries[place] = entry;
    }

    #[inline]
    fn home(&self, hash: u32) -> usize {
        hash as usize & self.entries.len().wrapping_sub(1)
    }

    #[inline]
    fn next(&self, place: usize) -> usize {
        (place + 1) & (self.entries.len() - 1)
    }
}

fn entry(hash: u32, record: &'static Record) -> u64 {
    u64::from(hash) << u32::BITS | u64::from(record.index())
}

#[inline]
fn hash_of(entry: u64) -> u32 {
    (entry >> u32::BITS) as u32
}

#[inline]
fn record_of(entry: u64) -> Option<&'static Record> {
    slots::any_record(Slot::new(entry as u32)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Service;
    use std::collections::HashMap;
    use std::ptr;

    /// Few hashes, so that most entries are not where they belong, at the end of the table, too.
    #[test]
    fn it_has_what_a_map_has() {
        let services: Vec<Service> =
            (0..200).map(|i| Service::register(format!("in a table {i}")).unwrap()).collect();
        let mut random = 7_u64;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % bound
        };
        for hashes in [1, 7, 60, 1000] {
            let (mut table, mut model) = (SlotTable::new(), HashMap::new());
            let hash_of = |index: u32| (index % hashes).wrapping_mul(0x9E37_79B9) | 6;
            for step in 0..4000 {
                // It grows, and shrinks, several times.
                let service = &services[below(if step / 500 % 2 == 0 { 200 } else { 20 }) as usize];
                let record = service.record();
                let hash = hash_of(record.index());
                let found = table.find(hash, |known| ptr::eq(known, record));
                assert_eq!(found.is_some(), model.contains_key(&record.index()));
                match found {
                    Some((position, _)) => {
                        table.remove(position);
                        model.remove(&record.index());
                    }
                    None => {
                        table.try_reserve().unwrap();
                        table.add(hash, record);
                        model.insert(record.index(), hash);
                    }
                }
                assert_eq!(table.taken, model.len());
                if step % 50 == 0 {
                    for service in &services {
                        let record = service.record();
                        let found = table.find(hash_of(record.index()), |known| ptr::eq(known, record));
                        assert_eq!(found.is_some(), model.contains_key(&record.index()));
                    }
                }
            }
        }
    }

    #[test]
    fn another_takes_the_place() {
        let [one, other] =
            ["one in a table", "other in a table"].map(|name| Service::register(name).unwrap());
        let mut table = SlotTable::new();
        assert!(table.find(3, |_| true).is_none());
        table.try_reserve().unwrap();
        table.add(3, one.record());
        let (position, _) = table.find(3, |_| true).unwrap();
        table.replace(position, other.record());
        let (_, found) = table.find(3, |_| true).unwrap();
        assert!(ptr::eq(found, other.record()));
        assert!(table.find(3, |known| ptr::eq(known, one.record())).is_none());
    }
}

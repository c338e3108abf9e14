//! A hash table of slots, for the registry: hashbrown's, with the hash beside the slot.
//!
//! So growing and removing read no record, and a look-up reads one record, mostly the right one.

use crate::ledger::slots::{self, Record};
use crate::owner::Slot;
use hashbrown::TryReserveError;
use hashbrown::hash_table::{Entry, HashTable};
use std::ptr;

/// Slots by the hash of what is known of their services, such as the name, which stands in the record alone.
pub(super) struct SlotTable(HashTable<Known>);

#[derive(Clone, Copy)]
struct Known {
    hash: u32,
    index: u32,
}

/// Where a service stands in its table, or may stand.
pub(super) struct Place<'table> {
    hash: u32,
    entry: Entry<'table, Known>,
}

impl SlotTable {
    pub(super) const fn new() -> Self {
        Self(HashTable::new())
    }

    /// Finds what has that hash and is meant, as `is_it` says.
    #[inline]
    pub(super) fn find(
        &self,
        hash: u32,
        is_it: impl FnMut(&'static Record) -> bool,
    ) -> Option<&'static Record> {
        self.0.find(spread(hash), is_meant(hash, is_it))?.record()
    }

    /// Finds the place of what has that hash and is meant, or makes room for it.
    #[inline]
    pub(super) fn place(
        &mut self,
        hash: u32,
        is_it: impl FnMut(&'static Record) -> bool,
    ) -> Result<Place<'_>, TryReserveError> {
        let rehash = |known: &Known| spread(known.hash);
        // `entry` has what it needs then, and does not abort for want of memory.
        self.0.try_reserve(1, rehash)?;
        Ok(Place { hash, entry: self.0.entry(spread(hash), is_meant(hash, is_it), rehash) })
    }

    /// Takes a service out, if it is there.
    #[inline]
    pub(super) fn remove(&mut self, hash: u32, record: &'static Record) {
        if let Ok(entry) = self.0.find_entry(spread(hash), is_meant(hash, |known| ptr::eq(known, record))) {
            entry.remove();
        }
    }
}

impl Place<'_> {
    /// Who has it.
    #[inline]
    pub(super) fn taken_by(&self) -> Option<&'static Record> {
        match &self.entry {
            Entry::Occupied(entry) => entry.get().record(),
            Entry::Vacant(_) => None,
        }
    }

    /// Gives it to a service, whoever had it.
    #[inline]
    pub(super) fn put(self, record: &'static Record) {
        self.entry.insert(Known { hash: self.hash, index: record.index() });
    }
}

impl Known {
    #[inline]
    fn record(self) -> Option<&'static Record> {
        slots::any_record(Slot::new(self.index)?)
    }
}

#[inline]
fn is_meant(hash: u32, mut is_it: impl FnMut(&'static Record) -> bool) -> impl FnMut(&Known) -> bool {
    move |known| known.hash == hash && known.record().is_some_and(&mut is_it)
}

/// The table looks at the lowest bits first, and then at the seven highest ones.
#[inline]
fn spread(hash: u32) -> u64 {
    u64::from(hash) << u32::BITS | u64::from(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Service;
    use std::collections::HashMap;

    /// Few hashes, so that most have company.
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
                if found.is_some() {
                    table.remove(hash, record);
                    model.remove(&record.index());
                } else {
                    let place = table.place(hash, |known| ptr::eq(known, record)).unwrap();
                    assert!(place.taken_by().is_none());
                    place.put(record);
                    model.insert(record.index(), hash);
                }
                assert_eq!(table.0.len(), model.len());
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
        table.place(3, |_| true).unwrap().put(one.record());
        let place = table.place(3, |_| true).unwrap();
        assert!(place.taken_by().is_some_and(|record| ptr::eq(record, one.record())));
        place.put(other.record());
        assert!(table.find(3, |_| true).is_some_and(|record| ptr::eq(record, other.record())));
        assert!(table.find(3, |known| ptr::eq(known, one.record())).is_none());
        assert!(table.find(4, |_| true).is_none());
        // Of others with the same hash nothing is taken out.
        table.remove(3, one.record());
        assert_eq!(table.0.len(), 1);
        table.remove(3, other.record());
        assert_eq!(table.0.len(), 0);
    }
}

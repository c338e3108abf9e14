//! A map from types to values: what users keep with a pool.

use std::any::TypeId;
use std::cell::Cell;
use std::ptr::NonNull;

/// An entry, in a singly linked list.
pub(crate) struct Entry {
    next: Option<NonNull<Entry>>,
    type_id: TypeId,
    value: NonNull<()>,
}

/// The entries of a pool, the youngest first. They stay valid until the pool is cleared, which
/// empties the map before it drops the values.
#[derive(Default)]
pub(crate) struct TypeMap(Cell<Option<NonNull<Entry>>>);

impl TypeMap {
    /// Returns the value of a type that was inserted last.
    pub(crate) fn get<T: 'static>(&self) -> Option<NonNull<T>> {
        let mut next = self.0.get();
        while let Some(entry) = next {
            // SAFETY: an entry is valid until the pool is cleared, which empties the map.
            let entry = unsafe { entry.as_ref() };
            if entry.type_id == TypeId::of::<T>() {
                return Some(entry.value.cast());
            }
            next = entry.next;
        }
        None
    }

    /// Inserts a value, with an entry at `entry`.
    ///
    /// # Safety
    ///
    /// `entry` must be valid for writes, and the value must live, until the map is cleared.
    pub(crate) unsafe fn insert<T: 'static>(&self, entry: NonNull<Entry>, value: NonNull<T>) {
        let new = Entry { next: self.0.get(), type_id: TypeId::of::<T>(), value: value.cast() };
        // SAFETY: the entry's memory is valid for writes.
        unsafe { entry.write(new) };
        self.0.set(Some(entry));
    }

    pub(crate) fn clear(&self) {
        self.0.set(None);
    }
}

//! What users keep with a pool: one value of a type.

use std::any::TypeId;
use std::cell::Cell;
use std::ptr::NonNull;

/// A value of some type, somewhere in the pool.
pub(crate) struct Datum {
    next: Option<NonNull<Datum>>,
    type_id: TypeId,
    value: NonNull<()>,
}

/// The values of a pool, the last one first.
#[derive(Default)]
pub(crate) struct Data(Cell<Option<NonNull<Datum>>>);

impl Data {
    pub(crate) fn get<T: 'static>(&self) -> Option<NonNull<T>> {
        let mut next = self.0.get();
        while let Some(datum) = next {
            // SAFETY: it lives until the pool is cleared, which empties the list.
            let datum = unsafe { datum.as_ref() };
            if datum.type_id == TypeId::of::<T>() {
                return Some(datum.value.cast());
            }
            next = datum.next;
        }
        None
    }

    /// Notes a value, in memory that is for it.
    ///
    /// # Safety
    ///
    /// Both must be there until the pool is cleared.
    pub(crate) unsafe fn note<T: 'static>(&self, memory: NonNull<Datum>, value: NonNull<T>) {
        let datum = Datum { next: self.0.get(), type_id: TypeId::of::<T>(), value: value.cast() };
        // SAFETY: the caller's promise.
        unsafe { memory.write(datum) };
        self.0.set(Some(memory));
    }

    pub(crate) fn clear(&self) {
        self.0.set(None);
    }
}

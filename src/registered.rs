//! A short table of statics that other modules and crates add themselves to.
//!
//! A lower layer calls what a higher one has registered, and names nobody above it.

use crate::sync::{AtomicPtr, Ordering};
use std::ptr;

/// Statics in the order in which they were added. Adding one takes no lock and no memory, so it
/// may happen inside an allocation, and before `main`.
pub(crate) struct Registered<T: 'static> {
    /// Filled from the front; what is in a place stays there.
    places: [AtomicPtr<T>; MOST],
}

/// Each is one static of one crate: a handful.
const MOST: usize = 12;

impl<T: Sync> Registered<T> {
    pub(crate) const fn new() -> Self {
        Self { places: [const { AtomicPtr::new(ptr::null_mut()) }; MOST] }
    }

    /// Adds `it`, unless it is there already. When this returns, whoever looks finds it.
    pub(crate) fn add(&self, it: &'static T) {
        let it = ptr::from_ref(it).cast_mut();
        // Everybody takes the first free place, so nobody takes a second one.
        let has_place = self.places.iter().any(|place| {
            let there = place.load(Ordering::Acquire);
            there == it
                || there.is_null()
                    && match place.compare_exchange(ptr::null_mut(), it, Ordering::AcqRel, Ordering::Acquire)
                    {
                        Ok(_) => true,
                        Err(first) => first == it,
                    }
        });
        debug_assert!(has_place, "more is registered than MOST");
    }

    /// Those that have been added, the first one first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static T> {
        (0..MOST).map_while(|place| self.get(place))
    }

    /// The one that was added after so many others.
    pub(crate) fn get(&self, place: usize) -> Option<&'static T> {
        // SAFETY: a place holds null or a `&'static T` that `add` was given.
        unsafe { self.places.get(place)?.load(Ordering::Acquire).as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn what_many_threads_add_is_there_once() {
        static NUMBERS: [u32; MOST] = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18];

        for _ in 0..100 {
            let (table, barrier) = (Registered::new(), Barrier::new(4));
            std::thread::scope(|threads| {
                for first in 0..4 {
                    let (table, barrier) = (&table, &barrier);
                    threads.spawn(move || {
                        barrier.wait();
                        for i in 0..MOST {
                            let number = &NUMBERS[(first * 2 + i) % MOST];
                            table.add(number);
                            assert!(table.iter().any(|there| there == number));
                        }
                    });
                }
            });
            let mut all: Vec<u32> = table.iter().copied().collect();
            all.sort_unstable();
            assert_eq!(all, NUMBERS);
        }
    }
}

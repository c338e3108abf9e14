//! The magazines that threads keep for themselves while they fill them, each in a place
//! of its thread's.
//!
//! A place holds a magazine's number and whose blocks it is for, in one word: so who takes
//! it out knows that it is the one that was looked at. The thread takes its magazine out
//! while it works with it and puts it back, and nobody else puts anything there. But
//! others take it out too, when an allocator has run out of memory.

use super::instance_id::Identity;
use crate::sync::{AtomicPtr, Ordering};
use std::ptr;

/// Where a thread keeps a magazine, or none.
pub(crate) type Place = AtomicPtr<()>;

/// What was found in a place, and may be gone by now.
#[derive(Clone, Copy)]
pub(crate) struct Kept(*mut ());

/// Bits for a magazine's number. Above them stands the allocator's identity without the
/// upper bits of its generation: it may be that of another one, 2^24 generations older. So whoever
/// has taken the magazine out asks that whose it is.
const NUMBER_BITS: u32 = 24;

impl Kept {
    #[inline]
    pub(crate) fn find(place: &Place) -> Option<Self> {
        let word = place.load(Ordering::Relaxed);
        (!word.is_null()).then_some(Self(word))
    }

    #[inline]
    pub(crate) fn is_for(self, identity: Identity) -> bool {
        self.0.addr() >> NUMBER_BITS == upper(identity)
    }

    #[inline]
    pub(crate) fn magazine(self) -> u32 {
        self.0.addr() as u32 & ((1 << NUMBER_BITS) - 1)
    }

    /// Takes the magazine out; `false` if it is not there any more. What was done with it
    /// comes before what will be.
    #[inline]
    pub(crate) fn take_from(self, place: &Place) -> bool {
        place.compare_exchange(self.0, ptr::null_mut(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

/// Puts a magazine into an empty place of the calling thread's.
#[inline]
pub(crate) fn put(place: &Place, identity: Identity, magazine: u32) {
    let word = upper(identity) << NUMBER_BITS | magazine as usize;
    place.store(ptr::without_provenance_mut(word), Ordering::Release);
}

#[inline]
fn upper(identity: Identity) -> usize {
    identity.bits() as usize & ((1 << (usize::BITS - NUMBER_BITS)) - 1)
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_which_magazine_is_there_and_whose() {
        let place = Place::default();
        assert!(Kept::find(&place).is_none());
        let identity = |generation: u64| Identity::from_bits(generation << 16 | 65_534).unwrap();
        put(&place, identity(7), (1 << 24) - 1);
        let kept = Kept::find(&place).expect("put there");
        assert_eq!(kept.magazine(), (1 << 24) - 1);
        assert!(kept.is_for(identity(7)) && !kept.is_for(identity(9)) && !kept.is_for(identity(7 << 16)));
        assert!(kept.take_from(&place) && !kept.take_from(&place) && Kept::find(&place).is_none());
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// A thread works with its magazine while another takes it away: never both at once,
    /// and every block is in one of their hands.
    #[test]
    fn a_magazine_is_in_one_hand_only() {
        crate::sync::model(|| {
            let identity = Identity::from_bits(1 << 16 | 1).unwrap();
            // The place, and the blocks of two magazines, which loom watches over.
            let shared = Arc::new((Place::default(), [UnsafeCell::new(0), UnsafeCell::new(0)]));
            let other = thread::spawn({
                let shared = shared.clone();
                move || {
                    let (place, magazines) = &*shared;
                    let stolen =
                        Kept::find(place).filter(|kept| kept.is_for(identity) && kept.take_from(place));
                    stolen.map_or(0, |kept| {
                        // SAFETY: the blocks are this thread's alone, or else the model fails.
                        magazines[kept.magazine() as usize].with_mut(|blocks| unsafe { blocks.replace(0) })
                    })
                }
            });
            let (place, magazines) = &*shared;
            let mut fresh = 0;
            for _ in 0..2 {
                let own = Kept::find(place).filter(|kept| kept.take_from(place));
                let number = own.map_or_else(|| std::mem::replace(&mut fresh, 1), Kept::magazine);
                // SAFETY: the model fails if two threads are here at once.
                magazines[number as usize].with_mut(|blocks| unsafe { *blocks += 1 });
                put(place, identity, number);
            }
            let stolen = other.join().unwrap();
            // SAFETY: the model fails if two threads are here at once.
            let left: i32 = magazines.iter().map(|blocks| blocks.with(|blocks| unsafe { *blocks })).sum();
            assert_eq!(stolen + left, 2);
        });
    }
}

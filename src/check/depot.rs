//! All magazines of the process: in rings, kept by threads, and free ones.

use super::instance_id::{Identity, NUMBERS};
use super::magazine::{Kept, Place, put};
use super::quarantine::{MAGAZINE, Magazine, Magazines};
use super::settings::Settings;
use crate::ledger::thread;
use crate::sync::{AtomicPtr, AtomicU32};
use crate::sys;
use std::ptr;

/// Places of a ring, a power of two, or none.
#[inline]
pub(super) fn places_of(settings: &Settings) -> usize {
    (settings.quarantine_blocks as usize).div_ceil(MAGAZINE)
}

/// The magazines of all allocators and threads; none where the operating
/// system refuses.
pub(super) fn magazines(settings: &Settings) -> Magazines<'static> {
    static ALL: AtomicPtr<Magazine> = AtomicPtr::new(ptr::null_mut());
    static NEXT: AtomicU32 = AtomicU32::new(0);

    /// For so many full rings, and so many threads beside. When there are more,
    /// blocks pass the quarantine by.
    const RINGS: usize = 8;
    const THREADS: usize = 4096;

    let length = RINGS * places_of(settings) + THREADS;
    // SAFETY: zeros are free magazines.
    let all = unsafe { sys::get_or_map_slice(&ALL, length) };
    Magazines { all: all.unwrap_or_default(), next: &NEXT }
}

/// A magazine that the calling thread fills for an allocator, and has alone.
pub(super) struct Open {
    pub(super) magazine: &'static Magazine,
    /// Where it may be kept, if it can be.
    place: Option<&'static Place>,
}

impl Open {
    /// The one that the thread keeps, or a free one; `None` if there is none.
    #[inline]
    pub(super) fn new(magazines: &Magazines<'static>, identity: Identity) -> Option<Self> {
        let place = thread::keepsake(place_number(identity));
        let Some((place, kept)) = place.and_then(|place| Some((place, Kept::find(place)?))) else {
            return Some(Self { magazine: magazines.take(identity)?, place });
        };
        if let Some(magazine) = take_own(magazines, place, kept, identity) {
            return Some(Self { magazine, place: Some(place) });
        }
        let is_free = Kept::find(place).is_none_or(|kept| has_left(magazines, place, kept));
        Some(Self { magazine: magazines.take(identity)?, place: is_free.then_some(place) })
    }

    /// Keeps it for the thread's next block; `false` if that cannot be.
    #[inline]
    pub(super) fn keep(&self, magazines: &Magazines<'_>, identity: Identity) -> bool {
        if let Some(place) = self.place {
            put(place, identity, magazines.number(self.magazine));
        }
        self.place.is_some()
    }
}

/// Takes out what is kept for an allocator. What was kept for another one, which has ended
/// and looks the same, is given back.
fn take_own(
    magazines: &Magazines<'static>,
    place: &Place,
    kept: Kept,
    identity: Identity,
) -> Option<&'static Magazine> {
    if !kept.is_for(identity) || !kept.take_from(place) {
        return None;
    }
    let magazine = magazines.get(kept.magazine())?;
    if magazine.identity() == Some(identity) {
        return Some(magazine);
    }
    magazines.give_back(magazine);
    None
}

/// Gives a magazine back that the calling thread keeps, if its allocator has ended.
#[cold]
fn has_left(magazines: &Magazines<'_>, place: &Place, kept: Kept) -> bool {
    let magazine = magazines.get(kept.magazine());
    // Whose it is can be believed only if it is there still when it is taken.
    let left = magazine.filter(|magazine| magazine.has_ended() && kept.take_from(place));
    left.inspect(|magazine| magazines.give_back(magazine)).is_some()
}

/// Takes away what threads keep for an allocator, and calls `each` for it.
pub(super) fn take_kept(
    magazines: &Magazines<'static>,
    identity: Identity,
    mut each: impl FnMut(&'static Magazine),
) {
    for place in thread::keepsakes(place_number(identity)) {
        if let Some(kept) = Kept::find(place)
            && let Some(magazine) = take_own(magazines, place, kept, identity)
        {
            each(magazine);
        }
    }
}

/// The first allocator, which is the program's global one, has a place of its own on each
/// thread. The others share places: where two need the same, one of them has it.
#[inline]
fn place_number(identity: Identity) -> usize {
    const OTHERS: u16 = thread::KEEPSAKES as u16 - 1;

    match identity.number() {
        0 | 1 => 0,
        number => usize::from(1 + number % OTHERS),
    }
}

/// Bytes and blocks in the quarantines of all allocators.
pub(crate) fn quarantined() -> (u64, u64) {
    let magazines = magazines(Settings::get());
    let all = magazines.all.iter().filter(|magazine| !magazine.has_ended()).map(Magazine::holds);
    all.fold((0, 0), |(bytes, blocks), more| (bytes + more.0, blocks + more.1))
}

impl Magazine {
    /// Whether the allocator has ended, and so its blocks have been released.
    pub(super) fn has_ended(&self) -> bool {
        self.identity().is_some_and(|identity| NUMBERS.has_ended(identity))
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use crate::sync::Ordering;

    #[test]
    fn a_magazine_is_not_another_allocators_whose_generation_looks_the_same() {
        let identity = |generation: u64| Identity::from_bits(generation << 16 | 7).unwrap();
        let (old, new) = (identity(5), identity(5 + (1 << 24)));
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let all: &[Magazine] = Box::leak(Box::new([super::super::quarantine::magazine()]));
        let magazines = Magazines { all, next: &NEXT };
        let place = Place::default();
        let keep = |identity| {
            let magazine = magazines.take(identity).expect("given back before");
            put(&place, identity, magazines.number(magazine));
            Kept::find(&place).expect("put there")
        };
        let kept = keep(old);
        assert!(kept.is_for(new), "it does not look the same");
        assert!(take_own(&magazines, &place, kept, new).is_none(), "another's blocks are in it");
        assert!(place.load(Ordering::Relaxed).is_null());
        let kept = keep(new);
        assert!(take_own(&magazines, &place, kept, new).is_some());
    }
}

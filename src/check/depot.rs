//! All magazines of the process: in rings, kept by threads, and free ones.

use super::instance_id::{Identity, NUMBERS};
use super::magazine::{self, Place};
use super::quarantine::{Leaves, MAGAZINE, Magazine, Magazines};
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

/// Where the calling thread keeps a magazine for an allocator, if it can.
#[inline(always)]
pub(super) fn place_for(identity: Identity) -> Option<&'static Place> {
    thread::keepsake(place_number(identity))
}

/// The magazine that the calling thread keeps for an allocator in its place.
#[inline(always)]
pub(super) fn kept_for(place: &'static Place, identity: Identity) -> Option<&'static Magazine> {
    // SAFETY: the place is the calling thread's; magazines are never unmapped.
    unsafe { magazine::kept(place) }.filter(|magazine| magazine.is_for(identity))
}

/// Whether a place is empty. What was kept there for an allocator that has ended is given back.
pub(super) fn is_free(magazines: &Magazines<'_>, place: &Place) -> bool {
    // SAFETY: the place is the calling thread's; magazines are never unmapped.
    let Some(kept) = (unsafe { magazine::kept(place) }) else { return true };
    let has_ended = kept.has_ended();
    if has_ended && magazine::take_out(place) {
        magazines.give_back(kept);
    }
    has_ended
}

/// Takes away the blocks that threads keep for an allocator, and calls `release` for each.
pub(super) fn take_kept(magazines: &Magazines<'static>, identity: Identity, release: &mut impl Leaves) {
    let is_own = |magazine: &Magazine| magazine.is_for(identity);
    for place in thread::keepsakes(place_number(identity)) {
        // SAFETY: magazines are never unmapped.
        if let Some(left) = unsafe { magazine::take_blocks(place, is_own, release) } {
            // Another's, which has come to the same place in the meantime, stay in quarantine for good.
            if is_own(left) {
                left.take_blocks(release);
            }
            magazines.give_back(left);
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

/// Bytes, with and without memory, and blocks in the quarantines of all allocators.
pub(crate) fn quarantined() -> (u64, u64) {
    let magazines = magazines(Settings::get());
    let all = magazines.all.iter().filter(|magazine| !magazine.has_ended());
    let held = all.map(|magazine| (magazine.holds(), magazine.addresses()));
    held.fold((0, 0), |(bytes, blocks), (more, addresses)| (bytes + more.0 + addresses, blocks + more.1))
}

impl Magazine {
    /// Whether the allocator has ended, and so its blocks have been released.
    pub(super) fn has_ended(&self) -> bool {
        self.identity().is_some_and(|identity| NUMBERS.has_ended(identity))
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::super::quarantine;
    use super::*;

    #[test]
    fn a_magazine_is_not_another_allocators_and_leaves_with_its_own() {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let all: &[Magazine] = Box::leak(Box::new([quarantine::magazine(), quarantine::magazine()]));
        let magazines = Magazines { all, next: &NEXT };
        let place: &Place = Box::leak(Box::default());
        let [old, other] = [(); 2].map(|()| NUMBERS.give().expect("there are enough"));
        let magazine = magazines.take(old, u64::MAX).expect("both are free");
        magazine.push(16, quarantine::Held::memory(100));
        magazine::put(place, magazine);
        assert!(kept_for(place, old).is_some() && kept_for(place, other).is_none());
        assert!(!is_free(&magazines, place), "its blocks are in quarantine");
        NUMBERS.take_back(old);
        let again = NUMBERS.give().expect("one was taken back");
        assert!(again.number() == old.number() && kept_for(place, again).is_none(), "another's blocks");
        assert!(is_free(&magazines, place) && is_free(&magazines, place));
        assert!(kept_for(place, old).is_none() && magazine.holds() == (0, 0));
        assert!(
            [again, other].iter().all(|identity| magazines.take(*identity, u64::MAX).is_some()),
            "it was given back"
        );
    }
}

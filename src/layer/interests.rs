//! What a subscriber has answered when it was asked for its interest in spans.

use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use tracing::Metadata;
use tracing::subscriber::Interest;

/// A subscriber's interests in callsites, as far as there are places for them.
#[derive(Debug)]
pub(super) struct Interests {
    /// The address of a callsite's metadata, and in its lowest bits the interest; 0 where there is none.
    places: Box<[AtomicUsize]>,
}

const PLACES: usize = 2048;
/// So many places behind the first one may be another callsite's.
const PROBES: usize = 8;
const INTEREST: usize = 0b11;
const NEVER: usize = 1;
const SOMETIMES: usize = 2;
const ALWAYS: usize = 3;

impl Interests {
    pub(super) fn new() -> Self {
        Self { places: (0..PLACES).map(|_| AtomicUsize::new(0)).collect() }
    }

    /// Notes the interest in a callsite, if there is a place.
    pub(super) fn note(&self, metadata: &'static Metadata<'static>, interest: &Interest) {
        let address = address(metadata);
        let interest = match () {
            () if interest.is_never() => NEVER,
            () if interest.is_always() => ALWAYS,
            () => SOMETIMES,
        };
        for place in self.places_of(address) {
            let change =
                |known: usize| (known == 0 || known & !INTEREST == address).then_some(address | interest);
            if place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok() {
                return;
            }
        }
    }

    /// Returns the interest in a callsite that was noted last: [`Interest::sometimes`] if there was
    /// no place.
    pub(super) fn of(&self, metadata: &'static Metadata<'static>) -> Interest {
        let address = address(metadata);
        let known = self.places_of(address).map(|place| place.load(Ordering::Relaxed));
        match known.into_iter().find(|known| known & !INTEREST == address).map(|known| known & INTEREST) {
            Some(NEVER) => Interest::never(),
            Some(ALWAYS) => Interest::always(),
            _ => Interest::sometimes(),
        }
    }

    fn places_of(&self, address: usize) -> impl Iterator<Item = &AtomicUsize> {
        let first = (address >> 3).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize) >> (usize::BITS - 11);
        (first..first + PROBES).map(|place| &self.places[place % PLACES])
    }
}

fn address(metadata: &'static Metadata<'static>) -> usize {
    const { assert!(align_of::<Metadata<'static>>() > INTEREST && PLACES == 1 << 11) };
    ptr::from_ref(metadata).addr()
}

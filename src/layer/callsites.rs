//! What is known of spans' callsites: what the subscriber has answered when it was asked for its interest,
//! and the hidden spans that are kept of each.

use super::kept::OfCallsite;
use crate::service::{Service, gate};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use tracing::Metadata;
use tracing::subscriber::Interest;

/// A subscriber's callsites, as far as there are places for them.
#[derive(Debug)]
pub(super) struct Callsites {
    places: Box<[Place]>,
}

#[derive(Debug, Default)]
struct Place {
    /// The address of a callsite's metadata, and in its lowest bits the interest; 0 where there is none.
    known: AtomicUsize,
    kept: OnceLock<Box<OfCallsite>>,
}

/// The place of a callsite.
#[derive(Clone, Copy)]
pub(super) struct Callsite<'a> {
    place: &'a Place,
    pub(super) number: usize,
}

const PLACES: usize = 2048;
/// So many places behind the first one may be another callsite's.
const PROBES: usize = 8;
const INTEREST: usize = 0b11;
const NEVER: usize = 1;
const SOMETIMES: usize = 2;
const ALWAYS: usize = 3;

impl Callsites {
    pub(super) fn new() -> Self {
        Self { places: (0..PLACES).map(|_| Place::default()).collect() }
    }

    /// Notes the interest in a callsite, if there is a place.
    pub(super) fn note(&self, metadata: &'static Metadata<'static>, interest: &Interest) {
        let address = address(metadata);
        let interest = match () {
            () if interest.is_never() => NEVER,
            () if interest.is_always() => ALWAYS,
            () => SOMETIMES,
        };
        for number in numbers(address) {
            let change =
                |known: usize| (known == 0 || known & !INTEREST == address).then_some(address | interest);
            let known = &self.places[number].known;
            if known.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok() {
                return;
            }
        }
    }

    /// Returns a callsite, if it has a place.
    #[inline]
    pub(super) fn find(&self, metadata: &'static Metadata<'static>) -> Option<Callsite<'_>> {
        let address = address(metadata);
        numbers(address)
            .map(|number| Callsite { place: &self.places[number], number })
            .find(|callsite| callsite.place.known.load(Ordering::Relaxed) & !INTEREST == address)
    }

    /// Returns the spans that are kept of the callsite with that number.
    pub(super) fn kept(&self, number: usize) -> Option<&OfCallsite> {
        self.places.get(number)?.kept.get().map(|kept| &**kept)
    }
}

impl<'a> Callsite<'a> {
    /// Returns the interest in it that was noted last.
    #[inline]
    pub(super) fn interest(self) -> Interest {
        match self.place.known.load(Ordering::Relaxed) & INTEREST {
            NEVER => Interest::never(),
            ALWAYS => Interest::always(),
            _ => Interest::sometimes(),
        }
    }

    /// Returns the spans that are kept of it, if any ever was.
    #[inline]
    pub(super) fn kept(self) -> Option<&'a OfCallsite> {
        self.place.kept.get().map(|kept| &**kept)
    }

    /// Returns the spans that are kept of it. All of them run in that service.
    pub(super) fn kept_or_none_yet(self, service: Service) -> &'a OfCallsite {
        let _gate = gate();
        self.place.kept.get_or_init(|| Box::new(OfCallsite::new(service)))
    }
}

#[inline]
fn numbers(address: usize) -> impl Iterator<Item = usize> {
    let first = (address >> 3).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize) >> (usize::BITS - 11);
    (first..first + PROBES).map(|number| number % PLACES)
}

fn address(metadata: &'static Metadata<'static>) -> usize {
    const { assert!(align_of::<Metadata<'static>>() > INTEREST && PLACES == 1 << 11) };
    ptr::from_ref(metadata).addr()
}

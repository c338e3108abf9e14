//! Tokens: a span's identity, and whether what threads remember of it is still true.

use crate::ledger::recall::Generation;
use crate::ledger::slots::Record;
use std::ptr;

/// Identifies a span among all of this process, in whichever subscriber: by its number, and the
/// generation that the number's place had when the token was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    span: u64,
    generation: u64,
}

impl Token {
    pub(super) const NONE: Self = Self { span: 0, generation: 0 };

    /// Makes a new token of that span.
    pub(super) fn new(span: u64) -> Self {
        Self { span, generation: generation_of(span).change() }
    }

    /// Returns a token that was made before.
    #[inline]
    pub(super) fn of(span: u64, generation: u64) -> Self {
        Self { span, generation }
    }

    /// Makes what threads remember of the span untrue.
    pub(super) fn forget(self) {
        generation_of(self.span).change();
    }

    #[inline]
    pub(super) fn span(self) -> u64 {
        self.span
    }

    /// Returns the generation with which the service of a span may be remembered that has just got
    /// this token.
    pub(super) fn generation(self) -> u64 {
        self.generation
    }
}

/// The service that a span runs in, and the span that this comes from: itself or an
/// ancestor.
pub(super) type Origin = Option<(&'static Record, Token)>;

/// Changes with all that becomes of the service of a span that has a place here.
pub(super) fn generation_of(span: u64) -> &'static Generation {
    const VERSIONS: usize = 1024;
    static PLACES: [Generation; VERSIONS] = [const { Generation::new() }; VERSIONS];

    &PLACES[spread(span) % VERSIONS]
}

/// Returns a number for that of a span, by which spans have places.
///
/// A registry counts the spans that each thread makes from 0 on, and puts the thread's number above
/// them: without that the first spans of all threads would have the same places.
#[inline]
pub(super) fn spread(span: u64) -> usize {
    // As in sharded-slab 0.1; in others, places are shared more often.
    const THREAD: u32 = 38;
    span.wrapping_add((span >> THREAD).wrapping_mul(67)) as usize
}

/// Whether these are the same service of the same span.
pub(super) fn is_same(one: Origin, other: Origin) -> bool {
    one.zip(other).is_some_and(|(one, other)| ptr::eq(one.0, other.0) && one.1 == other.1)
}

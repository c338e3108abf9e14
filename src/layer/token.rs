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

    &PLACES[span as usize % VERSIONS]
}

/// Whether these are the same service of the same span.
pub(super) fn is_same(one: Origin, other: Origin) -> bool {
    one.zip(other).is_some_and(|(one, other)| ptr::eq(one.0, other.0) && one.1 == other.1)
}

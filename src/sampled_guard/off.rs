//! What stands for the sampled guard in a build without it: nothing is guarded.

use crate::ledger::charge::{Alone, Freed};
use crate::ledger::slots::Record;
use crate::owner::{Placement, SampleId};
use std::alloc::Layout;
use std::convert::Infallible;

/// A place for a block, of which there are none.
#[derive(Debug)]
pub struct Place(Infallible);

/// A block that was given back, of which there are none.
#[derive(Clone, Copy, Debug)]
pub struct Taken(Infallible);

/// What is given back.
#[derive(Debug)]
pub enum Returned {
    /// A live block.
    #[allow(dead_code, reason = "there are none")]
    Block(Taken),
    /// Nothing: a violation was reported.
    #[allow(dead_code, reason = "there are none")]
    Nothing,
}

/// How it is given back.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// The block was freed.
    Dealloc,
    /// It was resized.
    Realloc,
}

#[inline(always)]
pub(crate) fn reserve_for(_: Placement, _: Layout) -> Option<Place> {
    None
}

/// Reserves a place for a block of C's: there is none.
#[inline(always)]
pub fn reserve_unsized(_: Layout) -> Option<Place> {
    None
}

/// Takes back a block that may be guarded: it is not.
#[inline(always)]
pub fn take(_: *mut u8, _: Option<Layout>, _: Found) -> Option<Returned> {
    None
}

/// The size of a guarded block: it is none.
#[inline(always)]
pub fn size_of_block(_: *mut u8) -> Option<usize> {
    None
}

impl Alone for Place {
    fn size(&self) -> usize {
        match self.0 {}
    }

    fn block(&self) -> *mut u8 {
        match self.0 {}
    }

    fn hand_out(self, _: &'static Record, _: Option<SampleId>) {
        match self.0 {}
    }
}

impl Taken {
    /// The bytes that it was requested with.
    pub fn size(self) -> usize {
        match self.0 {}
    }

    /// What is refunded for it.
    pub fn freed(self) -> Freed {
        match self.0 {}
    }

    /// Refunds it, and takes the access to its page away.
    pub fn free(self) {
        match self.0 {}
    }

    /// Takes the access to its page away.
    pub fn retire(self) {
        match self.0 {}
    }

    /// Leaves it as it was.
    pub fn restore(self) {
        match self.0 {}
    }
}

//! The cell of a service in which a thread counts.

use crate::ledger::cell::Cell;

/// Where a thread counts.
#[derive(Clone, Copy, Debug)]
pub enum Account {
    /// In a cell that only the calling thread writes.
    Own(&'static Cell),
    /// In a cell that all threads without a shard share.
    Shared(&'static Cell),
}

impl Account {
    #[inline]
    pub(super) fn cell(self) -> &'static Cell {
        match self {
            Self::Own(cell) | Self::Shared(cell) => cell,
        }
    }

    /// Counts an allocation.
    #[inline]
    pub fn charge(self, size: usize) {
        match self {
            Self::Own(cell) => cell.charge(size),
            Self::Shared(cell) => cell.charge_shared(size),
        }
    }

    /// Counts a free.
    #[inline]
    pub fn refund(self, size: usize) {
        match self {
            Self::Own(cell) => cell.refund(size),
            Self::Shared(cell) => cell.refund_shared(size),
        }
    }
}

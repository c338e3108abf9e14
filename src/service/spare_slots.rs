//! Slots that wait: to be used again, or for the end of a retired service.

use crate::ledger::slots::Record;
use crate::owner::Slot;
use crate::sync::{Mutex, MutexGuard};
use std::collections::{TryReserveError, VecDeque};
use std::sync::PoisonError;

/// Slots that are neither fresh nor in use by a living service.
pub(super) struct Spare {
    /// Unused ones whose cookie is short, and the others. Those that were used
    /// last are used first: their cells are in a cache.
    pub(super) short: VecDeque<&'static Record>,
    pub(super) long: VecDeque<&'static Record>,
    /// Still in use by retired services, looked at in turn.
    pub(super) retired: VecDeque<&'static Record>,
}

impl Spare {
    /// Makes every queue large enough for so many slots, all that there are: they are put in
    /// where something is dropped, and there may be no memory then.
    pub(super) fn try_reserve(&mut self, slots: usize) -> Result<(), TryReserveError> {
        let short = slots.min(Slot::SHORT_COUNT);
        for (queue, slots) in
            [(&mut self.short, short), (&mut self.long, slots - short), (&mut self.retired, slots)]
        {
            if queue.capacity() < slots {
                queue.try_reserve(slots.saturating_sub(queue.len()))?;
            }
        }
        Ok(())
    }
}

/// The slots, locked.
pub(super) type SpareGuard = MutexGuard<'static, Spare>;

pub(super) fn spare() -> SpareGuard {
    static SPARE: Mutex<Spare> =
        Mutex::new(Spare { short: VecDeque::new(), long: VecDeque::new(), retired: VecDeque::new() });

    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

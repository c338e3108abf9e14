//! What every allocation does that leaves the hot path, whoever asked for it, Rust or C: asks the
//! limits, has memory fetched, refunds what that takes the place of, has the owner written, and
//! charges the block.

use crate::ledger::account::Account;
use crate::ledger::anomalies;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::ledger::thread;
use crate::ledger::threshold::{self, Replaced};
use std::ptr;

/// A block that is given back.
#[derive(Clone, Copy, Debug)]
pub struct Freed {
    /// Its service; `None` if its cookie cannot be believed.
    pub owner: Option<&'static Record>,
    /// What it was charged with.
    pub size: usize,
}

impl Freed {
    /// Refunds it, from the calling thread.
    #[inline]
    pub fn refund(&self) {
        match self.owner {
            Some(owner) => thread::account(owner).refund(self.size),
            None => anomalies::LOST.add(self.size),
        }
    }

    /// The service that it was charged to. Of what is lost, somebody has to be the owner from
    /// now on.
    #[inline]
    pub fn owner_or_nobody(&self) -> &'static Record {
        self.owner.unwrap_or(&UNATTRIBUTED)
    }
}

/// Has a block of the current service allocated, if its limits allow for it, and charges it; null
/// otherwise. It may take the place of a freed one, which [stays](Replaced) its owner's where
/// `stays` says so and there is no place for it under the limits.
///
/// `account` and `record` are [`thread::current_account`]'s. `note_owner` returns `false` where the
/// system has no memory for that.
#[inline]
pub fn charged(
    (account, record): (Account, &'static Record),
    size: usize,
    replaced: Option<(Freed, bool)>,
    allocate: impl FnOnce() -> *mut u8,
    note_owner: impl FnOnce(*mut u8) -> bool,
) -> *mut u8 {
    let asked_about =
        replaced.map(|(freed, stays)| Replaced { owner: freed.owner_or_nobody(), size: freed.size, stays });
    let Some(admitted) = threshold::ask(account, record, size, asked_about) else {
        return ptr::null_mut();
    };
    let block = allocate();
    if !block.is_null() {
        // First, so that a reader does not see both.
        if let Some((freed, _)) = replaced {
            freed.refund();
        }
        if note_owner(block) {
            admitted.charge(size);
        } else {
            drop(admitted);
            thread::charge_ownerless(size);
        }
    }
    block
}

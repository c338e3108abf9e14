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
    /// Its service, or the unattributed one if its cookie cannot be believed: from now on some service
    /// has to be the owner.
    pub owner: &'static Record,
    /// What it was charged with.
    pub size: usize,
    is_lost: bool,
}

impl Freed {
    /// A block that was charged with so many bytes to `owner`; `None` if its cookie cannot be believed.
    #[inline]
    pub fn new(owner: Option<&'static Record>, size: usize) -> Self {
        Self { owner: owner.unwrap_or(&UNATTRIBUTED), size, is_lost: owner.is_none() }
    }

    /// Refunds it, from the calling thread.
    #[inline]
    pub fn refund(&self) {
        if self.is_lost {
            anomalies::LOST.add(self.size);
        } else {
            thread::account(self.owner).refund(self.size);
        }
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
    let asked_about = replaced.map(|(freed, stays)| Replaced { owner: freed.owner, size: freed.size, stays });
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

//! The slow path's order, for Rust's blocks and C's: ask the limits, fetch memory, refund the block
//! that is replaced, write the owner, charge the block.

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

/// Allocates a block for the current service and charges it; null if the service's limits do not
/// allow for it. The block may take the place of another one, and stays (`Replaced`) that one's
/// owner's where `stays` says so and the limits leave no space for it.
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

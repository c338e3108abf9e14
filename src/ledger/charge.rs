//! The slow path's order, for Rust's blocks and C's: decide whether the block is sampled, ask the
//! limits, fetch memory, refund the block that is replaced, write the owner, charge the block.

use crate::ledger::account::Account;
use crate::ledger::anomalies;
use crate::ledger::samples;
use crate::ledger::sampling::Decision;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::ledger::thread;
use crate::ledger::threshold::{self, Replaced};
use crate::owner::{Named, SampleId};
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
    sample: Option<SampleId>,
}

impl Freed {
    /// A block that was charged with so many bytes to `owner`, and may be sampled: what
    /// [`samples::owner`] returns. `None` if its cookie cannot be believed.
    #[inline]
    pub fn new((owner, sample): (Option<&'static Record>, Option<SampleId>), size: usize) -> Self {
        Self { owner: owner.unwrap_or(&UNATTRIBUTED), size, is_lost: owner.is_none(), sample }
    }

    /// Refunds it, from the calling thread.
    #[inline]
    pub fn refund(&self) {
        if let Some(sample) = self.sample {
            samples::release(sample);
        }
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
/// `account` and `record` are [`thread::current_account`]'s. `size` returns what a block is charged
/// with that is kept with so much. `note_owner` returns `false` where the system has no memory for that.
#[inline]
pub fn charged(
    (account, record): (Account, &'static Record),
    size: impl Fn(Named) -> usize,
    replaced: Option<(Freed, bool)>,
    allocate: impl FnOnce(Named) -> *mut u8,
    note_owner: impl FnOnce(*mut u8, Named) -> bool,
) -> *mut u8 {
    let decision = Decision::of(account, record, size(record.slot().into()));
    let named = decision.named(record);
    let size = size(named);
    let asked_about = replaced.map(|(freed, stays)| Replaced { owner: freed.owner, size: freed.size, stays });
    let Some(admitted) = threshold::ask(account, record, size, asked_about) else {
        return ptr::null_mut();
    };
    let block = allocate(named);
    if !block.is_null() {
        // First, so that a reader does not see both.
        if let Some((freed, _)) = replaced {
            freed.refund();
        }
        if note_owner(block, named) {
            admitted.charge(size);
            decision.finish(block, size);
        } else {
            drop(admitted);
            thread::charge_ownerless(size);
        }
    }
    block
}

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

/// A place of the sampled guard's, where a block stands alone. Dropped, it is given back.
pub trait Alone {
    /// What a block there is charged with.
    fn size(&self) -> usize;

    /// Where the block begins.
    fn block(&self) -> *mut u8;

    /// Makes it a live block of that service, which is sampled for the profile or not.
    fn hand_out(self, owner: &'static Record, sample: Option<SampleId>);
}

/// Where a new block comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// From the heap, to be kept with this.
    Heap(Named),
    /// It is here already, alone.
    Alone(*mut u8),
}

/// Allocates a block for the current service and charges it; null if the service's limits do not
/// allow for it. The block may take the place of another one, and stays (`Replaced`) that one's
/// owner's where `stays` says so and the limits leave no space for it.
///
/// `account` and `record` are [`thread::current_account`]'s. `size` returns what a block is charged
/// with that is kept with so much. `alone` returns a place for it where the sampled guard takes it, if there is one.
/// `note_owner` returns `false` where the system has no memory for that.
#[inline]
pub fn charged<A: Alone>(
    (account, record): (Account, &'static Record),
    size: impl Fn(Named) -> usize,
    alone: impl FnOnce() -> Option<A>,
    replaced: Option<(Freed, bool)>,
    allocate: impl FnOnce(Source) -> *mut u8,
    note_owner: impl FnOnce(*mut u8, Named) -> bool,
) -> *mut u8 {
    let decision = Decision::of(account, record, size(record.slot().into()));
    let named = decision.named(record);
    let alone = if decision.is_guarded() { alone() } else { None };
    let (size, source) = match &alone {
        Some(alone) => (alone.size(), Source::Alone(alone.block())),
        None => (size(named), Source::Heap(named)),
    };
    let asked_about = replaced.map(|(freed, stays)| Replaced { owner: freed.owner, size: freed.size, stays });
    let Some(admitted) = threshold::ask(account, record, size, asked_about) else {
        return ptr::null_mut();
    };
    let block = allocate(source);
    if !block.is_null() {
        // First, so that a reader does not see both.
        if let Some((freed, _)) = replaced {
            freed.refund();
        }
        let is_noted = match alone {
            Some(alone) => {
                alone.hand_out(record, decision.sample());
                true
            }
            None => note_owner(block, named),
        };
        if is_noted {
            admitted.charge(size);
            decision.finish(block, size);
        } else {
            drop(admitted);
            thread::charge_ownerless(size);
        }
    }
    block
}

//! A service's place in its family, as its record keeps it: links to other slots, its limits, and
//! what descendants share.
//!
//! This is plain data: `tree` follows the links and changes them.

use crate::ledger::budget::{self, Budget};
use crate::ledger::event_flags::PendingNode;
use crate::owner::Slot;
use crate::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering, const_unless_loom};
use crate::usage::Usage;
use std::ptr;

/// A service's place in its family.
#[derive(Debug)]
pub(crate) struct Family {
    pub(super) parent: AtomicLink,
    /// The parent's next child.
    pub(super) next: AtomicLink,
    /// The slot of the parent's previous child; 0 for the first child.
    pub(super) previous: AtomicU32,
    /// The nearest service from this one upwards that has a limit: one more than its slot; 0 for
    /// none. Changed under the lock.
    pub(super) limited: AtomicU32,
    /// The limit group, which only parents and limited services have.
    limit_group: AtomicPtr<LimitGroup>,
}

/// What a service's descendants share with it.
#[derive(Debug)]
pub(crate) struct LimitGroup {
    pub(crate) budget: Budget,
    pub(super) first_child: AtomicLink,
    /// What descendants that have ended had allocated, and freed.
    past_bytes: AtomicU64,
    past_blocks: AtomicU64,
    past_denied: AtomicU64,
    /// Whether the service is cancelled, itself or with one above it. Set under the lock.
    cancelled: AtomicBool,
    /// With what priority the service may be cancelled for others' sake: 32 bits, or [`NO_PRIORITY`].
    priority: AtomicU64,
    pub(super) pending: PendingNode,
}

impl Family {
    const_unless_loom! {
        pub(crate) fn none() -> Self {
            Self {
                parent: AtomicLink::none(),
                next: AtomicLink::none(),
                previous: AtomicU32::new(0),
                limited: AtomicU32::new(0),
                limit_group: AtomicPtr::new(ptr::null_mut()),
            }
        }
    }

    /// Returns the parent's [identity](super::slots::Record::identity). The caller has the child
    /// pinned.
    pub(crate) fn parent_identity(&self) -> Option<(u32, u64)> {
        let Link { slot, generation } = self.parent.load()?;
        Some((slot.index() as u32, generation))
    }

    #[inline]
    pub(crate) fn limit_group(&self) -> Option<&'static LimitGroup> {
        // SAFETY: a limit group is never freed: it stays with its slot.
        unsafe { self.limit_group.load(Ordering::Acquire).as_ref() }
    }

    /// What descendants that have ended had allocated and freed.
    pub(crate) fn past(&self) -> Usage {
        self.limit_group().map(LimitGroup::past).unwrap_or_default()
    }

    /// The limit group, allocated the first time that this slot needs one.
    pub(crate) fn limit_group_or_new(&self) -> &'static LimitGroup {
        if let Some(known) = self.limit_group() {
            return known;
        }
        let new = Box::into_raw(Box::new(LimitGroup {
            budget: Budget::new(),
            first_child: AtomicLink::none(),
            past_bytes: AtomicU64::new(0),
            past_blocks: AtomicU64::new(0),
            past_denied: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            priority: AtomicU64::new(NO_PRIORITY),
            pending: PendingNode::new(),
        }));
        let first = ptr::null_mut();
        match self.limit_group.compare_exchange(first, new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: it is published now, and never freed.
            Ok(_) => unsafe { &*new },
            // SAFETY: nobody has seen the new one; the first one stays.
            Err(first) => unsafe {
                drop(Box::from_raw(new));
                &*first
            },
        }
    }

    /// Whether the service is cancelled.
    #[inline]
    pub(crate) fn is_cancelled(&self) -> bool {
        self.limit_group().is_some_and(|limit_group| limit_group.cancelled.load(Ordering::Acquire))
    }

    /// Cancels the service, without those below it. `false` if it was before. The caller has the lock
    /// of families.
    pub(super) fn cancel(&self) -> bool {
        !self.limit_group_or_new().cancelled.swap(true, Ordering::AcqRel)
    }

    /// With what priority the service may be cancelled for others' sake; `None` if it may not.
    #[cfg(feature = "guard")]
    pub(crate) fn priority(&self) -> Option<i32> {
        let bits = self.limit_group()?.priority.load(Ordering::Relaxed);
        (bits != NO_PRIORITY).then_some(bits as u32 as i32)
    }

    /// Sets that.
    #[cfg(feature = "guard")]
    pub(crate) fn set_priority(&self, priority: Option<i32>) {
        let bits = priority.map_or(NO_PRIORITY, |priority| u64::from(priority as u32));
        self.limit_group_or_new().priority.store(bits, Ordering::Relaxed);
    }

    /// For a new service in a slot that is claimed.
    pub(crate) fn begin(&self) {
        self.parent.store(None);
        self.limited.store(0, Ordering::Relaxed);
        if let Some(limit_group) = self.limit_group() {
            let LimitGroup { budget, past_bytes, past_blocks, past_denied, cancelled, priority, .. } =
                limit_group;
            budget.set(budget::NONE, budget::NONE);
            budget.set_cancel_at(budget::NONE);
            cancelled.store(false, Ordering::Relaxed);
            priority.store(NO_PRIORITY, Ordering::Relaxed);
            for past in [past_bytes, past_blocks, past_denied] {
                past.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl LimitGroup {
    fn past(&self) -> Usage {
        let bytes = self.past_bytes.load(Ordering::Relaxed);
        let blocks = self.past_blocks.load(Ordering::Relaxed);
        Usage {
            allocated_bytes: bytes,
            allocated_blocks: blocks,
            freed_bytes: bytes,
            freed_blocks: blocks,
            denied: self.past_denied.load(Ordering::Relaxed),
            peak_bytes: 0,
        }
    }

    pub(super) fn add_past(&self, ended: Usage) {
        self.past_bytes.fetch_add(ended.freed_bytes, Ordering::Relaxed);
        self.past_blocks.fetch_add(ended.freed_blocks, Ordering::Relaxed);
        self.past_denied.fetch_add(ended.denied, Ordering::Relaxed);
    }
}

/// The service may not be cancelled for others' sake.
const NO_PRIORITY: u64 = u64::MAX;

/// One service: its slot, and the generation that distinguishes it from the slot's others.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub(super) slot: Slot,
    pub(super) generation: u64,
}

/// A link in 64 bits: the slot, and above it the generation, which is never 0. 0 for none.
#[derive(Debug)]
pub(super) struct AtomicLink(AtomicU64);

const SLOT_BITS: u32 = Slot::COUNT.trailing_zeros();

impl AtomicLink {
    const_unless_loom! {
        pub(super) fn none() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    pub(super) fn load(&self) -> Option<Link> {
        let bits = self.0.load(Ordering::Acquire);
        if bits == 0 {
            return None;
        }
        let slot = Slot::new(bits as u32 & (Slot::COUNT - 1))?;
        Some(Link { slot, generation: bits >> SLOT_BITS })
    }

    pub(super) fn store(&self, link: Option<Link>) {
        let bits = link.map_or(0, |Link { slot, generation }| generation << SLOT_BITS | slot.index() as u64);
        self.0.store(bits, Ordering::Release);
    }
}

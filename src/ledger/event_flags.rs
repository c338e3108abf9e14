//! The events of a limited service that are to be announced, as the service's record keeps them.
//!
//! This is plain data: `pending_events` puts services into its list and takes them out.

use crate::sync::{AtomicU8, AtomicU32, AtomicU64};

/// Kinds of events of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventFlags(pub(super) u8);

impl EventFlags {
    /// The service got past its soft limit.
    pub(crate) const CROSSED: Self = Self(1);
    /// The service's hard limit has denied an allocation.
    pub(crate) const DENIED: Self = Self(2);
    /// The service got past where it is cancelled.
    pub(crate) const PASSED: Self = Self(4);

    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A limited service's node in the list of pending events.
#[derive(Debug)]
pub(super) struct PendingNode {
    /// The events that are pending: [`EventFlags`].
    pub(super) flags: AtomicU8,
    /// When a denial was announced last.
    pub(super) denied_at: AtomicU64,
    /// The service's successor in the list, by one more than its slot: the service itself where it
    /// is the last; 0 while it is not in the list.
    pub(super) next: AtomicU32,
}

impl PendingNode {
    pub(super) fn new() -> Self {
        Self { flags: AtomicU8::new(0), denied_at: AtomicU64::new(0), next: AtomicU32::new(0) }
    }
}

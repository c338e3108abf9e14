//! Who waits on behalf of services that may be cancelled: their wakers.

use super::fork;
use super::handle::Service;
use super::scope::Scope;
use crate::contained::{contain, drop_contained};
use crate::ledger::slots::{self, Record};
use atomic_waker::AtomicWaker;
use dashmap::DashMap;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

/// Wakes who waits on behalf of a service.
pub(super) fn wake(record: &'static Record) {
    let waiting = {
        let _gate = fork::gate();
        WAITING.get().and_then(|waiting| waiting.remove(&record.index()))
    };
    for waker in waiting.into_iter().flat_map(|(_, waiting)| waiting.into_values()) {
        // An executor's panic must not keep the others from being woken.
        contain(|| waker.wake());
        drop_contained(waker);
    }
}

type Wakers = HashMap<usize, Arc<AtomicWaker>>;

/// Who waits on behalf of the services of those slots, by the wakers' addresses.
static WAITING: OnceLock<DashMap<u32, Wakers>> = OnceLock::new();

/// A future that waits on behalf of a service, to be woken once that is cancelled.
#[derive(Debug)]
pub(super) struct Waiter {
    waker: Arc<AtomicWaker>,
    /// The service's: the future has the service, so it is no other one's meanwhile.
    slot: u32,
}

impl Waiter {
    pub(super) fn new(service: &Service) -> Self {
        let _scope = Scope::enter(&slots::UNATTRIBUTED);
        let waiter = Self { waker: Arc::new(AtomicWaker::new()), slot: service.record().index() };
        let _gate = fork::gate();
        let mut waiting = WAITING.get_or_init(DashMap::new).entry(waiter.slot).or_default();
        waiting.insert(waiter.key(), Arc::clone(&waiter.waker));
        waiter
    }

    /// Has the caller's task woken once the service is cancelled.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    fn key(&self) -> usize {
        Arc::as_ptr(&self.waker).addr()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let _scope = Scope::enter(&slots::UNATTRIBUTED);
        let waker = {
            let _gate = fork::gate();
            WAITING.get().and_then(|waiting| {
                let waker = waiting.get_mut(&self.slot)?.remove(&self.key());
                waiting.remove_if(&self.slot, |_, wakers| wakers.is_empty());
                waker
            })
        };
        drop(waker);
        // Others who have it only wake.
        drop_contained(self.waker.take());
    }
}

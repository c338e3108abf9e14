//! What a fork finds of services: everything whole, and no lock held by a thread that the child
//! does not have.

use super::registry::{self, AllLocked};
use super::spare_slots::{self, SpareGuard};
use crate::ledger::thread::Stay;
use crate::ledger::tree::Tree;
use crate::ledger::{pending_events, slots};
use crate::sync::{AtomicBool, Ordering};
use crate::sys::fork::{self, ForkHook, ForkOrder, Held, at_load};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Has every fork of this process take the locks of services; before the first one is taken.
#[inline]
pub(crate) fn prepare() {
    if !IS_PREPARED.load(Ordering::Relaxed) {
        prepare_first();
    }
}

#[cold]
fn prepare_first() {
    fork::register_fork_hook(&HOOK);
    fork::prepare();
    // Not so where preparing has led here, through an allocation.
    IS_PREPARED.store(fork::is_prepared(), Ordering::Relaxed);
}

static IS_PREPARED: AtomicBool = AtomicBool::new(false);

at_load!(prepare);

/// Held while a dashmap is read, or while it is made. Dashmaps have locks
/// of their own, but those may have waiters when the process is forked, whom a child
/// would wake in vain or for ever. Not to be taken twice by one thread.
pub fn gate() -> Gate {
    prepare();
    Gate { _stay: Stay::begin(), _lock: GATE.read().unwrap_or_else(PoisonError::into_inner) }
}

/// Who has it may allocate, and must not look for another service then.
#[derive(Debug)]
pub struct Gate {
    _lock: RwLockReadGuard<'static, ()>,
    _stay: Stay,
}

static GATE: RwLock<()> = RwLock::new(());

/// Lets one thread at a time publish what has begun inside allocations. It comes before the gate.
pub(super) fn publishing() -> Publishing {
    Publishing { _stay: Stay::begin(), _lock: PUBLISHING.lock().unwrap_or_else(PoisonError::into_inner) }
}

pub(super) struct Publishing {
    _lock: MutexGuard<'static, ()>,
    _stay: Stay,
}

static PUBLISHING: Mutex<()> = Mutex::new(());

static HOOK: ForkHook = ForkHook { order: ForkOrder::Services, before, in_parent, in_child };

fn before() {
    let locks = Locks {
        _publishing: publishing(),
        _stay: Stay::begin(),
        _registry: registry::lock_all(),
        _gate: GATE.write().unwrap_or_else(PoisonError::into_inner),
        _tree: Tree::lock(),
        _spare: spare_slots::spare(),
    };
    // SAFETY: this is the hook's `before`.
    unsafe { LOCKS.keep(locks) };
}

fn in_parent() {
    // SAFETY: this is the hook's `in_parent`.
    drop(unsafe { LOCKS.take() });
}

fn in_child() {
    // Those who would have are not there.
    pending_events::none_announces();
    slots::all()
        .filter_map(|record| record.family().limit_group())
        .for_each(|limit_group| limit_group.budget.land_all());
    // SAFETY: this is the hook's `in_child`.
    drop(unsafe { LOCKS.take() });
}

/// Given back in this order.
struct Locks {
    _gate: RwLockWriteGuard<'static, ()>,
    _registry: AllLocked,
    _tree: Tree,
    _spare: SpareGuard,
    _stay: Stay,
    _publishing: Publishing,
}

static LOCKS: Held<Locks> = Held::new();

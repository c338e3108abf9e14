//! What a forked child finds: everything whole, and no lock held by a thread that
//! it does not have. So the forking thread takes this room's locks first, as
//! allocators do.

use super::retirement::{self, SpareGuard};
use crate::backend;
use crate::ledger::family::Tree;
use crate::ledger::thread::Stay;
use crate::ledger::{due, slots};
use crate::sys;
use std::cell::UnsafeCell;
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Has every fork of this process take the locks.
pub(crate) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| sys::at_fork(before, in_parent, in_child));
}

/// To be held by whoever looks into one of the dashmaps. They have locks of their
/// own, but those may have waiters when the process is forked, whom a child would
/// wake in vain or for ever. Not to be taken twice by one thread.
pub(crate) fn gate() -> Gate {
    Gate { _stay: Stay::begin(), _lock: GATE.read().unwrap_or_else(PoisonError::into_inner) }
}

/// Who has it may allocate, and must not look for another service then.
pub(crate) struct Gate {
    _lock: RwLockReadGuard<'static, ()>,
    _stay: Stay,
}

static GATE: RwLock<()> = RwLock::new(());

extern "C" fn before() {
    let held = Held {
        _stay: Stay::begin(),
        _gate: GATE.write().unwrap_or_else(PoisonError::into_inner),
        _tree: Tree::lock(),
        _spare: retirement::spare(),
        _statistics: backend::statistics(),
        // Under the other locks there may be allocations.
        #[cfg(feature = "mapped")]
        _regions: crate::mapped::AllHeld::lock(),
    };
    // SAFETY: who has the locks has the place.
    unsafe { *HELD.0.get() = Some(held) };
}

extern "C" fn in_parent() {
    // SAFETY: as above.
    drop(unsafe { (*HELD.0.get()).take() });
}

extern "C" fn in_child() {
    // Those who would have are not there.
    due::none_announces();
    slots::all()
        .filter_map(|record| record.family().household())
        .for_each(|household| household.budget.land_all());
    // SAFETY: as above; a child is as if its thread had taken the locks.
    drop(unsafe { (*HELD.0.get()).take() });
}

struct Held {
    #[cfg(feature = "mapped")]
    _regions: crate::mapped::AllHeld,
    _gate: RwLockWriteGuard<'static, ()>,
    _tree: Tree,
    _spare: SpareGuard,
    _statistics: backend::StatisticsGuard,
    _stay: Stay,
}

struct Place(UnsafeCell<Option<Held>>);

// SAFETY: only the thread that has all locks looks into it.
unsafe impl Sync for Place {}

static HELD: Place = Place(UnsafeCell::new(None));

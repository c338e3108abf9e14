//! What a forked child finds: everything whole, and no lock held by a thread that
//! it does not have. So the forking thread takes this room's locks first, as
//! allocators do.

use super::retirement::{self, SpareGuard};
use crate::backend;
use crate::ledger::family::Tree;
use crate::ledger::thread::Stay;
use crate::ledger::{due, slots};
use crate::sync::{AtomicUsize, Ordering};
use crate::sys;
use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::hint::black_box;
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Has every fork of this process take the locks; before the first one is taken.
///
/// A fork that is under way does not heed who comes now, so it is done before there
/// is a second thread, where the system has a way to ([`AT_LOAD`]).
pub(crate) fn prepare() {
    static ONCE: Once = Once::new();
    /// The thread that prepares.
    static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

    if ONCE.is_completed() {
        return;
    }
    // SAFETY: asks for a number.
    let this_thread = unsafe { libc::pthread_self() } as usize;
    if UNDER_WAY.load(Ordering::Relaxed) == this_thread {
        // What is allocated below led here again: a region is mapped for it, or a host's service
        // looked up.
        return;
    }
    ONCE.call_once(|| {
        UNDER_WAY.store(this_thread, Ordering::Relaxed);
        // Who asks later takes its locks earlier, and the allocator's are to be taken
        // after these: so it has to have asked for that, which it does when it begins.
        let layout = Layout::new::<u64>();
        // SAFETY: the layout is not empty, and the block is freed with it.
        unsafe {
            let block = black_box(std::alloc::alloc(layout));
            if !block.is_null() {
                std::alloc::dealloc(block, layout);
            }
        }
        sys::at_fork(before, in_parent, in_child);
        #[cfg(feature = "memory-check")]
        crate::check::heed_forks();
        UNDER_WAY.store(0, Ordering::Relaxed);
    });
}

/// Before the program's `main`, or when the library is opened that this is a part of.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

#[cfg(target_os = "linux")]
extern "C" fn at_load() {
    prepare();
}

/// To be held by whoever looks into one of the dashmaps, or makes them. They have locks
/// of their own, but those may have waiters when the process is forked, whom a child
/// would wake in vain or for ever. Not to be taken twice by one thread.
pub(crate) fn gate() -> Gate {
    prepare();
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

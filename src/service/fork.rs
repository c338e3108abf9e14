//! What a forked child finds: everything whole, and no lock held by a thread that
//! it does not have. So the forking thread takes this room's locks first, as
//! allocators do.

use super::retirement::{self, SpareGuard};
use crate::backend;
use crate::ledger::thread::Stay;
use crate::ledger::tree::Tree;
use crate::ledger::{pending_events, slots};
#[cfg(all(feature = "interpose", target_env = "gnu", not(target_feature = "crt-static")))]
use crate::sync::AtomicBool;
use crate::sync::{AtomicUsize, Ordering};
use crate::sys;
use std::alloc::Layout;
use std::cell::UnsafeCell;
#[cfg(all(feature = "interpose", target_env = "gnu", not(target_feature = "crt-static")))]
use std::ffi::c_int;
use std::hint::black_box;
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Has every fork of this process take the locks; before the first one is taken.
///
/// A fork that is under way does not heed who comes now, so it is done before there
/// is a second thread, where the system has a way to ([`AT_LOAD`]).
pub(crate) fn prepare() {
    if ONCE.is_completed() || is_under_way() {
        // What is allocated on the way led here again: a region is mapped for it, or a host's
        // service looked up.
        return;
    }
    ONCE.call_once(|| {
        begin();
        heed_forks();
    });
}

/// Has handlers of forks registered, which are somebody else's: around ours, since they may
/// allocate. Who is registered first takes its locks last, and gives them up first.
#[cfg(all(feature = "interpose", target_env = "gnu", not(target_feature = "crt-static")))]
pub(crate) fn register_fork_handlers(register: impl Fn() -> c_int) -> c_int {
    if ONCE.is_completed() {
        return register();
    }
    if is_under_way() {
        // The allocator's, or ours.
        ALLOCATOR_HAS_ASKED.store(true, Ordering::Relaxed);
        return register();
    }
    let mut registered = None;
    ONCE.call_once(|| {
        begin();
        if !ALLOCATOR_HAS_ASKED.load(Ordering::Relaxed) {
            // It had begun already, and these are its own.
            registered = Some(register());
        }
        heed_forks();
    });
    registered.unwrap_or_else(register)
}

static ONCE: Once = Once::new();

/// The thread that prepares.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Whether the allocator has had its handlers registered since.
#[cfg(all(feature = "interpose", target_env = "gnu", not(target_feature = "crt-static")))]
static ALLOCATOR_HAS_ASKED: AtomicBool = AtomicBool::new(false);

/// By the calling thread.
fn is_under_way() -> bool {
    UNDER_WAY.load(Ordering::Relaxed) == this_thread()
}

fn this_thread() -> usize {
    // SAFETY: asks for a number.
    unsafe { libc::pthread_self() as usize }
}

/// Who asks later takes its locks earlier, and the allocator's are to be taken
/// after these: so it has to have asked for that, which it does when it begins.
fn begin() {
    UNDER_WAY.store(this_thread(), Ordering::Relaxed);
    let layout = Layout::new::<u64>();
    // SAFETY: the layout is not empty, and the block is freed with it.
    unsafe {
        let block = black_box(std::alloc::alloc(layout));
        if !block.is_null() {
            std::alloc::dealloc(block, layout);
        }
    }
}

fn heed_forks() {
    sys::at_fork(before, in_parent, in_child);
    #[cfg(feature = "memory-check")]
    crate::check::heed_forks();
    UNDER_WAY.store(0, Ordering::Relaxed);
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
    #[cfg(feature = "memory-check")]
    crate::check::about_to_fork();
}

extern "C" fn in_parent() {
    // SAFETY: as above.
    drop(unsafe { (*HELD.0.get()).take() });
}

extern "C" fn in_child() {
    // Those who would have are not there.
    pending_events::none_announces();
    slots::all()
        .filter_map(|record| record.family().limit_group())
        .for_each(|limit_group| limit_group.budget.land_all());
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

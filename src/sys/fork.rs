//! Forks: what other modules and crates do before one, and after it in the parent and in the child.
//!
//! A forked child has only the thread that forked. A lock that another thread held stays locked
//! there for ever, and what it guards may be half written. So the forking thread takes all locks
//! first, as allocators do: each module that has one registers a [`ForkHook`].

use crate::registered::Registered;
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
use crate::sync::AtomicBool;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};
use std::alloc::Layout;
use std::cell::UnsafeCell;
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
use std::ffi::c_int;
use std::hint::black_box;
use std::sync::{Once, PoisonError};

/// What a module does around each fork of the process. One thread forks at a time.
#[derive(Debug)]
pub struct ForkHook {
    /// When it is called, among the others.
    pub order: ForkOrder,
    /// Called by the thread that is about to fork: takes locks.
    pub before: fn(),
    /// Called by the same thread when it has forked: gives the locks back.
    pub in_parent: fn(),
    /// Called by the child's only thread: gives the locks back, as if it had taken them.
    pub in_child: fn(),
}

/// The order in which hooks take their locks: that in which a thread may take them one inside the
/// other, so that it and one that forks never wait for each other. Hooks give them back in the
/// opposite order.
///
/// Each hook has a place of its own but for the last two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkOrder {
    /// Of the profiler's settings. Who changes them locks families of services.
    Profiler,
    /// Of the names that profiles keep.
    Names,
    /// Of the list of modules.
    Modules,
    /// Of the loader's own list, by which both of these are made.
    Loader,
    /// Of the backend's statistics.
    Statistics,
    /// Of services. The program may allocate under them, and under all before.
    Services,
    /// Locks that an allocation may take.
    Inner,
    /// No locks: called when all of them are held.
    Last,
}

const ORDERS: [ForkOrder; 8] = {
    use ForkOrder::*;
    [Profiler, Names, Modules, Loader, Statistics, Services, Inner, Last]
};

static HOOKS: Registered<ForkHook> = Registered::new();

/// Has `hook` called around each fork from now on, once the process is [prepared](prepare).
///
/// Takes no lock and allocates nothing. Registering the same static again changes nothing.
pub fn register_fork_hook(hook: &'static ForkHook) {
    HOOKS.add(hook);
}

/// Calls a function before the program's `main`, or when the library is opened that this is a part
/// of: before there is a second thread, whose fork would not heed a hook that comes later.
macro_rules! at_load {
    ($function:path) => {
        #[cfg(target_os = "linux")]
        const _: () = {
            #[used]
            #[unsafe(link_section = ".init_array")]
            static AT_LOAD: extern "C" fn() = at_load;

            extern "C" fn at_load() {
                $function();
            }
        };
    };
}
pub(crate) use at_load;

/// A place for what a hook holds during a fork, such as lock guards.
pub(crate) struct Held<T>(UnsafeCell<Option<T>>);

// SAFETY: `keep` and `take` are called by hooks only, so by one thread at a time: the one that
// holds `FORKING`, or the child's only thread.
unsafe impl<T> Sync for Held<T> {}

impl<T> Held<T> {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(None))
    }

    /// # Safety
    ///
    /// Only for [`ForkHook::before`].
    pub(crate) unsafe fn keep(&self, held: T) {
        // SAFETY: one thread at a time is within hooks, see `Sync` above.
        unsafe { *self.0.get() = Some(held) };
    }

    /// # Safety
    ///
    /// Only for [`ForkHook::in_parent`] and [`ForkHook::in_child`].
    pub(crate) unsafe fn take(&self) -> Option<T> {
        // SAFETY: one thread at a time is within hooks, see `Sync` above.
        unsafe { (*self.0.get()).take() }
    }
}

/// Held by the thread that forks: how many hooks it has called before. Who registers meanwhile is
/// called from the next fork on.
static FORKING: Mutex<usize> = Mutex::new(0);
static HELD: Held<MutexGuard<'static, usize>> = Held::new();

extern "C" fn before() {
    let mut called = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
    *called = HOOKS.iter().count();
    for order in ORDERS {
        let hooks = HOOKS.iter().take(*called).filter(|hook| hook.order == order);
        hooks.for_each(|hook| (hook.before)());
    }
    // SAFETY: before a fork, by the thread that has just locked `FORKING`.
    unsafe { HELD.keep(called) };
}

extern "C" fn in_parent() {
    after(|hook| (hook.in_parent)());
}

extern "C" fn in_child() {
    after(|hook| (hook.in_child)());
}

fn after(call: impl Fn(&ForkHook)) {
    // SAFETY: the calling thread holds `FORKING`, or is a child's copy of the one that does.
    let Some(called) = (unsafe { HELD.take() }) else { return };
    for order in ORDERS.into_iter().rev() {
        let hooks = (0..*called).rev().filter_map(|place| HOOKS.get(place));
        hooks.filter(|hook| hook.order == order).for_each(&call);
    }
}

/// Has every fork of this process call the hooks; call it before the first lock is taken that a
/// hook takes.
///
/// A fork that is under way does not heed who comes now, so modules register at load.
pub fn prepare() {
    if ONCE.is_completed() || is_under_way() {
        // The second: the allocation below led here again, as a region is mapped for it, or a
        // host's service looked up.
        return;
    }
    ONCE.call_once(|| {
        let _under_way = UnderWay::begin();
        have_the_allocator_register();
        at_fork(before, in_parent, in_child);
    });
}

/// Whether each fork calls the hooks.
#[inline]
pub(crate) fn is_prepared() -> bool {
    ONCE.is_completed()
}

/// Has handlers of forks registered, which are somebody else's: around ours, since they may
/// allocate. Who is registered first takes its locks last, and gives them up first.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
pub fn register_fork_handlers(register: impl Fn() -> c_int) -> c_int {
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
        let _under_way = UnderWay::begin();
        have_the_allocator_register();
        if !ALLOCATOR_HAS_ASKED.load(Ordering::Relaxed) {
            // It had begun already, and these are its own.
            registered = Some(register());
        }
        at_fork(before, in_parent, in_child);
    });
    registered.unwrap_or_else(register)
}

static ONCE: Once = Once::new();

/// The thread that is preparing, or 0.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Whether the allocator has had its handlers registered since.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
static ALLOCATOR_HAS_ASKED: AtomicBool = AtomicBool::new(false);

/// Whether the calling thread is preparing.
fn is_under_way() -> bool {
    UNDER_WAY.load(Ordering::Relaxed) == this_thread()
}

fn this_thread() -> usize {
    // SAFETY: asks for a number, and has no preconditions.
    unsafe { libc::pthread_self() as usize }
}

/// Set while the calling thread prepares.
struct UnderWay;

impl UnderWay {
    fn begin() -> Self {
        UNDER_WAY.store(this_thread(), Ordering::Relaxed);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.store(0, Ordering::Relaxed);
    }
}

/// Handlers before a fork are called in the opposite order of their registration, and the
/// allocator's locks are to be taken after ours. An allocator registers when it begins, so this
/// allocates something.
fn have_the_allocator_register() {
    let layout = Layout::new::<u64>();
    // SAFETY: the layout is not empty, and the block is freed once, with the same layout.
    unsafe {
        let block = black_box(std::alloc::alloc(layout));
        if !block.is_null() {
            std::alloc::dealloc(block, layout);
        }
    }
}

/// Has `before` called by every thread that forks this process, and the others in the parent and
/// in the child, before `fork` returns there. Without memory for that, they are not.
fn at_fork(before: extern "C" fn(), in_parent: extern "C" fn(), in_child: extern "C" fn()) {
    // SAFETY: functions live as long as the process; the library that they are in stays loaded,
    // or takes its handlers along (glibc).
    unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    /// Of hooks with the same place, it is a matter of linking which one comes first.
    #[test]
    fn each_hook_under_which_a_program_may_allocate_has_a_place_of_its_own() {
        prepare();
        for order in ORDERS.into_iter().filter(|order| !matches!(order, ForkOrder::Inner | ForkOrder::Last)) {
            assert!(HOOKS.iter().filter(|hook| hook.order == order).count() <= 1, "{order:?}");
        }
    }
}

//! The functions at an address, by debug information.
//!
//! The library that reads it has a lock and a cache, and takes no heed of forks: in a child that was
//! forked while another thread looked something up, both stay as they were, for ever. Such a child
//! asks it no more.

use super::fork::{ForkHook, ForkOrder, at_load, register_fork_hook};
use crate::sync::{AtomicBool, AtomicUsize, Ordering};
use std::ffi::c_void;

/// Threads that are looking something up.
static ASKING: AtomicUsize = AtomicUsize::new(0);

/// Whether this process was forked meanwhile.
static IS_STUCK: AtomicBool = AtomicBool::new(false);

/// Calls `each` with the functions that the instruction at `address` is of, innermost first; not at all
/// where nothing is known of it.
pub(crate) fn resolve(address: *mut c_void, each: impl FnMut(&backtrace::Symbol)) {
    ask(|| backtrace::resolve(address, each));
}

/// Forgets the debug information that was read.
#[cfg(feature = "profile")]
pub(crate) fn clear_cache() {
    ask(backtrace::clear_symbol_cache);
}

fn ask(ask: impl FnOnce()) {
    /// `each` may panic.
    struct Asking;

    impl Drop for Asking {
        fn drop(&mut self) {
            ASKING.fetch_sub(1, Ordering::Release);
        }
    }

    ASKING.fetch_add(1, Ordering::SeqCst);
    let _asking = Asking;
    if !IS_STUCK.load(Ordering::Relaxed) {
        ask();
    }
}

static FORK_HOOK: ForkHook = ForkHook { order: ForkOrder::Last, before: || (), in_parent: || (), in_child };

fn in_child() {
    if ASKING.load(Ordering::SeqCst) != 0 {
        IS_STUCK.store(true, Ordering::Relaxed);
    }
}

fn register() {
    register_fork_hook(&FORK_HOOK);
}

at_load!(register);

//! The loader's list of the program and its libraries.
//!
//! The loader locks it, and takes no heed of forks: in a child that was forked meanwhile it stays locked
//! for ever. So no thread of ours reads it while another one forks.

use super::fork::{ForkHook, ForkOrder, Held, at_load, register_fork_hook};
use crate::sync::{Mutex, MutexGuard};
use std::ffi::{c_int, c_void};
use std::sync::PoisonError;
#[cfg(feature = "memory-check")]
use std::sync::TryLockError;

/// Held while the list is read.
static READING: Mutex<()> = Mutex::new(());

/// Calls `callback` with `data` for each module, until it does not return 0.
///
/// # Safety
///
/// The callback must be sound for that data, and not unwind.
pub(crate) unsafe fn each_module(
    callback: unsafe extern "C" fn(*mut libc::dl_phdr_info, usize, *mut c_void) -> c_int,
    data: *mut c_void,
) {
    let _reading = lock();
    // SAFETY: the callback is sound for the data, as the caller promises.
    unsafe { libc::dl_iterate_phdr(Some(callback), data) };
}

/// Variant of [`each_module`] that waits for no other thread that reads the list. `false`, and nothing is called, if one
/// does, or the calling thread itself.
///
/// # Safety
///
/// As for [`each_module`].
#[cfg(feature = "memory-check")]
pub(crate) unsafe fn try_each_module(
    callback: unsafe extern "C" fn(*mut libc::dl_phdr_info, usize, *mut c_void) -> c_int,
    data: *mut c_void,
) -> bool {
    let _reading = match READING.try_lock() {
        Ok(reading) => reading,
        Err(TryLockError::Poisoned(reading)) => reading.into_inner(),
        Err(TryLockError::WouldBlock) => return false,
    };
    // SAFETY: the callback is sound for the data, as the caller promises.
    unsafe { libc::dl_iterate_phdr(Some(callback), data) };
    true
}

fn lock() -> MutexGuard<'static, ()> {
    READING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the list says is kept in memory from the heap.
static FORK_HOOK: ForkHook = ForkHook { order: ForkOrder::Loader, before, in_parent: after, in_child: after };
static HELD: Held<MutexGuard<'static, ()>> = Held::new();

fn before() {
    // SAFETY: called before a fork.
    unsafe { HELD.keep(lock()) };
}

fn after() {
    // SAFETY: called after a fork. What this drops is the lock that this thread took.
    drop(unsafe { HELD.take() });
}

fn register() {
    register_fork_hook(&FORK_HOOK);
}

at_load!(register);

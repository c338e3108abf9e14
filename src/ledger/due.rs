//! Services whose soft limit was crossed, from the allocation that crossed it to
//! whoever announces it.

use crate::ledger::slots::Record;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::thread::Thread;

/// The thread that announces crossings, once there is one.
pub(crate) static ANNOUNCER: OnceLock<Thread> = OnceLock::new();

/// For a forked child, which does not have that thread: nothing is announced.
pub(crate) fn none_announces() {
    IS_OFF.store(true, Ordering::Relaxed);
}

pub(crate) fn is_off() -> bool {
    IS_OFF.load(Ordering::Relaxed)
}

static IS_OFF: AtomicBool = AtomicBool::new(false);

/// The newest of a list, which is taken whole.
static FIRST: AtomicPtr<Record> = AtomicPtr::new(ptr::null_mut());

/// Has a crossing announced, which holds the service until then. By whoever
/// holds it, inside an allocation.
pub(super) fn push(record: &'static Record) {
    let Some(household) = record.family().household() else { return };
    if is_off() {
        return;
    }
    let own = ptr::from_ref(record).cast_mut();
    // The last one's next is itself, so that null is who is not in the list.
    let place = &household.next_due;
    if place.compare_exchange(ptr::null_mut(), own, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return;
    }
    record.life().revive();
    let mut first = FIRST.load(Ordering::Relaxed);
    loop {
        place.store(if first.is_null() { own } else { first }, Ordering::Relaxed);
        match FIRST.compare_exchange_weak(first, own, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => break,
            Err(now) => first = now,
        }
    }
    if let Some(announcer) = ANNOUNCER.get() {
        announcer.unpark();
    }
}

/// Calls `announce` for every crossing; the clone that held the service is its
/// to let go.
pub(crate) fn take(mut announce: impl FnMut(&'static Record)) {
    let mut next = FIRST.swap(ptr::null_mut(), Ordering::Acquire);
    // SAFETY: records are never unmapped.
    while let Some(record) = unsafe { next.as_ref() } {
        let Some(household) = record.family().household() else { return };
        // From here on it may cross again, and be put into the list again.
        let after = household.next_due.swap(ptr::null_mut(), Ordering::Relaxed);
        next = if ptr::eq(after, record) { ptr::null_mut() } else { after };
        announce(record);
    }
}

//! Pending events, on their way from the allocation that caused them to the thread that announces
//! them: a list of services whose limits have been crossed or have denied something, and a flag for
//! everything else.

pub(crate) use crate::ledger::event_flags::EventFlags;
use crate::ledger::slots::{self, Record};
use crate::owner::Slot;
use crate::sync::{AtomicBool, AtomicU32, Ordering, shared};
use crate::sys::{self, Parker};

/// Wakes the announcing thread.
pub(crate) static PARKER: Parker = Parker::new();

shared! {
    /// Whether the announcing thread exists, or will in a moment.
    pub(crate) static HAS_ANNOUNCER: AtomicBool = AtomicBool::new(false);
}

/// Notes in a forked child that the announcing thread does not exist there: nothing is announced.
pub(crate) fn none_announces() {
    IS_OFF.store(true, Ordering::Relaxed);
}

pub(crate) fn is_off() -> bool {
    IS_OFF.load(Ordering::Relaxed)
}

shared! {
    static IS_OFF: AtomicBool = AtomicBool::new(false);
}

/// Asks for a look at what there is to announce, by a thread that is not inside an allocation.
pub(crate) fn ask_for_attention() {
    NEEDS_ATTENTION.store(true, Ordering::SeqCst);
}

/// Whether somebody has asked for a look. Each scope asks that when it ends.
#[cfg(all(target_arch = "x86_64", not(any(miri, dogtag_loom))))]
#[inline(always)]
pub(crate) fn needs_attention() -> bool {
    // SAFETY: reads the flag in one access, as an atomic load does. (By hand, since the compiler would load it first.)
    unsafe {
        std::arch::asm!(
            "cmp byte ptr [{flag}], 0",
            "jne {yes}",
            flag = in(reg) NEEDS_ATTENTION.as_ptr(),
            yes = label { return true },
            options(readonly, nostack),
        );
    }
    false
}

/// Whether somebody has asked for a look.
#[cfg(not(all(target_arch = "x86_64", not(any(miri, dogtag_loom)))))]
#[inline]
pub(crate) fn needs_attention() -> bool {
    NEEDS_ATTENTION.load(Ordering::Relaxed)
}

/// Withdraws the request for a look. Call it before looking.
pub(crate) fn attend() {
    NEEDS_ATTENTION.swap(false, Ordering::SeqCst);
}

/// Whether a limit's event is pending.
pub(crate) fn is_any() -> bool {
    FIRST.load(Ordering::Relaxed) != NONE
}

shared! {
    static NEEDS_ATTENTION: AtomicBool = AtomicBool::new(false);

    /// The newest of a list, which is taken whole: one more than its slot.
    static FIRST: AtomicU32 = AtomicU32::new(NONE);
}

/// The end of the list, and the successor of a service that is not in it.
const NONE: u32 = 0;

/// Announces that a service denies allocations, once a second at most.
pub(super) fn push_denial(record: &'static Record) {
    if let Some(limit_group) = record.family().limit_group()
        && sys::is_time(&limit_group.pending.denied_at)
    {
        push(record, EventFlags::DENIED);
    }
}

/// Puts a service into the list, which retains it until it is announced. The caller
/// holds the service, and may be inside an allocation.
pub(super) fn push(record: &'static Record, flags: EventFlags) {
    let Some(limit_group) = record.family().limit_group() else { return };
    if is_off() {
        return;
    }
    let pending = &limit_group.pending;
    // Either the thread that takes it from the list sees this, or it is put there again.
    pending.flags.fetch_or(flags.0, Ordering::SeqCst);
    let own = record.index() + 1;
    if pending.next.compare_exchange(NONE, own, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return;
    }
    if !record.lifecycle().revive() {
        pending.flags.store(0, Ordering::SeqCst);
        return pending.next.store(NONE, Ordering::SeqCst);
    }
    let mut first = FIRST.load(Ordering::Relaxed);
    loop {
        pending.next.store(if first == NONE { own } else { first }, Ordering::Relaxed);
        match FIRST.compare_exchange_weak(first, own, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => break,
            Err(now) => first = now,
        }
    }
    PARKER.unpark();
    if !HAS_ANNOUNCER.load(Ordering::SeqCst) {
        ask_for_attention();
    }
}

/// Empties the list, and calls `announce` for each service in it, which has to release the service.
pub(crate) fn take(mut announce: impl FnMut(&'static Record, EventFlags)) {
    let mut next = FIRST.swap(NONE, Ordering::Acquire);
    while let Some(record) = next.checked_sub(1).and_then(Slot::new).and_then(slots::any_record) {
        let Some(limit_group) = record.family().limit_group() else { return };
        // From here on it may be put into the list again.
        let after = limit_group.pending.next.swap(NONE, Ordering::SeqCst);
        let flags = EventFlags(limit_group.pending.flags.swap(0, Ordering::SeqCst));
        next = if after == record.index() + 1 { NONE } else { after };
        announce(record, flags);
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::whole_model;
    use loom::thread;
    use std::ptr;

    fn limited(name: &str) -> &'static Record {
        let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
        record.begin(name.into(), 0);
        record.family().limit_group_or_new();
        record
    }

    /// The events that were taken, of one service and of another.
    fn take_of([one, other]: [&'static Record; 2], taken: &mut [u8; 2]) {
        take(|record, flags| {
            assert!(ptr::eq(record, one) || ptr::eq(record, other));
            taken[usize::from(ptr::eq(record, other))] |= flags.0;
            assert!(!record.lifecycle().release(), "the service was retained");
        });
    }

    /// Two threads announce something of the same service, one also of another, while a third
    /// empties the list.
    #[test]
    fn everything_is_told() {
        whole_model(|| {
            let services = [limited("one"), limited("other")];
            let [one, other] = services;
            let thread = thread::spawn(move || {
                push(one, EventFlags::CROSSED);
                push(other, EventFlags::CROSSED);
            });
            let mut taken = [0; 2];
            push(one, EventFlags::DENIED);
            take_of(services, &mut taken);
            thread.join().unwrap();
            take_of(services, &mut taken);
            assert_eq!(taken, [EventFlags::CROSSED.0 | EventFlags::DENIED.0, EventFlags::CROSSED.0]);
            // Nothing has them listed, nor holds them, any more.
            take(|_, _| panic!("everything was told"));
            assert!(services.iter().all(|record| record.lifecycle().release()));
        });
    }
}

//! What there is to announce, on its way from the allocation that met it to whoever announces
//! it: services whose limits have done something, in a list; and of all else that there is
//! something to be looked at.

use crate::ledger::slots::Record;
use crate::sync::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering, shared};
use crate::sys::{self, Parker};
use std::ptr;

/// Wakes the thread that announces it.
pub(crate) static PARKER: Parker = Parker::new();

shared! {
    /// Whether there is that thread, or will be in a moment.
    pub(crate) static HAS_ANNOUNCER: AtomicBool = AtomicBool::new(false);
}

/// For a forked child, which does not have that thread: nothing is announced.
pub(crate) fn none_announces() {
    IS_OFF.store(true, Ordering::Relaxed);
}

pub(crate) fn is_off() -> bool {
    IS_OFF.load(Ordering::Relaxed)
}

shared! {
    static IS_OFF: AtomicBool = AtomicBool::new(false);
}

/// Has somebody look what there is to announce who is not inside an allocation.
pub(crate) fn ask_for_attention() {
    NEEDS_ATTENTION.store(true, Ordering::SeqCst);
}

#[inline]
pub(crate) fn needs_attention() -> bool {
    NEEDS_ATTENTION.load(Ordering::Relaxed)
}

/// Whoever looks says so first.
pub(crate) fn attend() {
    NEEDS_ATTENTION.swap(false, Ordering::SeqCst);
}

/// Whether there is something to announce that limits did.
pub(crate) fn is_any() -> bool {
    !FIRST.load(Ordering::Relaxed).is_null()
}

shared! {
    static NEEDS_ATTENTION: AtomicBool = AtomicBool::new(false);

    /// The newest of a list, which is taken whole.
    static FIRST: AtomicPtr<Record> = AtomicPtr::new(ptr::null_mut());
}

/// What there is to tell of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventFlags(u8);

impl EventFlags {
    /// It got past its soft limit.
    pub(crate) const CROSSED: Self = Self(1);
    /// Its hard limit has denied an allocation.
    pub(crate) const DENIED: Self = Self(2);

    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A limited service's part in this.
#[derive(Debug)]
pub(crate) struct Due {
    news: AtomicU8,
    /// When it was last told of a denial.
    denied_at: AtomicU64,
    /// While there is something to tell: the next service of which there is, or
    /// the service itself for none.
    next: AtomicPtr<Record>,
}

impl Due {
    pub(super) fn new() -> Self {
        Self { news: AtomicU8::new(0), denied_at: AtomicU64::new(0), next: AtomicPtr::new(ptr::null_mut()) }
    }
}

/// Has it announced that a service denies allocations, once a second at most.
pub(super) fn push_denial(record: &'static Record) {
    if let Some(limit_group) = record.family().limit_group()
        && sys::is_time(&limit_group.due.denied_at)
    {
        push(record, EventFlags::DENIED);
    }
}

/// Has it announced, which holds the service until then. By whoever holds it,
/// inside an allocation.
pub(super) fn push(record: &'static Record, news: EventFlags) {
    let Some(limit_group) = record.family().limit_group() else { return };
    if is_off() {
        return;
    }
    // Either whoever takes it from the list sees this, or it is put there again.
    limit_group.due.news.fetch_or(news.0, Ordering::SeqCst);
    let own = ptr::from_ref(record).cast_mut();
    // The last one's next is itself, so that null is who is not in the list.
    let place = &limit_group.due.next;
    if place.compare_exchange(ptr::null_mut(), own, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return;
    }
    if !record.lifecycle().revive() {
        limit_group.due.news.store(0, Ordering::SeqCst);
        return place.store(ptr::null_mut(), Ordering::SeqCst);
    }
    let mut first = FIRST.load(Ordering::Relaxed);
    loop {
        place.store(if first.is_null() { own } else { first }, Ordering::Relaxed);
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

/// Calls `announce` for all that is due; the clone that held the service is its to
/// let go.
pub(crate) fn take(mut announce: impl FnMut(&'static Record, EventFlags)) {
    let mut next = FIRST.swap(ptr::null_mut(), Ordering::Acquire);
    // SAFETY: records are never unmapped.
    while let Some(record) = unsafe { next.as_ref() } {
        let Some(limit_group) = record.family().limit_group() else { return };
        // From here on it may be put into the list again.
        let after = limit_group.due.next.swap(ptr::null_mut(), Ordering::SeqCst);
        let news = EventFlags(limit_group.due.news.swap(0, Ordering::SeqCst));
        next = if ptr::eq(after, record) { ptr::null_mut() } else { after };
        announce(record, news);
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::ledger::slots;
    use crate::sync::whole_model;
    use loom::thread;

    fn limited(name: &str) -> &'static Record {
        let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
        record.begin(name.into(), 0);
        record.family().limit_group_or_new();
        record
    }

    /// What was taken, of one service and of another.
    fn take_of([one, other]: [&'static Record; 2], taken: &mut [u8; 2]) {
        take(|record, news| {
            assert!(ptr::eq(record, one) || ptr::eq(record, other));
            taken[usize::from(ptr::eq(record, other))] |= news.0;
            assert!(!record.lifecycle().release(), "the service was held");
        });
    }

    /// Two threads have something to tell of the same service, one also of another, and
    /// meanwhile somebody tells.
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

//! The service that profiles are charged to: what they take themselves is in a row of its own, and in no sample.

use crate::ledger::sampling;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::service::{Scope, Service};
use crate::sync::{AtomicPtr, Ordering};
use std::mem::ManuallyDrop;
use std::ptr;

/// The service's name.
pub(super) const NAME: &str = "dogtag::profile";

/// A handle that programs hardly choose, far above those that are assigned: these are the same with a
/// profiler and without.
const HANDLE: u32 = 0xd097_a690;

/// Null before a profiler was started.
static RECORD: AtomicPtr<Record> = AtomicPtr::new(ptr::null_mut());

/// Registers the service, once and for all. Where there is no space for another one, profiles stay
/// nobody's.
pub(super) fn register() {
    if !RECORD.load(Ordering::Relaxed).is_null() {
        return;
    }
    let service = Service::builder(NAME).handle(HANDLE).register();
    if let Ok(service) = service.or_else(|_| Service::register(NAME)) {
        // It never ends.
        let record = ManuallyDrop::new(service).record();
        sampling::never_sample(record);
        RECORD.store(ptr::from_ref(record).cast_mut(), Ordering::Release);
    }
}

/// Puts the calling thread into the service, whatever the limit of the one that it is in: for all
/// that makes, reads and writes profiles.
pub(super) fn enter() -> Scope<'static> {
    // SAFETY: null, or a record that `register` has stored. Records are never unmapped, and this
    // one's service never ends.
    let record = unsafe { RECORD.load(Ordering::Acquire).as_ref() };
    Scope::enter(record.unwrap_or(&UNATTRIBUTED))
}

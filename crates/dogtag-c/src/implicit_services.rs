//! Services that threads are settled in without having entered them. They are registered when they
//! are first met, and retained, since threads come back to them.
//!
//! Nobody says when one is no longer needed. So whenever the list has doubled, services without
//! blocks and threads are released, at an amortised cost of a few figures read for each new service.
//! Up to a thousand that have ended may be retained until then: with their names and the registry's
//! tables some 130 KB, however many there have been.

use dogtag::__private::service::{gate, is_retired, record, unattributed};
use dogtag::__private::thread::{self, Word};
use dogtag::Service;
use std::sync::{Mutex, PoisonError};

/// Settles the calling thread, which can be settled, in the service that `find` finds or else
/// `register` makes, or in the unattributed one if both fail. `key` stands for what the service is
/// chosen by: while it is the same, this need not be called again.
pub(crate) fn settle(
    key: u64,
    find: impl FnOnce() -> Option<Service>,
    register: impl FnOnce() -> Option<Service>,
) {
    // Unattributed, so that an allocation in there does not lead here again.
    let service = unattributed(|| find().or_else(|| register().inspect(|new| retain(new.clone()))));
    let service = service.unwrap_or_else(Service::unattributed);
    let record = record(&service);
    Word::OwnerKey.set(key);
    thread::settle(record);
    drop(service);
    if is_retired(record) {
        // It was released meanwhile. The next allocation finds the one that takes its place.
        Word::OwnerKey.set(0);
    }
}

/// Returns the key that the calling thread was settled by last; 0 before.
#[inline(always)]
pub(crate) fn settled_by() -> u64 {
    Word::OwnerKey.get()
}

struct Retained {
    services: Vec<Service>,
    /// The length at which idle services are looked for.
    full: usize,
}

static RETAINED: Mutex<Retained> = Mutex::new(Retained { services: Vec::new(), full: FULL });

/// The first such length, and the least.
const FULL: usize = 1000;

/// Keeps a reference to a service, and releases idle ones if the list has doubled.
fn retain(service: Service) {
    let released: Vec<Service> = {
        // A fork waits for the gate, so nobody holds the lock while the process forks.
        let _gate = gate();
        let mut retained = RETAINED.lock().unwrap_or_else(PoisonError::into_inner);
        let mut idle = Vec::new();
        if retained.services.len() >= retained.full {
            idle.extend(retained.services.extract_if(.., |service| record(service).is_idle()));
            retained.full = FULL.max(2 * retained.services.len());
        }
        // Idle itself, until it is settled in.
        retained.services.push(service);
        idle
    };
    // To drop one takes the gate.
    drop(released);
}

//! The services that threads are settled in without having entered them: registered when they are
//! first met, and retained for those who will come back.
//!
//! Nobody says when one is not needed any more. So those that have neither blocks nor
//! threads are released whenever the list has doubled, which costs each that is met as
//! much as a handful of figures. Up to a thousand that have ended may be retained until then: with
//! their names and the registry's tables some 130 KB, however many there have been.

use dogtag::__private::service::{gate, is_retired, record, unattributed};
use dogtag::__private::thread::{self, Word};
use dogtag::Service;
use std::sync::{Mutex, PoisonError};

/// Settles the calling thread, which can be settled, in the service that `find` finds or else
/// `register` makes; in the unattributed one if there cannot be another. `key` is what the service
/// is chosen by: while that is the same, nobody needs to call this again.
pub(crate) fn settle(
    key: u64,
    find: impl FnOnce() -> Option<Service>,
    register: impl FnOnce() -> Option<Service>,
) {
    // What this allocates does not come back here.
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

/// What the calling thread was settled by last; 0 before.
#[inline(always)]
pub(crate) fn settled_by() -> u64 {
    Word::OwnerKey.get()
}

struct Retained {
    services: Vec<Service>,
    /// How many there have to be before they are looked through.
    full: usize,
}

static RETAINED: Mutex<Retained> = Mutex::new(Retained { services: Vec::new(), full: FULL });

const FULL: usize = 1000;

fn retain(service: Service) {
    let released: Vec<Service> = {
        // Who forks has the gate to itself, and so nobody holds the lock then.
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

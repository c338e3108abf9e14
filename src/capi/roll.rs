//! The services that threads are settled in: registered when they are first met, and
//! held for those who will come back.
//!
//! Nobody says when one is not needed any more. So those that have neither blocks nor
//! threads are let go whenever the roll has doubled, which costs each that is met as
//! much as a handful of figures. Up to a thousand that have ended may be held until then: with
//! their names and the registry's tables some 130 KB, however many there have been.

use crate::ledger::slots::{self, Record};
use crate::ledger::thread;
use crate::service::{Scope, Service, gate};
use crate::sync::Mutex;
use std::sync::PoisonError;

/// Settles the calling thread, which can be, in the service that `find` finds or else
/// `register` makes; in the unattributed one if there cannot be another.
pub(super) fn settle(
    known_as: u64,
    find: impl FnOnce() -> Option<Service>,
    register: impl FnOnce() -> Option<Service>,
) {
    let service = {
        // What this allocates does not come back here.
        let _scope = Scope::enter(&slots::UNATTRIBUTED);
        find().or_else(|| register().inspect(|new| hold(new.clone())))
    };
    let service = service.unwrap_or_else(Service::unattributed);
    let record = service.record();
    thread::settle(record, known_as);
    drop(service);
    if record.lifecycle().is_retired() {
        // It was let go meanwhile. The next allocation finds the one that takes its place.
        thread::settle(record, 0);
    }
}

struct Roll {
    held: Vec<Service>,
    /// How many there have to be before they are looked through.
    full: usize,
}

static ROLL: Mutex<Roll> = Mutex::new(Roll { held: Vec::new(), full: FULL });

const FULL: usize = 1000;

fn hold(service: Service) {
    let let_go: Vec<Service> = {
        // Who forks has the gate to itself, and so nobody holds the lock then.
        let _gate = gate();
        let mut roll = ROLL.lock().unwrap_or_else(PoisonError::into_inner);
        let mut idle = Vec::new();
        if roll.held.len() >= roll.full {
            idle.extend(roll.held.extract_if(.., |service| Record::is_idle(service.record())));
            roll.full = FULL.max(2 * roll.held.len());
        }
        // Idle itself, until it is settled in.
        roll.held.push(service);
        idle
    };
    // To drop one takes the gate.
    drop(let_go);
}

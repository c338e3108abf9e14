//! Services, and the slots behind them.

use super::{Service, end_retired};
use crate::ledger::account::Account;
use crate::ledger::{slots, thread};

#[test]
fn an_ended_services_slot_is_nobodys() {
    let service = Service::register("ends in a moment").unwrap();
    let slot = service.record().slot();
    assert!(slots::record(slot).is_some());
    drop(service);
    // So behind the threshold a cookie with that slot is not believed.
    assert!(slots::record(slot).is_none());
}

/// As many as had no place in 32 bits.
#[test]
fn forgotten_scopes_keep_a_service_for_good() {
    for forgotten in [1 << 32, 1 << 33, u64::from(u32::MAX)] {
        std::thread::spawn(move || {
            let name = format!("forgotten {forgotten} times");
            let service = Service::register(&name).unwrap();
            let slot = service.record().slot();
            let Account::Own(cell) = thread::account(service.record()) else {
                panic!("there is memory for a cell")
            };
            cell.preset(forgotten - 1, 0);
            std::mem::forget(service.enter());
            drop(service);
            end_retired();
            let current = Service::current();
            assert_eq!((current.name(), current.record().slot()), (&*name, slot));
            assert!(slots::record(slot).is_some());
            let other = Service::register("an innocent other one").unwrap();
            assert!(other != current);
            drop(current);
            end_retired();
            assert_eq!(Service::current().name(), name);
        })
        .join()
        .unwrap();
    }
}

#[test]
fn a_record_that_no_service_has_gives_no_clone() {
    let service = Service::register("over in a moment").unwrap();
    let record = service.record();
    drop(service);
    assert!(!record.lifecycle().is_in_use() && !record.lifecycle().revive());
}

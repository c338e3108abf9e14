use super::*;
use crate::ledger::slots;

#[cfg(feature = "memory-check")]
#[test]
fn a_thread_is_inside_until_it_leaves() {
    let inside = Inside::enter();
    assert!(inside.is_some());
    assert!(Inside::enter().is_none());
    assert!(Inside::enter().is_none(), "who came in vain has ended it");
    drop(inside);
    assert!(Inside::enter().is_some());
}

#[test]
fn a_thread_that_forgot_scopes_beyond_32_bits_stays_where_it_is() {
    std::thread::spawn(|| {
        assert!(can_settle());
        with(|thread| thread.stays.set(u32::MAX.into()));
        std::mem::forget(Stay::begin());
        assert!(!can_settle());
        with(|thread| thread.stays.set(0));
    })
    .join()
    .unwrap();
}

fn begin(name: &str) -> &'static Record {
    let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
    record.begin(name.into(), 0);
    record
}

fn scopes(record: &'static Record) -> [u64; 2] {
    let own = cell(record.shared().mark());
    [own.scopes(), record.shared().scopes()]
}

#[test]
fn a_scope_is_counted_in_the_threads_own_cell_though_nothing_is_allocated_in_it() {
    std::thread::spawn(|| {
        let record = begin("allocates nothing");
        assert!(matches!(account(&UNATTRIBUTED), Account::Own(_)));
        for _ in 0..3 {
            let scope = enter(record);
            assert!(ptr::eq(current(), cell(record.shared().mark())) && is_in_scope());
            assert!(ptr::eq(current_record(), record));
            assert_eq!(scopes(record), [1, 0]);
            leave(scope);
            assert_eq!(scopes(record), [0, 0]);
        }
        assert!(!is_in_scope() && ptr::eq(current_record(), &UNATTRIBUTED) && record.is_idle());
    })
    .join()
    .unwrap();
}

#[test]
fn scopes_are_left_in_any_order() {
    std::thread::spawn(|| {
        let [one, other] = ["one", "other"].map(begin);
        account(&UNATTRIBUTED);
        let [first, second, third] = [one, other, one].map(enter);
        leave(first);
        assert!(ptr::eq(current_record(), &UNATTRIBUTED));
        // It still goes back to the first one's service.
        leave(second);
        assert!(ptr::eq(current_record(), one) && !one.is_idle());
        leave(third);
        // The last one decides.
        assert!(ptr::eq(current_record(), other) && !other.is_idle() && one.is_idle());
        assert!(!is_in_scope());
    })
    .join()
    .unwrap();
}

/// By then its shard is another thread's.
#[test]
fn scopes_that_outlast_the_threads_shard_do_not_touch_it() {
    std::thread::spawn(|| {
        let [one, other] = ["outlasts", "outlasts, too"].map(begin);
        account(&UNATTRIBUTED);
        let [first, second] = [one, other].map(enter);
        let cells = [one, other].map(|record| cell(record.shared().mark()));
        with(Thread::detach);
        assert!(ptr::eq(current_record(), other));
        leave(second);
        assert!(ptr::eq(current_record(), one) && other.is_idle() && !one.is_idle());
        let third = enter(other);
        assert_eq!(other.shared().scopes(), 0);
        leave(third);
        leave(first);
        assert!(ptr::eq(current_record(), &UNATTRIBUTED) && one.is_idle() && other.is_idle());
        assert_eq!(cells.map(Cell::scopes), [1, 1], "the shard is not the thread's any more");
        assert_eq!([one, other].map(|record| record.shared().scopes()), [u64::MAX; 2]);
    })
    .join()
    .unwrap();
}

/// Ends a service as if no thread had gone there.
#[cfg(feature = "tracing-layer")]
pub(crate) fn end(record: &'static Record) {
    SHARDS.cells(record.slot(), record.shared()).for_each(Cell::abandon);
}

/// Returns how many scopes are counted in a service, modulo 2^64.
#[cfg(feature = "tracing-layer")]
pub(crate) fn all_scopes(record: &'static Record) -> u64 {
    SHARDS.cells(record.slot(), record.shared()).map(Cell::scopes).fold(0, u64::wrapping_add)
}

/// By memory, which nobody holds: it is found out at once, and the count goes where it came from.
#[cfg(feature = "tracing-layer")]
#[test]
fn who_went_to_a_service_that_ended_just_then_leaves_no_count() {
    std::thread::spawn(|| {
        let left = |record: &'static Record, own: &Cell| own.scopes().wrapping_add(record.shared().scopes());
        let nobody = UNATTRIBUTED.shared().scopes();

        let record = begin("ends at that moment");
        let Account::Own(own) = account(record) else { unreachable!("there is memory") };
        let former = go_to(record);
        end(record);
        leave_remembered_for(former);
        assert_eq!((left(record, own), is_in_scope()), (0, false));

        // Without going there.
        let record = begin("ends at that moment, too");
        let Account::Own(own) = account(record) else { unreachable!("there is memory") };
        retain(record);
        end(record);
        release(record);
        assert_eq!((left(record, own), is_in_scope()), (0, false));
        assert_eq!(UNATTRIBUTED.shared().scopes(), nobody);
    })
    .join()
    .unwrap();
}

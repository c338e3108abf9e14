//! Retirement: what happens to a service and its slot after the last clone is dropped.
//!
//! It is retired: name and handle are free at once, but the slot is not, while
//! a block or a scope is left. Frees do not announce that, so whoever registers a service
//! looks at a few retired ones first. That is work in proportion to what was
//! dropped, and there are never many more slots than services that live, or
//! have lived and left blocks behind.

use super::scope::Scope;
use super::spare_slots::{Spare, spare};
use super::{fork, registry};
use crate::events;
use crate::ledger::slots::{self, Record, SlotError};
use crate::ledger::tree::Tree;
use crate::registered::Registered;

/// Takes a service, whose last clone was dropped, out of the registry, and ends
/// it as soon as it can be.
#[cold]
pub(super) fn retire(record: &'static Record) {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let mut retired = Some(record);
    // Its end may be that of its parent, and so on.
    while let Some(record) = retired {
        registry::remove(record);
        events::retired(record.name(), record.handle());
        retired = end_or_keep(record);
    }
}

/// Ends a service that was in no map, and of which nobody has heard.
#[cold]
pub(super) fn discard(record: &'static Record) {
    end_or_keep(record).into_iter().for_each(retire);
}

/// Ends a retired service as soon as it can be. Returns its parent, if that is to be retired too.
fn end_or_keep(record: &'static Record) -> Option<&'static Record> {
    end(record).unwrap_or_else(|Lives| {
        spare().retired.push_back(record);
        None
    })
}

/// A slot for a new service, claimed.
pub(super) fn claim_slot() -> Result<&'static Record, SlotError> {
    {
        let mut spare = spare();
        if spare.retired.is_empty() {
            return claim_any(&mut spare);
        }
    }
    look_after(SOME);
    loop {
        let claimed = claim_any(&mut spare());
        match claimed {
            // The last resort: perhaps one has become free meanwhile.
            Err(SlotError::Full) if look_after(usize::MAX) > 0 => {}
            result => return result,
        }
    }
}

/// Ends all retired services that nothing is left of.
pub(crate) fn end_retired() {
    fork::prepare();
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    look_after(usize::MAX);
}

/// Looks at some retired services, and ends those that nothing is left of.
/// Returns how many.
fn look_after(most: usize) -> usize {
    let mut ended = 0;
    let waiting = spare().retired.len();
    for _ in 0..most.min(waiting) {
        let Some(record) = spare().retired.pop_front() else { break };
        match end(record) {
            Ok(parent) => {
                ended += 1;
                parent.into_iter().for_each(retire);
            }
            Err(Lives) => spare().retired.push_back(record),
        }
    }
    ended
}

/// How many retired services are looked at for each new one: more than one, so
/// that they become fewer.
const SOME: usize = 2;

/// How many unused slots stay so: memory-check's reports of freed blocks name the
/// services that had them.
const KEPT: usize = if cfg!(feature = "memory-check") { 1024 } else { 0 };

/// Has `forget` called for each service that ends from now on. It must not allocate: there may be
/// no memory where something is dropped. The caller has the [gate](fork::gate), so that no child
/// finds this half done.
pub(super) fn at_end(forget: &'static AtEnd) {
    AT_END.add(forget);
}

/// What is to be forgotten of a service that has ended.
pub(super) struct AtEnd(pub(super) fn(&'static Record));

static AT_END: Registered<AtEnd> = Registered::new();

/// Something is left of a retired service.
struct Lives;

/// Ends a retired service, if nothing is left of it, and frees its slot. Returns
/// its parent, if that is to be retired too.
fn end(record: &'static Record) -> Result<Option<&'static Record>, Lives> {
    // A child's siblings follow its links until it has left its family, so it is to be seen as ended until then.
    let has_parent = record.parent().is_some();
    let has_ended = if KEPT == 0 && !has_parent { record.end_and_claim() } else { record.end() };
    if !has_ended {
        return Err(Lives);
    }
    let parent = if has_parent { Tree::lock().part(record) } else { None };
    if KEPT == 0 && has_parent && record.lifecycle().claim() {
        record.forget_name();
    }
    AT_END.iter().for_each(|AtEnd(forget)| forget(record));
    if !record.is_used_up() {
        let mut spare = spare();
        let free = if record.slot().is_short() { &mut spare.short } else { &mut spare.long };
        free.push_back(record);
    }
    Ok(parent.filter(|parent| parent.lifecycle().release()))
}

/// A slot that nobody has, claimed.
fn claim_any(spare: &mut Spare) -> Result<&'static Record, SlotError> {
    claim_free(spare).map_or_else(|| fresh(spare), Ok)
}

/// A slot that was never used, claimed, which fits into the queues.
fn fresh(spare: &mut Spare) -> Result<&'static Record, SlotError> {
    // Only under the lock there come more.
    spare.try_reserve(slots::end() as usize + 1).map_err(|_| SlotError::NoMemory)?;
    slots::fresh()
}

fn claim_free(spare: &mut Spare) -> Option<&'static Record> {
    // Mostly whoever has put it in has claimed it.
    let is_ours = |record: &Record| record.lifecycle().is_claimed() || record.lifecycle().claim();
    [&mut spare.short, &mut spare.long].into_iter().filter(|free| free.len() > KEPT).find_map(|free| {
        if KEPT == 0 {
            let last = free.pop_back()?;
            if is_ours(last) {
                return Some(last);
            }
            // There is space for what was just taken.
            free.push_back(last);
        }
        // One that a reader still looks at is passed over.
        let index = match KEPT {
            0 => free.iter().rposition(|record| is_ours(record)),
            _ => free.iter().position(|record| is_ours(record)),
        }?;
        free.remove(index)
    })
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use crate::service::Service;

    #[test]
    fn a_slot_whose_services_cannot_be_told_apart_any_more_is_given_no_more() {
        let service = Service::register("last of its slot").unwrap();
        let record = service.record();
        record.preset_generation(slots::LAST_GENERATION);
        drop(service);
        assert!(!record.lifecycle().is_in_use());
        // With memory-check a slot waits until there are many others.
        for _ in 0..2 {
            let others: Vec<Service> =
                (0..KEPT + 100).map(|i| Service::register(format!("other {i}")).unwrap()).collect();
            let is_given = others.iter().any(|other| std::ptr::eq(other.record(), record));
            assert!(!is_given, "the slot is given again");
        }
    }
}

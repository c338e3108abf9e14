//! Who is who: name to service and handle to service.
//!
//! Two dashmaps. They may allocate and they lock, so nothing that runs inside
//! an allocation enters this room. What they allocate is nobody's but the
//! process's own: it is charged to the unattributed service.
//!
//! A service whose last clone was dropped stays in for a moment, until whoever
//! dropped it takes it out. It is as good as gone: it is not found, and a new
//! one may take its place. No clone is dropped here while a map is locked, since
//! it might be the last.

use crate::events;
use crate::format::beginning;
use crate::ledger::slots::{self, Record, SlotError};
use crate::ledger::threshold;
use crate::ledger::tree::Tree;
use crate::service::error::RegisterError;
use crate::service::plan::Plan;
use crate::service::scope::Scope;
use crate::service::{Service, fork, retirement};
use crate::sync::{AtomicU32, Ordering};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::LazyLock;

/// Whether a service may have that name.
pub(crate) fn check_name(name: &str) -> Result<(), RegisterError> {
    match name.len() {
        0 => Err(RegisterError::NoName),
        len if len > Service::MAX_NAME_LEN => Err(name_too_long(name, len)),
        _ => Ok(()),
    }
}

/// Of a name that has so many bytes, and of which this is the beginning, or all.
pub(crate) fn name_too_long(name: &str, len: usize) -> RegisterError {
    /// Bytes of it.
    const SHOWN: usize = 60;

    RegisterError::NameTooLong { beginning: beginning(name, SHOWN).to_owned(), len }
}

/// The living service of that name, or a new one.
pub(super) fn register(name: &str, plan: &Plan) -> Result<Service, RegisterError> {
    check_name(name)?;
    // To find a name again is the common case, and needs a shared lock only.
    if let Some(living) = by_name(name) {
        return as_planned(living, plan);
    }
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let record = retirement::claim_slot().map_err(|error| match error {
        SlotError::Full => RegisterError::Full,
        SlotError::NoMemory => RegisterError::NoMemory,
    })?;
    record.begin(name.into(), plan.handle.unwrap_or_else(next_handle));
    let new = Service { record };
    if let Some(parent) = plan.parent.clone() {
        let families = Tree::lock();
        families.adopt(ManuallyDrop::new(parent).record, record);
        if threshold::is_limited(record) {
            // Threads may have cells of the slot, opened for another service.
            threshold::shut(&families, record);
        }
    }
    plan.limits.set(record);
    // Ends: there are more handles to assign than there can be services.
    loop {
        return match publish(record) {
            Ok(()) => {
                events::registered(&new);
                Ok(new)
            }
            Err(Conflict::Name(living)) => as_planned(living, plan),
            Err(Conflict::Handle(living)) if plan.handle.is_some() => {
                Err(RegisterError::HandleTaken { handle: living.handle(), name: living.name().to_owned() })
            }
            // Somebody chose the number that would have been assigned.
            Err(Conflict::Handle(_)) => {
                record.set_handle(next_handle());
                continue;
            }
        };
    }
}

pub(super) fn by_name(name: &str) -> Option<Service> {
    // Who waits for a map may have to make a queue first.
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let _gate = fork::gate();
    REGISTRY.names.get(name).and_then(|entry| living(entry.key().0))
}

pub(super) fn by_handle(handle: u32) -> Option<Service> {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let _gate = fork::gate();
    REGISTRY.handles.get(&handle).and_then(|entry| living(entry.value()))
}

/// Takes out a service whose last clone was dropped.
pub(super) fn remove(record: &'static Record) {
    let _gate = fork::gate();
    REGISTRY.names.remove_if(record.name(), |known, ()| ptr::eq(known.0, record));
    REGISTRY.handles.remove_if(&record.handle(), |_, known| ptr::eq(*known, record));
}

struct Registry {
    names: DashMap<ByName, ()>,
    handles: DashMap<u32, &'static Record>,
}

/// Made while somebody has the gate, so that no child finds it half made.
static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let registry = Registry { names: DashMap::new(), handles: DashMap::new() };
    let unattributed = &slots::UNATTRIBUTED;
    registry.names.insert(ByName(unattributed), ());
    registry.handles.insert(unattributed.handle(), unattributed);
    registry
});

/// A service under the name that stands in its record, and only there.
struct ByName(&'static Record);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for ByName {}

/// A clone of a service that is in a map which the caller has locked.
fn living(record: &'static Record) -> Option<Service> {
    // Not `then_some`: what is made in vain would let go of a clone that there is not.
    record.lifecycle().try_hold().then(|| Service { record })
}

/// The name is taken; is it by whom the caller means?
fn as_planned(living: Service, plan: &Plan) -> Result<Service, RegisterError> {
    let name = || living.name().to_owned();
    if let Some(requested) = plan.handle
        && requested != living.handle()
    {
        return Err(RegisterError::NameTaken { name: name(), handle: living.handle(), requested });
    }
    let parent = living.parent();
    if plan.parent.is_some() && plan.parent != parent {
        let parent = parent.map(|parent| parent.name().to_owned());
        return Err(RegisterError::OtherParent { name: name(), parent });
    }
    plan.limits.compare(&living)?;
    Ok(living)
}

/// Who has the name or the handle already.
enum Conflict {
    Name(Service),
    Handle(Service),
}

/// Puts a new service into the maps.
fn publish(record: &'static Record) -> Result<(), Conflict> {
    let _gate = fork::gate();
    // The name is locked until its handle is; nobody locks the two in the other
    // order.
    match REGISTRY.names.entry(ByName(record)) {
        Entry::Occupied(entry) => {
            if let Some(living) = living(entry.key().0) {
                return Err(Conflict::Name(living));
            }
            publish_handle(record)?;
            entry.replace_entry(());
        }
        Entry::Vacant(entry) => {
            publish_handle(record)?;
            entry.insert(());
        }
    }
    Ok(())
}

fn publish_handle(record: &'static Record) -> Result<(), Conflict> {
    match REGISTRY.handles.entry(record.handle()) {
        Entry::Occupied(mut entry) => {
            if let Some(living) = living(entry.get()) {
                return Err(Conflict::Handle(living));
            }
            entry.insert(record);
        }
        Entry::Vacant(entry) => {
            entry.insert(record);
        }
    }
    Ok(())
}

/// The next handle of the upper half, where few number their own. After the last of them comes
/// the first again, and those that are in use are passed over.
fn next_handle() -> u32 {
    const UPPER_HALF: u32 = 1 << 31;

    UPPER_HALF | NEXT_HANDLE.fetch_add(1, Ordering::Relaxed)
}

static NEXT_HANDLE: AtomicU32 = AtomicU32::new(0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_begin_again_and_those_in_use_are_passed_over() {
        let first = Service::register("has a handle already").unwrap();
        NEXT_HANDLE.store(first.handle() ^ 1 << 31, Ordering::Relaxed);
        let second = Service::register("is to have the same").unwrap();
        assert_ne!(first.handle(), second.handle());
        NEXT_HANDLE.store(u32::MAX, Ordering::Relaxed);
        let [last, again] = ["last", "again"].map(|name| Service::register(name).unwrap());
        assert!([&first, &second, &last, &again].iter().all(|service| service.handle() >> 31 == 1));
        for service in [first, second, last, again] {
            assert_eq!(by_handle(service.handle()).as_ref(), Some(&service));
        }
    }

    /// Looked up after its last clone was dropped, and before it is taken out of the maps.
    #[test]
    fn a_service_without_clones_is_not_found_and_stays_as_it_is() {
        let record = ManuallyDrop::new(Service::register("about to be removed").unwrap()).record;
        assert!(record.lifecycle().release());
        assert_eq!(by_name("about to be removed"), None);
        assert_eq!(by_handle(record.handle()), None);
        assert!(record.lifecycle().is_in_use() && record.lifecycle().is_retired());
        retirement::retire(record);
        assert!(!record.lifecycle().is_in_use());
    }
}

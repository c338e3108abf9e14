//! Registering: the living service of a name, or a new one.

#[cfg(feature = "guard")]
use super::cancellable;
use super::error::{RegisterError, check_name};
use super::fork;
use super::handle::Service;
use super::plan::Plan;
use super::registry::{self, Conflict, HandleIs, Retained, next_handle};
use super::retirement;
use super::scope::Scope;
use super::thread_names;
use crate::events;
use crate::ledger::slots::{self, Record, SlotError};
use crate::ledger::threshold;
use crate::ledger::tree::Tree;
use std::mem::ManuallyDrop;

impl Service {
    /// Returns the living service of that name, if there is one. It takes a lock.
    ///
    /// ```
    /// assert_eq!(dogtag::Service::by_name("nobody"), None);
    /// ```
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        fork::prepare();
        thread_names::publish();
        registry::by_name(name).map(Self::of_retained)
    }

    /// Returns the living service with that handle, if there is one. It takes a lock.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// assert_eq!(Service::by_handle(0), Some(Service::unattributed()));
    /// ```
    #[must_use]
    pub fn by_handle(handle: u32) -> Option<Self> {
        fork::prepare();
        thread_names::publish();
        with_handle(handle, || registry::in_place_of(handle))
    }
}

/// The living service with that handle. `look` finds who stands in the place of the handle.
fn with_handle(handle: u32, mut look: impl FnMut() -> Option<Retained>) -> Option<Service> {
    // Ends: who has lost the handle is not found by it again.
    while let Some(found) = look().map(Service::of_retained) {
        // One that is being published may have been assigned a handle that somebody has chosen, and give it up.
        let is_published = registry::is_published(found.record());
        match (found.handle() == handle, is_published) {
            (true, true) => return Some(found),
            (true, false) => break,
            // Another one has its slot since.
            (false, _) => {}
        }
    }
    registry::by_chosen_handle(handle).map(Service::of_retained)
}

/// The living service of that name, or a new one.
pub(super) fn register(name: &str, plan: &Plan) -> Result<Service, RegisterError> {
    check_name(name)?;
    fork::prepare();
    thread_names::publish();
    let hash = registry::hash_of_name(name);
    // To find a name again is the common case, and needs a shared lock only.
    // What a cancelled parent's are called is no name of theirs.
    if !plan.parent.as_ref().is_some_and(|parent| parent.record().family().is_cancelled())
        && let Some(living) = registry::by_name_and_hash(name, hash).map(Service::of_retained)
    {
        return as_planned(living, plan);
    }
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let record = retirement::claim_slot().map_err(|error| match error {
        SlotError::Full => RegisterError::Full,
        SlotError::NoMemory => RegisterError::NoMemory,
    })?;
    record.begin(name.into(), plan.handle.unwrap_or_else(next_handle));
    let new = Unpublished(record);
    if let Some(parent) = plan.parent.clone() {
        let families = Tree::lock();
        families.adopt(ManuallyDrop::new(parent).record(), record);
        if threshold::is_limited(record) || record.family().is_cancelled() {
            // Threads may have cells of the slot, raised for another service.
            threshold::lower_all(&families, record);
        }
    }
    plan.limits.set(record);
    set_priority(record, plan);
    if record.family().is_cancelled() {
        // With its parent: nobody is to find it by its name.
        events::registered(record);
        return Ok(new.into_service());
    }
    // Ends: who has lost the handle does not get it back.
    loop {
        let handle = if plan.handle.is_some() { HandleIs::Chosen } else { HandleIs::ToAssign };
        return match registry::publish(record, hash, handle) {
            Ok(()) => {
                if record.family().is_cancelled() {
                    // Just now, and it may not have been in the registry then.
                    registry::remove(record);
                }
                events::registered(record);
                Ok(new.into_service())
            }
            Err(Conflict::Name(living)) => as_planned(Service::of_retained(living), plan),
            Err(Conflict::Handle(living)) => {
                let living = Service::of_retained(living);
                // Which may be the end of its having the handle.
                let _ = registry::is_published(living.record());
                if Some(living.handle()) != plan.handle {
                    // It has lost it just now.
                    continue;
                }
                Err(RegisterError::HandleTaken { handle: living.handle(), name: living.name().to_owned() })
            }
            Err(Conflict::NoMemory) => Err(RegisterError::NoMemory),
        };
    }
}

/// A service that is in no map yet. Of one that does not get there no event is emitted.
struct Unpublished(&'static Record);

impl Unpublished {
    fn into_service(self) -> Service {
        Service::of(ManuallyDrop::new(self).0)
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        if self.0.lifecycle().release() {
            retirement::discard(self.0);
        }
    }
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
    plan.limits.match_living(&living)?;
    set_priority(living.record(), plan);
    Ok(living)
}

/// Lets a guard cancel the service, if that is asked for.
fn set_priority(record: &'static Record, plan: &Plan) {
    #[cfg(feature = "guard")]
    if plan.priority.is_some() {
        cancellable::set(record, plan.priority);
    }
    #[cfg(not(feature = "guard"))]
    let _ = (record, plan);
}

#[cfg(test)]
mod tests {
    use super::super::assigned_handles::{self, preset_next};
    use super::*;

    #[test]
    fn handles_begin_again_and_those_in_use_are_passed_over() {
        let first = Service::register("has a handle already").unwrap();
        preset_next(first.handle() ^ 1 << 31);
        let second = Service::register("is to have the same").unwrap();
        assert_ne!(first.handle(), second.handle());
        preset_next(u32::MAX);
        let [last, again] = ["last", "again"].map(|name| Service::register(name).unwrap());
        assert!([&first, &second, &last, &again].iter().all(|service| service.handle() >> 31 == 1));
        for service in [first, second, last, again] {
            assert_eq!(Service::by_handle(service.handle()).as_ref(), Some(&service));
        }
    }

    /// Looked up after its last clone was dropped, and before it is taken out of the maps.
    #[test]
    fn a_service_without_clones_is_not_found_and_stays_as_it_is() {
        let record = ManuallyDrop::new(Service::register("about to be removed").unwrap()).record();
        assert!(record.lifecycle().release());
        assert_eq!(Service::by_name("about to be removed"), None);
        assert_eq!(Service::by_handle(record.handle()), None);
        assert!(record.lifecycle().is_in_use() && record.lifecycle().is_retired());
        retirement::retire(record);
        assert!(!record.lifecycle().is_in_use());
    }

    /// Its slot goes to another service while its handle, which it has lost, is looked up: the one that has chosen the
    /// handle is found.
    #[test]
    fn who_has_a_handle_is_found_though_another_one_lost_it_just_now() {
        let former = ManuallyDrop::new(Service::register("is about to lose its handle").unwrap());
        let (record, handle) = (former.record(), former.handle());
        assert!(record.lifecycle().release());
        // From here on it is free, but it stands in its place still.
        let chooses = Service::builder("has chosen the handle").handle(handle).register().unwrap();
        let mut looks = 0;
        let found = with_handle(handle, || {
            looks += 1;
            if looks > 1 {
                return registry::in_place_of(handle);
            }
            assert!(assigned_handles::find(handle).is_some_and(|found| std::ptr::eq(found, record)));
            retirement::retire(record);
            // As the next service in its slot.
            let next = ManuallyDrop::new(Service::register("the next one").unwrap());
            assert_ne!(next.handle(), handle);
            Some(Retained(next.record()))
        });
        assert_eq!((found.as_ref(), looks), (Some(&chooses), 2));
        assert_eq!(Service::by_name("the next one"), None, "it was released");
    }

    /// It has begun, and stands in the place of the number, and is to see that somebody has chosen that.
    #[test]
    fn who_has_chosen_a_handle_is_found_though_another_one_is_just_assigned_it() {
        let record = retirement::claim_slot().unwrap_or_else(|_| panic!("there are slots"));
        record.begin("is assigned it".into(), 0);
        // The first number that has a free place.
        let is_assigned = |chooses: &Service| {
            record.set_handle(chooses.handle());
            assert!(assigned_handles::assign(record).is_some());
            let is_it = record.handle() == chooses.handle();
            if !is_it {
                assigned_handles::give_up(record);
            }
            is_it
        };
        let choose = |handle| Service::builder("has chosen it before").handle(handle).register().ok();
        let chooses = (0xf000_0000..).filter_map(choose).find(is_assigned).unwrap();
        let handle = chooses.handle();
        assert_eq!(Service::by_handle(handle).as_ref(), Some(&chooses));
        assigned_handles::give_up(record);
        assert_eq!(Service::by_handle(handle).as_ref(), Some(&chooses));
        drop(Service::of(record));
    }
}

//! Which services may be cancelled for others' sake, and what each of them holds.

use super::fork;
use super::handle::Service;
use super::scope::Scope;
use crate::ledger;
use crate::ledger::slots::{self, Record};
use crate::ledger::tree::{self, Tree};

impl Service {
    /// Returns the priority with which a [`Guard`](crate::guard::Guard) may cancel this service; `None` if it
    /// may not.
    #[must_use]
    pub fn cancellable(&self) -> Option<i32> {
        self.record().family().priority()
    }

    /// Lets a [`Guard`](crate::guard::Guard) cancel this service when the process is at its ceiling, or
    /// takes that back.
    ///
    /// A guard cancels nobody who was not marked so. Mark what can end by itself without harm for others, and
    /// does end when it is [cancelled](Self::cancel): a query, a request, a job. Descendants end with it.
    /// What they hold counts as their ancestor's, unless they are marked too.
    ///
    /// The priority is for the policy [`lowest_priority`](crate::guard::Policy::lowest_priority), and for
    /// closures. It says nothing to the other policies.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// let report = Service::builder("report").cancellable(-1).register()?;
    /// let payment = Service::register("payment")?;
    /// assert_eq!((report.cancellable(), payment.cancellable()), (Some(-1), None));
    /// // From here on it writes.
    /// report.set_cancellable(None);
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    pub fn set_cancellable(&self, priority: Option<i32>) {
        set(self.record(), priority);
    }
}

/// Lets a guard cancel a service, or takes that back. Nobody is cancelled because of what is nobody's.
pub(super) fn set(record: &'static Record, priority: Option<i32>) {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    if !std::ptr::eq(record, &slots::UNATTRIBUTED) {
        record.family().set_priority(priority);
    }
}

/// A service that may be cancelled. It may have ended since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cancellable {
    record: &'static Record,
    generation: u64,
    pub(crate) priority: i32,
    /// What it and its descendants hold, without those that may be cancelled themselves.
    pub(crate) bytes: u64,
}

impl Cancellable {
    /// Tells it from all others.
    pub(crate) fn identity(&self) -> (u32, u64) {
        (self.record.index(), self.generation)
    }

    /// A clone of the service, if it is still there.
    pub(crate) fn hold(&self) -> Option<Service> {
        let service = Service::try_of(self.record)?;
        (self.record.generation() == self.generation).then_some(service)
    }
}

/// Lists the services that may be cancelled and are not, in the order of their identities. Reads the cells
/// of all services.
pub(crate) fn list(into: &mut Vec<Cancellable>) {
    fork::prepare();
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    into.clear();
    // Nobody leaves a family meanwhile, so that each one's bytes go to whom they belong to.
    let _families = Tree::lock();
    for record in slots::all() {
        let Some(priority) = record.family().priority() else { continue };
        if record.family().is_cancelled() || !record.lifecycle().pin() {
            continue;
        }
        if record.lifecycle().is_in_use() && !record.lifecycle().is_retired() {
            into.push(Cancellable { record, generation: record.generation(), priority, bytes: 0 });
        }
        record.lifecycle().unpin();
    }
    if into.is_empty() {
        return;
    }
    ledger::usages(|record, usage| {
        let bytes = usage.bytes();
        if bytes == 0 {
            return;
        }
        let find = |record: &'static Record| {
            into.binary_search_by_key(&record.identity(), Cancellable::identity).ok()
        };
        if let Some(nearest) = tree::ancestors(record).find_map(find) {
            into[nearest].bytes += bytes;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::thread;

    fn bytes_of(service: &Service) -> Option<u64> {
        let mut all = Vec::new();
        list(&mut all);
        all.iter().find(|one| one.identity() == service.record().identity()).map(|one| one.bytes)
    }

    fn child(name: &str, parent: &Service, priority: Option<i32>) -> Service {
        let builder = Service::builder(name).parent(parent);
        match priority {
            Some(priority) => builder.cancellable(priority).register().unwrap(),
            None => builder.register().unwrap(),
        }
    }

    #[test]
    fn what_descendants_hold_is_the_nearest_ones_that_may_be_cancelled() {
        let tenant = Service::builder("tenant that may go").cancellable(3).register().unwrap();
        let query = child("its query that may go", &tenant, Some(-7));
        let (sort, cache) = (child("a sort", &query, None), child("a cache", &tenant, None));
        let all = [(&tenant, 1000), (&query, 100), (&sort, 10), (&cache, 1)];
        // (The tests of the library itself have another allocator.)
        all.iter().for_each(|(service, bytes)| thread::account(service.record()).charge(*bytes));
        assert_eq!((bytes_of(&tenant), bytes_of(&query)), (Some(1001), Some(110)));
        assert_eq!((bytes_of(&sort), query.cancellable(), tenant.cancellable()), (None, Some(-7), Some(3)));
        query.set_cancellable(None);
        assert_eq!((bytes_of(&tenant), bytes_of(&query)), (Some(1111), None));
        query.set_cancellable(Some(0));
        query.cancel("once");
        assert_eq!((bytes_of(&tenant), bytes_of(&query)), (Some(1111), None));
        all.iter().for_each(|(service, bytes)| thread::account(service.record()).refund(*bytes));
        assert_eq!(bytes_of(&tenant), Some(0));
    }

    #[test]
    fn the_next_service_of_a_slot_is_not_marked() {
        let service = Service::builder("may go").cancellable(i32::MIN).register().unwrap();
        let record = service.record();
        assert_eq!(service.cancellable(), Some(i32::MIN));
        let mut all = Vec::new();
        list(&mut all);
        let known = *all.iter().find(|one| std::ptr::eq(one.record, record)).unwrap();
        assert!(known.hold().is_some());
        drop(service);
        assert!(known.hold().is_none());
        assert!(bytes_of(&Service::unattributed()).is_none());
        Service::unattributed().set_cancellable(Some(1));
        assert_eq!(Service::unattributed().cancellable(), None);
        // Whoever has its slot now.
        let next: Vec<_> = (0..64).map(|i| Service::register(format!("may not go {i}")).unwrap()).collect();
        assert!(next.iter().all(|service| service.cancellable().is_none()));
    }
}

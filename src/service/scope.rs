//! The stretch of code that runs on behalf of a service.

use crate::events;
use crate::ledger::slots::{Entrance, Record};
use crate::ledger::thread::{self, Entered};
use std::marker::PhantomData;

/// Keeps the calling thread in a service, and the service alive, until it is dropped:
/// [`Service::enter`](crate::Service::enter).
///
/// A scope is not `Send`, since it belongs to the thread that entered:
///
/// ```compile_fail,E0277
/// let service = dogtag::Service::register("worker").unwrap();
/// std::thread::scope(|threads| {
///     let scope = service.enter();
///     threads.spawn(move || drop(scope));
/// });
/// ```
///
/// A thread of a pool that waits in a scope may run jobs of others. They are charged to
/// this scope's service, unless they enter their own ([`Service::enter`](crate::Service::enter)).
///
/// Scopes that are dropped out of order each restore the service that was current when
/// they were entered; the last one dropped decides.
#[derive(Debug)]
#[must_use = "the service is left when the scope is dropped"]
pub struct Scope<'service> {
    entered: Entered,
    _service: PhantomData<&'service ()>,
    _not_send: PhantomData<*const ()>,
}

impl Scope<'_> {
    #[inline]
    pub(crate) fn enter(record: &'static Record) -> Self {
        Self::of_entered(thread::enter(record))
    }

    /// Variant of [`enter`](Self::enter) for a service whose entrance is at hand.
    #[inline]
    pub(crate) fn enter_by(entrance: &Entrance) -> Self {
        Self::of_entered(thread::enter_by(entrance))
    }

    /// The scope of which [`into_entered`](Scope::into_entered) returned this.
    #[inline]
    pub(crate) fn of_entered(entered: Entered) -> Self {
        Self { entered, _service: PhantomData, _not_send: PhantomData }
    }
}

/// For C, which has no destructors.
impl Scope<'static> {
    #[inline]
    pub(crate) fn into_entered(self) -> Entered {
        let entered = self.entered;
        std::mem::forget(self);
        entered
    }
}

impl Drop for Scope<'_> {
    #[inline]
    fn drop(&mut self) {
        thread::leave(self.entered);
        events::deliver();
    }
}

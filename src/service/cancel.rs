//! Cancelling a service: those who wait on its behalf are woken, those who work for it ask, and
//! nobody is ended.

pub use super::cancellations::CancelReason;

use super::cancellations;
use super::fork;
use super::handle::Service;
use super::registry;
use super::scope::Scope;
use super::waiters;
use crate::events;
use crate::format::Bytes;
use crate::ledger::slots::{self, Record};
use crate::ledger::thread::{self, Word};
use crate::ledger::threshold;
use crate::ledger::tree::Tree;
use crate::usage::Usage;
use std::borrow::Cow;
use std::fmt;
use std::ptr;

impl Service {
    /// Cancels this service and its descendants, and says why. Returns `false` if it was cancelled
    /// before, or is [`unattributed`](Self::unattributed), which cannot be.
    ///
    /// A cancelled service goes on to own its blocks, and its threads go on to run: nobody is ended
    /// where it stands, and ordinary allocations still succeed. What ends is what asks or waits:
    ///
    /// - Futures with [`or_cancelled`](crate::InService::or_cancelled) are woken wherever they wait, drop what
    ///   they hold and return [`Cancelled`].
    /// - [`cancelled`](Self::cancelled) is ready, for `select!` and the like.
    /// - [`check`](Self::check) returns the same error, for loops that do not wait.
    /// - Allocations within [`fallible`] fail.
    ///
    /// That is final. The service's name and handle are free at once: whoever registers that name gets
    /// a new service. A child that is registered later is cancelled from the beginning, and has no name
    /// to be found by.
    ///
    /// Whoever keeps a service by its name keeps a cancelled one: layers of `tracing` do so for each callsite
    /// whose spans all run in one service. By a field of spans, and by requests, the next one is found.
    ///
    /// It takes the locks that registering takes, and time in proportion to the descendants.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// let query = Service::register("query-17")?;
    /// let sort = Service::builder("sort").parent(&query).register()?;
    /// assert!(query.cancel("the client is gone"));
    /// assert!(!query.cancel("again"));
    ///
    /// let cancelled = sort.check().unwrap_err();
    /// assert_eq!(cancelled.reason.to_string(), "the client is gone");
    /// assert!(Service::register("query-17")?.check().is_ok(), "another one");
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    pub fn cancel(&self, reason: impl Into<Cow<'static, str>>) -> bool {
        let reason = reason.into();
        // A copy: the caller's may be a block of the very service, and would keep it for ever.
        let _scope = Scope::enter(&slots::UNATTRIBUTED);
        let copy = match &reason {
            Cow::Borrowed(text) => Cow::Borrowed(*text),
            Cow::Owned(text) => Cow::Owned(text.clone()),
        };
        cancel(self.record(), CancelReason::Program(copy))
    }

    /// Returns whether this service is cancelled, itself or with one above it. Two loads at most.
    ///
    /// ```
    /// let query = dogtag::Service::register("query-18")?;
    /// assert!(!query.is_cancelled());
    /// query.cancel("too slow");
    /// assert!(query.is_cancelled());
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.record().family().is_cancelled()
    }

    /// Returns an error if this service is cancelled: for loops that do not wait for anything. Costs two
    /// loads at most while it is not.
    ///
    /// # Errors
    ///
    /// Returns [`Cancelled`] if it is, or one above it.
    ///
    /// ```
    /// use dogtag::{Service, guard::Cancelled};
    ///
    /// fn sum(query: &Service, rows: &[u64]) -> Result<u64, Cancelled> {
    ///     let mut sum = 0;
    ///     for rows in rows.chunks(1000) {
    ///         query.check()?;
    ///         sum += rows.iter().sum::<u64>();
    ///     }
    ///     Ok(sum)
    /// }
    ///
    /// let query = Service::register("query-19")?;
    /// assert_eq!(sum(&query, &[1, 2, 3]), Ok(6));
    /// query.cancel("not wanted any more");
    /// assert!(sum(&query, &[1, 2, 3]).is_err());
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled::of(self)) } else { Ok(()) }
    }
}

/// Returns an error if the current service is cancelled: [`Service::check`] for code that does not know
/// for whom it works.
///
/// # Errors
///
/// Returns [`Cancelled`] if it is, or one above it.
///
/// ```
/// use dogtag::{Service, guard};
///
/// let query = Service::register("query-20")?;
/// query.cancel("too slow");
/// assert!(query.run(guard::check).is_err());
/// assert!(guard::check().is_ok());
/// # Ok::<(), dogtag::RegisterError>(())
/// ```
pub fn check() -> Result<(), Cancelled> {
    if thread::current_record().family().is_cancelled() { Service::current().check() } else { Ok(()) }
}

/// Lets allocations fail that a cancelled service makes within `work`, as those over a hard limit do.
///
/// An allocator does not learn whether its caller can do without a block: `try_reserve` and `push` ask
/// the same. So this says that they can. What fails is counted in
/// [`Usage::denied`](crate::Usage::denied). Code that cannot do without what it asks for ends in
/// [`handle_alloc_error`](std::alloc::handle_alloc_error), so `work` should be a `try_reserve` or the
/// like and nothing else.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::RegisterError> {
/// use dogtag::{Service, guard};
///
/// let query = Service::register("query-21")?;
/// let mut rows: Vec<u64> = Vec::new();
/// query.cancel("too slow");
/// query.run(|| {
///     assert!(guard::fallible(|| rows.try_reserve(1000)).is_err());
///     rows.reserve(1000);
/// });
/// assert_eq!(query.usage().denied, 1);
/// # Ok(())
/// # }
/// ```
pub fn fallible<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(u64);

    impl Drop for Restore {
        fn drop(&mut self) {
            Word::Fallible.set(self.0);
        }
    }

    let _restore = Restore(Word::Fallible.replace(1));
    work()
}

/// Says that a service is cancelled, and why. Its texts are unattributed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cancelled {
    /// The service's name.
    pub service: String,
    /// Its handle.
    pub handle: u32,
    /// Why.
    pub reason: CancelReason,
    /// What it and its descendants hold, when the error is made: a future that is about to be dropped has
    /// still its blocks.
    pub usage: Usage,
}

impl Cancelled {
    fn of(service: &Service) -> Self {
        // Without what is allocated here, which is nobody's: the caller may be the very service, whose
        // error would keep it from letting go.
        let usage = service.usage_with_children();
        let _scope = Scope::enter(&slots::UNATTRIBUTED);
        Self {
            service: service.name().to_owned(),
            handle: service.handle(),
            reason: cancellations::reason(service.record()),
            usage,
        }
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, reason, usage, .. } = self;
        write!(f, "service {service:?} is cancelled, and holds {}: {reason}", Bytes(usage.bytes()))
    }
}

impl std::error::Error for Cancelled {}

/// Cancels a service, which the caller holds, and its descendants. `false` if it was before.
pub(crate) fn cancel(record: &'static Record, reason: CancelReason) -> bool {
    if ptr::eq(record, &slots::UNATTRIBUTED) {
        return false;
    }
    fork::prepare();
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let shown = reason.to_string();
    let bytes;
    let mut cancelled: Vec<Service> = Vec::new();
    {
        let _gate = fork::gate();
        let families = Tree::lock();
        if record.family().is_cancelled() {
            return false;
        }
        // First: who finds the service cancelled asks why.
        bytes = cancellations::held(record, &families);
        cancellations::note(record, reason, bytes);
        // Those without clones have nobody who waits.
        families.cancel(record, |member| cancelled.extend(Service::try_of(member)));
        threshold::lower_all(&families, record);
    }
    for service in &cancelled {
        registry::remove(service.record());
    }
    cancelled.iter().for_each(|service| waiters::wake(service.record()));
    events::cancelled(record, bytes, &shown);
    true
}

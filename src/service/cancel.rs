//! Cancelling a service: those who wait on its behalf are woken, those who work for it ask, and
//! nobody is ended.

use super::fork;
use super::future::InService;
use super::handle::Service;
use super::registry;
use super::retirement::{self, AtEnd};
use super::scope::Scope;
use crate::contained::{contain, drop_contained};
use crate::events;
use crate::format::Bytes;
use crate::ledger::slots::{self, Record};
use crate::ledger::thread::{self, Word};
use crate::ledger::tree::{self, Tree};
use crate::ledger::{self, threshold};
use crate::usage::Usage;
use atomic_waker::AtomicWaker;
use dashmap::DashMap;
use pin_project_lite::pin_project;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

impl Service {
    /// Cancels this service and its descendants, and says why. Returns `false` if it was cancelled
    /// before, or is [`unattributed`](Self::unattributed), which cannot be.
    ///
    /// A cancelled service goes on to own its blocks, and its threads go on to run: nobody is ended
    /// where it stands, and ordinary allocations still succeed. What ends is what asks or waits:
    ///
    /// - Futures with [`or_cancelled`](InService::or_cancelled) are woken wherever they wait, drop what
    ///   they hold and return [`Cancelled`].
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
        cancel(self.record, CancelReason::Program(copy))
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
        self.record.family().is_cancelled()
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

/// Says that a service is cancelled, and why.
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

/// Says why a service was cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// The program said so: [`Service::cancel`].
    Program(Cow<'static, str>),
    /// It got past its budget: [`ServiceBuilder::cancel_at`](crate::ServiceBuilder::cancel_at).
    #[non_exhaustive]
    Budget {
        /// The budget, in bytes.
        bytes: u64,
    },
    /// The process was at its ceiling, and this service was chosen.
    #[non_exhaustive]
    Ceiling {
        /// The bytes that counted against the ceiling.
        used: u64,
        /// The ceiling, in bytes.
        ceiling: u64,
    },
}

impl Cancelled {
    fn of(service: &Service) -> Self {
        // Without what is allocated here.
        let usage = service.usage_with_children();
        Self {
            service: service.name().to_owned(),
            handle: service.handle(),
            reason: reason(service.record),
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

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(reason) => f.write_str(reason),
            Self::Budget { bytes } => write!(f, "it got past its budget of {}", Bytes(*bytes)),
            Self::Ceiling { used, ceiling } => {
                write!(f, "{} of memory were used, and {} are the ceiling", Bytes(*used), Bytes(*ceiling))
            }
        }
    }
}

/// Cancels a service, which the caller holds, and its descendants. `false` if it was before.
pub(crate) fn cancel(record: &'static Record, reason: CancelReason) -> bool {
    if ptr::eq(record, &slots::UNATTRIBUTED) {
        return false;
    }
    fork::prepare();
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let shown = reason.to_string();
    let mut bytes = 0;
    let mut cancelled: Vec<Service> = Vec::new();
    {
        let _gate = fork::gate();
        let families = Tree::lock();
        if record.family().is_cancelled() {
            return false;
        }
        // First: who finds the service cancelled asks why.
        retirement::at_end(&FORGET);
        CANCELLED.get_or_init(DashMap::new).insert(record.index(), reason);
        // Those without clones have nobody who waits.
        families.cancel(record, |member| cancelled.extend(Service::try_of(member)));
        threshold::lower_all(&families, record);
        tree::descendants(record, Some(&families), |member| bytes += ledger::usage(member).bytes());
    }
    for service in &cancelled {
        registry::remove(service.record);
    }
    cancelled.iter().for_each(|service| wake(service.record));
    events::cancelled(record, bytes, &shown);
    true
}

/// Why a service is cancelled.
fn reason(record: &'static Record) -> CancelReason {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let _gate = fork::gate();
    tree::ancestors(record)
        .find_map(|record| CANCELLED.get()?.get(&record.index()).map(|reason| reason.clone()))
        .unwrap_or(CancelReason::Program(Cow::Borrowed("it was")))
}

/// Why the services of those slots were cancelled: not of those that were with one above them.
static CANCELLED: OnceLock<DashMap<u32, CancelReason>> = OnceLock::new();

static FORGET: AtEnd = AtEnd(forget);

/// Drops the reason of a service that has ended.
fn forget(record: &'static Record) {
    if !record.family().is_cancelled() {
        return;
    }
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let known = {
        let _gate = fork::gate();
        CANCELLED.get().and_then(|cancelled| cancelled.remove(&record.index()))
    };
    drop(known);
}

/// Wakes who waits on behalf of a service.
fn wake(record: &'static Record) {
    let waiting = {
        let _gate = fork::gate();
        WAITING.get().and_then(|waiting| waiting.remove(&record.index()))
    };
    for waker in waiting.into_iter().flat_map(|(_, waiting)| waiting.into_values()) {
        // An executor's panic must not keep the others from being woken.
        contain(|| waker.wake());
        drop_contained(waker);
    }
}

type Wakers = HashMap<usize, Arc<AtomicWaker>>;

/// Who waits on behalf of the services of those slots, by the wakers' addresses.
static WAITING: OnceLock<DashMap<u32, Wakers>> = OnceLock::new();

/// A future that waits on behalf of a service, to be woken once that is cancelled.
#[derive(Debug)]
struct Waiter {
    waker: Arc<AtomicWaker>,
    /// The service's: the future has the service, so it is no other one's meanwhile.
    slot: u32,
}

impl Waiter {
    fn new(service: &Service) -> Self {
        let _scope = Scope::enter(&slots::UNATTRIBUTED);
        let waiter = Self { waker: Arc::new(AtomicWaker::new()), slot: service.record.index() };
        let _gate = fork::gate();
        let mut waiting = WAITING.get_or_init(DashMap::new).entry(waiter.slot).or_default();
        waiting.insert(waiter.key(), Arc::clone(&waiter.waker));
        waiter
    }

    fn key(&self) -> usize {
        Arc::as_ptr(&self.waker).addr()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let _scope = Scope::enter(&slots::UNATTRIBUTED);
        let waker = {
            let _gate = fork::gate();
            WAITING.get().and_then(|waiting| {
                let waker = waiting.get_mut(&self.slot)?.remove(&self.key());
                waiting.remove_if(&self.slot, |_, wakers| wakers.is_empty());
                waker
            })
        };
        drop(waker);
        // Others who have it only wake.
        drop_contained(self.waker.take());
    }
}

impl<F: Future> InService<F> {
    /// Gives the future up once its service is cancelled: it is dropped, and [`Cancelled`] returned.
    ///
    /// The task is woken wherever it waits, on any executor. What the future holds is freed within the
    /// poll that returns the error. A future that is ready in the same poll still returns its result.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// use dogtag::{InServiceExt, Service};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let query = Service::register("query-22")?;
    /// let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    /// let endless = async {
    ///     let rows = vec![0_u8; 5000];
    ///     std::future::pending::<()>().await;
    ///     rows
    /// };
    /// let task = runtime.spawn(endless.in_service(&query).or_cancelled());
    /// query.cancel("the client is gone");
    /// let cancelled = runtime.block_on(task)?.unwrap_err();
    /// assert_eq!(cancelled.service, "query-22");
    /// assert_eq!(query.usage().bytes(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn or_cancelled(self) -> OrCancelled<F> {
        let service = self.service().clone();
        OrCancelled { inner: Some(self), waiter: None, service }
    }
}

pin_project! {
    /// A future that is given up once its service is cancelled: [`or_cancelled`](InService::or_cancelled).
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct OrCancelled<F> {
        // Empty once it is ready or given up.
        #[pin]
        inner: Option<InService<F>>,
        // Dropped before the service.
        waiter: Option<Waiter>,
        service: Service,
    }
}

impl<F> OrCancelled<F> {
    /// Returns the service that the future runs in.
    pub fn service(&self) -> &Service {
        &self.service
    }
}

impl<F: Future> Future for OrCancelled<F> {
    type Output = Result<F::Output, Cancelled>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if !this.service.is_cancelled() {
            this.waiter.get_or_insert_with(|| Waiter::new(this.service)).waker.register(context.waker());
        }
        // Again: it may have been cancelled before there was somebody to wake.
        if let Err(cancelled) = this.service.check() {
            this.inner.set(None);
            *this.waiter = None;
            return Poll::Ready(Err(cancelled));
        }
        let Some(inner) = this.inner.as_mut().as_pin_mut() else { return Poll::Pending };
        let ready = std::task::ready!(inner.poll(context));
        this.inner.set(None);
        *this.waiter = None;
        Poll::Ready(Ok(ready))
    }
}

//! Limits: how much a service may hold together with its descendants.

#[cfg(feature = "guard")]
use super::cancel::{self, CancelReason};
use super::error::RegisterError;
use super::fork;
use super::handle::Service;
use super::retirement::{self, AtEnd};
use super::scope::Scope;
use crate::contained::{contain, drop_contained};
use crate::events;
use crate::ledger::budget::{Budget, Grants, NONE};
use crate::ledger::pending_events::EventFlags;
use crate::ledger::slots::{self, Record};
use crate::ledger::threshold;
use crate::ledger::tree::{self, Tree};
use dashmap::DashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Returns whether a service is under a limit, its own or that of a service above it.
#[must_use]
pub fn is_limited(service: &Service) -> bool {
    threshold::is_limited(service.record())
}

impl Service {
    /// Returns the hard limit: the most bytes that this service and its descendants may hold.
    #[must_use]
    pub fn hard_limit(&self) -> Option<u64> {
        limits(self.record()).0
    }

    /// Sets or lifts the hard limit: the most bytes that this service and its descendants may hold.
    ///
    /// An allocation over the limit fails: it gets null. `try_reserve` and
    /// its like return an error, other code ends in
    /// [`handle_alloc_error`](std::alloc::handle_alloc_error). It increments
    /// [`Usage::denied`](crate::Usage::denied), and a thread of dogtag's own emits a `tracing` event
    /// (target `dogtag`, level warn) once a second at most. Lowering the limit frees nothing. Bytes
    /// that are freed can be allocated again at once.
    ///
    /// Resizing a block without growth ([`Vec::shrink_to_fit`],
    /// [`String::into_boxed_str`]) is never denied: the block goes to the service that the thread is
    /// in, or stays its former owner's if that service is at its limit.
    ///
    /// A single thread never gets past the limit. Of several threads that allocate at
    /// once, each may get up to 64 KiB past it. An allocation is denied only if
    /// no more than that was left at some moment during it. (Or
    /// if this could not be decided for about a second, because other threads allocated and freed more
    /// than what was left all the time.)
    ///
    /// A thread checks the limit once for each 64 KiB that it allocates for the service. The cells of
    /// the service and its descendants are added up when as much was allocated as was left the last
    /// time, or 4 GiB: rarely while far from the limit, often close to it.
    ///
    /// The registry and dogtag's own thread allocate in the unattributed
    /// service, so a limit for that one may end the process.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::RegisterError> {
    /// let tenant = dogtag::Service::register("tenant")?;
    /// tenant.set_hard_limit(Some(1 << 20));
    /// let mut rows: Vec<u8> = Vec::new();
    /// assert!(tenant.run(|| rows.try_reserve(2 << 20)).is_err());
    /// assert!(tenant.run(|| rows.try_reserve(1 << 19)).is_ok());
    /// assert_eq!(tenant.usage().denied, 1);
    /// assert_eq!(tenant.headroom(), Some(1 << 19));
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_hard_limit(&self, bytes: Option<u64>) {
        set(self.record(), |budget| budget.set(bytes.unwrap_or(NONE), budget.soft()));
    }

    /// Returns the soft limit. When this service and its descendants get to hold more bytes, an event
    /// is emitted and a callback is called.
    #[must_use]
    pub fn soft_limit(&self) -> Option<u64> {
        limits(self.record()).1
    }

    /// Sets or lifts the soft limit: the bytes beyond which this service and its descendants are
    /// reported.
    ///
    /// Each time that they get past it, a thread of dogtag's own emits a `tracing` event (target
    /// `dogtag`, level warn) and calls the callback of
    /// [`set_on_soft_limit`](Self::set_on_soft_limit). Nothing is denied. That they got below it in
    /// between is noticed when an eighth of the limit, or 64 KiB on each thread, has been allocated.
    ///
    /// ```
    /// let cache = dogtag::Service::register("cache")?;
    /// cache.set_soft_limit(Some(64 << 20));
    /// assert_eq!((cache.soft_limit(), cache.hard_limit()), (Some(64 << 20), None));
    /// cache.set_soft_limit(None);
    /// assert_eq!(cache.soft_limit(), None);
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    pub fn set_soft_limit(&self, bytes: Option<u64>) {
        set(self.record(), |budget| budget.set(budget.hard(), bytes.unwrap_or(NONE)));
    }

    /// Sets the callback for each time that this service and its descendants get past their [soft
    /// limit](Self::set_soft_limit), and drops the former one.
    ///
    /// A thread of dogtag's own calls the callbacks of all services, one at a time, so none should
    /// wait for anything. A forked child has no such thread. A call of the former callback may go on
    /// when this returns; then it is dropped after that call.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::RegisterError> {
    /// let (tell, told) = std::sync::mpsc::channel();
    /// let cache = dogtag::Service::register("cache")?;
    /// cache.set_soft_limit(Some(1 << 20));
    /// cache.set_on_soft_limit(move |cache| tell.send(cache.name().to_owned()).unwrap());
    /// let entries = cache.run(|| vec![0_u8; 2 << 20]);
    /// assert_eq!(told.recv().unwrap(), "cache");
    /// # drop(entries);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_on_soft_limit(&self, callback: impl Fn(&Self) + Send + Sync + 'static) {
        // It may drop services.
        drop_contained(set_callback(self.record(), Arc::new(callback)));
    }

    /// Removes the callback of the soft limit and returns it, if one was set.
    ///
    /// A call of it may go on when this returns.
    ///
    /// ```
    /// let cache = dogtag::Service::register("cache")?;
    /// assert!(cache.take_on_soft_limit().is_none());
    /// cache.set_on_soft_limit(|cache| eprintln!("{} holds much", cache.name()));
    ///
    /// // Adds something to what is done.
    /// let former = cache.take_on_soft_limit().unwrap();
    /// cache.set_on_soft_limit(move |cache| {
    ///     former(cache);
    ///     eprintln!("{} bytes are left", cache.headroom().unwrap_or(u64::MAX));
    /// });
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    #[must_use = "to drop what is returned is to do nothing at the soft limit"]
    #[expect(clippy::type_complexity, reason = "an alias is one more thing to look up")]
    pub fn take_on_soft_limit(&self) -> Option<Arc<dyn Fn(&Self) + Send + Sync>> {
        take_callback(self.record())
    }

    /// Returns the budget: the bytes at which this service is cancelled.
    #[cfg(feature = "guard")]
    #[must_use]
    pub fn cancel_at(&self) -> Option<u64> {
        cancel_at(self.record())
    }

    /// Sets or lifts the budget: when this service and its descendants get to hold more bytes, it is
    /// [cancelled](Self::cancel), once.
    ///
    /// No allocation fails for it: the one that gets past the budget is made, and a thread of dogtag's own
    /// cancels the service a moment later, while threads go on until they ask or wait. As with the [hard
    /// limit](Self::set_hard_limit), a single thread is noticed at the very allocation that gets past it, and
    /// of several threads at once each may have 64 KiB more; several large allocations at once may be noticed
    /// at the next one. A service that holds more already is cancelled at its next allocation. A forked child
    /// has no thread that cancels. A hard limit beside it should be higher.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use dogtag::{InServiceExt, Service};
    ///
    /// let query = Service::builder("query-23").cancel_at(2 << 20).register()?;
    /// let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    /// let grows = async {
    ///     let mut rows = Vec::new();
    ///     loop {
    ///         rows.push([0_u8; 1000]);
    ///         tokio::task::yield_now().await;
    ///     }
    /// };
    /// let task = runtime.spawn(grows.in_service(&query).or_cancelled());
    /// let cancelled: Result<(), _> = runtime.block_on(task)?;
    /// assert_eq!(cancelled.unwrap_err().reason.to_string(), "it got past its budget of 2.0 MiB");
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "guard")]
    pub fn set_cancel_at(&self, bytes: Option<u64>) {
        set(self.record(), |budget| budget.set_cancel_at(bytes.unwrap_or(NONE)));
    }

    /// Returns the bytes that this service may still allocate under its hard limit and those
    /// of its ancestors; `None` if there is none.
    ///
    /// It reads a cell for each thread and each service of the limited families, and takes a lock
    /// that registering and dropping children take too.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::RegisterError> {
    /// use dogtag::Service;
    ///
    /// let tenant = Service::builder("tenant").hard_limit(1 << 20).register()?;
    /// let query = Service::builder("query-17").parent(&tenant).register()?;
    /// let rows = query.run(|| vec![0_u8; 1 << 19]);
    /// assert_eq!(query.headroom(), Some(1 << 19));
    /// # drop(rows);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn headroom(&self) -> Option<u64> {
        fork::prepare();
        let families = Tree::lock();
        tree::limited_ancestors(self.record())
            .filter_map(|record| {
                let hard = limits(record).0?;
                // Locked, it does not change.
                let live = threshold::live(record, Some(&families), Grants::TakeBack)?;
                Some(hard.saturating_sub(live.at_most))
            })
            .min()
    }
}

/// The callback for a service that gets past its soft limit.
pub(super) type OnSoftLimit = Arc<dyn Fn(&Service) + Send + Sync>;

/// The limits that a builder asks for.
#[derive(Clone, Default)]
pub(super) struct Limits {
    pub(super) hard: Option<u64>,
    pub(super) soft: Option<u64>,
    pub(super) on_soft: Option<OnSoftLimit>,
    /// Where the service is cancelled.
    pub(super) cancel: Option<u64>,
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hard, soft, on_soft, cancel } = self;
        f.debug_struct("Limits")
            .field("hard", hard)
            .field("soft", soft)
            .field("on_soft", &on_soft.as_ref().map(|_| ".."))
            .field("cancel", cancel)
            .finish()
    }
}

impl Limits {
    /// Checks that a living service has the limits that are asked for, and gives it the callback.
    pub(super) fn match_living(&self, living: &Service) -> Result<(), RegisterError> {
        let name = || living.name().to_owned();
        let (hard_limit, soft_limit) = limits(living.record());
        let cancel_at = cancel_at(living.record());
        let is_so =
            |asked: Option<u64>, limit: Option<u64>| asked.is_none_or(|bytes| bytes == limit.unwrap_or(NONE));
        let asked = [(self.hard, hard_limit), (self.soft, soft_limit), (self.cancel, cancel_at)];
        if asked.into_iter().any(|(asked, limit)| !is_so(asked, limit)) {
            return Err(RegisterError::OtherLimits { name: name(), hard_limit, soft_limit, cancel_at });
        }
        self.set_callback(living.record());
        Ok(())
    }

    fn set_callback(&self, record: &'static Record) {
        if let Some(on_soft) = &self.on_soft {
            drop_contained(set_callback(record, Arc::clone(on_soft)));
        }
    }

    #[inline]
    fn are_none(&self) -> bool {
        self.hard.is_none() && self.soft.is_none() && self.on_soft.is_none() && self.cancel.is_none()
    }

    /// Sets those that are asked for.
    #[inline]
    pub(super) fn set(&self, record: &'static Record) {
        if self.are_none() {
            return;
        }
        let _scope = Scope::enter(&slots::UNATTRIBUTED);
        self.set_callback(record);
        if self.hard.is_some() || self.soft.is_some() || self.cancel.is_some() {
            set(record, |budget| {
                budget.set(self.hard.unwrap_or(budget.hard()), self.soft.unwrap_or(budget.soft()));
                budget.set_cancel_at(self.cancel.unwrap_or(budget.cancel_at()));
            });
        }
    }
}

/// Hard and soft.
pub(crate) fn limits(record: &Record) -> (Option<u64>, Option<u64>) {
    let limit = |bytes| (bytes != NONE).then_some(bytes);
    record.family().limit_group().map_or((None, None), |limit_group| {
        (limit(limit_group.budget.hard()), limit(limit_group.budget.soft()))
    })
}

/// Where it is cancelled.
fn cancel_at(record: &Record) -> Option<u64> {
    let limit_group = record.family().limit_group()?;
    Some(limit_group.budget.cancel_at()).filter(|bytes| *bytes != NONE)
}

static FORGET: AtEnd = AtEnd(forget);

/// Drops the callback of a service that has ended.
fn forget(record: &'static Record) {
    drop_contained(take_callback(record));
}

/// Returns the former one.
fn set_callback(record: &'static Record, callback: OnSoftLimit) -> Option<OnSoftLimit> {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    // Who has none has no callback either.
    record.family().limit_group_or_new();
    let _gate = fork::gate();
    retirement::at_end(&FORGET);
    ON_SOFT_LIMIT.get_or_init(DashMap::new).insert(record.index(), callback)
}

fn take_callback(record: &'static Record) -> Option<OnSoftLimit> {
    record.family().limit_group()?;
    let on_soft_limit = ON_SOFT_LIMIT.get()?;
    // A thread that waits for a map may have to allocate a queue first.
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let _gate = fork::gate();
    on_soft_limit.remove(&record.index()).map(|(_, callback)| callback)
}

/// Of the services of those slots; not there before the first is.
static ON_SOFT_LIMIT: OnceLock<DashMap<u32, OnSoftLimit>> = OnceLock::new();

fn set(record: &'static Record, change: impl FnOnce(&Budget)) {
    fork::prepare();
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let families = Tree::lock();
    // Before a limit can be met: who announces asks once for what there is. Under the lock, so that
    // no forked child finds it half done.
    events::announce_limits_by(|record, flags| announce(Service::of(record), flags));
    let limit_group = record.family().limit_group_or_new();
    change(&limit_group.budget);
    families.note_limits(record);
    threshold::lower_all(&families, record);
    drop(families);
    if limit_group.budget.is_limited() {
        events::start_announcer();
    }
}

/// Announces what limits have done to a service. Only the announcing thread calls this.
fn announce(service: Service, flags: EventFlags) {
    // A panic of a subscriber or a callback must not end the announcements, nor a scope that one of
    // them forgets keep this thread.
    let in_no_service = |work: &dyn Fn()| {
        let _scope = Scope::enter(&slots::UNATTRIBUTED);
        contain(work);
    };
    #[cfg(feature = "guard")]
    // Unless the budget was changed meanwhile.
    if flags.has(EventFlags::PASSED)
        && service.record().family().limit_group().is_some_and(|limit_group| limit_group.budget.has_passed())
        && let Some(bytes) = cancel_at(service.record())
    {
        in_no_service(&|| _ = cancel::cancel(service.record(), CancelReason::Budget { bytes }));
    }
    if flags.has(EventFlags::DENIED) {
        in_no_service(&|| {
            let usage = service.usage_with_children();
            tracing::warn!(
                target: "dogtag",
                service = service.name(),
                handle = service.handle(),
                bytes = usage.bytes(),
                total_denied = usage.denied,
                hard_limit = service.hard_limit(),
                "a service's hard limit denies allocations",
            );
        });
    }
    if !flags.has(EventFlags::CROSSED) {
        return;
    }
    in_no_service(&|| {
        tracing::warn!(
            target: "dogtag",
            service = service.name(),
            handle = service.handle(),
            bytes = service.usage_with_children().bytes(),
            soft_limit = service.soft_limit(),
            hard_limit = service.hard_limit(),
            "a service got past its soft limit",
        );
    });
    let on_soft_limit = ON_SOFT_LIMIT.get().and_then(|on_soft_limit| {
        let _gate = fork::gate();
        on_soft_limit.get(&service.record().index()).map(|known| Arc::clone(&known))
    });
    if let Some(on_soft_limit) = on_soft_limit {
        in_no_service(&|| on_soft_limit(&service));
        // It may have been replaced meanwhile, so that this is the last one.
        drop_contained(on_soft_limit);
    }
}

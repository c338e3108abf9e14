//! Services: whoever memory is accounted to, and how code runs on their behalf.
//!
//! Users enter here; the allocator never does. Registering may lock and
//! allocate (the registry is a dashmap). Entering a service does neither.

mod future;
mod registry;
mod scope;

pub use future::{InService, InServiceExt};
pub use registry::RegisterError;
pub use scope::Scope;

use crate::ledger::{self, slots, thread};
use crate::usage::Usage;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ptr;

/// Whoever memory is accounted to: an actor, a module, a tenant, a query.
///
/// A service has a name and a handle, a 32-bit number that is skynet's idea:
/// chosen by the user or assigned. Code runs on its behalf inside
/// [`run`](Self::run), [`enter`](Self::enter) or
/// [`in_service`](InServiceExt::in_service); every block that is
/// allocated there is the service's until it is freed, wherever that happens.
/// `realloc` hands a block to the service that is current then: whoever grows
/// it owns it.
///
/// Cheap to clone and to share. A service lives as long as the process, also
/// when all its clones are dropped, so it can be looked up again by name.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// use dogtag::Service;
///
/// # fn main() -> Result<(), dogtag::RegisterError> {
/// let cache = Service::register("cache")?;
/// let entry = cache.run(|| vec![0_u8; 1000]);
/// assert_eq!(cache.usage().bytes(), 1000);
///
/// // Freed by somebody else, refunded to the cache.
/// Service::register("janitor")?.run(move || drop(entry));
/// assert_eq!(cache.usage().bytes(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Service {
    record: &'static slots::Record,
}

impl Service {
    /// The service of that name, registered now if it is not yet, with a
    /// handle assigned to it.
    ///
    /// Takes a lock and allocates; register once and keep the service. What
    /// the registry itself needs is charged to the unattributed service.
    ///
    /// # Errors
    ///
    /// [`RegisterError::Full`] and [`RegisterError::NoMemory`].
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// let auth = Service::register("auth")?;
    /// assert_eq!(Service::register("auth")?, auth);
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    pub fn register(name: impl AsRef<str>) -> Result<Self, RegisterError> {
        Self::builder(name).register()
    }

    /// Registers a service in steps, for those with a numbering of their own.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// let launcher = Service::builder("launcher").handle(0x0100_0008).register()?;
    /// assert_eq!(launcher.handle(), 0x0100_0008);
    /// assert_eq!(Service::by_handle(0x0100_0008), Some(launcher));
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    pub fn builder<N: AsRef<str>>(name: N) -> ServiceBuilder<N> {
        ServiceBuilder { name, handle: None }
    }

    /// The service that the calling thread is in.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// let auth = Service::register("auth")?;
    /// assert_eq!(Service::current(), Service::unattributed());
    /// assert_eq!(auth.run(Service::current), auth);
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    #[must_use]
    pub fn current() -> Self {
        Self { record: thread::current_record() }
    }

    /// The service of what nobody claims, named `unattributed`, with handle 0.
    /// Every thread begins in it.
    ///
    /// ```
    /// assert_eq!(dogtag::Service::unattributed().name(), "unattributed");
    /// ```
    #[must_use]
    pub fn unattributed() -> Self {
        Self { record: &slots::UNATTRIBUTED }
    }

    /// The service of that name, if one is registered. Takes a lock.
    ///
    /// ```
    /// assert_eq!(dogtag::Service::by_name("nobody"), None);
    /// ```
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        registry::by_name(name).map(|record| Self { record })
    }

    /// The service with that handle, if one is registered. Takes a lock.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// assert_eq!(Service::by_handle(0), Some(Service::unattributed()));
    /// ```
    #[must_use]
    pub fn by_handle(handle: u32) -> Option<Self> {
        registry::by_handle(handle).map(|record| Self { record })
    }

    /// Puts the calling thread into this service until the scope is dropped.
    ///
    /// Scopes nest, and may be entered from many threads at once; dropping one
    /// goes back to the service that was current when it was entered, in a
    /// panic too. Some ten instructions, no lock, no allocation.
    ///
    /// Do not hold a scope across an `.await`: use
    /// [`in_service`](InServiceExt::in_service) there.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// let outer = Service::register("outer")?;
    /// let inner = Service::register("inner")?;
    /// let _outer = outer.enter();
    /// {
    ///     let _inner = inner.enter();
    ///     assert_eq!(Service::current(), inner);
    /// }
    /// assert_eq!(Service::current(), outer);
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    #[inline]
    pub fn enter(&self) -> Scope<'_> {
        Scope::enter(self.record)
    }

    /// Runs `work` in this service.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::RegisterError> {
    /// let index = dogtag::Service::register("index")?;
    /// let words = index.run(|| vec![1_u64, 2, 3]);
    /// assert_eq!(index.usage().bytes(), 24);
    /// # drop(words);
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        let _scope = self.enter();
        work()
    }

    /// What this service has allocated and freed so far, and so holds now.
    ///
    /// Reads one cell for each thread that was alive at the busiest moment of
    /// the process; takes no lock and stops nobody.
    ///
    /// ```
    /// let idle = dogtag::Service::register("idle")?;
    /// assert_eq!(idle.usage(), dogtag::Usage::default());
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    #[must_use]
    pub fn usage(&self) -> Usage {
        ledger::usage(self.record)
    }

    #[cfg(feature = "memory-check")]
    pub(crate) const fn record(&self) -> &'static slots::Record {
        self.record
    }

    /// The name it was registered with.
    #[must_use]
    pub fn name(&self) -> &str {
        self.record.name()
    }

    /// Its number: the one that was chosen, or the one that was assigned, which
    /// is 0x80000000 or above.
    #[must_use]
    pub fn handle(&self) -> u32 {
        self.record.handle()
    }
}

impl PartialEq for Service {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self.record, other.record)
    }
}

impl Eq for Service {}

impl Hash for Service {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.record.slot().hash(state);
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name())
            .field("handle", &format_args!("{:#010x}", self.handle()))
            .finish()
    }
}

/// A service about to be registered: [`Service::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing is registered before `register`"]
pub struct ServiceBuilder<N> {
    name: N,
    handle: Option<u32>,
}

impl<N: AsRef<str>> ServiceBuilder<N> {
    /// Chooses the handle: any number but 0, which is the unattributed
    /// service's, and those that are in use. Numbers from 0x80000000 on are
    /// also what services without a choice are assigned, upwards.
    pub fn handle(mut self, handle: u32) -> Self {
        self.handle = Some(handle);
        self
    }

    /// Registers the service, or finds the one that has this name already.
    ///
    /// # Errors
    ///
    /// [`RegisterError::NameTaken`] if the name is registered with another
    /// handle than the chosen one, [`RegisterError::HandleTaken`] if the handle
    /// is registered with another name, [`RegisterError::Full`] and
    /// [`RegisterError::NoMemory`]. Nothing has changed then.
    ///
    /// ```
    /// use dogtag::{RegisterError, Service};
    ///
    /// let gate = Service::builder("gate").handle(7).register()?;
    /// let error = Service::builder("watchdog").handle(7).register().unwrap_err();
    /// assert!(matches!(error, RegisterError::HandleTaken { handle: 7, .. }));
    /// # Ok::<(), RegisterError>(())
    /// ```
    pub fn register(self) -> Result<Service, RegisterError> {
        let record = registry::register(self.name.as_ref(), self.handle)?;
        Ok(Service { record })
    }
}

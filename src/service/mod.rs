//! Services: whoever memory is accounted to, and how code runs on their behalf.
//!
//! Users enter here; the allocator never does. Registering may lock and
//! allocate (the registry is a dashmap). Entering a service does neither.

mod builder;
mod error;
mod family;
mod fork;
mod future;
mod limits;
mod plan;
mod registry;
mod retirement;
mod scope;
#[cfg(all(test, not(dogtag_loom)))]
mod tests;

pub use builder::ServiceBuilder;
pub use error::RegisterError;
pub use future::{InService, InServiceExt};
pub use scope::Scope;

#[cfg(any(feature = "tracing-layer", feature = "interpose", feature = "skynet"))]
pub(crate) use fork::gate;
pub use limits::is_limited;
pub(crate) use limits::{limits, start_announcer};
#[cfg(feature = "tracing-layer")]
pub(crate) use registry::{check_name, name_too_long};
pub(crate) use retirement::end_retired;

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
/// Cheap to clone and to share. A service lives while one of its clones, its
/// scopes or its blocks does. When the last clone is dropped, its name and its
/// handle are free for another; while there are blocks left, it is shown as
/// retired, under its old name, and then it ends. No block is ever counted for,
/// or shown under, another service than its own. (A scope or a clone that was forgotten, not
/// dropped, keeps its service for good, however many there are.)
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
#[must_use = "a service ends when it is dropped and its blocks are freed"]
pub struct Service {
    /// One of the clones that the record counts is this one's.
    record: &'static slots::Record,
}

impl Service {
    /// The bytes that a name has at most.
    ///
    /// A name is any text that is not empty and no longer than this: of a service that is
    /// registered, from Rust or C, or named by a span or a thread. Names are kept, and written into
    /// logs, tables and labels. Prometheus throws away all of a scrape in which one label is
    /// longer than its `label_value_length_limit`, where one is set, and other databases cut
    /// labels, or refuse them, at 1 or 2 KiB. Most file systems have the same bound for names.
    pub const MAX_NAME_LEN: usize = 255;

    /// The service of that name, as it is, or a new one with a handle assigned to it.
    ///
    /// Takes a lock and allocates; register once and keep the service. What
    /// the registry itself needs is charged to the unattributed service. To
    /// register and to drop a service each read a cell for each thread.
    ///
    /// # Errors
    ///
    /// [`RegisterError::NoName`], [`RegisterError::NameTooLong`] (longer than
    /// [`MAX_NAME_LEN`](Self::MAX_NAME_LEN)), [`RegisterError::Full`] and
    /// [`RegisterError::NoMemory`].
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

    /// Registers a service in steps: with a handle of one's own, a parent, limits.
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
        ServiceBuilder::new(name)
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
    pub fn current() -> Self {
        let record = thread::current_record();
        // That the thread is in it keeps it.
        if record.lifecycle().revive() { Self { record } } else { Self::unattributed() }
    }

    /// The service of what nobody claims, named `unattributed`, with handle 0.
    /// Every thread begins in it.
    ///
    /// ```
    /// assert_eq!(dogtag::Service::unattributed().name(), "unattributed");
    /// ```
    pub fn unattributed() -> Self {
        slots::UNATTRIBUTED.lifecycle().retain();
        Self { record: &slots::UNATTRIBUTED }
    }

    /// The living service of that name, if there is one. Takes a lock.
    ///
    /// ```
    /// assert_eq!(dogtag::Service::by_name("nobody"), None);
    /// ```
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        registry::by_name(name)
    }

    /// The living service with that handle, if there is one. Takes a lock.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// assert_eq!(Service::by_handle(0), Some(Service::unattributed()));
    /// ```
    #[must_use]
    pub fn by_handle(handle: u32) -> Option<Self> {
        registry::by_handle(handle)
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
    /// All that the thread runs until then is charged to this service, also what it runs for others:
    /// while rayon's `join` or `scope` waits, that is any job of the pool. Jobs that enter
    /// their own service are charged to that one ([the guide](crate::guide#services) has an example).
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

    /// Runs `work` in this service: [`enter`](Self::enter) and a call. In a thread pool (rayon), run
    /// each job so, inside the closure that the pool gets.
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
    /// the process; takes no lock and stops nobody. Also for
    /// [signal handlers](crate#signals).
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

    /// Begins [`Usage::peak_bytes`] anew, with what is live now.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::RegisterError> {
    /// let cache = dogtag::Service::register("cache")?;
    /// let entry = cache.run(|| vec![0_u8; 1000]);
    /// assert_eq!(cache.usage().peak_bytes, 1000);
    /// drop(entry);
    /// assert_eq!(cache.usage().peak_bytes, 1000);
    /// cache.reset_peak();
    /// assert_eq!(cache.usage().peak_bytes, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn reset_peak(&self) {
        self.record.reset_peak();
        let _ = self.usage();
    }

    /// Another clone of a service that somebody holds.
    #[cfg(feature = "tracing-layer")]
    pub(crate) fn of_held(record: &'static slots::Record) -> Self {
        record.lifecycle().retain();
        Self { record }
    }

    /// Another clone of whatever service has that record, if it has a clone.
    #[cfg(feature = "tracing-layer")]
    pub(crate) fn try_of(record: &'static slots::Record) -> Option<Self> {
        record.lifecycle().try_hold().then(|| Self { record })
    }

    /// A clone that C has.
    ///
    /// # Safety
    ///
    /// One of the clones that the record counts becomes this one, unless this one is
    /// forgotten.
    #[cfg(feature = "capi")]
    pub(crate) const unsafe fn of_clone(record: &'static slots::Record) -> Self {
        Self { record }
    }

    #[cfg(any(feature = "memory-check", feature = "tracing-layer", feature = "capi"))]
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

impl Clone for Service {
    /// Another owner of the service: an atomic addition.
    #[inline]
    fn clone(&self) -> Self {
        self.record.lifecycle().retain();
        Self { record: self.record }
    }
}

impl Drop for Service {
    /// An atomic subtraction; the last clone takes a lock and reads a cell for
    /// each thread.
    #[inline]
    fn drop(&mut self) {
        if self.record.lifecycle().release() {
            retirement::retire(self.record);
        }
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

//! The handle of a service that its users have.

use super::error::MAX_NAME_LEN;
use super::registry::Retained;
use super::retirement;
use super::scope::Scope;
use crate::ledger::slots::{self, Entrance};
use crate::ledger::{self, thread};
use crate::usage::Usage;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ptr;

/// Owns memory: an actor, a module, a tenant, a query.
///
/// A service has a name and a handle, a 32-bit number that the program chooses or dogtag assigns (as
/// in skynet). Code runs on its behalf inside
/// [`run`](Self::run), [`enter`](Self::enter) or
/// [`in_service`](crate::InServiceExt::in_service). Every block that is
/// allocated there belongs to the service until it is freed, wherever that happens.
/// `realloc` gives a block to the service that is current then: whoever grows
/// it owns it.
///
/// `Service` is a handle that is cheap to clone and to share. A service lives while one of its
/// clones, scopes or blocks does. When the last clone is dropped, its name and its
/// handle are free for another service, and it is retired: snapshots show it under its old name
/// until its last block is freed. Then it ends. No block is ever counted for,
/// or shown under, another service than its own. (A scope or a clone that was forgotten instead of
/// dropped keeps its service for good.)
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
    entrance: Entrance,
}

impl Service {
    /// The longest name, in bytes.
    ///
    /// A name is any text that is not empty and no longer than this: of a service that is
    /// registered, from Rust or C, or named by a span or a thread. Names are kept, and written into
    /// logs, tables and labels. Prometheus throws away all of a scrape in which one label is
    /// longer than its `label_value_length_limit`, where one is set, and other databases cut
    /// labels, or refuse them, at 1 or 2 KiB. Most file systems have the same bound for names.
    pub const MAX_NAME_LEN: usize = MAX_NAME_LEN;

    /// Returns the service that the calling thread is in.
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
        if record.lifecycle().revive() { Self::of(record) } else { Self::unattributed() }
    }

    /// Returns the service of memory that no other one claims: `unattributed`, with handle 0.
    /// Every thread begins in it.
    ///
    /// ```
    /// assert_eq!(dogtag::Service::unattributed().name(), "unattributed");
    /// ```
    pub fn unattributed() -> Self {
        slots::UNATTRIBUTED.lifecycle().retain();
        Self::of(&slots::UNATTRIBUTED)
    }

    /// Puts the calling thread into this service until the scope is dropped.
    ///
    /// Scopes nest, and many threads may be in one service at once. Dropping a scope, by a panic
    /// too, goes back to the service that was current when it was entered. Both together take some
    /// 25 instructions, no lock and no allocation; the first time that a thread is in a service it
    /// also sets up its counters there.
    ///
    /// Do not hold a scope across an `.await`: use
    /// [`in_service`](crate::InServiceExt::in_service) there.
    ///
    /// All that the thread runs in the scope is charged to this service, including jobs of others:
    /// while rayon's `join` or `scope` waits, the thread runs any job of its pool. Jobs that enter
    /// a service of their own are charged to that one ([the guide](crate::guide#handing-on) has an
    /// example).
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
        Scope::enter_by(&self.entrance)
    }

    /// Runs `work` in this service: [enters](Self::enter) it, and leaves it when `work` returns or
    /// panics. In a thread pool (rayon), run
    /// each job so, inside the closure that the pool gets, or [`wrap`](Self::wrap) the closure.
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

    /// Returns what this service has allocated and freed since it was registered.
    ///
    /// It reads one cell for each thread that was alive at the busiest moment of
    /// the process. It takes no lock and stops no thread, and
    /// [signal handlers](crate#signals) may call it.
    ///
    /// ```
    /// let idle = dogtag::Service::register("idle")?;
    /// assert_eq!(idle.usage(), dogtag::Usage::default());
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    #[must_use]
    pub fn usage(&self) -> Usage {
        ledger::usage(self.record())
    }

    /// Sets [`Usage::peak_bytes`] to what is live now.
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
        self.record().reset_peak();
        let _ = self.usage();
    }

    /// The service that a lookup has retained.
    pub(super) fn of_retained(retained: Retained) -> Self {
        Self::of(retained.0)
    }

    /// Another clone of a service that somebody holds.
    #[cfg(feature = "tracing-layer")]
    pub(crate) fn of_held(record: &'static slots::Record) -> Self {
        record.lifecycle().retain();
        Self::of(record)
    }

    /// Another clone of whatever service has that record, if it has a clone.
    #[cfg(any(feature = "guard", feature = "tracing-layer"))]
    pub(crate) fn try_of(record: &'static slots::Record) -> Option<Self> {
        record.lifecycle().try_hold().then(|| Self::of(record))
    }

    /// A clone that C has.
    ///
    /// # Safety
    ///
    /// One of the clones that the record counts becomes this one, unless this one is
    /// forgotten.
    pub(crate) unsafe fn of_clone(record: &'static slots::Record) -> Self {
        Self::of(record)
    }

    /// The service of a record that counts a clone more than there are: this one.
    #[inline]
    pub(super) fn of(record: &'static slots::Record) -> Self {
        Self { entrance: Entrance::of(record) }
    }

    pub(crate) const fn record(&self) -> &'static slots::Record {
        self.entrance.record()
    }

    /// Returns the name that the service was registered with.
    ///
    /// ```
    /// assert_eq!(dogtag::Service::register("auth")?.name(), "auth");
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        self.record().name()
    }

    /// Returns the service's handle: the one that was chosen, or an assigned one, which
    /// is 0x80000000 or above.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// let auth = Service::register("auth")?;
    /// assert!(auth.handle() >= 0x8000_0000);
    /// assert_eq!(Service::by_handle(auth.handle()), Some(auth));
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    #[must_use]
    pub fn handle(&self) -> u32 {
        self.record().handle()
    }
}

impl Clone for Service {
    /// Makes another clone of the handle to the same service: an atomic addition.
    #[inline]
    fn clone(&self) -> Self {
        self.record().lifecycle().retain();
        Self { entrance: self.entrance }
    }
}

impl Drop for Service {
    /// Drops a clone: an atomic subtraction. The last clone also takes a lock and reads a cell for
    /// each thread.
    #[inline]
    fn drop(&mut self) {
        if self.record().lifecycle().release() {
            retirement::retire(self.record());
        }
    }
}

impl PartialEq for Service {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self.record(), other.record())
    }
}

impl Eq for Service {}

impl Hash for Service {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.record().slot().hash(state);
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

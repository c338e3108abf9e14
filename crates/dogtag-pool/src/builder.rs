//! How pools are made.

use crate::block::{Block, GRAIN};
use crate::child::Child;
use crate::error::PoolError;
use crate::failure::{limit_error, or_panic, tell};
use crate::node::{ALWAYS_SMALL, Handler, LEAST_BLOCK, Node, Plan, Refusal, Source};
use crate::pool::Pool;
use crate::store::Store;
use dogtag::Service;
use std::borrow::Cow;
use std::fmt;
use std::ptr::NonNull;

/// Settings of a pool that is yet to be made, by [`Pool::builder`].
///
/// ```
/// use dogtag::Service;
/// use dogtag_pool::Pool;
///
/// let sessions = Service::register("sessions")?;
/// let connection = Pool::builder()
///     .name("connection")
///     .service(&sessions)
///     .limit(1 << 20)
///     .build()?;
/// let request = Pool::builder().name("request").block_size(16 << 10).child_of(&connection)?;
/// assert_eq!(request.service(), &sessions);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
#[must_use = "the pool is made by `build`, `child_of` or `lasting_child_of`"]
pub struct PoolBuilder {
    name: Option<Cow<'static, str>>,
    service: Option<Service>,
    block_size: Option<usize>,
    max_small: Option<usize>,
    max_free: Option<usize>,
    limit: Option<usize>,
    on_failure: Option<Handler>,
}

/// The default of [`PoolBuilder::max_free`]: what Apache's httpd lets its pools keep (`MaxMemFree`).
const MAX_FREE: usize = 2 << 20;
/// The default of [`PoolBuilder::block_size`].
const BLOCK_SIZE: usize = 4096;
/// The default of [`PoolBuilder::max_small`]: a page less one byte, as in nginx.
const MAX_SMALL: usize = 4095;

impl PoolBuilder {
    /// Sets the pool's name, for errors and [`Pool::name`] (APR: its tag).
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the service to which the pool's memory is charged, whoever allocates from the pool.
    /// Defaults to the service in which the pool is built, and for a child to that of its parent.
    pub fn service(mut self, service: &Service) -> Self {
        self.service = Some(service.clone());
        self
    }

    /// Sets the size of the first block in bytes, of which some 300 are the pool's own. Defaults to
    /// 4096, and for a child to that of its parent; the minimum is 1024. Each block is twice as large
    /// as the one before, up to 128 KiB.
    pub fn block_size(mut self, bytes: usize) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// Sets the size of the largest allocation that is made in a block. A larger one is made by the
    /// global allocator, and can be [freed](Pool::free) before the pool is cleared. Defaults to 4095,
    /// or what fits into a block of [`block_size`](Self::block_size) if that is less, as in nginx, and
    /// for a child that has its parent's block size to that of its parent; the minimum is 256.
    pub fn max_small(mut self, bytes: usize) -> Self {
        self.max_small = Some(bytes);
        self
    }

    /// Sets how many bytes of cleared and destroyed pools are kept for reuse, in addition to the first
    /// block of each pool. Defaults to 2 MiB; nothing is kept for 0. (APR:
    /// `apr_allocator_max_free_set`, where all is kept by default, and for 0.)
    ///
    /// Children share what is kept with their parent, unless this or another
    /// [`service`](Self::service) is set for them. Then it is they that share it with theirs.
    pub fn max_free(mut self, bytes: usize) -> Self {
        self.max_free = Some(bytes);
        self
    }

    /// Sets how many bytes the pool may hold, together with the pools below it: in blocks and large
    /// allocations, without what is kept for reuse. An allocation over the limit fails with
    /// [`PoolError::Limit`]. Defaults to none.
    ///
    /// Unlike bumpalo's `set_allocation_limit`, it counts the pools below, and cannot be changed later.
    pub fn limit(mut self, bytes: usize) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Sets a closure that is called when the pool, or a pool below it that has no such closure, gets
    /// no memory (APR: `apr_pool_abort_set`): with [`PoolError::NoMemory`] or [`PoolError::Limit`],
    /// before the error is returned or panicked with.
    ///
    /// ```
    /// use dogtag_pool::{Pool, PoolError};
    /// use std::sync::atomic::{AtomicU32, Ordering};
    ///
    /// static FAILURES: AtomicU32 = AtomicU32::new(0);
    /// let pool = Pool::builder()
    ///     .limit(10_000)
    ///     .on_failure(|_: &PoolError| _ = FAILURES.fetch_add(1, Ordering::Relaxed))
    ///     .build()?;
    /// assert!(pool.try_alloc_zeroed(20_000).is_err());
    /// assert_eq!(FAILURES.load(Ordering::Relaxed), 1);
    /// # Ok::<(), PoolError>(())
    /// ```
    pub fn on_failure(mut self, tell: impl Fn(&PoolError) + Send + 'static) -> Self {
        self.on_failure = Some(Box::new(tell));
        self
    }

    /// Makes a pool without a parent.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], and [`PoolError::Limit`] if the limit is less than 1024 bytes.
    pub fn build<'env>(self) -> Result<Pool<'env>, PoolError> {
        Ok(Pool::of(self.make(None, false)?))
    }

    /// Makes a child, which ends when it is dropped, as [`Pool::child`] does.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], and [`PoolError::Limit`] if its limit, or what the limits above it
    /// still allow, is less than 1024 bytes.
    pub fn child_of<'parent>(self, parent: &'parent Pool<'_>) -> Result<Child<'parent>, PoolError> {
        Ok(Child::of(self.make(Some(parent.node()), false)?))
    }

    /// Makes a child, which ends when its parent is cleared or destroyed, as [`Pool::lasting_child`]
    /// does.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], and [`PoolError::Limit`] if its limit, or what the limits above it
    /// still allow, is less than 1024 bytes.
    pub fn lasting_child_of<'parent, 'env>(
        self,
        parent: &'parent Pool<'env>,
    ) -> Result<&'parent Pool<'env>, PoolError> {
        let node = self.make(Some(parent.node()), true)?;
        // SAFETY: the node ends when the parent is cleared or dropped, which the borrow prevents; what
        // it drops outlives 'env, by the bounds of a pool's functions.
        Ok(unsafe { Pool::of_lasting(node) })
    }

    fn make(self, parent: Option<&Node>, is_lasting: bool) -> Result<NonNull<Node>, PoolError> {
        let inherited = if self.block_size.is_none() { parent } else { None };
        let block_size = self.block_size.or(parent.map(|parent| parent.block_size)).unwrap_or(BLOCK_SIZE);
        let block_size = block_size.max(LEAST_BLOCK).checked_next_multiple_of(GRAIN).unwrap_or(block_size);
        let fitting = || MAX_SMALL.min(block_size - Block::HEADER);
        let max_small = self.max_small.or(inherited.map(|parent| parent.max_small)).unwrap_or_else(fitting);
        let source = match parent.map(Node::store) {
            Some(store)
                if self.max_free.is_none() && self.service.as_ref().is_none_or(|it| *it == store.service) =>
            {
                Source::Shared(NonNull::from(store))
            }
            store => {
                let service = self.service.or(store.map(|store| store.service.clone()));
                let max_free = self.max_free.or(store.map(Store::max_free)).unwrap_or(MAX_FREE);
                Source::Own(Store::new(service.unwrap_or_else(Service::current), max_free))
            }
        };
        let plan = Plan {
            block_size,
            max_small: max_small.max(ALWAYS_SMALL),
            limit: self.limit,
            source,
            name: self.name,
            on_failure: self.on_failure,
            is_lasting,
        };
        Node::new(plan, parent).map_err(|(plan, refusal)| {
            let bytes = LEAST_BLOCK;
            let error = match (refusal, plan.limit) {
                (Refusal::Limit(limiting), _) => limit_error(limiting, bytes),
                (Refusal::NoMemory, Some(limit)) if limit < bytes => {
                    PoolError::Limit { pool: plan.name, bytes, limit, held: 0 }
                }
                (Refusal::NoMemory, _) => PoolError::NoMemory { pool: plan.name, bytes },
            };
            tell(&error, plan.on_failure.as_ref(), parent);
            error
        })
    }
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("name", &self.name)
            .field("service", &self.service)
            .field("block_size", &self.block_size)
            .field("max_small", &self.max_small)
            .field("max_free", &self.max_free)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl<'env> Pool<'env> {
    /// Makes a pool without a parent, in the service that the thread is in, with a first block of 4096
    /// bytes. (bumpalo's `Bump::new` allocates nothing yet.)
    ///
    /// # Panics
    ///
    /// If there is no memory.
    #[must_use]
    pub fn new() -> Self {
        or_panic(Self::try_new())
    }

    /// Fallible variant of [`new`](Self::new): returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`].
    pub fn try_new() -> Result<Self, PoolError> {
        Self::builder().build()
    }

    /// Returns a builder, for a pool with a name, a service, a limit, ...
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// Makes a pool below this one, which ends when it is dropped. Until then this one cannot be
    /// cleared. What the child drops may refer to this one's memory.
    ///
    /// Whenever a pool takes a block or gives it back, that takes time in proportion to the number of
    /// pools above it.
    ///
    /// If a child is forgotten ([`std::mem::forget`]), its memory is freed when this pool is cleared,
    /// but its cleanups and drops do not run, since what they refer to may be gone.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let connection = Pool::new();
    /// let user = connection.alloc_str("ada");
    /// {
    ///     let request = connection.child();
    ///     let _ = request.cleanup(|| println!("a request of {user} ends"));
    /// }
    /// assert_eq!(connection.stats_with_children().pools, 1);
    /// ```
    #[must_use]
    pub fn child(&self) -> Child<'_> {
        or_panic(self.try_child())
    }

    /// Fallible variant of [`child`](Self::child): returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    pub fn try_child(&self) -> Result<Child<'_>, PoolError> {
        Self::builder().child_of(self)
    }

    /// Makes a pool below this one, which ends when this one is cleared or destroyed, before it, as
    /// APR's do. What the child drops must outlive this pool.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let mut connection = Pool::new();
    /// for _ in 0..3 {
    ///     let request = connection.lasting_child();
    ///     let _ = request.cleanup(|| println!("a request ends with its connection"));
    /// }
    /// connection.clear();
    /// assert_eq!(connection.stats_with_children().pools, 1);
    /// ```
    pub fn lasting_child(&self) -> &Self {
        or_panic(self.try_lasting_child())
    }

    /// Fallible variant of [`lasting_child`](Self::lasting_child): returns an error instead of
    /// panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    pub fn try_lasting_child(&self) -> Result<&Self, PoolError> {
        Self::builder().lasting_child_of(self)
    }
}

impl Default for Pool<'_> {
    fn default() -> Self {
        Self::new()
    }
}

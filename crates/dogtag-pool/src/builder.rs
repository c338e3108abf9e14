//! How a pool is to be, said before it is made.

use crate::node::{ALWAYS_SMALL, Handler, LEAST_BLOCK, Node, Plan, Refusal, Source};
use crate::store::Store;
use crate::{Child, GRAIN, Pool, PoolError};
use dogtag::Service;
use std::borrow::Cow;
use std::fmt;
use std::ptr::NonNull;

/// Makes a pool in steps: [`Pool::builder`].
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

/// What is kept for reuse unless something else is said: what Apache's httpd lets its
/// pools keep (`MaxMemFree`).
const MAX_FREE: usize = 2 << 20;
const BLOCK_SIZE: usize = 4096;
/// A page less one byte, as in nginx.
const MAX_SMALL: usize = 4095;

impl PoolBuilder {
    /// What the pool is called in errors and by [`Pool::name`] (APR: its tag).
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whose memory the pool's is, whoever allocates from it. Otherwise it is that of the
    /// service in which the pool is built, and for a child that of its parent.
    pub fn service(mut self, service: &Service) -> Self {
        self.service = Some(service.clone());
        self
    }

    /// Bytes of the first block, of which some 300 are the pool's own; 4096 otherwise, and no
    /// fewer than 1024. Each block is twice as large as the one before, up to 128 KiB. A child
    /// has its parent's.
    pub fn block_size(mut self, bytes: usize) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// Allocations of more bytes are large: each is one of the allocator's, and can be freed
    /// before the pool is cleared. Otherwise, as in nginx, what does not fit into
    /// a block of [`block_size`](Self::block_size) or fills a page (4096 bytes) is large. No
    /// fewer than 256. A child has its parent's, unless it has another block size.
    pub fn max_small(mut self, bytes: usize) -> Self {
        self.max_small = Some(bytes);
        self
    }

    /// Bytes of cleared and destroyed pools that are kept for reuse at most, besides each pool's
    /// first block; 2 MiB otherwise, and nothing for 0 (APR: `apr_allocator_max_free_set`, where all
    /// is kept otherwise, and for 0). Children share what is kept with their parent, unless this or
    /// another [`service`](Self::service) is said of them; then it is they that share it with theirs.
    pub fn max_free(mut self, bytes: usize) -> Self {
        self.max_free = Some(bytes);
        self
    }

    /// Bytes that the pool may hold, together with those below it: their blocks and large
    /// allocations, not what is kept for reuse. What goes beyond is [`PoolError::Limit`].
    pub fn limit(mut self, bytes: usize) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// What is told when the pool, or one below it that has no such handler, cannot have
    /// memory (APR: `apr_pool_abort_set`): of [`PoolError::NoMemory`] and [`PoolError::Limit`].
    /// Then the error is returned, or panicked with.
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

    /// Makes a pool that is nobody's child.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], and [`PoolError::Limit`] if the limit is less than 1024 bytes.
    pub fn build<'env>(self) -> Result<Pool<'env>, PoolError> {
        Ok(Pool::of(self.make(None, false)?))
    }

    /// Makes a child, which ends when it is dropped: [`Pool::child`].
    ///
    /// # Errors
    ///
    /// As for [`build`](Self::build); the limits of those above are to be kept, too.
    pub fn child_of<'parent>(self, parent: &'parent Pool<'_>) -> Result<Child<'parent>, PoolError> {
        Ok(Child::of(self.make(Some(parent.node()), false)?))
    }

    /// Makes a child, which ends when its parent is cleared or destroyed:
    /// [`Pool::lasting_child`].
    ///
    /// # Errors
    ///
    /// As for [`child_of`](Self::child_of).
    pub fn lasting_child_of<'parent, 'env>(
        self,
        parent: &'parent Pool<'env>,
    ) -> Result<&'parent Pool<'env>, PoolError> {
        let node = self.make(Some(parent.node()), true)?;
        // SAFETY: the node is there until the parent is cleared, which takes the borrow; it
        // holds only what outlives 'env, as its parent does.
        Ok(unsafe { Pool::of_lasting(node) })
    }

    fn make(self, parent: Option<&Node>, is_lasting: bool) -> Result<NonNull<Node>, PoolError> {
        let inherited = if self.block_size.is_none() { parent } else { None };
        let block_size = self.block_size.or(parent.map(|parent| parent.block_size)).unwrap_or(BLOCK_SIZE);
        let block_size = block_size.max(LEAST_BLOCK).checked_next_multiple_of(GRAIN).unwrap_or(block_size);
        let fitting = || MAX_SMALL.min(block_size - crate::block::Block::HEADER);
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
                (Refusal::Limit(limiting), _) => crate::limit_error(limiting, bytes),
                (Refusal::NoMemory, Some(limit)) if limit < bytes => {
                    PoolError::Limit { pool: plan.name, bytes, limit, held: 0 }
                }
                (Refusal::NoMemory, _) => PoolError::NoMemory { pool: plan.name, bytes },
            };
            crate::tell(&error, plan.on_failure.as_ref(), parent);
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

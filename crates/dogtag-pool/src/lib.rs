//! Pools: memory that is freed in one go, in a tree, on behalf of a service.
//!
//! A pool belongs to what has an end: a connection, a request, an iteration of a loop. What
//! is allocated from it costs a few instructions and is never freed one by one; when the
//! pool is cleared or destroyed, cleanups run (files are closed, values dropped), the pools below
//! it end first, and the memory is free for the next round. So a server that runs for years
//! neither leaks nor fragments. Apache's APR and nginx are built on it; here the compiler
//! sees to what their documentation has to ask for.
//!
//! ```
//! use dogtag_pool::Pool;
//!
//! let connection = Pool::new();
//! let peer = connection.alloc_str("192.0.2.1");
//! let mut request = connection.child();
//! for path in ["/", "/style.css", "/favicon.ico"] {
//!     // Memory stays the same, however often this comes by.
//!     request.clear();
//!     let line = request.alloc_fmt(format_args!("{peer} asks for {path}"));
//!     let words = request.alloc_slice_with(3, |i| line.split(' ').nth(i).map(str::to_owned));
//!     assert_eq!(words[1].as_deref(), Some("asks"));
//! }
//! ```
//!
//! # What comes from where
//!
//! Those who come from APR or nginx find what they know under other names. What they get is the same
//! but for what the last column says; `.ci/pool-peers` in the repository runs the three beside each other.
//!
//! | APR | here | what is different |
//! | --- | --- | --- |
//! | `apr_pool_create` | [`Pool::new`], [`Pool::child`], [`Pool::lasting_child`], [`Pool::builder`] | A subpool of APR's ends by itself or with its parent, whichever comes first. Here a [`child`](Pool::child) is somebody's and ends by itself, and a [`lasting_child`](Pool::lasting_child) ends with its parent alone. A pool that has no parent is below APR's global pool; here it is below none |
//! | `apr_pool_clear`, `apr_pool_destroy` | [`Pool::clear`], [`Pool::destroy`] or drop | The order is the same: pre-cleanups, subpools (the youngest first), cleanups (the last first). A panic keeps nothing of it from running |
//! | `apr_palloc` | [`Pool::alloc`], [`Pool::alloc_layout`], [`Pool::alloc_bytes`] | APR's is aligned to 8, here to what the type or layout needs, bytes to 16. APR's returns null without memory; here there is a panic, or an error from the twin with `try_` |
//! | `apr_pcalloc` | [`Pool::alloc_zeroed`] | APR's is aligned to 8, here to 16 |
//! | `apr_pmemdup`, `apr_pstrdup`, `apr_psprintf` | [`Pool::alloc_slice`], [`Pool::alloc_str`], [`Pool::alloc_fmt`] | |
//! | large allocations | [`PoolBuilder::max_small`] | With APR what is large is in a block of its pool, which is kept like others. Here it is an allocation of its own: freed by `clear`, or before by [`Pool::free`], which APR has nothing like |
//! | `apr_pool_cleanup_register`, `apr_pool_pre_cleanup_register` | [`Pool::cleanup`], [`Pool::pre_cleanup`] | A closure instead of a function and its data. APR's may register others in the pool that ends, which run next; here no closure has a way to that pool (it would not compile). There is nothing for `exec`, APR's second function: Rust's files are closed by it |
//! | `apr_pool_cleanup_kill` | [`Cleanup::cancel`] | APR's looks for the cleanup, in as many steps as there are: it takes the last one with that function and data from each of the two lists, and does nothing if there is none. Here it is the one that was registered, in one step |
//! | `apr_pool_cleanup_run` | [`Cleanup::run`] | The same, and APR's also runs what is not registered |
//! | `apr_pool_userdata_set`, `apr_pool_userdata_get` | [`Pool::set_data`], [`Pool::data`] | APR's values have names, here they have types. APR's can be found until the cleanups have run, here until the pool begins to be cleared |
//! | `apr_pool_tag`, `apr_pool_is_ancestor` | [`PoolBuilder::name`], [`Pool::is_ancestor`] | |
//! | `apr_pool_num_bytes` | [`Pool::stats`], [`Pool::stats_with_children`] | APR's needs a debug build |
//! | `apr_allocator_max_free_set` | [`PoolBuilder::max_free`] | With APR, without a word, all is kept for ever, 0 means all, and the bound is rounded up to pages; it can be set at any time. Here it is 2 MiB without a word, 0 means nothing, and a pool has it from the beginning. With APR pools without a parent share what is kept, too; here each tree has its own |
//! | `apr_pool_abort_set` | [`PoolBuilder::on_failure`] | APR's is copied to the subpools that are created later; here that of the nearest pool above is asked for at each failure. It can only be given to the builder |
//! | blocks | [`PoolBuilder::block_size`] | APR's are 8 KiB, or as large as what they were made for; here the first one is 4 KiB, and each is twice as large as the one before |
//!
//! | nginx | here | what is different |
//! | --- | --- | --- |
//! | `ngx_create_pool(size)` | [`PoolBuilder::block_size`] | With nginx all blocks are as large; here each is twice as large as the one before, up to 128 KiB. nginx has 80 bytes of the first block for itself, and some 300 are the pool's here. nginx has no trees, nor a [limit](PoolBuilder::limit) |
//! | `ngx_palloc`, `ngx_pcalloc` | [`Pool::alloc_bytes`], [`Pool::alloc_zeroed`] | nginx's is aligned to 8, here to 16. Large is, in both, what fills a page (4096 bytes) or has no room in an empty block; of these nginx's have 80 bytes less, ours 32 |
//! | `ngx_pnalloc` | [`Pool::alloc_unaligned`] | |
//! | `ngx_pmemalign` | [`Pool::alloc_aligned`] | nginx's is always large, so it can be freed; here it is in a block if it fits there, and then [`Pool::free`] declines |
//! | `ngx_pfree` | [`Pool::free`] | nginx's looks for the address in as many steps as there are large allocations, and what is not large stays as it is. Here the layout says whether it is large, it is looked for from both ends, and the last small one is handed out again |
//! | `ngx_reset_pool` | [`Pool::reset`] | nginx's runs no cleanups, and leaves them in a list that points to memory which is handed out again; here they run, as in `clear` |
//! | `ngx_destroy_pool` | [`Pool::destroy`] or drop | |
//! | `ngx_pool_cleanup_add` | [`Pool::cleanup`] | With nginx a cleanup that a cleanup registers never runs |
//! | `cleanup->handler = NULL`, `ngx_pool_run_cleanup_file` | [`Cleanup::cancel`], [`Cleanup::run`] | |
//! | blocks with little room | | nginx tries a pool's blocks from the oldest one that is not passed over: one is, the 7th time that it has no room. Here the roomiest is tried first, and the others only when it has no room, until five things did not fit into them |
//!
//! # Whose memory it is
//!
//! That of the service in which the pool was [built](PoolBuilder::service), whoever
//! allocates from it later, in whatever service; a child's is its parent's. What the ledger
//! counts are the pool's blocks and large allocations, and what it keeps for reuse; what of
//! them is in use, [`Pool::stats`] says. The pool keeps its service alive.
//!
//! # What may live in a pool
//!
//! | | lifetime of what is in it | dropped when the pool is cleared |
//! | --- | --- | --- |
//! | [`alloc`](Pool::alloc), [`alloc_slice_with`](Pool::alloc_slice_with) | outlives the pool | yes |
//! | [`alloc_plain`](Pool::alloc_plain) of what needs no drop | any: it may refer to the pool itself | not needed |
//! | [`alloc_slice`](Pool::alloc_slice), [`alloc_str`](Pool::alloc_str) | any | not needed |
//! | `Vec<T, &Pool>` and the like | any | by itself |
//!
//! A pool can be sent to another thread, so what it drops must be [`Send`], and it is not
//! [`Sync`]: each thread allocates from pools of its own. A [`Child`] stays where its parent is.
//!
//! A function takes a pool as `&'pool Pool`, and returns `&'pool mut str` and the like; `leak`
//! makes such a slice of a finished `Vec`, whose memory is the pool's. A struct that has
//! one and the reference is best made for a `&'pool Pool<'static>`.
//!
//! # What does not compile
//!
//! Memory is gone when its pool is cleared,
//!
//! ```compile_fail,E0502
//! let mut pool = dogtag_pool::Pool::new();
//! let text = pool.alloc_str("short-lived");
//! pool.clear();
//! println!("{text}");
//! ```
//!
//! or destroyed,
//!
//! ```compile_fail,E0505
//! let pool = dogtag_pool::Pool::new();
//! let text = pool.alloc_str("short-lived");
//! pool.destroy();
//! println!("{text}");
//! ```
//!
//! and that of a collection with it,
//!
//! ```compile_fail,E0502
//! let mut pool = dogtag_pool::Pool::new();
//! let mut list = allocator_api2::vec::Vec::new_in(&pool);
//! list.push(1);
//! pool.clear();
//! list.push(2);
//! ```
//!
//! and a cleanup that was registered:
//!
//! ```compile_fail,E0502
//! let mut pool = dogtag_pool::Pool::new();
//! let cleanup = pool.cleanup(|| println!("it has run"));
//! pool.clear();
//! cleanup.run();
//! ```
//!
//! A pool cannot be destroyed while a child is in use,
//!
//! ```compile_fail,E0505
//! let pool = dogtag_pool::Pool::new();
//! let child = pool.child();
//! pool.destroy();
//! child.alloc_str("where?");
//! ```
//!
//! nor cleared,
//!
//! ```compile_fail,E0502
//! let mut pool = dogtag_pool::Pool::new();
//! let child = pool.child();
//! pool.clear();
//! child.alloc_str("where?");
//! ```
//!
//! whether the child ends by itself or with its parent:
//!
//! ```compile_fail,E0502
//! let mut pool = dogtag_pool::Pool::new();
//! let child = pool.lasting_child();
//! pool.clear();
//! child.alloc_str("where?");
//! ```
//!
//! A thread that may outlive the pool cannot have its memory,
//!
//! ```compile_fail,E0597
//! let pool = dogtag_pool::Pool::new();
//! let text = pool.alloc_str("short-lived");
//! std::thread::spawn(move || println!("{text}"));
//! ```
//!
//! nor can two threads allocate from one pool,
//!
//! ```compile_fail,E0277
//! let pool = dogtag_pool::Pool::new();
//! std::thread::scope(|threads| {
//!     threads.spawn(|| pool.alloc_str("one").len());
//! });
//! ```
//!
//! or a child go where its parent is not,
//!
//! ```compile_fail,E0277
//! let pool = dogtag_pool::Pool::new();
//! let child = pool.child();
//! std::thread::scope(|threads| {
//!     threads.spawn(move || child.alloc_str("one").len());
//! });
//! ```
//!
//! even by way of swapping it with one that may:
//!
//! ```compile_fail,E0596
//! let mut pool = dogtag_pool::Pool::new();
//! let parent = dogtag_pool::Pool::new();
//! let mut child = parent.child();
//! std::mem::swap(&mut *child, &mut pool);
//! ```
//!
//! What is dropped with the pool can neither stay behind on a thread,
//!
//! ```compile_fail,E0277
//! let pool = dogtag_pool::Pool::new();
//! pool.alloc(std::rc::Rc::new(1));
//! ```
//!
//! nor refer to what is gone by then,
//!
//! ```compile_fail,E0597
//! let pool = dogtag_pool::Pool::new();
//! let name = String::from("gone first");
//! let _ = pool.cleanup(|| println!("{name}"));
//! ```
//!
//! not even where the pool lasts as long:
//!
//! ```compile_fail,E0505
//! let mut parent = dogtag_pool::Pool::new();
//! let name = String::from("gone first");
//! let child = parent.lasting_child();
//! let _ = child.cleanup(|| println!("{name}"));
//! drop(name);
//! parent.clear();
//! ```
//!
//! And what needs a drop is not taken where none would come:
//!
//! ```compile_fail,E0080
//! let pool = dogtag_pool::Pool::new();
//! pool.alloc_plain(String::from("who frees this?"));
//! ```
//!
//! # Why an engine of our own
//!
//! `bumpalo` and `bump-scope`, the arenas of this field, have one open chunk, and keep one
//! when they are reset: the others go back to the allocator, so that each round
//! asks for them again. They ask in whichever service the caller is in at that moment.
//! What APR and nginx do (several open blocks, memory that is kept up to a threshold and shared
//! in the tree) cannot be put on top of that; the code that allocates from the
//! open block is the small part.

#![cfg(not(dogtag_loom))]
#![deny(missing_docs)]

mod allocator;
mod block;
mod builder;
mod child;
mod cleanup;
mod data;
mod error;
mod large;
mod node;
mod stats;
mod store;
mod tree;
mod values;

pub use builder::PoolBuilder;
pub use child::Child;
pub use cleanup::Cleanup;
pub use error::PoolError;
pub use stats::PoolStats;

use block::GRAIN;
use cleanup::Task;
use dogtag::Service;
use node::{Handler, Node, Refusal};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// A region of memory that is freed in one go: [the module](self) tells of it.
///
/// What is dropped or run when it is cleared outlives `'env`, and so does it.
#[repr(transparent)]
pub struct Pool<'env> {
    node: NonNull<Node>,
    /// Neither longer nor shorter: what was put in by one measure is dropped by it.
    _env: PhantomData<fn(&'env ()) -> &'env ()>,
}

// SAFETY: what a pool drops, runs or calls is `Send`, which all that puts it in asks for; what is
// borrowed from the pool or from below it keeps it where it is.
unsafe impl Send for Pool<'_> {}

impl<'env> Pool<'env> {
    /// A pool that is nobody's child, of the service that the thread is in, with a first
    /// block of 4096 bytes.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    #[must_use]
    pub fn new() -> Self {
        or_panic(Self::try_new())
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`].
    pub fn try_new() -> Result<Self, PoolError> {
        Self::builder().build()
    }

    /// Makes a pool in steps: with a name, a service, a limit, ...
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// A pool below this one, which ends when it is dropped, and for now keeps this one from
    /// being cleared. What it drops may refer to this one's memory.
    ///
    /// Whenever a pool takes a block or gives it back, there are as many steps as there are
    /// pools above it.
    ///
    /// A child that is forgotten ([`std::mem::forget`]) is found when this one is cleared: its
    /// memory is freed, but nothing is run or dropped, since what that refers to may be gone.
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

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    pub fn try_child(&self) -> Result<Child<'_>, PoolError> {
        Self::builder().child_of(self)
    }

    /// A pool below this one, which ends when this one is cleared or destroyed, before it: APR's
    /// way. What it drops outlives this one.
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

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    pub fn try_lasting_child(&self) -> Result<&Self, PoolError> {
        Self::builder().lasting_child_of(self)
    }

    /// Ends the pools below, runs the cleanups, and makes all memory free again, of which up to
    /// [`max_free`](PoolBuilder::max_free) bytes are kept for reuse.
    ///
    /// Pre-cleanups come first, then the pools below, the youngest first, in the same
    /// way; then cleanups and drops, the last one first. As many steps as there are cleanups and
    /// large allocations, here and below, and for each pool below as many as there are pools
    /// above it; the memory itself is not touched.
    ///
    /// # Panics
    ///
    /// With the first panic of a cleanup or drop, after all others have run and the memory
    /// is free.
    pub fn clear(&mut self) {
        let max_free = self.node().store().max_free();
        self.clear_but_keep(max_free);
    }

    /// The same, but all blocks are kept for reuse, whatever
    /// [`max_free`](PoolBuilder::max_free) says: for loops that will need as much again
    /// (nginx: `ngx_reset_pool`, which runs no cleanups). Of those that turn out not to suit, as much
    /// is given back as is asked for instead.
    ///
    /// # Panics
    ///
    /// As for [`clear`](Self::clear).
    pub fn reset(&mut self) {
        self.clear_but_keep(usize::MAX);
    }

    fn clear_but_keep(&mut self, max_free: usize) {
        // SAFETY: the pool is borrowed by nobody else, so nothing of it is, nor a child.
        let first_panic = unsafe {
            let first_panic = Node::run_down(self.node);
            self.node().release_blocks(max_free);
            first_panic
        };
        tree::resume(first_panic);
    }

    /// Ends the pools below, runs the cleanups, and gives the memory back: what dropping it
    /// does.
    ///
    /// # Panics
    ///
    /// As for [`clear`](Self::clear).
    pub fn destroy(self) {
        drop(self);
    }

    /// Registers what is to be done when the pool is cleared or destroyed; the last one
    /// registered is done first. Values that are dropped then are in the same order.
    ///
    /// # Panics
    ///
    /// If there is no memory; then the cleanup is dropped, and not run.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let path = std::env::temp_dir().join(format!("dogtag-{}", std::process::id()));
    /// let pool = Pool::new();
    /// std::fs::write(&path, "for now")?;
    /// let _ = pool.cleanup(|| std::fs::remove_file(&path).expect("it can be removed"));
    /// drop(pool);
    /// assert!(!path.exists());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn cleanup<F: FnOnce() + Send + 'env>(&self, work: F) -> Cleanup<'_> {
        or_panic(self.try_cleanup(work))
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    pub fn try_cleanup<F: FnOnce() + Send + 'env>(&self, work: F) -> Result<Cleanup<'_>, PoolError> {
        // SAFETY: what it needs outlives the pool, as its type says.
        unsafe { self.register(&self.node().cleanups, work) }
    }

    /// Registers what is to be done when the pool is cleared or destroyed, before the pools
    /// below it end.
    ///
    /// # Panics
    ///
    /// As for [`cleanup`](Self::cleanup).
    pub fn pre_cleanup<F: FnOnce() + Send + 'env>(&self, work: F) -> Cleanup<'_> {
        or_panic(self.try_pre_cleanup(work))
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    pub fn try_pre_cleanup<F: FnOnce() + Send + 'env>(&self, work: F) -> Result<Cleanup<'_>, PoolError> {
        // SAFETY: as in `try_cleanup`.
        unsafe { self.register(&self.node().pre_cleanups, work) }
    }

    /// # Safety
    ///
    /// The list is this pool's, and what the work needs lives until that is cleared.
    unsafe fn register<'pool, F: FnOnce()>(
        &'pool self,
        list: &'pool cleanup::Records,
        work: F,
    ) -> Result<Cleanup<'pool>, PoolError> {
        let task = self.try_room::<Task<F>>()?;
        // SAFETY: there is room for it, until the pool is cleared.
        unsafe {
            task.write(Task::new(work));
            list.push(task.cast());
            Ok(Cleanup::of(self.node(), list, task.cast()))
        }
    }

    /// Keeps a value with the pool, to be found by its type, until the pool is cleared. An
    /// earlier one of the same type is found no more, and dropped with the others.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// struct Peer(&'static str);
    ///
    /// let pool = Pool::new();
    /// pool.set_data(Peer("192.0.2.1"));
    /// assert_eq!(pool.data::<Peer>().map(|peer| peer.0), Some("192.0.2.1"));
    /// ```
    pub fn set_data<T: Send + 'static>(&self, value: T) -> &T {
        or_panic(self.try_set_data(value))
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`]. The value is dropped.
    pub fn try_set_data<T: Send + 'static>(&self, value: T) -> Result<&T, PoolError> {
        let datum = self.try_room()?;
        let value: &T = self.try_alloc(value)?;
        // SAFETY: both are there until the pool is cleared.
        unsafe { self.node().data.note(datum, NonNull::from(value)) };
        Ok(value)
    }

    /// The value of that type that was [kept](Self::set_data) last, in this pool itself. As many
    /// steps as there are values.
    pub fn data<T: 'static>(&self) -> Option<&T> {
        // SAFETY: it is there until the pool is cleared, and nobody has it by `&mut`.
        self.node().data.get::<T>().map(|value| unsafe { value.as_ref() })
    }

    /// The service whose memory the pool's is.
    pub fn service(&self) -> &Service {
        &self.node().store().service
    }

    /// The name that it was built with.
    pub fn name(&self) -> Option<&str> {
        self.node().name.as_deref()
    }

    /// Whether the other one is this one, or below it (APR: `apr_pool_is_ancestor`). As many
    /// steps as there are pools above the other one.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let connection = Pool::new();
    /// let request = connection.child();
    /// let part = request.child();
    /// assert!(connection.is_ancestor(&part) && part.is_ancestor(&part));
    /// assert!(!part.is_ancestor(&connection));
    /// ```
    pub fn is_ancestor(&self, other: &Pool<'_>) -> bool {
        other.node().ancestors().any(|node| ptr::eq(node, self.node()))
    }

    /// What this pool has, without those below it. As many steps as it has blocks and large
    /// allocations.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let pool = Pool::new();
    /// pool.alloc_slice(&[0_u64; 10]);
    /// assert_eq!(pool.stats().used, 80);
    /// pool.alloc_zeroed(100_000);
    /// let stats = pool.stats();
    /// assert!(stats.used >= 100_080 && stats.held > stats.used);
    /// assert_eq!((stats.blocks, stats.large), (1, 1));
    /// ```
    pub fn stats(&self) -> PoolStats {
        let mut stats = PoolStats { spare: self.node().store().spare_bytes(), ..PoolStats::default() };
        stats.add(self.node());
        stats
    }

    /// What this pool and those below it have. As many steps as they have blocks and large
    /// allocations.
    pub fn stats_with_children(&self) -> PoolStats {
        let mut stats = PoolStats { spare: self.node().store().spare_bytes(), ..PoolStats::default() };
        self.node().descendants().for_each(|node| stats.add(node));
        stats
    }

    fn of(node: NonNull<Node>) -> Self {
        Self { node, _env: PhantomData }
    }

    /// # Safety
    ///
    /// The node must be there as long as the borrow.
    unsafe fn of_lasting<'parent>(node: NonNull<Node>) -> &'parent Self {
        // SAFETY: a pool is nothing but such a pointer.
        unsafe { NonNull::from(&node.as_ref().this).cast::<Self>().as_ref() }
    }

    #[inline(always)]
    fn node(&self) -> &Node {
        // SAFETY: it is there as long as the pool.
        unsafe { self.node.as_ref() }
    }
}

impl Default for Pool<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        // SAFETY: the pool is borrowed by nobody, so nothing of it is, nor a child; it is not
        // used again.
        let first_panic = unsafe {
            let mut first_panic = Node::run_down(self.node);
            Node::leave_tree_and_end(self.node, &mut first_panic);
            first_panic
        };
        tree::resume(first_panic);
    }
}

impl fmt::Debug for Pool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name())
            .field("service", &self.service().name())
            .field("stats", &self.stats())
            .finish()
    }
}

/// What a twin that does not return its error does.
#[inline(always)]
fn or_panic<T>(result: Result<T, PoolError>) -> T {
    #[cold]
    #[inline(never)]
    fn give_up(error: &PoolError) -> ! {
        panic!("{error}")
    }
    result.unwrap_or_else(|error| give_up(&error))
}

impl Pool<'_> {
    /// Tells who wants to know that there is no memory.
    #[cold]
    #[inline(never)]
    fn refused(&self, refusal: Refusal, bytes: usize) -> PoolError {
        let error = match refusal {
            Refusal::NoMemory => PoolError::NoMemory { pool: copied(&self.node().name), bytes },
            Refusal::Limit(node) => limit_error(node, bytes),
        };
        tell(&error, None, Some(self.node()));
        error
    }
}

/// A limit that was in the way, which must be that of a pool that is there.
fn limit_error(node: NonNull<Node>, bytes: usize) -> PoolError {
    // SAFETY: it is above the pool that was to have the memory.
    let node = unsafe { node.as_ref() };
    PoolError::Limit {
        pool: copied(&node.name),
        bytes,
        limit: node.branch.limit().unwrap_or(usize::MAX),
        held: node.branch.held_with_children(),
    }
}

/// A copy of a name, if there is memory for it: this may be about there being none.
fn copied(name: &Option<Cow<'static, str>>) -> Option<Cow<'static, str>> {
    match name.as_ref()? {
        Cow::Borrowed(name) => Some(Cow::Borrowed(name)),
        Cow::Owned(name) => {
            let mut copy = String::new();
            copy.try_reserve_exact(name.len()).ok()?;
            copy.push_str(name);
            Some(Cow::Owned(copy))
        }
    }
}

fn tell(error: &PoolError, handler: Option<&Handler>, node: Option<&Node>) {
    let above = || node.into_iter().flat_map(Node::ancestors).find_map(|node| node.on_failure.as_ref());
    if let Some(handler) = handler.or_else(above) {
        handler(error);
    }
}

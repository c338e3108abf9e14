//! Memory pools as APR and nginx have them: regions that are freed in one go, in a tree, on behalf of a
//! [service](dogtag::Service).
//!
//! A pool belongs to something that ends: a connection, a request, an iteration of a loop. An allocation
//! from it takes a few instructions and is not freed on its own. When the pool is cleared or destroyed, the
//! pools below it end, cleanups run (files are closed, values dropped), and its memory is free for the next
//! round. So a server that runs for years neither leaks nor fragments. What the documentation of APR and
//! nginx demands of a program, here the compiler checks.
//!
//! ```
//! use dogtag_pool::Pool;
//!
//! #[global_allocator]
//! static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//!
//! let connection = Pool::new();
//! let peer = connection.alloc_str("192.0.2.1");
//! let mut request = connection.child();
//! for path in ["/", "/style.css", "/favicon.ico"] {
//!     // The same memory is used each time.
//!     request.clear();
//!     let line = request.alloc_fmt(format_args!("{peer} asks for {path}"));
//!     let words = request.alloc_slice_fill_with(3, |i| line.split(' ').nth(i).map(str::to_owned));
//!     assert_eq!(words[1].as_deref(), Some("asks"));
//! }
//! ```
//!
//! # Whose memory it is
//!
//! A pool's memory is charged to the service in which the pool was [built](PoolBuilder::service), whoever
//! allocates from it later; a child's is charged to its parent's service. The ledger counts the pool's
//! blocks, its large allocations, and what it keeps for reuse. [`Pool::stats`] says how much of that is in
//! use. A pool keeps its service alive.
//!
//! # What can be in a pool
//!
//! | | lifetime of what is in it | dropped when the pool is cleared |
//! | --- | --- | --- |
//! | [`alloc`](Pool::alloc), [`alloc_slice_fill_with`](Pool::alloc_slice_fill_with), [`alloc_slice_clone`](Pool::alloc_slice_clone) | outlives the pool | yes |
//! | [`alloc_plain`](Pool::alloc_plain), of what needs no drop | any: it may refer to the pool itself | not needed |
//! | [`alloc_slice_copy`](Pool::alloc_slice_copy), [`alloc_slice_fill_copy`](Pool::alloc_slice_fill_copy), [`alloc_str`](Pool::alloc_str) | any | not needed |
//! | `Vec<T, &Pool>` and the like | any | by itself |
//!
//! A pool can be sent to another thread, so what it drops must be [`Send`]. It is not [`Sync`]: each thread
//! allocates from pools of its own. A [`Child`] stays on the thread of its parent.
//!
//! A function takes a pool as `&'pool Pool`, and returns `&'pool mut str` and the like. `leak` makes such a
//! slice of a finished `Vec`, whose memory is the pool's. A struct that has a pool's memory and the reference
//! is best made for a `&'pool Pool<'static>`.
//!
//! # For those who come from elsewhere
//!
//! The tables list what differs from APR, nginx and bumpalo. Random programs run on APR's, nginx's and these
//! pools have the same outcome, but for what the last columns say (`.ci/pool-peers` in the repository).
//!
//! | APR | here | differences |
//! | --- | --- | --- |
//! | `apr_pool_create` | [`Pool::new`], [`Pool::child`], [`Pool::lasting_child`], [`Pool::builder`] | A subpool of APR's ends by itself or with its parent, whichever comes first. Here a [`child`](Pool::child) has an owner, who ends it, and a [`lasting_child`](Pool::lasting_child) ends with its parent alone. A pool that has no parent is below APR's global pool; here it is below none |
//! | `apr_pool_clear`, `apr_pool_destroy` | [`Pool::clear`], [`Pool::destroy`] or drop | The order is the same: pre-cleanups, subpools (the youngest first), cleanups (the last first). A panic keeps nothing of it from running |
//! | `apr_palloc` | [`Pool::alloc`], [`Pool::alloc_layout`], [`Pool::alloc_bytes`] | APR's is aligned to 8, here to what the type or layout needs, bytes to 16. APR's returns null when there is no memory; here that is a panic, or an error from the variant with `try_` |
//! | `apr_pcalloc` | [`Pool::alloc_zeroed`] | APR's is aligned to 8, here to 16 |
//! | `apr_pmemdup`, `apr_pstrdup`, `apr_psprintf` | [`Pool::alloc_slice_copy`], [`Pool::alloc_str`], [`Pool::alloc_fmt`] | |
//! | large allocations | [`PoolBuilder::max_small`] | With APR what is large is in a block of its pool, which is kept like others. Here it is an allocation of its own: freed by `clear`, or before by [`Pool::free`]; APR has no such function |
//! | `apr_pool_cleanup_register`, `apr_pool_pre_cleanup_register` | [`Pool::cleanup`], [`Pool::pre_cleanup`] | A closure instead of a function and its data. APR's may register others in the pool that ends, which run next; here no closure can refer to that pool (it would not compile). There is nothing for `exec`, APR's second function: Rust's files are closed by it |
//! | `apr_pool_cleanup_kill` | [`Cleanup::cancel`] | APR's looks for the cleanup, in as many steps as there are: it takes the last one with that function and data from each of the two lists, and does nothing if there is none. Here it is the one that was registered, in one step |
//! | `apr_pool_cleanup_run` | [`Cleanup::run`] | The same, and APR's also runs what is not registered |
//! | `apr_pool_userdata_set`, `apr_pool_userdata_get` | [`Pool::set_data`], [`Pool::data`] | APR's values have names, here they have types. APR's can be found until the cleanups have run, here until the pool begins to be cleared |
//! | `apr_pool_tag`, `apr_pool_is_ancestor` | [`PoolBuilder::name`], [`Pool::is_ancestor`] | |
//! | `apr_pool_num_bytes` | [`Pool::stats`], [`Pool::stats_with_children`] | APR's needs a debug build |
//! | `apr_allocator_max_free_set` | [`PoolBuilder::max_free`] | With APR all is kept for ever by default, 0 means all, and the bound is rounded up to pages; it can be set at any time. Here the default is 2 MiB, 0 means nothing, and it is set before the pool is made. With APR pools without a parent share what is kept, too; here each tree has its own |
//! | `apr_pool_abort_set` | [`PoolBuilder::on_failure`] | APR's is copied to the subpools that are created later; here that of the nearest pool above is called. It can only be given to the builder |
//! | blocks | [`PoolBuilder::block_size`] | APR's are 8 KiB, or as large as what they were made for; here the first one is 4 KiB, and each is twice as large as the one before |
//!
//! | nginx | here | differences |
//! | --- | --- | --- |
//! | `ngx_create_pool(size)` | [`PoolBuilder::block_size`] | With nginx all blocks are as large; here each is twice as large as the one before, up to 128 KiB. nginx has 80 bytes of the first block for itself, and some 300 are the pool's here. nginx has no trees, nor a [limit](PoolBuilder::limit) |
//! | `ngx_palloc`, `ngx_pcalloc` | [`Pool::alloc_bytes`], [`Pool::alloc_zeroed`] | nginx's is aligned to 8, here to 16. Large is, in both, what fills a page (4096 bytes) or does not fit into an empty block, of which nginx takes 80 bytes for itself, and 32 are taken here |
//! | `ngx_pnalloc` | [`Pool::alloc_unaligned`] | |
//! | `ngx_pmemalign` | [`Pool::alloc_aligned`] | nginx's is always large, so it can be freed; here it is in a block if it fits there, and then [`Pool::free`] declines |
//! | `ngx_pfree` | [`Pool::free`] | nginx's looks for the address in as many steps as there are large allocations, and what is not large stays as it is. Here the layout says whether it is large, the search goes from both ends, and the last small one is handed out again |
//! | `ngx_reset_pool` | [`Pool::reset`] | nginx's runs no cleanups, and leaves them in a list that points to memory which is handed out again; here they run, as in `clear` |
//! | `ngx_destroy_pool` | [`Pool::destroy`] or drop | |
//! | `ngx_pool_cleanup_add` | [`Pool::cleanup`] | With nginx a cleanup that a cleanup registers never runs |
//! | `cleanup->handler = NULL`, `ngx_pool_run_cleanup_file` | [`Cleanup::cancel`], [`Cleanup::run`] | |
//! | blocks with little free memory | | nginx tries a pool's blocks from the oldest one that is not passed over: one is, the 7th time that something does not fit into it. Here the one with the most free memory is tried first, and the others only when it has too little, until five things did not fit into them |
//!
//! | bumpalo | here | differences |
//! | --- | --- | --- |
//! | `Bump::new`, `with_capacity` | [`Pool::new`], [`PoolBuilder::block_size`] | `Bump::new` allocates nothing yet; here a pool has its first block from the beginning |
//! | `alloc`, `alloc_with`, `alloc_slice_clone`, `alloc_slice_fill_with`, `_clone`, `_default` | the same names | bumpalo never drops values; here they are dropped when the pool is cleared, so they must be `Send` and outlive the pool. [`Pool::alloc_plain`] takes what needs no drop, without these bounds |
//! | `alloc_slice_copy`, `alloc_slice_fill_copy`, `alloc_str`, `alloc_layout`, `try_...` | the same names | |
//! | `reset` | [`Pool::reset`], [`Pool::clear`] | bumpalo's keeps the largest chunk and runs nothing; here both run cleanups and drops, `reset` keeps all blocks, and `clear` keeps as many bytes as [`PoolBuilder::max_free`] says |
//! | `set_allocation_limit` | [`PoolBuilder::limit`] | Here it is set before the pool is made, and counts the pools below it |
//! | `allocated_bytes` | [`PoolStats::held`] | |
//! | `&Bump` as an `Allocator` | `&Pool` | Here large allocations are freed when the collection is |
//!
//! # What does not compile
//!
//! Memory must not be used after its pool was cleared,
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
//! nor a collection in it,
//!
//! ```compile_fail,E0502
//! let mut pool = dogtag_pool::Pool::new();
//! let mut list = allocator_api2::vec::Vec::new_in(&pool);
//! list.push(1);
//! pool.clear();
//! list.push(2);
//! ```
//!
//! nor a cleanup that was registered:
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
//! A thread that may outlive the pool must not have its memory,
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
//! A value that is dropped with the pool must not belong to a thread,
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
//! A value that needs a drop must not be where none would come:
//!
//! ```compile_fail,E0080
//! let pool = dogtag_pool::Pool::new();
//! pool.alloc_plain(String::from("who frees this?"));
//! ```
//!
//! # Why not on top of an arena
//!
//! The arenas of this field, `bumpalo` and `bump-scope`, allocate from one chunk, and keep one when they are
//! reset. The others go back to the allocator, so that each round asks for them again, in whichever service
//! the thread is in at that moment. APR and nginx have several open blocks, and keep memory up to a threshold,
//! which a tree shares. That cannot be built on top of one chunk; the code that allocates from the open block
//! is the small part.

#![cfg(not(dogtag_loom))]
#![deny(missing_docs)]

mod allocator;
mod block;
mod builder;
mod child;
mod cleanup;
mod data;
mod error;
mod failure;
mod large;
mod memory;
mod node;
mod pool;
mod records;
mod slices;
mod stats;
mod store;
mod text;
mod tree;
mod type_map;
mod values;

pub use builder::PoolBuilder;
pub use child::Child;
pub use cleanup::Cleanup;
pub use error::PoolError;
pub use pool::Pool;
pub use stats::PoolStats;

//! A global allocator on top of jemalloc that knows exactly which service owns every byte of a
//! running process.
//!
//! ```
//! #[global_allocator]
//! static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//!
//! # fn handle_login() {}
//! # fn main() -> Result<(), dogtag::RegisterError> {
//! let auth = dogtag::Service::register("auth")?;
//! auth.run(|| handle_login());
//! println!("{}", dogtag::snapshot());
//! # Ok(())
//! # }
//! ```
//!
//! For programs that run many services in one process (actor frameworks, game
//! servers, databases, async servers) and are asked what is eating the memory. The
//! [guide] shows how things are done, from the first line on, and answers questions.
//!
//! # What there is
//!
//! - [`Dogtag`], the allocator, over jemalloc or any other backend;
//! - [`Service`], which owns memory: [register](Service::register) it,
//!   [enter](Service::enter) it, [run](Service::run) a closure in it, or put a future
//!   [in it](InServiceExt::in_service). Services come and go in any number, and have
//!   [parents](ServiceBuilder::parent) and [limits](Service::set_hard_limit);
//! - [`thread`], threads that work for the service of the code that begins them;
//! - [`Service::usage`], [`totals`] and [`snapshot`], the figures, and [`measure`]
//!   for a piece of code;
//! - [`balance`], which says where the rest of the process's memory is;
//! - `attributed` and `ServiceLayer` (feature `tracing-layer`), which run spans of `tracing` in services;
//! - `report` (feature `report`), which shows all that by one line: at the exit, at a signal, every so
//!   often, as a table, as JSON, or as a page in the browser;
//! - exporters for Prometheus, OpenTelemetry and the crate `metrics`, and a layer for tower and axum:
//!   [crates of their own](guide#metrics);
//! - `check` (feature `memory-check`), which finds overruns, double frees and other violations,
//!   and names the owner of the block and the service that did it;
//! - the crate `dogtag-mapped`, regions of mapped memory, and another allocator for what does not
//!   fit in one;
//! - the crate [`dogtag-c`](https://docs.rs/dogtag-c), functions for C, and C's `malloc` itself: of C
//!   libraries in a Rust program, and preloaded, of any program.
//!
//! # What the figures mean
//!
//! They are exact. Every block is charged to the service that is current when it is allocated, and
//! refunded to the same service when it is freed, by any thread, in any service, in thread-local
//! destructors too. Nothing is sampled, batched or estimated, and nothing drifts. Memory that no
//! service claims belongs to the service `unattributed`.
//!
//! Bytes are the bytes that the program asked for. Rounding by the backend, its bookkeeping and the
//! cookies belong to no service: the [`Balance`] shows them for the whole process. It also shows memory
//! that foreign code allocates with `malloc`, thread stacks and mapped files, up to the process's RSS.
//!
//! # Events
//!
//! dogtag emits `tracing` events under the target `dogtag`:
//!
//! | level | event |
//! | --- | --- |
//! | trace | a service is registered, or retired |
//! | debug, info | the guard has free pages given back, and asks for what others can do without |
//! | warn | a soft limit is crossed, a hard limit denies an allocation, a service is cancelled |
//! | warn | a cancelled service does not let go of its memory; the ceiling is passed, and nobody may be cancelled |
//! | warn | a rule of `ServiceLayer` names too many services; `attributed()` cannot have some of the spans |
//! | warn | the system gave no memory for the owner of a large block, or for a thread's counters; a span could not be noted |
//! | warn | threads have more names than there are services for ([`thread::services_by_name`]) |
//! | error | the owner of a block was overwritten; a span names a service that cannot exist; memory-check found a violation |
//! | error | a callback of the guard panicked; it cannot read what is used |
//!
//! No event is emitted inside an allocation. A thread of dogtag's own emits them. Trouble that an
//! allocation found is reported at the next end of a scope or the next snapshot, at most once a second.
//! Where there is no memory for that thread, it is begun later in the same way. A forked child emits
//! events about violations only.
//!
//! # How it works
//!
//! ```text
//! Box::new ─▶ the current cell: below its threshold?   two loads, one compare
//!             the backend allocates size + 2           (from 4 KiB on: size)
//!             the cell's counters                      two additions
//!             the cookie is written                    one store
//! drop     ─▶ the cookie is read                       one load
//!             this thread's cell for that mark         three loads, one compare
//!             the cell's counters                      two additions
//!             the backend frees
//! ```
//!
//! Its owner's mark stands behind each block, the *cookie* that skynet appends. The mark of a block of
//! 4 KiB or more, which often fills a page or a size class, stands in a table beside the heap.
//!
//! Each thread counts in *cells* of its own, one for each service that it has touched. So counting needs
//! no atomic read-modify-write; a reader adds the cells up.
//!
//! Each cell has a *threshold*: the number of allocated bytes at which an allocation takes the slow path.
//! A thread that has no cells yet points at one whose threshold is 0. So the fast path does not ask about
//! rare cases. The slow path looks after limits and peaks, too: a thread takes it once for each 256 KiB
//! that it allocates for a service, or for each 64 KiB under a limit.
//!
//! `IMPLEMENTATION.md` in the repository has the layers, the pictures, the machine code, and what was
//! tried.
//!
//! # Promises
//!
//! - An allocation that fails returns null. Nothing on an allocation path panics, unwinds, aborts, locks
//!   or logs. (With `memory-check` a violation is reported, and then the process aborts.)
//! - A thread for whose cells the system has no memory counts in cells that all such threads share:
//!   slower, and as exact. A `tracing` event (level warn) reports it.
//! - A block of 4 KiB or more for whose owner the system has no memory belongs to the service
//!   `unattributed`, whatever its limit. (The table takes one MiB for each GiB of addresses, once.) A
//!   `tracing` event (level warn) reports it.
//! - With an [owner table](Dogtag::with_owner_table) no overwritten block is noticed, and a block of any size
//!   belongs to `unattributed` where there is no memory for its part of the table.
//! - Dropping a service, ending a scope, freeing and queueing an event need no memory. Events that cannot
//!   be delivered for want of memory are delivered later; those about registered and retired services are
//!   dropped.
//! - An overwritten cookie is not followed. If it cannot be the mark of a service in use, the block is
//!   counted in [`Snapshot::lost`], no figure changes, and a `tracing` event (level error) reports it. With
//!   up to 255 services a single byte written past the end of a block never looks like another service's
//!   mark; with more than 65,533 services nearly every byte does. A cookie that is another service's mark by
//!   chance is believed: that service has one free too many, and no other figure changes. Blocks of 4 KiB
//!   and more have no cookie.
//! - A forked child may allocate and free, and register, limit and drop services. Its figures begin as its
//!   parent's, but for an operation that another thread was in the middle of.
//!
//! `GUARANTEES.md` in the repository has the complete list, and the test for each promise.
//!
//! # Signals
//!
//! A signal handler may call [`totals`], [`Service::usage`], [`Service::name`], [`Service::handle`],
//! [`Service::hard_limit`] and [`Service::soft_limit`], whatever it has interrupted, an allocation too.
//! These functions neither lock nor allocate, wait for nobody, and make no system call. No figure is
//! negative there, and no counter falls. Of an interrupted allocation the bytes may be counted already,
//! and the block not yet.
//!
//! A handler may call nothing else of dogtag. It may not allocate, as with other allocators. Leaving a
//! scope or taking a snapshot may deliver an event, and dropping the last clone of a service takes a lock.
//!
//! # Before `main`
//!
//! On Linux a few functions of dogtag's run when a program is loaded, before `main`, or when a library
//! that has dogtag in it is opened (entries of `.init_array`). They note which locks a fork has to
//! take, and the first of them that prepares the process
//!
//! - allocates a block of 8 bytes from the global allocator and frees it, so that jemalloc registers
//!   its handlers of forks before dogtag does. With it comes all that a first allocation does: the
//!   backend begins, some pages are mapped for the thread's counters, a pthread key is made, and
//!   with `memory-check` the variable `DOGTAG_CHECK` is read. [`totals`] counts the block as
//!   allocated and freed by the service `unattributed`;
//! - registers handlers of forks (`pthread_atfork`), for which the C library may allocate with its
//!   own `malloc`.
//!
//! A backend of one's own must be ready for that: as a `static` it is. No thread is begun, no file
//! is read, and no code of the program is called but its global allocator. In a library that was
//! opened (glibc), a second function opens the library once more, so that it stays loaded: threads
//! call code of it when they end.
//!
//! On other systems the same is done when a service is first registered or looked up, or limited. A
//! fork that is under way on another thread at that moment does not notice.
//!
//! At a fork the handlers run on the thread that forks. Before it they take dogtag's locks (of names,
//! families, limits, jemalloc's figures and mapped regions), and wait for threads that hold them;
//! after it they release them, in the parent and in the child. They allocate nothing and call no
//! code of the program. With `memory-check` the handler before a fork also gives back
//! memory, for which it looks through the states of blocks.
//!
//! With the feature `interpose` the C library and other constructors allocate here before that, as
//! soon as the loader has them; the documentation of `dogtag-c` says more.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `jemalloc` | yes | jemalloc as the default backend; without it, the system's allocator |
//! | `jemalloc-stats` | yes | jemalloc's own figures in snapshots; keeping them costs jemalloc itself a few percent in the tightest loops |
//! | `disable-initial-exec-tls` | no | a library with dogtag can be opened while a program runs, such as a Python extension module: [Plug-ins](guide#plug-ins) |
//! | `memory-check` | no | the module `check`: every block is surrounded by guards, and looked at when it is freed; for debug builds and CI |
//! | `guard` | no | the module `guard`: cancelling services, budgets at which they are cancelled, and a ceiling for the process |
//! | `serde` | no | `Serialize` and `Deserialize` for [`Snapshot`] and what is in it |
//! | `stream` | no | [`InService`] is a `Stream` (of the crate `futures-core`) of what is one |
//! | `profile` | no | the module `profile`: a live heap profile by service and call stack |
//! | `sampled-guard` | no | the module `sampled_guard`: one allocation in some thousands stands alone between pages without access, in production |
//! | `report` | no | the module `report`: tables at the exit, at a signal or every so often, and a page in the browser |
//! | `tracing-layer` | no | `ServiceLayer`, a layer for subscribers of `tracing-subscriber` |
//! | `allocator-api2` | no | `Allocator` for `&Dogtag`: collections on an instance of their own |
//!
//! For 64-bit Unix-like systems; tested on x86-64 Linux, where the hot path is at
//! its shortest.

#![deny(missing_docs, missing_debug_implementations)]
// The README's programs are compiled and run like the other examples.
#![cfg_attr(all(doctest, feature = "report", feature = "tracing-layer"), doc = include_str!("../README.md"))]
#![cfg_attr(dogtag_loom, allow(dead_code, unused_imports))]

// IMPLEMENTATION.md lists the modules in layers, from the ground up, with what each holds. A module
// uses only lower modules (further up in that table).
#[cfg(not(dogtag_loom))]
#[doc(hidden)]
pub mod __private;
#[cfg(not(dogtag_loom))]
mod allocator;
#[cfg(not(dogtag_loom))]
mod arenas;
mod backend;
#[cfg(not(dogtag_loom))]
mod balance;
#[cfg(feature = "memory-check")]
pub mod check;
#[cfg(not(dogtag_loom))]
mod contained;
#[cfg(not(dogtag_loom))]
mod events;
#[cfg(not(dogtag_loom))]
mod format;
#[cfg(all(feature = "guard", not(dogtag_loom)))]
pub mod guard;
#[cfg(all(any(doc, doctest), not(dogtag_loom)))]
pub mod guide;
#[cfg(all(feature = "tracing-layer", not(dogtag_loom)))]
mod layer;
mod ledger;
#[cfg(not(dogtag_loom))]
mod measure;
#[cfg_attr(feature = "memory-check", allow(dead_code, reason = "memory-check keeps owners elsewhere"))]
mod owner;
#[cfg(all(feature = "profile", not(dogtag_loom)))]
pub mod profile;
#[cfg(not(dogtag_loom))]
mod registered;
#[cfg(all(feature = "report", not(dogtag_loom)))]
pub mod report;
#[cfg(all(feature = "sampled-guard", not(dogtag_loom)))]
pub mod sampled_guard;
#[cfg(not(any(feature = "sampled-guard", feature = "memory-check", dogtag_loom)))]
mod sampled_guard {
    #[path = "off.rs"]
    pub(crate) mod blocks;
}
#[cfg(not(dogtag_loom))]
mod series;
#[cfg(not(dogtag_loom))]
mod service;
// What has a model.
#[cfg(dogtag_loom)]
mod service {
    mod chosen_or_assigned;
}
#[cfg(not(dogtag_loom))]
mod snapshot;
mod sync;
mod sys;
#[cfg(not(dogtag_loom))]
pub mod thread;
#[cfg(any(test, all(feature = "sampled-guard", not(any(feature = "memory-check", dogtag_loom)))))]
mod token_bucket;
#[cfg(all(any(feature = "memory-check", feature = "profile", feature = "sampled-guard"), not(dogtag_loom)))]
mod unwind;
mod usage;

#[cfg(feature = "jemalloc")]
pub use backend::Jemalloc;
pub use backend::{DefaultBackend, JemallocStats};
#[cfg(all(feature = "tracing-layer", not(dogtag_loom)))]
pub use layer::{Attributed, ServiceLayer, Unattributed, UnattributedExt, attributed};
pub use owner::{Cookies, OwnerPlace, OwnerTable};
pub use usage::Usage;
#[cfg(not(dogtag_loom))]
pub use {
    allocator::Dogtag,
    arenas::{Region, RegionStats},
    balance::{Balance, BalanceLine, balance},
    measure::measure,
    service::{InService, InServiceExt, RegisterError, Scope, Service, ServiceBuilder},
    snapshot::{Cancellation, Cancellations, Lost, Quarantine, Row, Snapshot, snapshot, totals},
};

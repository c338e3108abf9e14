//! `GlobalAlloc`, nothing else: gets memory from the backend, has the ledger
//! count it, and marks it with its owner. [`plain`] does that in as few
//! instructions as will do; [`checked`] takes its place with the feature
//! `memory-check`, and looks at every block.

#[cfg(feature = "memory-check")]
mod checked;
#[cfg(feature = "allocator-api2")]
mod collections;
#[cfg(not(feature = "memory-check"))]
mod plain;

use crate::backend::DefaultBackend;
#[cfg(feature = "memory-check")]
use crate::check::Checker;
use crate::ledger::thread::Counts;
use crate::owner::{Cookies, OwnerTable};
#[cfg(doc)]
use std::alloc::System;
use std::alloc::{GlobalAlloc, Layout};
use std::marker::PhantomData;

/// Charges every block that it allocates to the service that asked for it: a global allocator.
///
/// `B` is the backend, the allocator that really holds the memory: any [`GlobalAlloc`], and
/// [`DefaultBackend`] where none is named, which is jemalloc, or the system's allocator without the
/// feature `jemalloc`. `Dogtag` is the same type in both cases: no feature that another crate turns
/// on changes it. Several instances may be in use, with different backends;
/// they share one ledger.
///
/// An allocation and its free each cost a few plain loads and stores
/// more than the backend's own: no lock, no locked instruction, no system call.
/// (The slow path, such as a thread's first allocation, may map memory.)
/// The cookie behind each block is 2 bytes that name its owner (6 for services beyond
/// the first 65,533 of a process, and for blocks that the profiler samples). Blocks of 4 KiB and more have their owner in a
/// table beside the heap instead (4 bytes for each 4 KiB of addresses in which there are
/// such blocks), if the backend is a type without fields, as `Jemalloc`,
/// [`System`] and the default are. [`with_owner_table`](Dogtag::with_owner_table) keeps
/// all owners in a table instead, by the page. The feature
/// `memory-check` puts guards and a header around each block instead.
///
/// `P` says which of the two it is: [`Cookies`], or [`OwnerTable`].
///
/// An allocation that fails returns null, so `try_reserve` works. No function of the allocator
/// panics, unwinds or aborts (except memory-check, over a violation).
///
/// All blocks must be freed before an allocator is dropped. With `memory-check`, dropping it gives the
/// blocks in its quarantine back to the backend, for which it searches the addresses between them.
///
/// ```
/// #[global_allocator]
/// static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
///
/// let service = dogtag::Service::register("greeter").unwrap();
/// let greeting = service.run(|| String::from("hello"));
/// assert_eq!(service.usage().bytes(), 5);
/// drop(greeting);
/// assert_eq!(service.usage().bytes(), 0);
/// ```
#[derive(Debug, Default)]
pub struct Dogtag<B = DefaultBackend, P = Cookies> {
    backend: B,
    place: PhantomData<fn() -> P>,
    #[cfg(feature = "memory-check")]
    checker: Checker,
}

impl Dogtag {
    /// Makes an allocator on top of the default backend.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_backend(DefaultBackend::new())
    }
}

impl Dogtag<DefaultBackend, OwnerTable> {
    /// Makes an allocator on top of the default backend that keeps the owners of blocks in a table by the page,
    /// instead of in a cookie behind each block.
    ///
    /// Blocks stay as large as they were asked for, and a free touches no memory that the backend's own would
    /// not touch, but the table's 2 bytes for each 4 KiB. That suits programs with much long-lived memory and few services
    /// that allocate side by side: caches, indexes, parsers.
    ///
    /// Where services take turns block by block, as actors and tasks with a service for each
    /// request do, a page has blocks of several owners. Then each block's owner stands in the table: 2 bytes for each 16
    /// bytes of the page, and a second look. Cookies ([`Dogtag::new`]) cost the same whoever
    /// allocates, and less where blocks are freed at once.
    ///
    /// What it gives up: nothing notices that a block's end was overwritten, since no cookie stands there.
    /// And the table takes 32 MiB of address space for each 128 MiB that the heap touches, and 4 MiB for each 4 GiB, of which
    /// only what is written takes memory. Where the system refuses it (`ulimit -v`, strict overcommit), blocks
    /// there belong to the service `unattributed`, and a `tracing` event (level warn) reports it.
    ///
    /// The feature `memory-check` has its own place for owners; the choice means nothing with it.
    ///
    /// ```
    /// use dogtag::{DefaultBackend, Dogtag, OwnerTable};
    ///
    /// #[global_allocator]
    /// static ALLOC: Dogtag<DefaultBackend, OwnerTable> = Dogtag::with_owner_table();
    ///
    /// let service = dogtag::Service::register("greeter").unwrap();
    /// let greeting = service.run(|| String::from("hello"));
    /// assert_eq!(service.usage().bytes(), 5);
    /// ```
    #[must_use]
    pub const fn with_owner_table() -> Self {
        Self::with_backend_and_owner_table(DefaultBackend::new())
    }
}

impl<B> Dogtag<B, OwnerTable> {
    /// Makes an allocator on top of `backend` that keeps the owners of blocks in a table by the page, as
    /// [`with_owner_table`](Dogtag::with_owner_table).
    ///
    /// The table has one place for an address, for all instances. So the backend must be a type without fields,
    /// or this does not compile. Its blocks must begin at multiples of 8 bytes, as those of jemalloc
    /// and of the system's allocators do, and must not be in memory that it got from another instance with an
    /// owner table: otherwise blocks may be refunded to others than they were charged to.
    ///
    /// ```
    /// use dogtag::{Dogtag, OwnerTable};
    /// use std::alloc::System;
    ///
    /// #[global_allocator]
    /// static ALLOC: Dogtag<System, OwnerTable> = Dogtag::with_backend_and_owner_table(System);
    /// # fn main() {}
    /// ```
    ///
    /// ```compile_fail
    /// use dogtag::Dogtag;
    ///
    /// struct Arena(u64);
    ///
    /// let arena = Dogtag::with_backend_and_owner_table(Arena(0));
    /// ```
    #[must_use]
    pub const fn with_backend_and_owner_table(backend: B) -> Self {
        const { assert!(size_of::<B>() == 0, "an owner table is for backends without fields") };
        Self::make(backend)
    }
}

impl<B> Dogtag<B> {
    /// Makes an allocator on top of `backend`.
    ///
    /// A backend may get its memory from another instance, as an arena does. If it is
    /// a type without fields (with its state in a static), it must not hand
    /// out a block of 4 KiB or more that begins in the same 4 KiB as the memory that it
    /// got: the owners of both would share one entry.
    ///
    /// ```
    /// use std::alloc::System;
    ///
    /// #[global_allocator]
    /// static ALLOC: dogtag::Dogtag<System> = dogtag::Dogtag::with_backend(System);
    /// # fn main() {}
    /// ```
    #[must_use]
    pub const fn with_backend(backend: B) -> Self {
        Self::make(backend)
    }
}

impl<B, P> Dogtag<B, P> {
    const fn make(backend: B) -> Self {
        Self {
            backend,
            place: PhantomData,
            #[cfg(feature = "memory-check")]
            checker: Checker::new(),
        }
    }

    /// Returns the backend.
    ///
    /// ```
    /// use dogtag::Dogtag;
    /// use std::alloc::System;
    ///
    /// let alloc = Dogtag::with_backend(System);
    /// let _: &System = alloc.backend();
    /// ```
    #[must_use]
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// The backend, to ask it for what is counted.
    #[inline(always)]
    const fn counted(&self) -> Counted<'_, B> {
        Counted(&self.backend)
    }
}

/// An instance's backend, asked for what the instance counts.
///
/// An arena may be asked by anybody, and reports to the balance which of its bytes are counted: so a
/// thread says when it counts. A backend without fields is asked as it is, since none is an arena.
struct Counted<'a, B>(&'a B);

impl<B> Counted<'_, B> {
    /// To be held while the backend is asked. (Not a function that calls a closure: that would be
    /// one call more on the hot path, since a closure is not always inlined.)
    #[inline(always)]
    fn begin(&self) -> Option<Counts> {
        if size_of::<B>() == 0 { None } else { Some(Counts::begin()) }
    }
}

// SAFETY: each function is the backend's own, so all blocks are the backend's.
unsafe impl<B: GlobalAlloc> GlobalAlloc for Counted<'_, B> {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _counts = self.begin();
        // SAFETY: the caller's layout, which is not empty.
        unsafe { self.0.alloc(layout) }
    }

    #[inline(always)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let _counts = self.begin();
        // SAFETY: the caller's layout, which is not empty.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let _counts = self.begin();
        // SAFETY: the block is a live one of the backend, with that layout.
        unsafe { self.0.dealloc(block, layout) };
    }

    #[inline(always)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let _counts = self.begin();
        // SAFETY: the block is a live one of the backend, with that layout; the new size is valid for it.
        unsafe { self.0.realloc(block, layout, new_size) }
    }
}

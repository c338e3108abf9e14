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
#[cfg(doc)]
use std::alloc::System;
use std::alloc::{GlobalAlloc, Layout};

/// A global allocator that charges every block to the service that asked for it.
///
/// `B` is the backend, the allocator that really holds the memory: any [`GlobalAlloc`], and
/// [`DefaultBackend`] where none is named, which is jemalloc, or the system's allocator without the
/// feature `jemalloc`. `Dogtag` is the same type in both cases: no feature that another crate turns
/// on changes it. Several instances may be in use, with different backends;
/// they share one ledger.
///
/// An allocation and its free each cost a handful of plain loads and stores
/// more than the backend's own: no lock, no locked instruction, no system call.
/// (All that is rare, such as a thread's first allocation, may map memory.)
/// Behind each block stand 2 bytes that name its owner (6 for services beyond
/// the first 65,533 of a process). Blocks of 4 KiB and more have their owner in a
/// table beside the heap instead (4 bytes for each 4 KiB of addresses where there are
/// such blocks), if the backend is a type without fields, as `Jemalloc`,
/// [`System`] and the default are. All this is otherwise with the feature
/// `memory-check`, which finds what is done to blocks that must not be.
///
/// An allocator that is dropped gives back what its quarantine holds (with
/// `memory-check`; it looks through the addresses between its blocks for that). Blocks
/// must be freed before.
///
/// An allocation that fails returns null, so `try_reserve` works; nothing here
/// panics, unwinds or aborts (but for memory-check, over a crime).
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
pub struct Dogtag<B = DefaultBackend> {
    backend: B,
    #[cfg(feature = "memory-check")]
    checker: Checker,
}

impl Dogtag {
    /// An allocator on top of the default backend.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_backend(DefaultBackend::new())
    }
}

impl<B> Dogtag<B> {
    /// An allocator on top of `backend`.
    ///
    /// A backend may get its memory from another instance, as an arena does. If it is
    /// a type without fields, though (with all it knows in a static), it must not hand
    /// out a block of 4 KiB or more that begins in the same 4 KiB as the memory that it
    /// got: there is one place for the owner of both.
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
        Self {
            backend,
            #[cfg(feature = "memory-check")]
            checker: Checker::new(),
        }
    }

    /// The backend.
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
/// An arena may be asked by anybody, and tells the balance which of its bytes are counted: so a
/// thread says when it counts. A backend without fields is asked as it is, since none is an arena.
struct Counted<'a, B>(&'a B);

impl<B> Counted<'_, B> {
    #[inline(always)]
    fn with<R>(&self, ask: impl FnOnce(&B) -> R) -> R {
        let _counts = (size_of::<B>() > 0).then(crate::ledger::thread::Counts::begin);
        ask(self.0)
    }
}

// SAFETY: the backend's own.
unsafe impl<B: GlobalAlloc> GlobalAlloc for Counted<'_, B> {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        self.with(|backend| unsafe { backend.alloc(layout) })
    }

    #[inline(always)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        self.with(|backend| unsafe { backend.alloc_zeroed(layout) })
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        self.with(|backend| unsafe { backend.dealloc(block, layout) });
    }

    #[inline(always)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        self.with(|backend| unsafe { backend.realloc(block, layout, new_size) })
    }
}

//! The public face of a region: builder, figures, and the two ways to allocate from it: uncounted as
//! a backend, counted as the allocator of collections.

use crate::error::MapError;
use crate::fallback::Owns;
use crate::mapping::{HugePages, Plan, Protection};
use crate::registry;
use crate::window::Window;
use allocator_api2::alloc::{AllocError, Allocator};
use dogtag::__private::stays_mapped;
use dogtag::{Dogtag, RegionStats};
use std::alloc::{GlobalAlloc, Layout};
use std::fmt;
use std::fs::File;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// A window of mapped memory, and an allocator of blocks in it.
///
/// Dropping it unmaps the window. Collections borrow the region, so the compiler makes sure that they
/// are dropped first; blocks that were allocated by way of [`GlobalAlloc`] must be freed before, or
/// never used again. With `memory-check` a region that is dropped while blocks in it are live is
/// reported, and the window stays mapped. Memory that a collection has leaked
/// ([`mem::forget`](std::mem::forget)) goes with the window, but stays on its service's account.
///
/// ```compile_fail,E0505
/// let region = dogtag_mapped::MappedRegion::anonymous(4096)?;
/// let numbers = allocator_api2::vec::Vec::<u32, _>::with_capacity_in(10, &region);
/// drop(region);
/// drop(numbers);
/// # Ok::<(), dogtag_mapped::MapError>(())
/// ```
pub struct MappedRegion {
    /// Counts for collections. As a backend the region is asked without this.
    counted: Dogtag<Raw>,
}

/// The region without counting.
struct Raw {
    /// Owned by this region; null until it is mapped. Changes once, from null.
    window: AtomicPtr<Window>,
    /// Whether a deferred region could not be mapped at its first use.
    has_failed: AtomicBool,
    len: usize,
}

/// Builder of a [`MappedRegion`], made by [`MappedRegion::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder maps nothing until `map` is called"]
pub struct RegionBuilder<'a> {
    plan: Plan<'a>,
    granularity: usize,
}

impl MappedRegion {
    /// Maps private, zeroed memory: `len` bytes, rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// [`MapError::Empty`] and [`MapError::OutOfMemory`].
    pub fn anonymous(len: usize) -> Result<Self, MapError> {
        Self::builder(len).map()
    }

    /// Maps `len` bytes of a file from `offset` on, shared with all processes that map it. The file may
    /// be any that can be mapped: in `tmpfs`, a memfd, of `hugetlbfs`, `/dev/mem`.
    ///
    /// # Safety
    ///
    /// The conditions of [`RegionBuilder::file`].
    ///
    /// # Errors
    ///
    /// [`MapError::Empty`], [`MapError::BeyondFile`], [`MapError::MisalignedOffset`],
    /// [`MapError::Permission`], [`MapError::OutOfMemory`], and [`MapError::System`] for a file
    /// that cannot be mapped.
    pub unsafe fn file(file: &File, offset: u64, len: usize) -> Result<Self, MapError> {
        // SAFETY: nobody changes or cuts what is allocated in this part of the file, as this
        // function's conditions are those of the builder's.
        unsafe { Self::builder(len).file(file, offset) }.map()
    }

    /// Makes a region of private, zeroed memory that is mapped at the first allocation, so that it can
    /// stand in a `static` and be a backend of the global allocator. If it cannot be mapped then, all
    /// its allocations fail. Asking for its figures does not map it.
    ///
    /// ```
    /// use dogtag_mapped::{Fallback, MappedRegion};
    /// use dogtag::Dogtag;
    /// use std::alloc::System;
    ///
    /// #[global_allocator]
    /// static ALLOC: Dogtag<Fallback<MappedRegion, System>> =
    ///     Dogtag::with_backend(Fallback::new(MappedRegion::deferred(1 << 20), System));
    ///
    /// # fn main() {
    /// let text = String::from("in the window");
    /// assert!(ALLOC.backend().primary().contains(text.as_ptr()));
    /// # }
    /// ```
    #[must_use]
    pub const fn deferred(len: usize) -> Self {
        let (window, has_failed) = (AtomicPtr::new(ptr::null_mut()), AtomicBool::new(false));
        Self { counted: Dogtag::with_backend(Raw { window, has_failed, len }) }
    }

    /// Maps a [deferred](Self::deferred) region now, unless it is mapped already: to learn why it cannot
    /// be mapped, or to try again.
    ///
    /// # Errors
    ///
    /// [`MapError::Empty`] and [`MapError::OutOfMemory`].
    pub fn ensure_mapped(&self) -> Result<(), MapError> {
        self.raw().map()
    }

    /// Begins to build a region of `len` bytes, rounded up to whole pages.
    ///
    /// ```
    /// use dogtag_mapped::{HugePages, MappedRegion};
    ///
    /// let region = MappedRegion::builder(4 << 20)
    ///     .name("samples")
    ///     .huge_pages(HugePages::Transparent)
    ///     .guard_pages()
    ///     .map()?;
    /// assert_eq!(region.stats().free, 4 << 20);
    /// # Ok::<(), dogtag_mapped::MapError>(())
    /// ```
    pub fn builder<'a>(len: usize) -> RegionBuilder<'a> {
        RegionBuilder { plan: Plan::anonymous(len), granularity: 16 }
    }

    /// Returns the window's first address, or `None` for a deferred region that is not mapped.
    #[must_use]
    pub fn start(&self) -> Option<NonNull<u8>> {
        self.raw().mapped().map(Window::start)
    }

    /// Returns the window's size in bytes: as requested, rounded up to whole pages, but never beyond the
    /// end of a file. 0 for a deferred region that is not mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw().mapped().map_or(0, Window::len)
    }

    /// Returns whether there is no window: a deferred region that is not mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether an address is in the window.
    #[must_use]
    pub fn contains<T>(&self, address: *const T) -> bool {
        self.raw().owns(address.cast())
    }

    /// Returns an address's distance from the window's beginning in bytes, by which another process
    /// that maps the same file finds it with [`at`](Self::at); `None` if it is not in the window.
    #[must_use]
    pub fn offset_of<T>(&self, address: *const T) -> Option<usize> {
        let start = self.start()?.addr().get();
        self.contains(address).then(|| address.addr() - start)
    }

    /// Returns the address of a `T` that is `offset` bytes from the window's beginning: `None` if it
    /// would not be aligned there, or not all of it in the window. It does not look whether there is a
    /// valid `T`; the caller must know before dereferencing.
    ///
    /// ```
    /// # let region = dogtag_mapped::MappedRegion::anonymous(4096)?;
    /// let number = allocator_api2::boxed::Box::new_in(7_u32, &region);
    /// let offset = region.offset_of(&raw const *number).unwrap();
    /// // SAFETY: there is a number, which nobody changes.
    /// assert_eq!(unsafe { *region.at::<u32>(offset).unwrap().as_ref() }, 7);
    /// assert!(region.at::<u32>(offset + 1).is_none() && region.at::<u32>(4096).is_none());
    /// # Ok::<(), dogtag_mapped::MapError>(())
    /// ```
    #[must_use]
    pub fn at<T>(&self, offset: usize) -> Option<NonNull<T>> {
        self.slice_at::<T>(offset, 1).map(NonNull::cast)
    }

    /// Returns the address of `len` values of type `T`, one behind the other, that begin `offset` bytes
    /// from the window's beginning: `None` if they would not be aligned there, or not all of them in the
    /// window. The caller must know that they are valid before dereferencing.
    #[must_use]
    pub fn slice_at<T>(&self, offset: usize, len: usize) -> Option<NonNull<[T]>> {
        let end = size_of::<T>().checked_mul(len)?.checked_add(offset)?;
        // SAFETY: `offset <= end <= len`, so the sum is in the window, or at its end.
        let first = (end <= self.len()).then(|| self.start().map(|start| unsafe { start.add(offset) }))??;
        let is_aligned = first.addr().get().is_multiple_of(align_of::<T>());
        is_aligned.then(|| NonNull::slice_from_raw_parts(first.cast(), len))
    }

    /// Returns the region's figures: all 0 for a deferred region that is not mapped.
    #[must_use]
    pub fn stats(&self) -> RegionStats {
        self.raw().mapped().map(Window::stats).unwrap_or_default()
    }

    /// Gives the pages of free ranges back to the system, and returns how many bytes these are. They
    /// are zero when they are used again. For a shared file this punches holes into it, also where it
    /// had contents before it was mapped. Pages that are [locked](RegionBuilder::lock), and those of a
    /// file that is mapped [privately](RegionBuilder::private), cannot be given back.
    pub fn trim(&self) -> usize {
        self.raw().mapped().map_or(0, Window::trim)
    }

    fn raw(&self) -> &Raw {
        self.counted.backend()
    }
}

impl<'a> RegionBuilder<'a> {
    /// Maps a part of a file instead of anonymous memory, from `offset` on, a multiple of the page
    /// size. It is shared, unless [`private`](Self::private) is called after this. Files of `hugetlbfs`
    /// have huge pages. The file's contents count as free.
    ///
    /// # Safety
    ///
    /// As long as the region exists, nobody else may change or truncate the part of the file that
    /// blocks are allocated in. In particular at most one of all regions that map the same part may be
    /// used to allocate, to free or to [trim](MappedRegion::trim). The others find blocks by their
    /// [offset](MappedRegion::at); [`Protection::Read`] keeps them from more.
    pub unsafe fn file(mut self, file: &'a File, offset: u64) -> Self {
        (self.plan.file, self.plan.is_shared) = (Some((file, offset)), true);
        self
    }

    /// Shares the pages: with all processes that map the same file, and with forked children. After a
    /// fork only one of the processes may allocate in the region, free or [trim](MappedRegion::trim),
    /// since each would take for free what the other has allocated.
    pub fn shared(mut self) -> Self {
        self.plan.is_shared = true;
        self
    }

    /// Keeps what is written to the pages from other processes (copy on write).
    pub fn private(mut self) -> Self {
        self.plan.is_shared = false;
        self
    }

    /// Sets what may be done to the pages; [`Protection::ReadWrite`] otherwise.
    pub fn protection(mut self, protection: Protection) -> Self {
        self.plan.protection = protection;
        self
    }

    /// Sets the size of the pages; the system's choice otherwise.
    pub fn huge_pages(mut self, huge_pages: HugePages) -> Self {
        self.plan.huge_pages = huge_pages;
        self
    }

    /// Populates the pages when the region is mapped, as far as there is memory, rather than at their
    /// first use.
    pub fn populate(mut self) -> Self {
        self.plan.is_populated = true;
        self
    }

    /// Locks the pages in memory: they are never swapped.
    pub fn lock(mut self) -> Self {
        self.plan.is_locked = true;
        self
    }

    /// Adds a page in front of the window and one behind it that fault when they are touched.
    pub fn guard_pages(mut self) -> Self {
        self.plan.has_guards = true;
        self
    }

    /// Sets the region's name in snapshots (`region` otherwise), and in `/proc/self/maps` where the
    /// kernel can show it (Linux 5.17, anonymous memory). Snapshots have its first 64 bytes.
    pub fn name(mut self, name: &'a str) -> Self {
        self.plan.name = name;
        self
    }

    /// Sets the granularity, of which the address and size of each block are multiples: a power of two
    /// up to the page size, 16 otherwise. Windows of 34 GiB and more have a coarser one; none can have
    /// more than 2³¹ pages. The tables take 12 bytes of address space for each granule, and memory
    /// only where blocks are.
    pub fn granularity(mut self, bytes: usize) -> Self {
        self.granularity = bytes;
        self
    }

    /// Maps the region.
    ///
    /// # Errors
    ///
    /// Every variant of [`MapError`].
    pub fn map(self) -> Result<MappedRegion, MapError> {
        let region = MappedRegion::deferred(self.plan.len);
        let raw = region.raw();
        // SAFETY: the window is in `raw`, whose drop removes it from the registry and then ends it.
        unsafe {
            let window = Window::map(&self.plan, self.granularity)?;
            raw.window.store(window.as_ptr(), Ordering::Release);
            registry::add(window);
        }
        Ok(region)
    }
}

impl Raw {
    /// Returns the window; maps a deferred region's.
    fn window(&self) -> Option<&Window> {
        self.mapped().or_else(|| self.first_use())
    }

    fn mapped(&self) -> Option<&Window> {
        // SAFETY: `window` is null or points to a window that only the drop of `self` ends.
        unsafe { self.window.load(Ordering::Acquire).as_ref() }
    }

    #[cold]
    fn first_use(&self) -> Option<&Window> {
        if !self.has_failed.load(Ordering::Relaxed) && self.map().is_err() {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        self.mapped()
    }

    fn map(&self) -> Result<(), MapError> {
        // SAFETY: the window is put into `self.window`, and only the drop of `self` ends it, once.
        registry::add_first(&self.window, || unsafe { Window::map(&Plan::anonymous(self.len), 16) })
    }

    fn owns(&self, address: *const u8) -> bool {
        self.mapped().is_some_and(|window| window.owns(address))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let Some(window) = NonNull::new(*self.window.get_mut()) else { return };
        // SAFETY: a mapped window is in the registry, and `&mut self` says that nobody else uses it.
        unsafe {
            registry::remove(window);
            let blocks = window.as_ref().stats().blocks;
            if blocks > 0 && stays_mapped(window.as_ref().start().addr().get()) {
                // Whoever has the blocks goes on using them.
                return;
            }
            Window::end(window);
        }
    }
}

// SAFETY: blocks of the window do not overlap, and stay until they are freed.
unsafe impl GlobalAlloc for Raw {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = self.window().and_then(|window| window.allocate(layout, false));
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let block = self.window().and_then(|window| window.allocate(layout, true));
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let (Some(window), Some(block)) = (self.window(), NonNull::new(block)) {
            // SAFETY: `block` is live, from this window, and of that layout, as for this method.
            unsafe { window.free(block, layout) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let (Some(window), Some(start)) = (self.window(), NonNull::new(block)) else {
            return ptr::null_mut();
        };
        // SAFETY: `block` is live and of that layout, and `new_size` fits its alignment, as for
        // `GlobalAlloc::realloc`; both blocks have the bytes that are copied.
        unsafe {
            if window.resize(start, layout, new_size) {
                return block;
            }
            let new = Layout::from_size_align_unchecked(new_size, layout.align());
            let Some(moved) = window.allocate(new, false) else { return ptr::null_mut() };
            moved.copy_from_nonoverlapping(start, layout.size().min(new_size));
            window.free(start, layout);
            moved.as_ptr()
        }
    }
}

/// As a backend: blocks are counted by the [`Dogtag`] in front of it, if there is one.
// SAFETY: passes everything on to `Raw`, which keeps to the contract.
unsafe impl GlobalAlloc for MappedRegion {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the conditions of this method are those of the one called.
        unsafe { self.raw().alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the conditions of this method are those of the one called.
        unsafe { self.raw().alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the conditions of this method are those of the one called.
        unsafe { self.raw().dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the conditions of this method are those of the one called.
        unsafe { self.raw().realloc(block, layout, new_size) }
    }
}

// SAFETY: the window's addresses are its own as long as it is mapped, and all of its blocks are there.
unsafe impl Owns for MappedRegion {
    fn owns(&self, block: *const u8) -> bool {
        self.raw().owns(block)
    }
}

/// As the allocator of collections: blocks are charged to services like any others.
// SAFETY: passes everything on to `&Dogtag<Raw>`; the borrow keeps the region mapped.
unsafe impl Allocator for &MappedRegion {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        (&self.counted).allocate(layout)
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        (&self.counted).allocate_zeroed(layout)
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: `block` is from this allocator, and the layouts fit it, as for this method.
        unsafe { (&self.counted).deallocate(block, layout) };
    }

    unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: `block` is from this allocator, and the layouts fit it, as for this method.
        unsafe { (&self.counted).grow(block, old, new) }
    }

    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: `block` is from this allocator, and the layouts fit it, as for this method.
        unsafe { (&self.counted).grow_zeroed(block, old, new) }
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: `block` is from this allocator, and the layouts fit it, as for this method.
        unsafe { (&self.counted).shrink(block, old, new) }
    }
}

impl fmt::Debug for MappedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedRegion").field("start", &self.start()).field("stats", &self.stats()).finish()
    }
}

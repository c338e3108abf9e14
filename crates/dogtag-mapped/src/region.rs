//! A region as a program has it: what it is mapped by, asked about, and allocated from, uncounted
//! as a backend and counted as the allocator of collections.

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

/// A window of memory that is mapped, and blocks in it: [the module](super) tells of it.
///
/// To drop it unmaps the window. Collections borrow it, and so go first, which the compiler sees
/// to; blocks that were allocated by way of [`GlobalAlloc`] must have been freed, or must not be
/// used any more. With `memory-check` it is reported if there are any, and the window stays.
/// What a collection has leaked ([`mem::forget`](std::mem::forget)) goes with the window, but
/// stays on its service's account.
///
/// ```compile_fail,E0505
/// let region = dogtag_mapped::MappedRegion::anonymous(4096)?;
/// let numbers = allocator_api2::vec::Vec::<u32, _>::with_capacity_in(10, &region);
/// drop(region);
/// drop(numbers);
/// # Ok::<(), dogtag_mapped::MapError>(())
/// ```
pub struct MappedRegion {
    /// What collections allocate is counted; the backend of another allocator is not.
    counted: Dogtag<Raw>,
}

/// The region, uncounted.
struct Raw {
    /// This region's alone; null until it is mapped.
    window: AtomicPtr<Window>,
    /// Of a deferred region: it could not be mapped.
    has_failed: AtomicBool,
    len: usize,
}

/// Maps a region in steps: [`MappedRegion::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use = "the region is mapped by `map`"]
pub struct RegionBuilder<'a> {
    plan: Plan<'a>,
    granularity: usize,
}

impl MappedRegion {
    /// Memory of nobody else's, zeroed; so many bytes, rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// [`MapError::Empty`] and [`MapError::NoRoom`].
    pub fn anonymous(len: usize) -> Result<Self, MapError> {
        Self::builder(len).map()
    }

    /// A part of a file that can be mapped (in `tmpfs`, a memfd, of `hugetlbfs`, `/dev/mem`),
    /// shared with all that map it.
    ///
    /// # Safety
    ///
    /// As of [`RegionBuilder::file`].
    ///
    /// # Errors
    ///
    /// [`MapError::Empty`], [`MapError::BeyondFile`], [`MapError::MisalignedOffset`],
    /// [`MapError::Permission`], [`MapError::NoRoom`], and [`MapError::System`] for a file
    /// that cannot be mapped.
    pub unsafe fn file(file: &File, offset: u64, len: usize) -> Result<Self, MapError> {
        // SAFETY: the caller's promise.
        unsafe { Self::builder(len).file(file, offset) }.map()
    }

    /// As [`anonymous`](Self::anonymous), but mapped when it is used first, so that it can be
    /// a static, and a backend of the global allocator. If that fails, it has room for
    /// nothing. (What asks about it does not use it.)
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

    /// Maps a [deferred](Self::deferred) region, unless it is mapped: to hear why it cannot be, or
    /// to try again.
    ///
    /// # Errors
    ///
    /// [`MapError::Empty`] and [`MapError::NoRoom`].
    pub fn ensure_mapped(&self) -> Result<(), MapError> {
        self.raw().map()
    }

    /// Maps a region of so many bytes in steps.
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

    /// Where the window begins; `None` of a deferred region that is not mapped.
    pub fn start(&self) -> Option<NonNull<u8>> {
        self.raw().mapped().map(Window::start)
    }

    /// Bytes of the window: those that were asked for, rounded up to whole pages, but for what
    /// would be beyond the end of a file.
    pub fn len(&self) -> usize {
        self.raw().mapped().map_or(0, Window::len)
    }

    /// Whether there is no window.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an address is in the window.
    pub fn contains<T>(&self, address: *const T) -> bool {
        self.raw().owns(address.cast())
    }

    /// How far from the window's beginning an address is, in bytes: what another process that has
    /// mapped the same file finds it by.
    pub fn offset_of<T>(&self, address: *const T) -> Option<usize> {
        let start = self.start()?.addr().get();
        self.contains(address).then(|| address.addr() - start)
    }

    /// Where a value is that is so many bytes from the window's beginning: `None` if it would
    /// not be aligned there, or not all of it in the window. Whether there is one is for the caller
    /// to know.
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
    pub fn at<T>(&self, offset: usize) -> Option<NonNull<T>> {
        self.slice_at::<T>(offset, 1).map(NonNull::cast)
    }

    /// The same of several values, one behind the other.
    pub fn slice_at<T>(&self, offset: usize, len: usize) -> Option<NonNull<[T]>> {
        let end = size_of::<T>().checked_mul(len)?.checked_add(offset)?;
        // SAFETY: it is in the window, or at its end.
        let first = (end <= self.len()).then(|| self.start().map(|start| unsafe { start.add(offset) }))??;
        let is_aligned = first.addr().get().is_multiple_of(align_of::<T>());
        is_aligned.then(|| NonNull::slice_from_raw_parts(first.cast(), len))
    }

    /// What there is of the region.
    pub fn stats(&self) -> RegionStats {
        self.raw().mapped().map(Window::stats).unwrap_or_default()
    }

    /// Gives the pages of free ranges back to the system, and returns how many bytes that were.
    /// They are zero when they are used again. Of a shared file they are taken out of it, also
    /// what was there before. Pages that are [locked](RegionBuilder::lock), and those of a file that
    /// is mapped [privately](RegionBuilder::private), cannot be given back.
    pub fn trim(&self) -> usize {
        self.raw().mapped().map_or(0, Window::trim)
    }

    fn raw(&self) -> &Raw {
        self.counted.backend()
    }
}

impl<'a> RegionBuilder<'a> {
    /// A part of a file, from a multiple of the page size on, instead of anonymous memory.
    /// Shared, unless [`private`](Self::private) is said after this. Its pages are huge ones if
    /// it is of `hugetlbfs`.
    ///
    /// # Safety
    ///
    /// A file may be changed, or cut, by whoever else has it open. As long as the region is
    /// there nobody may do so to what is allocated in it: above all, of the regions of one part of a
    /// file no more than one may be used to allocate, to free or to [trim](MappedRegion::trim).
    /// (The others find what is there by its [offset](MappedRegion::at); [`Protection::Read`]
    /// keeps them from more.) What the file has already counts as free.
    pub unsafe fn file(mut self, file: &'a File, offset: u64) -> Self {
        (self.plan.file, self.plan.is_shared) = (Some((file, offset)), true);
        self
    }

    /// What is written is seen by all that have mapped the same file, and by forked children.
    /// (After a fork only one of the processes may allocate in the region, free or
    /// [trim](MappedRegion::trim): each of them would think that what the other takes is free.)
    pub fn shared(mut self) -> Self {
        self.plan.is_shared = true;
        self
    }

    /// What is written is seen by nobody else.
    pub fn private(mut self) -> Self {
        self.plan.is_shared = false;
        self
    }

    /// What may be done to the pages.
    pub fn protection(mut self, protection: Protection) -> Self {
        self.plan.protection = protection;
        self
    }

    /// How large the pages are.
    pub fn huge_pages(mut self, huge_pages: HugePages) -> Self {
        self.plan.huge_pages = huge_pages;
        self
    }

    /// Pages are there from the beginning, as far as there is memory, rather than when they are
    /// touched first.
    pub fn populate(mut self) -> Self {
        self.plan.is_populated = true;
        self
    }

    /// The pages stay in memory.
    pub fn lock(mut self) -> Self {
        self.plan.is_locked = true;
        self
    }

    /// A page in front of the window and one behind it that nobody may touch.
    pub fn guard_pages(mut self) -> Self {
        self.plan.has_guards = true;
        self
    }

    /// What the region is called in snapshots (otherwise `region`), and in `/proc/self/maps` where
    /// the kernel can show it (Linux 5.17, anonymous memory).
    pub fn name(mut self, name: &'a str) -> Self {
        self.plan.name = name;
        self
    }

    /// Blocks begin at multiples of so many bytes, and take whole ones: a power of two up to
    /// the page size, 16 otherwise. Of windows of 34 GiB and more it is more; none can have more
    /// than 2³¹ pages. For each of these units 12 bytes of addresses are set aside, of
    /// which memory is used only where blocks are.
    pub fn granularity(mut self, bytes: usize) -> Self {
        self.granularity = bytes;
        self
    }

    /// Maps the region.
    ///
    /// # Errors
    ///
    /// All of [`MapError`].
    pub fn map(self) -> Result<MappedRegion, MapError> {
        let region = MappedRegion::deferred(self.plan.len);
        let raw = region.raw();
        // SAFETY: the region ends the window, and takes it out first.
        unsafe {
            let window = Window::map(&self.plan, self.granularity)?;
            raw.window.store(window.as_ptr(), Ordering::Release);
            registry::add(window);
        }
        Ok(region)
    }
}

impl Raw {
    /// The window; a deferred region's is mapped by this.
    fn window(&self) -> Option<&Window> {
        self.mapped().or_else(|| self.first_use())
    }

    fn mapped(&self) -> Option<&Window> {
        // SAFETY: a window is there as long as this.
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
        // SAFETY: the drop below ends it, once.
        registry::add_first(&self.window, || unsafe { Window::map(&Plan::anonymous(self.len), 16) })
    }

    fn owns(&self, address: *const u8) -> bool {
        self.mapped().is_some_and(|window| window.owns(address))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let Some(window) = NonNull::new(*self.window.get_mut()) else { return };
        // SAFETY: it was put in, and nobody uses it any more.
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
            // SAFETY: the caller's promise.
            unsafe { window.free(block, layout) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let (Some(window), Some(start)) = (self.window(), NonNull::new(block)) else {
            return ptr::null_mut();
        };
        // SAFETY: the caller's promise; both blocks are as large.
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

/// As a backend: what is allocated is counted by whoever uses it, if at all.
// SAFETY: as for `Raw`.
unsafe impl GlobalAlloc for MappedRegion {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.raw().alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.raw().alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.raw().dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.raw().realloc(block, layout, new_size) }
    }
}

// SAFETY: its blocks are those in its window.
unsafe impl Owns for MappedRegion {
    fn owns(&self, block: *const u8) -> bool {
        self.raw().owns(block)
    }
}

/// As the allocator of collections, whose blocks are charged to services like any others.
// SAFETY: as of the allocator that it passes everything on to; the borrow keeps the region.
unsafe impl Allocator for &MappedRegion {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        (&self.counted).allocate(layout)
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        (&self.counted).allocate_zeroed(layout)
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { (&self.counted).deallocate(block, layout) };
    }

    unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        unsafe { (&self.counted).grow(block, old, new) }
    }

    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        unsafe { (&self.counted).grow_zeroed(block, old, new) }
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        unsafe { (&self.counted).shrink(block, old, new) }
    }
}

impl fmt::Debug for MappedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedRegion").field("start", &self.start()).field("stats", &self.stats()).finish()
    }
}

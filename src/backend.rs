//! The allocator that really holds the memory: jemalloc, with its own figures, or the
//! system's.

#[cfg(feature = "jemalloc")]
pub use jemalloc::Jemalloc;

#[cfg(feature = "jemalloc-stats")]
use crate::sync::{Mutex, MutexGuard, shared};
#[cfg(feature = "jemalloc-stats")]
use std::sync::PoisonError;

#[cfg(feature = "jemalloc")]
use Jemalloc as Inner;
#[cfg(not(feature = "jemalloc"))]
use std::alloc::System as Inner;
use std::alloc::{GlobalAlloc, Layout};

/// Gets memory for a [`Dogtag`](crate::Dogtag) that names no backend: from jemalloc, or from the
/// system's allocator if no crate of the program turns on the feature `jemalloc`.
///
/// It is one type with either feature set. Cargo unites the features of all crates of a program, so a
/// crate cannot know which of the two it gets, and its types must not depend on it. A program that
/// needs one of them names it: `Dogtag<Jemalloc>`, or `Dogtag<System>`.
///
/// ```
/// use dogtag::{DefaultBackend, Dogtag};
///
/// static ALLOC: Dogtag = Dogtag::new();
/// let named: &Dogtag<DefaultBackend> = &ALLOC;
/// let backend: &DefaultBackend = named.backend();
/// assert_eq!(size_of_val(backend), 0);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultBackend(());

impl DefaultBackend {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

// SAFETY: each function is the inner allocator's own, so that all blocks are that one's.
unsafe impl GlobalAlloc for DefaultBackend {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout, which is not empty.
        unsafe { Inner.alloc(layout) }
    }

    #[inline(always)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout, which is not empty.
        unsafe { Inner.alloc_zeroed(layout) }
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is a live one of this backend, so of the inner allocator, with that layout.
        unsafe { Inner.dealloc(block, layout) };
    }

    #[inline(always)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the block is a live one of this backend, so of the inner allocator, with that layout;
        // the new size is not 0, and valid with that alignment.
        unsafe { Inner.realloc(block, layout, new_size) }
    }
}

/// Holds jemalloc's own figures for the whole process, in bytes.
///
/// They include what the services' figures leave out: the rounding of size classes,
/// memory that is kept for reuse, pages as the operating system sees them. jemalloc's documentation
/// of `stats.*` has the details.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct JemallocStats {
    /// Bytes in live blocks, cookies included, rounded up to size classes. (Without the small blocks
    /// that jemalloc has sampled, if its profiling is on.)
    pub allocated: u64,
    /// Bytes in pages that hold live blocks.
    pub active: u64,
    /// Bytes in physical memory, as far as jemalloc knows: active pages, metadata,
    /// and pages that are no longer used but not yet given back.
    pub resident: u64,
    /// Bytes of address space that are mapped and may be touched.
    pub mapped: u64,
    /// Bytes of address space that are kept reserved, without memory of the operating system.
    pub retained: u64,
    /// Bytes of jemalloc's own bookkeeping.
    pub metadata: u64,
}

/// What jemalloc holds, taken apart for the balance; in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heap {
    /// In blocks: the program's, rounded up, and those that threads keep for reuse,
    /// and a few of jemalloc's own.
    pub(crate) blocks: u64,
    /// In blocks that threads keep for reuse.
    pub(crate) thread_caches: u64,
    /// In blocks that are jemalloc's own.
    pub(crate) internal: u64,
    /// In pages that hold blocks.
    pub(crate) active: u64,
    /// In pages that hold none, and were not given back yet.
    pub(crate) dirty: u64,
    /// In pages of jemalloc's bookkeeping.
    pub(crate) metadata: u64,
    /// Whether jemalloc takes samples of allocations. It leaves those of small blocks out of what
    /// it says is in blocks, so that these cannot be distinguished from other free memory in active pages.
    pub(crate) is_profiled: bool,
}

impl Heap {
    /// Reads the figures; `None` as for [`JemallocStats::read`].
    pub(crate) fn read() -> Option<Self> {
        #[cfg(feature = "jemalloc-stats")]
        {
            let _one_reader = statistics();
            mallctl::refresh();
            // The number stands for all arenas together.
            let page = mallctl::read(c"arenas.page")?;
            let active = mallctl::read(c"stats.active")?;
            let dirty = page * mallctl::read(c"stats.arenas.4096.pdirty")?;
            let heap = Self {
                blocks: mallctl::read(c"stats.allocated")?,
                thread_caches: mallctl::read(c"stats.arenas.4096.tcache_bytes")?,
                internal: mallctl::read(c"stats.arenas.4096.internal")?,
                active,
                dirty: dirty + page * mallctl::read(c"stats.arenas.4096.pmuzzy")?,
                metadata: mallctl::read(c"stats.resident")?.saturating_sub(active + dirty),
                is_profiled: mallctl::is_profiled(),
            };
            Some(heap).filter(|heap| heap.blocks > 0 || heap.is_profiled)
        }
        #[cfg(not(feature = "jemalloc-stats"))]
        None
    }
}

impl JemallocStats {
    /// Reads the figures. `None` where they are not compiled in, or jemalloc
    /// holds no block, which means that it is nobody's backend.
    pub(crate) fn read() -> Option<Self> {
        #[cfg(feature = "jemalloc-stats")]
        {
            let _one_reader = statistics();
            mallctl::refresh();
            let stats = Self {
                allocated: mallctl::read(c"stats.allocated")?,
                active: mallctl::read(c"stats.active")?,
                resident: mallctl::read(c"stats.resident")?,
                mapped: mallctl::read(c"stats.mapped")?,
                retained: mallctl::read(c"stats.retained")?,
                metadata: mallctl::read(c"stats.metadata")?,
            };
            Some(stats).filter(|stats| stats.allocated > 0 || mallctl::is_profiled())
        }
        #[cfg(not(feature = "jemalloc-stats"))]
        None
    }
}

/// Makes jemalloc return freed pages to the operating system at once; by itself it does so within
/// ten seconds or so.
#[cfg(all(feature = "memory-check", not(dogtag_loom)))]
pub(crate) fn give_back() {
    #[cfg(feature = "jemalloc")]
    // SAFETY: takes nothing and says nothing. The number stands for all arenas.
    unsafe {
        tikv_jemalloc_sys::mallctl(
            c"arena.4096.purge".as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            0,
        )
    };
}

/// Recognizes addresses that are surely jemalloc's.
pub(crate) struct Extents {
    #[cfg(feature = "jemalloc-stats")]
    lookup: [usize; 2],
    /// Bytes of address space that are jemalloc's: all that it has mapped and not unmapped.
    pub(crate) mapped: u64,
}

impl Extents {
    /// Asks jemalloc what it has mapped. `None` where it does not say.
    pub(crate) fn new() -> Option<Self> {
        #[cfg(feature = "jemalloc-stats")]
        {
            if !mallctl::finds_any() {
                return None;
            }
            let _one_reader = statistics();
            mallctl::refresh();
            let mapped = mallctl::read(c"stats.mapped")? + mallctl::read(c"stats.retained")?;
            Some(Self { lookup: mallctl::translated(c"arenas.lookup")?, mapped })
        }
        #[cfg(not(feature = "jemalloc-stats"))]
        None
    }

    /// Whether jemalloc knows the page of an address: the first and the last of each extent, and
    /// all of those in which there are small blocks. Not what is between, nor its bookkeeping.
    pub(crate) fn knows(&self, address: usize) -> bool {
        #[cfg(feature = "jemalloc-stats")]
        {
            mallctl::finds(&self.lookup, address)
        }
        #[cfg(not(feature = "jemalloc-stats"))]
        {
            let _ = address;
            false
        }
    }
}

/// Held while jemalloc's figures are read, so that all are of the same refresh.
#[cfg(feature = "jemalloc-stats")]
fn statistics() -> MutexGuard<'static, ()> {
    shared! {
        static READER: Mutex<()> = Mutex::new(());
    }

    #[cfg(not(dogtag_loom))]
    forks::register();
    READER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the lock free in a forked child.
#[cfg(all(feature = "jemalloc-stats", not(dogtag_loom)))]
mod forks {
    use super::statistics;
    use crate::sync::MutexGuard;
    use crate::sys::fork::{ForkHook, ForkOrder, Held, at_load, register_fork_hook};

    at_load!(register);

    pub(super) fn register() {
        register_fork_hook(&HOOK);
    }

    static HOOK: ForkHook = ForkHook { order: ForkOrder::Outer, before, in_parent: after, in_child: after };

    static LOCK: Held<MutexGuard<'static, ()>> = Held::new();

    fn before() {
        // SAFETY: this is the hook's `before`.
        unsafe { LOCK.keep(statistics()) };
    }

    fn after() {
        // SAFETY: this is the hook's `in_parent` and `in_child`.
        drop(unsafe { LOCK.take() });
    }
}

#[cfg(feature = "jemalloc")]
mod jemalloc {
    use std::alloc::{GlobalAlloc, Layout};
    use std::ptr;
    use tikv_jemalloc_sys as ffi;
    use tikv_jemallocator::Jemalloc as Full;

    /// jemalloc: [tikv-jemallocator](https://docs.rs/tikv-jemallocator) with a
    /// shorter way to the common case, a layout that needs no alignment flag.
    ///
    /// ```
    /// #[global_allocator]
    /// static ALLOC: dogtag::Dogtag<dogtag::Jemalloc> = dogtag::Dogtag::with_backend(dogtag::Jemalloc);
    /// # fn main() {}
    /// ```
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Jemalloc;

    /// Whether every size class that `size` can fall into has that alignment:
    /// jemalloc's smallest is 8 bytes, and the others are multiples of 16.
    #[inline(always)]
    fn is_aligned_anyway(align: usize, size: usize) -> bool {
        align <= 8 || (align == 16 && size > 8)
    }

    // SAFETY: jemalloc's own functions; those without flags are used for the
    // same layouts on all four ways, and `Full` takes the others.
    unsafe impl GlobalAlloc for Jemalloc {
        #[inline(always)]
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            if layout.align() <= 8 {
                // SAFETY: the size is not 0: `GlobalAlloc::alloc` requires it.
                unsafe { ffi::malloc(layout.size()) }.cast()
            } else {
                cold_path();
                // SAFETY: the size is not 0: `GlobalAlloc::alloc` requires it.
                unsafe { alloc_aligned(layout) }
            }
        }

        #[inline(always)]
        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            if is_aligned_anyway(layout.align(), layout.size()) && layout.size() <= SMALL {
                // SAFETY: the size is not 0, and a size class is aligned as the layout says.
                unsafe { malloc_zeroed(layout.size()) }
            } else {
                // SAFETY: the layout is not empty: `GlobalAlloc::alloc_zeroed` requires it.
                unsafe { Full.alloc_zeroed(layout) }
            }
        }

        #[inline(always)]
        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            if layout.align() <= 8 {
                // SAFETY: the block is live, and its size class is that of the layout's size, without flags.
                unsafe { ffi::sdallocx(block.cast(), layout.size(), 0) }
            } else {
                cold_path();
                // SAFETY: the block is live and was requested with that layout.
                unsafe { dealloc_aligned(block, layout) }
            }
        }

        #[inline(always)]
        unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
            let (old, align) = (layout.size(), layout.align());
            if is_aligned_anyway(align, old.min(new_size)) && old.max(new_size) <= SMALL {
                // SAFETY: the block is live, was requested as a plain `malloc`, and the new size is not 0.
                unsafe { realloc_small(block, old, new_size) }
            } else {
                // SAFETY: the block is live and was requested with that layout, and the new size is not 0.
                unsafe { Full.realloc(block, layout, new_size) }
            }
        }
    }

    /// # Safety
    ///
    /// As for [`GlobalAlloc::alloc`].
    #[inline(never)]
    unsafe fn alloc_aligned(layout: Layout) -> *mut u8 {
        // SAFETY: the size is not 0, and the flags say the alignment where the size class has none.
        unsafe {
            if is_aligned_anyway(layout.align(), layout.size()) {
                ffi::malloc(layout.size()).cast()
            } else {
                Full.alloc(layout)
            }
        }
    }

    /// # Safety
    ///
    /// As for [`GlobalAlloc::dealloc`].
    #[inline(never)]
    unsafe fn dealloc_aligned(block: *mut u8, layout: Layout) {
        // SAFETY: the block is live, and was requested with the same flags, which its layout decides.
        unsafe {
            if is_aligned_anyway(layout.align(), layout.size()) {
                ffi::sdallocx(block.cast(), layout.size(), 0);
            } else {
                Full.dealloc(block, layout);
            }
        }
    }

    /// Sizes up to this are looked up in a table and come from the thread's
    /// cache, on jemalloc's shortest way.
    const SMALL: usize = 4096;

    /// Allocates a zeroed block. jemalloc's `calloc` is a longer way to the same result: small blocks
    /// share pages with others, so they have to be cleared in any case.
    ///
    /// # Safety
    ///
    /// `size` must not be 0.
    #[inline(always)]
    unsafe fn malloc_zeroed(size: usize) -> *mut u8 {
        // SAFETY: the block is valid for writes of its size.
        unsafe {
            let block: *mut u8 = ffi::malloc(size).cast();
            if !block.is_null() {
                block.write_bytes(0, size);
            }
            block
        }
    }

    /// Resizes a small block. jemalloc's `realloc` has to find out how large a block is, and copies
    /// all of that. Here the size is known, and small blocks never grow in place past their size
    /// class, so this takes half the time.
    ///
    /// # Safety
    ///
    /// `block` must be a live one that was allocated with `old` and no flags.
    #[inline(always)]
    unsafe fn realloc_small(block: *mut u8, old: usize, new: usize) -> *mut u8 {
        // SAFETY: asks for a size class, changes nothing.
        if unsafe { ffi::nallocx(old, 0) == ffi::nallocx(new, 0) } {
            return block;
        }
        // SAFETY: both blocks are valid for the smaller size; the old one is
        // freed, with the size it has, only when the new one is there.
        unsafe {
            let moved: *mut u8 = ffi::malloc(new).cast();
            if !moved.is_null() {
                ptr::copy_nonoverlapping(block, moved, old.min(new));
                ffi::sdallocx(block.cast(), old, 0);
            }
            moved
        }
    }

    /// Tells the compiler which way is the rare one, so that it branches.
    #[cold]
    #[inline(always)]
    fn cold_path() {}
}

#[cfg(feature = "jemalloc-stats")]
mod mallctl {
    use std::ffi::{CStr, c_void};
    use std::ptr;
    use tikv_jemalloc_sys as jemalloc;

    /// Makes jemalloc add up its figures anew; otherwise they stay as they were.
    pub(super) fn refresh() {
        let mut epoch = 1_u64;
        // SAFETY: `epoch` is read as a `uint64_t`, which it is.
        unsafe {
            jemalloc::mallctl(
                c"epoch".as_ptr(),
                ptr::null_mut(),
                ptr::null_mut(),
                (&raw mut epoch).cast(),
                size_of::<u64>(),
            )
        };
    }

    /// Whether profiling was compiled in and switched on.
    pub(super) fn is_profiled() -> bool {
        let mut value = false;
        let mut size = size_of::<bool>();
        // SAFETY: jemalloc checks that `size` is what the option needs.
        let error = unsafe {
            jemalloc::mallctl(c"opt.prof".as_ptr(), (&raw mut value).cast(), &mut size, ptr::null_mut(), 0)
        };
        error == 0 && value
    }

    /// Whether `arenas.lookup` may be asked about any address: it may since 5.3.1. Before, one that
    /// is far from all of jemalloc's ends the process.
    pub(super) fn finds_any() -> bool {
        let mut version: *const std::ffi::c_char = ptr::null();
        let mut size = size_of::<*const std::ffi::c_char>();
        // SAFETY: jemalloc checks that `size` is a pointer's.
        let error = unsafe {
            let old = (&raw mut version).cast();
            jemalloc::mallctl(c"version".as_ptr(), old, &mut size, ptr::null_mut(), 0)
        };
        if error != 0 || version.is_null() {
            return false;
        }
        // SAFETY: a string that is part of jemalloc.
        let version = unsafe { CStr::from_ptr(version) }.to_bytes();
        let mut parts = version.split(|byte| !byte.is_ascii_digit());
        let mut part = || parts.next().and_then(|part| str::from_utf8(part).ok()?.parse::<u32>().ok());
        (part(), part(), part()) >= (Some(5), Some(3), Some(1))
    }

    /// Whether `arenas.lookup` finds an address, which may be any.
    pub(super) fn finds(lookup: &[usize; 2], address: usize) -> bool {
        let mut pointer: *mut c_void = ptr::without_provenance_mut(address);
        let (mut arena, mut size) = (0_u32, size_of::<u32>());
        // SAFETY: a place for an `unsigned`, and the pointer that is asked about.
        unsafe {
            let (old, new) = ((&raw mut arena).cast(), (&raw mut pointer).cast());
            jemalloc::mallctlbymib(lookup.as_ptr(), 2, old, &mut size, new, size_of::<*mut c_void>()) == 0
        }
    }

    /// Translates a name to numbers, of which there must be `N`.
    pub(super) fn translated<const N: usize>(name: &CStr) -> Option<[usize; N]> {
        let (mut numbers, mut len) = ([0; N], N);
        // SAFETY: a place for so many.
        let error = unsafe { jemalloc::mallctlnametomib(name.as_ptr(), numbers.as_mut_ptr(), &mut len) };
        (error == 0 && len == N).then_some(numbers)
    }

    /// Reads one figure of type `size_t`.
    pub(super) fn read(name: &CStr) -> Option<u64> {
        let mut value = 0_usize;
        let mut size = size_of::<usize>();
        // SAFETY: jemalloc checks that `size` is what the figure needs, and
        // writes no more than that to `value`.
        let error = unsafe {
            jemalloc::mallctl(name.as_ptr(), (&raw mut value).cast(), &mut size, ptr::null_mut(), 0)
        };
        (error == 0).then_some(value as u64)
    }
}

//! The allocator that really holds the memory: jemalloc, with its own figures, or the
//! system's.

#[cfg(feature = "jemalloc")]
mod jemalloc;
#[cfg(feature = "jemalloc-stats")]
mod mallctl;
#[cfg(all(feature = "jemalloc", not(feature = "memory-check"), not(dogtag_loom)))]
pub(crate) mod slabs;

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
#[cfg(all(any(feature = "guard", feature = "memory-check"), not(dogtag_loom)))]
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

/// Whether the blocks of a backend `B` are private memory of no file's: those of jemalloc and the system's allocator are.
/// Others may be in a region of few addresses, or in a device.
#[cfg(all(feature = "memory-check", not(dogtag_loom)))]
pub(crate) fn is_own_memory<B>() -> bool {
    use std::any::type_name;

    // By name, since a backend's type need not outlive the program: nobody else has these.
    let is_own =
        [type_name::<DefaultBackend>(), type_name::<std::alloc::System>()].contains(&type_name::<B>());
    #[cfg(feature = "jemalloc")]
    let is_own = is_own || is_jemalloc::<B>();
    is_own
}

/// Whether a backend `B` is jemalloc. Two types may have the same name, so it may say so of another's.
#[cfg(all(feature = "jemalloc", not(dogtag_loom)))]
#[inline(always)]
pub(crate) fn is_jemalloc<B>() -> bool {
    use std::any::type_name;

    [type_name::<DefaultBackend>(), type_name::<Jemalloc>()].contains(&type_name::<B>())
}

/// Makes glibc's allocator return freed pages to the operating system.
#[cfg(all(feature = "guard", not(dogtag_loom)))]
pub(crate) fn trim() {
    #[cfg(all(not(feature = "jemalloc"), target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes a number, and the allocator's own locks.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Recognizes addresses that are surely jemalloc's.
pub(crate) struct Extents {
    #[cfg(feature = "jemalloc-stats")]
    lookup: [usize; 2],
    /// Bytes of address space that are jemalloc's: all that it has mapped and not unmapped.
    pub(crate) mapped: u64,
    /// Bytes of address space that are mapped for its bookkeeping, and so in no extent.
    pub(crate) bookkeeping: u64,
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
            let in_use = mallctl::read(c"stats.mapped")?;
            let freed =
                mallctl::read(c"stats.arenas.4096.pdirty")? + mallctl::read(c"stats.arenas.4096.pmuzzy")?;
            let in_extents = mallctl::read(c"stats.active")? + mallctl::read(c"arenas.page")? * freed;
            Some(Self {
                lookup: mallctl::translated(c"arenas.lookup")?,
                mapped: in_use + mallctl::read(c"stats.retained")?,
                bookkeeping: in_use.saturating_sub(in_extents),
            })
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

    static HOOK: ForkHook =
        ForkHook { order: ForkOrder::Statistics, before, in_parent: after, in_child: after };

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

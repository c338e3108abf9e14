//! Mapping and unmapping pages: a window, with guard pages around it.

use crate::error::MapError;
use rustix::fs::fstatfs;
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};

/// What may be done to the pages of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protection {
    /// Read only. Nothing can be allocated in such a region.
    Read,
    /// Read and write.
    #[default]
    ReadWrite,
    /// Read, write and execute.
    ReadWriteExecute,
}

/// The size of a region's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePages {
    /// The system's choice.
    #[default]
    Unspecified,
    /// Huge pages where the system can use them (`MADV_HUGEPAGE`).
    Transparent,
    /// Pages of 2 MiB, which must be reserved (`MAP_HUGETLB`).
    Reserved2MiB,
    /// Pages of 1 GiB, which must be reserved (`MAP_HUGETLB`).
    Reserved1GiB,
}

/// What a builder has collected: the properties of a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) len: usize,
    pub(crate) file: Option<(&'a File, u64)>,
    pub(crate) is_shared: bool,
    pub(crate) protection: Protection,
    pub(crate) huge_pages: HugePages,
    pub(crate) is_populated: bool,
    pub(crate) is_locked: bool,
    pub(crate) has_guards: bool,
    pub(crate) name: &'a str,
    /// The system need not promise that there is memory for all of it.
    pub(crate) is_not_reserved: bool,
}

/// A window, which is unmapped when this is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// All that is mapped, guards included.
    whole: (NonNull<u8>, usize),
    /// Bytes that are a file's, if it ends within the last page.
    window: (NonNull<u8>, usize),
    is_anonymous: bool,
    page: usize,
}

// SAFETY: pages belong to no thread.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` only reads addresses and lengths, and pages belong to no thread.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(plan: &Plan<'_>) -> Result<Self, MapError> {
        let page = plan.page()?;
        let (len, usable) = plan.checked_len(page)?;
        let reserved = if plan.has_guards { Some(Reserved::around(len, page)?) } else { None };
        let place = reserved.as_ref().map_or(ptr::null_mut(), |reserved| reserved.place);
        let start = plan.map_at(place, len, page)?;
        // From here on this gives everything back.
        let whole = reserved.map_or((start, len), Reserved::keep);
        let (Some(window), Some(whole_start)) = (NonNull::new(start), NonNull::new(whole.0)) else {
            return Err(MapError::OutOfMemory { len, source: None });
        };
        let whole = (whole_start, whole.1);
        let is_anonymous = plan.file.is_none() && !plan.is_shared;
        let this = Self { whole, window: (window, usable), is_anonymous, page };
        this.advise(plan)?;
        Ok(this)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.window.0
    }

    pub(crate) fn len(&self) -> usize {
        self.window.1
    }

    /// Bytes of a page.
    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// Gives whole pages back to the system. Returns whether they are zero when they are touched
    /// again.
    ///
    /// # Safety
    ///
    /// The range must be within the window, and hold nothing that is still needed.
    pub(crate) unsafe fn give_back(&self, start: usize, len: usize) -> bool {
        let advice = if self.is_anonymous { Advice::LinuxDontNeed } else { Advice::LinuxRemove };
        // SAFETY: the range is within the window, and its contents are not needed, as for this function.
        unsafe { mm::madvise(self.window.0.as_ptr().add(start).cast(), len, advice) }.is_ok()
    }

    pub(crate) fn is_read_at_random(&self) {
        // SAFETY: this mapping owns the window, and the advice changes no contents. If the system
        // refuses, nothing depends on it.
        let _ = unsafe { mm::madvise(self.window.0.as_ptr().cast(), self.window.1, Advice::Random) };
    }

    fn advise(&self, plan: &Plan<'_>) -> Result<(), MapError> {
        let (start, len) = (self.window.0.as_ptr().cast(), self.window.1);
        let system = |call| move |error: Errno| MapError::System { call, source: error.into() };
        // SAFETY: this mapping owns the window, and neither call changes its contents.
        unsafe {
            if plan.huge_pages == HugePages::Transparent {
                // A kernel without them has the usual ones.
                match mm::madvise(start, len, Advice::LinuxHugepage) {
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(error) => return Err(system("madvise")(error)),
                }
            }
            if plan.is_locked {
                mm::mlock(start, len).map_err(|error| MapError::NotLocked { len, source: error.into() })?;
            }
        }
        self.show_name(plan.name);
        Ok(())
    }

    /// Has the name shown in `/proc/self/maps`, if the kernel can; it then keeps the window apart
    /// from mappings beside it, too.
    fn show_name(&self, name: &str) {
        let mut text = [0_u8; 80];
        let shown = |byte: &u8| byte.is_ascii_graphic() && !b"[]\\$`".contains(byte);
        for (place, byte) in text[..79].iter_mut().zip(name.bytes()) {
            *place = if shown(&byte) { byte } else { b'_' };
        }
        // SAFETY: this mapping owns the window, and the text ends with a zero.
        unsafe {
            libc::prctl(
                libc::PR_SET_VMA,
                libc::PR_SET_VMA_ANON_NAME,
                self.window.0.as_ptr(),
                self.window.1,
                text.as_ptr(),
            );
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping owns all of `whole`, and nobody uses it after the drop, as for
        // `Window::end`. It cannot fail.
        let _ = unsafe { mm::munmap(self.whole.0.as_ptr().cast(), self.whole.1) };
    }
}

/// Address space that faults when it is touched, for a window in its midst.
struct Reserved {
    start: *mut u8,
    len: usize,
    /// Of the window, aligned to its pages.
    place: *mut u8,
}

impl Reserved {
    fn around(window_len: usize, window_page: usize) -> Result<Self, MapError> {
        let guard = page_size();
        let len = window_len.checked_add(guard + window_page.max(guard));
        let len = len.filter(|len| isize::try_from(*len).is_ok());
        let len = len.ok_or(MapError::OutOfMemory { len: window_len, source: None })?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the system chooses the place, so no mapping that exists is touched.
        let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) };
        let start: *mut u8 = start.map_err(|error| out_of_memory(len, error))?.cast();
        let place = start.map_addr(|address| (address + guard).next_multiple_of(window_page));
        Ok(Self { start, len, place })
    }

    fn keep(self) -> (*mut u8, usize) {
        let whole = (self.start, self.len);
        std::mem::forget(self);
        whole
    }
}

fn out_of_memory(len: usize, error: Errno) -> MapError {
    MapError::OutOfMemory { len, source: Some(error.into()) }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: these addresses were reserved by `around`, and no window was kept in them.
        let _ = unsafe { mm::munmap(self.start.cast(), self.len) };
    }
}

impl Plan<'_> {
    pub(crate) const fn anonymous(len: usize) -> Self {
        Self {
            len,
            file: None,
            is_shared: false,
            protection: Protection::ReadWrite,
            huge_pages: HugePages::Unspecified,
            is_populated: false,
            is_locked: false,
            has_guards: false,
            name: "region",
            is_not_reserved: false,
        }
    }

    /// Bytes to map, which are whole pages, and how many of them can be used.
    fn checked_len(&self, page: usize) -> Result<(usize, usize), MapError> {
        if self.len == 0 {
            return Err(MapError::Empty);
        }
        let len = self.len.checked_next_multiple_of(page);
        let len = len.ok_or(MapError::OutOfMemory { len: self.len, source: None })?;
        let Some((file, offset)) = self.file else { return Ok((len, len)) };
        if !offset.is_multiple_of(page as u64) {
            return Err(MapError::MisalignedOffset { offset, page });
        }
        let metadata = file.metadata().map_err(|source| MapError::System { call: "fstat", source })?;
        // A device says nothing about its length.
        if !metadata.is_file() {
            return Ok((len, len));
        }
        let file_len = metadata.len();
        let left = file_len.checked_sub(offset).map_or(0, |left| usize::try_from(left).unwrap_or(usize::MAX));
        if left < self.len {
            return Err(MapError::BeyondFile { offset, len: self.len, file_len });
        }
        // What is behind the file's end in its last page is not kept, and not shared.
        Ok((len, len.min(left)))
    }

    /// Bytes of a page of the window.
    fn page(&self) -> Result<usize, MapError> {
        let of_file = self.file.map(|(file, _)| fstatfs(file)).transpose();
        let of_file = of_file.map_err(|error| MapError::System { call: "fstatfs", source: error.into() })?;
        Ok(match (self.huge_pages, of_file) {
            (_, Some(system)) if system.f_type == libc::HUGETLBFS_MAGIC => system.f_bsize as usize,
            (HugePages::Reserved2MiB, _) => 2 << 20,
            (HugePages::Reserved1GiB, _) => 1 << 30,
            _ => page_size(),
        })
    }

    /// Maps the window there, or where the system likes.
    fn map_at(&self, place: *mut u8, len: usize, page: usize) -> Result<*mut u8, MapError> {
        let protection = match self.protection {
            Protection::Read => ProtFlags::READ,
            Protection::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
            Protection::ReadWriteExecute => ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC,
        };
        let mut flags = if self.is_shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        flags.set(MapFlags::FIXED, !place.is_null());
        flags.set(MapFlags::POPULATE, self.is_populated);
        flags.set(MapFlags::NORESERVE, self.is_not_reserved);
        flags |= match self.huge_pages {
            HugePages::Reserved2MiB => MapFlags::HUGETLB | MapFlags::HUGE_2MB,
            HugePages::Reserved1GiB => MapFlags::HUGETLB | MapFlags::HUGE_1GB,
            HugePages::Unspecified | HugePages::Transparent => MapFlags::empty(),
        };
        // SAFETY: `place` is within addresses that `Reserved` owns, or null for the system's choice, so no
        // other mapping is replaced.
        let mapped = unsafe {
            match self.file {
                Some((file, offset)) => mm::mmap(place.cast(), len, protection, flags, file, offset),
                None => mm::mmap_anonymous(place.cast(), len, protection, flags),
            }
        };
        mapped.map(<*mut _>::cast).map_err(|error| refusal(error, len, page))
    }
}

fn refusal(error: Errno, len: usize, page: usize) -> MapError {
    let source = io::Error::from(error);
    match error {
        Errno::ACCESS | Errno::PERM => MapError::Permission { source },
        Errno::AGAIN => MapError::NotLocked { len, source },
        Errno::NOMEM | Errno::INVAL | Errno::NODEV | Errno::NOENT if page > page_size() => {
            MapError::NoHugePages { page, len, source }
        }
        Errno::NOMEM | Errno::OVERFLOW => out_of_memory(len, error),
        _ => MapError::System { call: "mmap", source },
    }
}

/// Bytes of a page that is not a huge one. Allocates nothing, as rustix's may.
pub(crate) fn page_size() -> usize {
    // SAFETY: `sysconf` reads a constant, and has no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

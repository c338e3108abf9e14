//! What the loader says of the program and its libraries.

#[cfg(feature = "memory-check")]
use super::memory;
use crate::sys::loader;
use std::ffi::{c_int, c_void};

/// What the loader says of a module.
pub(super) struct Found<'a> {
    /// What is added to the addresses in the file.
    pub(super) base: usize,
    pub(super) name: *const std::ffi::c_char,
    pub(super) segments: &'a [libc::Elf64_Phdr],
}

impl Found<'_> {
    pub(super) fn segment(&self, kind: u32) -> Option<&libc::Elf64_Phdr> {
        self.segments.iter().find(|segment| segment.p_type == kind)
    }

    pub(super) fn address_of(&self, segment: &libc::Elf64_Phdr) -> usize {
        self.base.wrapping_add(segment.p_vaddr as usize)
    }
}

/// Whether to wait for other threads that do the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    #[cfg_attr(not(feature = "profile"), allow(dead_code))]
    Yes,
    /// In the middle of an allocation, which may be one of those others'.
    #[cfg_attr(not(feature = "memory-check"), allow(dead_code))]
    No,
}

/// Calls `each` with all modules, and how many were loaded and unloaded so far, until it says `false`. The loader is
/// held meanwhile. `false`, and nothing is called, where that would have to wait and is not to.
pub(super) fn each_module(wait: Wait, mut each: impl FnMut(&Found<'_>, (u64, u64)) -> bool) -> bool {
    unsafe extern "C" fn callback<F: FnMut(&Found<'_>, (u64, u64)) -> bool>(
        info: *mut libc::dl_phdr_info,
        size: usize,
        each: *mut c_void,
    ) -> c_int {
        // SAFETY: what the loader passes on is what was given to it below, and its own.
        let (info, each) = unsafe { (&*info, &mut *each.cast::<F>()) };
        // The loader lists a library that it is unloading until it has unmapped it, and frees meanwhile.
        #[cfg(feature = "memory-check")]
        if !info.dlpi_phdr.is_null() && !memory::is_readable(info.dlpi_phdr.addr()) {
            return 0;
        }
        let segments = if info.dlpi_phdr.is_null() {
            &[][..]
        } else {
            // SAFETY: the loader's own, so many.
            unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) }
        };
        let found = Found { base: info.dlpi_addr as usize, name: info.dlpi_name, segments };
        let has_changes = size >= std::mem::offset_of!(libc::dl_phdr_info, dlpi_subs) + 8;
        let changes = if has_changes { (info.dlpi_adds, info.dlpi_subs) } else { (0, 0) };
        // Nothing may unwind through the loader; what is called allocates, and panics only without memory.
        c_int::from(!each(&found, changes))
    }

    fn callback_of<F: FnMut(&Found<'_>, (u64, u64)) -> bool>(
        _: &F,
    ) -> unsafe extern "C" fn(*mut libc::dl_phdr_info, usize, *mut c_void) -> c_int {
        callback::<F>
    }
    let call = callback_of(&each);
    #[cfg(feature = "memory-check")]
    if wait == Wait::No {
        // SAFETY: as below.
        return unsafe { loader::try_each_module(call, (&raw mut each).cast()) };
    }
    let _ = wait;
    // SAFETY: the callback gets the closure that it is made for, while that is borrowed here.
    unsafe { loader::each_module(call, (&raw mut each).cast()) };
    true
}

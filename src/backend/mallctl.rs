//! What jemalloc says of itself, by its function `mallctl`.

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
    let error =
        unsafe { jemalloc::mallctl(name.as_ptr(), (&raw mut value).cast(), &mut size, ptr::null_mut(), 0) };
    (error == 0).then_some(value as u64)
}

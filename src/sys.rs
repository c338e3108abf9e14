//! What we need from the operating system: pages, threads, and a call when one
//! ends. Everything else in the crate is plain Rust.
//!
//! The ledger calls this module from inside an allocation, so nothing here
//! locks or panics, and what allocates says so.

#[cfg(not(all(unix, target_pointer_width = "64")))]
compile_error!("dogtag needs a 64-bit Unix-like system (mmap, pthread keys); Linux is what it is tested on");

#[cfg(not(dogtag_loom))]
mod detached_thread;
#[cfg(all(any(feature = "memory-check", feature = "sampled-guard"), not(dogtag_loom)))]
pub(crate) mod fault;
#[cfg(not(dogtag_loom))]
pub(crate) mod fork;
#[cfg(all(
    any(feature = "memory-check", feature = "profile", feature = "sampled-guard"),
    target_os = "linux",
    not(dogtag_loom)
))]
pub(crate) mod loader;
mod parker;
#[cfg(all(any(feature = "memory-check", feature = "profile", feature = "sampled-guard"), not(dogtag_loom)))]
pub(crate) mod resolve;
#[cfg(not(dogtag_loom))]
pub(crate) mod smaps;
// musl's loader unmaps nothing, and a static program has no loader.
#[cfg(all(target_os = "linux", target_env = "gnu", not(target_feature = "crt-static"), not(miri)))]
mod stay_loaded;
#[cfg(not(dogtag_loom))]
pub mod stderr;

#[cfg(not(dogtag_loom))]
pub use detached_thread::{spawn, try_box};
pub(crate) use parker::Parker;

use crate::sync::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, shared};
use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};

/// Maps a `T` into fresh, zeroed pages that live as long as the process.
/// `None` when the operating system refuses.
///
/// # Safety
///
/// A `T` of all zero bytes must be valid, and `T` must not ask for more than
/// page alignment.
#[cfg(not(dogtag_loom))]
pub(crate) unsafe fn map_zeroed<T: Zeroed>() -> Option<&'static T> {
    let pages = map(size_of::<T>())?;
    // SAFETY: the pages are mapped readable and writable, zeroed and never
    // unmapped. They are aligned for a `T`, of which zeros are a valid one.
    Some(unsafe { pages.cast::<T>().as_ref() })
}

/// Under loom atomics are objects, not bytes, so a `T` is built and leaked.
#[cfg(dogtag_loom)]
pub(crate) unsafe fn map_zeroed<T: Zeroed>() -> Option<&'static T> {
    Some(Box::leak(Box::default()))
}

/// Variant of [`map_zeroed`] for what is large and touched here and there: in small pages, whatever the
/// system does with other memory.
///
/// # Safety
///
/// As for [`map_zeroed`].
pub(crate) unsafe fn map_zeroed_sparse<T: Zeroed>() -> Option<&'static T> {
    // SAFETY: zeros are a valid `T`, which asks for no more than page alignment.
    let mapped = unsafe { map_zeroed::<T>() }?;
    #[cfg(all(target_os = "linux", not(dogtag_loom)))]
    // SAFETY: mapped just now. Should the system refuse, nothing depends on it.
    unsafe {
        libc::madvise(ptr::from_ref(mapped).cast_mut().cast(), size_of::<T>(), libc::MADV_NOHUGEPAGE)
    };
    Some(mapped)
}

/// What can be mapped; under loom, built as if it were all zeros.
#[cfg(not(dogtag_loom))]
pub(crate) trait Zeroed {}
#[cfg(not(dogtag_loom))]
impl<T> Zeroed for T {}
#[cfg(dogtag_loom)]
pub(crate) use std::default::Default as Zeroed;

/// Takes back what [`map_zeroed`] gave and nobody has seen yet.
///
/// # Safety
///
/// `mapped` must come from [`map_zeroed`], and no other reference to it may
/// exist.
#[cfg(not(dogtag_loom))]
pub(crate) unsafe fn unmap<T>(mapped: &'static T) {
    // SAFETY: the range is exactly one earlier mapping of ours, and the caller
    // promises that nobody else refers to it. A refusal leaks it, no more.
    unsafe { libc::munmap(ptr::from_ref(mapped).cast_mut().cast(), size_of::<T>()) };
}

/// Under loom it is only forgotten.
#[cfg(dogtag_loom)]
pub(crate) unsafe fn unmap<T>(_: &'static T) {}

/// What is in its place, or a fresh, zeroed `T` put there: whoever comes first
/// decides. `None` when the operating system gives no memory.
///
/// # Safety
///
/// As for [`map_zeroed`], and nobody may put anything else there.
pub(crate) unsafe fn get_or_map<T: Zeroed>(place: &AtomicPtr<T>) -> Option<&'static T> {
    // SAFETY: what is in its place is never unmapped.
    if let Some(known) = unsafe { place.load(Ordering::Acquire).as_ref() } {
        return Some(known);
    }
    // SAFETY: zeros are a valid `T`.
    let fresh = unsafe { map_zeroed::<T>() }?;
    let new = ptr::from_ref(fresh).cast_mut();
    match place.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(fresh),
        Err(first) => {
            // SAFETY: nobody has seen `fresh`, and the first one stays.
            unsafe {
                unmap(fresh);
                Some(&*first)
            }
        }
    }
}

/// Maps `length` of a `T` into fresh, zeroed pages that live as long as the process.
///
/// # Safety
///
/// As for [`map_zeroed`].
#[cfg(not(dogtag_loom))]
pub(crate) unsafe fn map_zeroed_slice<T>(length: usize) -> Option<&'static [T]> {
    let pages = map(length.checked_mul(size_of::<T>())?)?;
    // SAFETY: the pages are fresh and large enough, and zeros are a valid `T`.
    Some(unsafe { NonNull::slice_from_raw_parts(pages.cast::<T>(), length).as_ref() })
}

/// Variant of [`get_or_map`] for a slice, whose length is always the same for one place.
///
/// # Safety
///
/// As for [`get_or_map`].
#[cfg(not(dogtag_loom))]
#[inline]
pub(crate) unsafe fn get_or_map_slice<T>(place: &AtomicPtr<T>, length: usize) -> Option<&'static [T]> {
    let known = place.load(Ordering::Acquire);
    if known.is_null() {
        // SAFETY: zeros are a valid `T`, and the place is empty.
        return unsafe { map_slice_into(place, length) };
    }
    // SAFETY: what is in its place is never unmapped, and of that length.
    Some(unsafe { std::slice::from_raw_parts(known, length) })
}

/// # Safety
///
/// As for [`get_or_map`].
#[cfg(not(dogtag_loom))]
#[cold]
unsafe fn map_slice_into<T>(place: &AtomicPtr<T>, length: usize) -> Option<&'static [T]> {
    // SAFETY: zeros are a valid `T`, which the new pages hold.
    let fresh = unsafe { map_zeroed_slice::<T>(length) }?;
    let new = fresh.as_ptr().cast_mut();
    match place.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(fresh),
        Err(first) => {
            // SAFETY: nobody has seen `fresh`, and the first one stays.
            unsafe {
                unmap_slice(fresh);
                Some(std::slice::from_raw_parts(first, length))
            }
        }
    }
}

/// Takes back what [`map_zeroed_slice`] gave.
///
/// # Safety
///
/// As for [`unmap`].
#[cfg(not(dogtag_loom))]
pub(crate) unsafe fn unmap_slice<T>(mapped: &'static [T]) {
    // SAFETY: the range is exactly one earlier mapping of ours, to which nobody else refers.
    unsafe { libc::munmap(mapped.as_ptr().cast_mut().cast(), size_of_val(mapped)) };
}

/// Reserves addresses without access, in small pages, which count as dogtag's own when they are used. `None` when
/// the operating system refuses.
#[cfg(all(feature = "memory-check", not(dogtag_loom)))]
pub(crate) fn reserve(length: usize) -> Option<NonNull<u8>> {
    map_with(length, libc::PROT_NONE)
}

/// Takes back what [`reserve`] gave.
///
/// # Safety
///
/// Nobody may use it.
#[cfg(all(feature = "memory-check", not(dogtag_loom)))]
pub(crate) unsafe fn unreserve(reserved: NonNull<u8>, length: usize) {
    // SAFETY: as the caller says. A refusal leaks it, no more.
    unsafe { libc::munmap(reserved.as_ptr().cast(), length) };
}

/// Gives whole pages of mapped memory back to the operating system, if it makes zeros of them.
///
/// # Safety
///
/// Nobody may write to them meanwhile, zeros must be valid, and whoever reads them must expect
/// what was there or zeros.
#[cfg(all(feature = "memory-check", not(dogtag_loom)))]
pub(crate) unsafe fn zero_pages<T>(pages: &[T]) {
    // SAFETY: private memory that is no file's, of which the caller promises the rest. Should the
    // system refuse, it stays.
    unsafe { discard_pages(NonNull::from(pages).cast(), size_of_val(pages)) };
}

/// Gives the memory of whole pages back to the operating system. `false` if it refuses, as it does for locked pages, or
/// makes no zeros of them; then a part may have been given back. `errno` stays as it is.
///
/// # Safety
///
/// They must be private memory of no file's that nobody uses, and zeros be what may be there afterwards.
#[cfg(all(feature = "memory-check", not(dogtag_loom)))]
pub(crate) unsafe fn discard_pages(pages: NonNull<u8>, length: usize) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: as the caller says.
    return fault::keep_errno(|| unsafe {
        libc::madvise(pages.as_ptr().cast(), length, libc::MADV_DONTNEED) == 0
    });
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (pages, length);
        false
    }
}

/// Has `hook` called in every child that this process forks, before `fork`
/// returns there. Without memory for that, it is not.
#[cfg(feature = "report")]
pub(crate) fn at_fork_in_child(hook: extern "C" fn()) {
    // SAFETY: the hook lives as long as the process.
    unsafe { libc::pthread_atfork(None, None, Some(hook)) };
}

/// Whether the process has rights that whoever began it has not, as setuid programs do.
#[cfg(any(feature = "memory-check", feature = "report"))]
pub(crate) fn has_more_rights() -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: asks for a number that the kernel gave.
    unsafe {
        libc::getauxval(libc::AT_SECURE) != 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Whether there are environment variables to be read, or to be found missing.
#[cfg(feature = "memory-check")]
pub(crate) fn has_environment() -> bool {
    #[cfg(target_os = "linux")]
    {
        unsafe extern "C" {
            static environ: *const *const std::ffi::c_char;
        }
        // SAFETY: the C library's, and null until it is there.
        unsafe { !environ.is_null() }
    }
    #[cfg(not(target_os = "linux"))]
    true
}

/// The calling thread's name as the kernel has it: up to 15 bytes, and zeros. A system call on Linux.
/// `None` where the system has no names, or does not tell.
#[cfg(not(dogtag_loom))]
pub(crate) fn own_thread_name() -> Option<[u8; 16]> {
    let mut name = [0_u8; 16];
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: the kernel writes no more than 16 bytes.
    let is_known = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) == 0 };
    #[cfg(target_os = "macos")]
    // SAFETY: the calling thread exists, and the buffer has the length that is passed.
    let is_known =
        unsafe { libc::pthread_getname_np(libc::pthread_self(), name.as_mut_ptr().cast(), name.len()) == 0 };
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos")))]
    let is_known = false;
    name[15] = 0;
    is_known.then_some(name)
}

/// The calling thread's number as the kernel has it; 0 where the system does not tell.
#[cfg(all(feature = "sampled-guard", not(any(feature = "memory-check", dogtag_loom))))]
pub(crate) fn own_thread_number() -> u32 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: only returns a number.
    return unsafe { libc::gettid() }.cast_unsigned();
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    0
}

/// Whether the calling thread is the one that runs `main`; also where the system does not tell.
#[cfg(not(dogtag_loom))]
pub(crate) fn is_main_thread() -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: both only return numbers.
    unsafe {
        libc::getpid() == libc::gettid()
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    true
}

/// A clock in milliseconds, from some moment before the program began. It may
/// be a few milliseconds late, and costs as many nanoseconds.
#[inline]
pub(crate) fn milliseconds() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC_COARSE;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;

    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a place for the result.
    unsafe { libc::clock_gettime(CLOCK, &mut time) };
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Whether a second has passed since `last` said so, which begins as 0.
#[cfg_attr(dogtag_loom, allow(dead_code))]
pub(crate) fn is_time(last: &AtomicU64) -> bool {
    let (before, now) = (last.load(Ordering::Relaxed), milliseconds().max(1));
    (before == 0 || now.saturating_sub(before) >= 1000)
        && last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

#[cfg_attr(dogtag_loom, allow(dead_code))]
fn map(len: usize) -> Option<NonNull<u8>> {
    map_with(len, libc::PROT_READ | libc::PROT_WRITE)
}

#[cfg_attr(dogtag_loom, allow(dead_code))]
fn map_with(len: usize, access: c_int) -> Option<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh anonymous mapping touches no memory that exists.
    let address = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return None;
    }
    // It is read here and there, as this says; and nobody else says so of memory that
    // is no file's, so that these mappings can be told from others: see `smaps`.
    // SAFETY: mapped just now. Should the system refuse, nothing depends on it.
    unsafe { libc::madvise(address, len, libc::MADV_RANDOM) };
    NonNull::new(address.cast())
}

/// Has `hook` called with `argument` when the calling thread ends. `false`
/// when the operating system has no memory to keep it.
///
/// The hook hangs on a pthread key: on most systems such keys are destroyed
/// after the thread-local destructors of Rust and C++, which may therefore
/// still allocate and free as if nothing had happened. Only one hook exists in
/// the process; all callers must pass the same.
///
/// The system may allocate to remember the hook (glibc does, where a process
/// has more than 32 keys), from the global allocator if that is its `malloc`.
pub(crate) fn at_thread_exit(hook: unsafe extern "C" fn(*mut c_void), argument: NonNull<u8>) -> bool {
    let Some(key) = exit_key(hook) else {
        return false;
    };
    // SAFETY: `key` is a key that `pthread_key_create` made and nobody deletes.
    unsafe { libc::pthread_setspecific(key, argument.as_ptr().cast()) == 0 }
}

fn exit_key(hook: unsafe extern "C" fn(*mut c_void)) -> Option<libc::pthread_key_t> {
    shared! {
        // The key plus one: a key may be 0, which here means that there is none yet.
        static KEY: AtomicUsize = AtomicUsize::new(0);
    }

    let known = KEY.load(Ordering::Acquire);
    if known != 0 {
        return Some((known - 1) as libc::pthread_key_t);
    }
    // From here on threads call code of ours when they end.
    #[cfg(all(target_os = "linux", target_env = "gnu", not(target_feature = "crt-static"), not(miri)))]
    stay_loaded::link();
    let mut key = 0;
    // SAFETY: `key` is a valid place for the result.
    if unsafe { libc::pthread_key_create(&mut key, Some(hook)) } != 0 {
        return None;
    }
    match KEY.compare_exchange(0, key as usize + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(key),
        Err(first) => {
            // SAFETY: this key is ours, and no thread has a value for it.
            unsafe { libc::pthread_key_delete(key) };
            Some((first - 1) as libc::pthread_key_t)
        }
    }
}

//! What we need from the operating system: pages, and a call when a thread
//! ends. Everything else in the house is plain Rust.
//!
//! The ledger enters this room from inside an allocation, so nothing here
//! locks or panics, and what allocates says so.

#[cfg(not(all(unix, target_pointer_width = "64")))]
compile_error!("dogtag needs a 64-bit Unix-like system (mmap, pthread keys); Linux is what it is tested on");

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Maps a `T` into fresh, zeroed pages that live as long as the process.
/// `None` when the operating system refuses.
///
/// # Safety
///
/// A `T` of all zero bytes must be valid, and `T` must not ask for more than
/// page alignment.
#[cfg(not(dogtag_loom))]
pub(crate) unsafe fn map_zeroed<T>() -> Option<&'static T> {
    let pages = map(size_of::<T>())?;
    // SAFETY: the pages are mapped readable and writable, zeroed and never
    // unmapped; that zeros make a valid, aligned `T` is the caller's promise.
    Some(unsafe { pages.cast::<T>().as_ref() })
}

/// Under loom atomics are objects, not bytes, so a `T` is built and leaked.
#[cfg(dogtag_loom)]
pub(crate) unsafe fn map_zeroed<T: Default>() -> Option<&'static T> {
    Some(Box::leak(Box::default()))
}

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

#[cfg(dogtag_loom)]
pub(crate) unsafe fn unmap<T>(_: &'static T) {}

#[cfg_attr(dogtag_loom, allow(dead_code))]
fn map(len: usize) -> Option<NonNull<u8>> {
    // SAFETY: a fresh anonymous mapping touches no memory that exists.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return None;
    }
    NonNull::new(address.cast())
}

/// Has `hook` called with `argument` when the calling thread ends. `false`
/// when the operating system has no room to remember it.
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
    // The key plus one: a key may be 0, which here means that there is none yet.
    static KEY: AtomicUsize = AtomicUsize::new(0);

    let known = KEY.load(Ordering::Acquire);
    if known != 0 {
        return Some((known - 1) as libc::pthread_key_t);
    }
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

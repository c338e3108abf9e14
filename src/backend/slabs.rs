//! Slabs of jemalloc's in which services begin: with an owner table a page should have one owner, and what
//! a program allocates before it has services would share the first pages with theirs.

use super::is_jemalloc;
use crate::sync::{AtomicBool, Ordering};
use std::ffi::CStr;
use std::ptr;
use tikv_jemalloc_sys as ffi;

static HAVE_BEGUN: AtomicBool = AtomicBool::new(false);

/// Has the calling thread's small blocks come from slabs of their own from now on: the first time that
/// this is called. To be called before a service's block is requested from a backend `B`.
#[inline]
pub(crate) fn begin<B>() {
    // If it is another of that name, an arena is made for nothing, no more.
    if is_jemalloc::<B>() && !HAVE_BEGUN.load(Ordering::Relaxed) {
        begin_once();
    }
}

#[cold]
#[inline(never)]
fn begin_once() {
    if HAVE_BEGUN.swap(true, Ordering::Relaxed) {
        return;
    }
    // An arena that the program has chosen for the thread is not among the automatic ones.
    let is_chosen = get(c"thread.arena").zip(get(c"opt.narenas")).is_none_or(|(arena, count)| arena >= count);
    if is_chosen {
        return;
    }
    if let Some(mut arena) = get(c"arenas.create") {
        let none = ptr::null_mut();
        // SAFETY: `arena` is an `unsigned`, which the first option reads. The second one has no value.
        unsafe {
            let place = (&raw mut arena).cast();
            ffi::mallctl(c"thread.arena".as_ptr(), none, ptr::null_mut(), place, size_of::<u32>());
            ffi::mallctl(c"thread.tcache.flush".as_ptr(), none, ptr::null_mut(), none, 0);
        }
    }
}

/// What an option of type `unsigned` says.
fn get(name: &CStr) -> Option<u32> {
    let (mut value, mut size) = (0_u32, size_of::<u32>());
    // SAFETY: jemalloc checks that `size` is what the option needs.
    let error =
        unsafe { ffi::mallctl(name.as_ptr(), (&raw mut value).cast(), &mut size, ptr::null_mut(), 0) };
    (error == 0).then_some(value)
}

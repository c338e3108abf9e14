//! Threads of dogtag's own. They are begun where there may be no memory for one, and are
//! then done without.

use crate::contained::contain;
use std::alloc::{Layout, alloc};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

/// Has `work` done by a thread of its own, which nobody waits for. `false` if there is none
/// to be had.
///
/// A plain thread of the system: std's own aborts the process where there is no memory for
/// what it knows of a thread, and needs thread-locals of its parent, which may be gone.
pub fn spawn<W: FnOnce() + Send + 'static>(work: W) -> bool {
    extern "C" fn run<W: FnOnce()>(work: *mut c_void) -> *mut c_void {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        // SAFETY: the kernel reads up to the zero.
        unsafe {
            libc::prctl(libc::PR_SET_NAME, c"dogtag".as_ptr())
        };
        // SAFETY: the box that `spawn` let go.
        let work = unsafe { Box::from_raw(work.cast::<W>()) };
        // A panic must not leave a C function.
        contain(*work);
        ptr::null_mut()
    }

    let Some(work) = try_box(work) else { return false };
    let work = Box::into_raw(work);
    let mut thread = MaybeUninit::uninit();
    // SAFETY: `run` has the right signature and takes over the box, unless
    // there is no thread; one that is there is detached once.
    unsafe {
        if libc::pthread_create(thread.as_mut_ptr(), ptr::null(), run::<W>, work.cast()) != 0 {
            drop(Box::from_raw(work));
            return false;
        }
        libc::pthread_detach(thread.assume_init());
    }
    true
}

/// Variant of [`spawn`] whose thread takes no signal that the program's threads wait for.
#[cfg(any(feature = "guard", feature = "report"))]
pub(crate) fn spawn_without_signals<W: FnOnce() + Send + 'static>(work: W) -> bool {
    let (mut all, mut former) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the sets are places for results, read once they are filled.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), former.as_mut_ptr());
    }
    let is_begun = spawn(work);
    // SAFETY: the former set was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, former.as_ptr(), ptr::null_mut()) };
    is_begun
}

/// As `Box::new`, which would abort where there is no memory.
pub fn try_box<T>(value: T) -> Option<Box<T>> {
    let layout = Layout::new::<T>();
    let place = match layout.size() {
        0 => NonNull::dangling(),
        // SAFETY: the layout is not empty.
        _ => NonNull::new(unsafe { alloc(layout) }.cast::<T>())?,
    };
    // SAFETY: it has that layout, as a box has, and is nobody else's.
    unsafe {
        place.write(value);
        Some(Box::from_raw(place.as_ptr()))
    }
}

//! Threads of dogtag's own. They are begun where there may be no memory for one, and are
//! then done without.

use crate::contained::contain;
use std::alloc::{Layout, alloc};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

/// Has `work` done by a thread of its own, which nobody waits for. `false` if there is none
/// to be had. It takes no signal that the program's threads wait for.
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
    let _signals = WithoutSignals::begin();
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

/// Keeps signals from the threads that the calling thread begins, until it is dropped: those that the program's
/// threads wait for. What a thread does itself, such as a fault, is told to it all the same.
struct WithoutSignals(libc::sigset_t);

impl WithoutSignals {
    fn begin() -> Self {
        const OWN: [libc::c_int; 7] = [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGTRAP,
            libc::SIGSYS,
            libc::SIGABRT,
        ];
        let (mut others, mut former) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the sets are places for results, read once they are filled.
        unsafe {
            libc::sigfillset(others.as_mut_ptr());
            OWN.iter().for_each(|signal| _ = libc::sigdelset(others.as_mut_ptr(), *signal));
            libc::pthread_sigmask(libc::SIG_SETMASK, others.as_ptr(), former.as_mut_ptr());
            Self(former.assume_init())
        }
    }
}

impl Drop for WithoutSignals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that there was.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
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

//! Keeps the library in memory that dogtag is a part of.
//!
//! A plug-in that is closed is unmapped, and what threads call at their end with it (the hook of
//! [`at_thread_exit`](super::at_thread_exit), and jemalloc's own), and the code of dogtag's own
//! thread. So such a library opens itself once more when it is loaded, and nobody closes that:
//! its destructors run at the process's exit, and who opens it again finds it as it was.
//!
//! It is done by a constructor, whose thread holds the loader's lock already. An allocation
//! must not wait for that.

use std::ffi::c_void;
use std::mem::MaybeUninit;

/// Has the linker keep the constructor, where it only takes what somebody refers to.
#[inline]
pub(super) fn link() {
    std::hint::black_box(&AT_LOAD);
}

#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    let Some(this) = object_of((&raw const AT_LOAD).cast()) else { return };
    // SAFETY: asks for an address.
    let program = unsafe { libc::getauxval(libc::AT_PHDR) } as *const c_void;
    if object_of(program).is_some_and(|program| program.dli_fbase == this.dli_fbase) {
        return;
    }
    // SAFETY: the name is the loader's, so it finds what is there, runs nothing, and counts one user
    // more. The flag has it stay even if somebody closes it too often.
    unsafe { libc::dlopen(this.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
}

/// The program or the library that an address is in.
fn object_of(address: *const c_void) -> Option<libc::Dl_info> {
    let mut info = MaybeUninit::uninit();
    // SAFETY: a place for the result, which is there unless that is 0.
    unsafe { (libc::dladdr(address, info.as_mut_ptr()) != 0).then(|| info.assume_init()) }
}

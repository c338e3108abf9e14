//! The C library's functions about threads, forks and modules, of which the allocator has to know.
//! Each calls the C library's own, and does what this library needs before or after.

use crate::names;
use crate::thread_name::ThreadName;
use dogtag::__private::memory_check;
use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Renames a thread, which allocates as another service then.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_setname_np(thread: libc::pthread_t, name: *const c_char) -> c_int {
    static NEXT: Next = Next::new(c"pthread_setname_np");
    type SetName = unsafe extern "C" fn(libc::pthread_t, *const c_char) -> c_int;

    // SAFETY: if there is such a function, it has this signature, and gets the arguments that C's
    // caller passed for it: a live thread and a C string. So the name can be read here, too.
    unsafe {
        let Some(set_name) = mem::transmute::<*mut c_void, Option<SetName>>(NEXT.get()) else {
            return libc::ENOSYS;
        };
        let error = set_name(thread, name);
        if error == 0 {
            let name = ThreadName::from_ptr(name);
            if thread == libc::pthread_self() {
                names::set_own(name);
            } else if names::are_wanted() {
                names::give(thread, name);
            }
        }
        error
    }
}

/// Makes the system call, and notes the name if a thread renames itself by it, or that system calls are about to be
/// filtered (libseccomp, which filters by another call, makes the one for privileges before). The call takes five
/// words, however many of them it needs, and so does the C library's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    // SAFETY: the kernel gets the words that C's caller passed for it. If it could read a name at
    // `a`, up to a zero or 15 bytes, so can this.
    unsafe {
        if matches!(option, libc::PR_SET_SECCOMP | libc::PR_SET_NO_NEW_PRIVS) {
            memory_check::confine();
        }
        let result = libc::syscall(libc::SYS_prctl, option, a, b, c, d) as c_int;
        if option == libc::PR_SET_NAME && result == 0 {
            names::set_own(ThreadName::from_ptr(ptr::with_exposed_provenance(a as usize)));
        }
        result
    }
}

/// Functions that only a shared glibc has a second copy of: in a program that is linked statically
/// there is no other to call.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
mod glibc {
    use super::*;
    use crate::names::Heritage;
    use dogtag::__private::service::{register_fork_handlers, unattributed};
    use dogtag::__private::sys::try_box;

    type Routine<R> = unsafe extern "C-unwind" fn(*mut c_void) -> R;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn pthread_create(
        thread: *mut libc::pthread_t,
        attributes: *const libc::pthread_attr_t,
        routine: Routine<*mut c_void>,
        argument: *mut c_void,
    ) -> c_int {
        static NEXT: Next = Next::new(c"pthread_create");
        type Create = unsafe extern "C" fn(
            *mut libc::pthread_t,
            *const libc::pthread_attr_t,
            Routine<*mut c_void>,
            *mut c_void,
        ) -> c_int;

        // SAFETY: if there is such a function, it has this signature.
        let Some(create) = (unsafe { mem::transmute::<*mut c_void, Option<Create>>(NEXT.get()) }) else {
            return libc::EAGAIN;
        };
        begun(routine, argument, 0, |routine, argument| {
            // SAFETY: the function has this signature, and gets the places that C's caller passed for
            // it. The routine is the caller's with its argument, or `run` with a `Start`.
            unsafe { create(thread, attributes, routine, argument) }
        })
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn thrd_create(
        thread: *mut libc::pthread_t,
        routine: Routine<c_int>,
        argument: *mut c_void,
    ) -> c_int {
        static NEXT: Next = Next::new(c"thrd_create");
        type Create = unsafe extern "C" fn(*mut libc::pthread_t, Routine<c_int>, *mut c_void) -> c_int;
        const THRD_SUCCESS: c_int = 0;
        const THRD_ERROR: c_int = 2;

        // SAFETY: if there is such a function, it has this signature.
        let Some(create) = (unsafe { mem::transmute::<*mut c_void, Option<Create>>(NEXT.get()) }) else {
            return THRD_ERROR;
        };
        begun(routine, argument, THRD_SUCCESS, |routine, argument| {
            // SAFETY: the function has this signature, and gets the place that C's caller passed for
            // it. The routine is the caller's with its argument, or `run` with a `Start`.
            unsafe { create(thread, routine, argument) }
        })
    }

    /// A thread that is to be begun.
    struct Start<R> {
        routine: Routine<R>,
        argument: *mut c_void,
        heritage: Heritage,
    }

    /// Begins a thread by `create` and passes this thread's name on to it.
    fn begun<R>(
        routine: Routine<R>,
        argument: *mut c_void,
        success: c_int,
        create: impl Fn(Routine<R>, *mut c_void) -> c_int,
    ) -> c_int {
        if !names::are_wanted() {
            return create(routine, argument);
        }
        let start = Start { routine, argument, heritage: Heritage::of_this_thread() };
        let Some(start) = unattributed(|| try_box(start)) else {
            // It goes by the program's name.
            return create(routine, argument);
        };
        let start = Box::into_raw(start);
        let result = create(run::<R>, start.cast());
        if result != success {
            // SAFETY: the box was made above, and no thread was begun that would take it.
            unattributed(|| drop(unsafe { Box::from_raw(start) }));
        }
        result
    }

    /// Runs in the new thread: takes its name, and calls its routine. A thread that is cancelled or calls `pthread_exit` is unwound through this,
    /// where nothing is left to be dropped.
    unsafe extern "C-unwind" fn run<R>(start: *mut c_void) -> R {
        // SAFETY: `begun` made the box, let it go, and began one thread with it.
        let Start { routine, argument, heritage } = *unsafe { Box::from_raw(start.cast::<Start<R>>()) };
        heritage.accept();
        // SAFETY: the argument is the one that C's caller passed for this routine.
        unsafe { routine(argument) }
    }

    type Handler = Option<unsafe extern "C" fn()>;

    /// Registers handlers of forks around this library's own, since they may allocate. It is called by
    /// `pthread_atfork`, of which every module has a copy.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn __register_atfork(
        prepare: Handler,
        parent: Handler,
        child: Handler,
        module: *mut c_void,
    ) -> c_int {
        static NEXT: Next = Next::new(c"__register_atfork");
        type Register = unsafe extern "C" fn(Handler, Handler, Handler, *mut c_void) -> c_int;

        // SAFETY: if there is such a function, it has this signature.
        let register = unsafe { mem::transmute::<*mut c_void, Option<Register>>(NEXT.get()) };
        register_fork_handlers(|| {
            // SAFETY: the function has this signature, and gets the handlers that C's caller passed
            // for it.
            register.map_or(libc::ENOMEM, |register| unsafe { register(prepare, parent, child, module) })
        })
    }

    // A module that is opened with `RTLD_DEEPBIND` has the C library's `free` for blocks that
    // other modules have from here, and the other way round: it is opened without.
    //
    // Who calls these decides where the module is looked for (`RPATH`, `$ORIGIN`, namespaces), and
    // glibc knows that by the return address: so they jump.
    #[cfg(target_arch = "x86_64")]
    mod modules {
        use super::*;
        use std::arch::naked_asm;

        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void {
            naked_asm!(
                "and esi, {flags}",
                "push rdi",
                "push rsi",
                "sub rsp, 8",
                "call {next}",
                "add rsp, 8",
                "pop rsi",
                "pop rdi",
                "jmp rax",
                flags = const !libc::RTLD_DEEPBIND,
                next = sym next_dlopen,
            )
        }

        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn dlmopen(
            namespace: libc::c_long,
            path: *const c_char,
            flags: c_int,
        ) -> *mut c_void {
            naked_asm!(
                "and edx, {flags}",
                "push rdi",
                "push rsi",
                "push rdx",
                "call {next}",
                "pop rdx",
                "pop rsi",
                "pop rdi",
                "jmp rax",
                flags = const !libc::RTLD_DEEPBIND,
                next = sym next_dlmopen,
            )
        }
    }

    /// Elsewhere the module's own paths are not looked at, since it is this library that calls.
    #[cfg(not(target_arch = "x86_64"))]
    mod modules {
        use super::*;

        #[unsafe(no_mangle)]
        unsafe extern "C" fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void {
            type Open = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;
            // SAFETY: the address is of a function with this signature, or of `no_module`, which reads
            // no argument. It gets the path and flags that C's caller passed for it.
            unsafe { mem::transmute::<*mut c_void, Open>(next_dlopen())(path, flags & !libc::RTLD_DEEPBIND) }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn dlmopen(
            namespace: libc::c_long,
            path: *const c_char,
            flags: c_int,
        ) -> *mut c_void {
            type Open = unsafe extern "C" fn(libc::c_long, *const c_char, c_int) -> *mut c_void;
            let flags = flags & !libc::RTLD_DEEPBIND;
            // SAFETY: the address is of a function with this signature, or of `no_module`, which reads
            // no argument. It gets the path and flags that C's caller passed for it.
            unsafe { mem::transmute::<*mut c_void, Open>(next_dlmopen())(namespace, path, flags) }
        }
    }

    extern "C" fn next_dlopen() -> *mut c_void {
        static NEXT: Next = Next::new(c"dlopen");
        match NEXT.get() {
            next if next.is_null() => no_module as *mut c_void,
            next => next,
        }
    }

    extern "C" fn next_dlmopen() -> *mut c_void {
        static NEXT: Next = Next::new(c"dlmopen");
        match NEXT.get() {
            next if next.is_null() => no_module as *mut c_void,
            next => next,
        }
    }

    /// Opens no module: stands in where the C library has no such function.
    extern "C" fn no_module() -> *mut c_void {
        ptr::null_mut()
    }
}

/// The next function of a name: the C library's, or that of another preloaded library before it.
pub(crate) struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Returns its address if it was looked up before; null otherwise.
    #[allow(dead_code, reason = "without memory-check nobody asks")]
    #[inline(always)]
    pub(crate) fn known(&self) -> *mut c_void {
        self.found.load(Ordering::Relaxed)
    }

    /// Returns its address; null if there is none.
    pub(crate) fn get(&self) -> *mut c_void {
        let known = self.found.load(Ordering::Relaxed);
        if !known.is_null() {
            return known;
        }
        // SAFETY: the name ends with a zero; the call only looks an address up.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

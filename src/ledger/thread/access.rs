//! How a thread gets at its own [`Thread`](super::Thread).

#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    not(any(miri, dogtag_thread_local, feature = "disable-initial-exec-tls"))
))]
mod initial_exec {
    //! The initial-exec model by hand, because stable Rust has no switch for it.

    use super::super::Thread;
    use std::arch::asm;
    use std::mem::offset_of;

    const _: () = assert!(offset_of!(Thread, cell) == 0 && offset_of!(Thread, directory) == 8);

    /// Aligned so that AddressSanitizer leaves it alone, which takes it for an ordinary variable.
    #[repr(C, align(64))]
    struct Template(#[allow(dead_code, reason = "asm reads it")] Thread);

    // SAFETY: nobody gets at the template itself.
    unsafe impl Sync for Template {}

    /// What each thread has a copy of: the linker and the loader know that by the section's name. Its
    /// address is an offset in the thread's block, so it is only named below. It is a Rust
    /// static for Rust's dynamic libraries (`dylib`), which export what the compiler knows.
    #[unsafe(link_section = ".tdata.dogtag")]
    static THREAD: Template = Template(Thread::new());

    #[inline(always)]
    pub(in crate::ledger::thread) fn first_word() -> *const u8 {
        let word;
        // SAFETY: reads the first word of the calling thread's `Thread`.
        unsafe {
            asm!(
                "mov {word}, qword ptr [rip + {of_thread}@GOTTPOFF]",
                "mov {word}, qword ptr fs:[{word}]",
                word = out(reg) word,
                of_thread = sym THREAD,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        word
    }

    #[inline(always)]
    pub(in crate::ledger::thread) fn second_word() -> *const u8 {
        let word;
        // SAFETY: reads the second word of the calling thread's `Thread`.
        unsafe {
            asm!(
                "mov {word}, qword ptr [rip + {of_thread}@GOTTPOFF]",
                "mov {word}, qword ptr fs:[{word} + 8]",
                word = out(reg) word,
                of_thread = sym THREAD,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        word
    }

    pub(in crate::ledger::thread) fn thread() -> *const Thread {
        let thread;
        // SAFETY: adds the variable's offset to the thread pointer, which on
        // x86-64 stands at the address it has.
        unsafe {
            asm!(
                "mov {thread}, qword ptr fs:[0]",
                "add {thread}, qword ptr [rip + {of_thread}@GOTTPOFF]",
                thread = out(reg) thread,
                of_thread = sym THREAD,
                options(pure, readonly, nostack),
            );
        }
        thread
    }
}

#[cfg(not(all(
    target_arch = "x86_64",
    target_os = "linux",
    not(any(miri, dogtag_thread_local, feature = "disable-initial-exec-tls"))
)))]
mod thread_local {
    //! What the compiler makes of a thread-local; it has no destructor, so it
    //! can be used for as long as the thread runs. Where there is a shorter way, the feature
    //! `disable-initial-exec-tls` or `--cfg dogtag_thread_local` choose it all the same.

    use super::super::Thread;

    std::thread_local! {
        static THREAD: Thread = const { Thread::new() };
    }

    #[inline]
    pub(in crate::ledger::thread) fn first_word() -> *const u8 {
        THREAD.with(|thread| std::ptr::from_ref(thread.cell.get()).cast())
    }

    #[inline]
    pub(in crate::ledger::thread) fn second_word() -> *const u8 {
        THREAD.with(|thread| std::ptr::from_ref(thread.directory.get()).cast())
    }

    pub(in crate::ledger::thread) fn thread() -> *const Thread {
        THREAD.with(std::ptr::from_ref)
    }
}

#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    not(any(miri, dogtag_thread_local, feature = "disable-initial-exec-tls"))
))]
pub(super) use initial_exec::{first_word, second_word, thread};
#[cfg(not(all(
    target_arch = "x86_64",
    target_os = "linux",
    not(any(miri, dogtag_thread_local, feature = "disable-initial-exec-tls"))
)))]
pub(super) use thread_local::{first_word, second_word, thread};

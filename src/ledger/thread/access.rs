//! How a thread gets at its own [`Thread`](super::Thread).

#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    not(any(miri, dogtag_thread_local, feature = "disable-initial-exec-tls"))
))]
mod initial_exec {
    //! The initial-exec model by hand, because stable Rust has no switch for it.

    use super::super::Thread;
    use crate::ledger::cell::Cell;
    use crate::ledger::shard::Directory;
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

    /// The words that scopes use, each one instruction away: how far they are from the thread pointer,
    /// which all threads have in common.
    #[derive(Clone, Copy)]
    pub(in crate::ledger::thread) struct Words(usize);

    impl Words {
        #[inline(always)]
        pub(in crate::ledger::thread) fn of_thread() -> Self {
            let offset;
            // SAFETY: reads what the linker or the loader has written down, which does not change.
            unsafe {
                asm!(
                    "mov {offset}, qword ptr [rip + {of_thread}@GOTTPOFF]",
                    offset = out(reg) offset,
                    of_thread = sym THREAD,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            Self(offset)
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn cell(self) -> *const Cell {
            let cell;
            // SAFETY: reads a field of the calling thread's `Thread`.
            unsafe {
                asm!(
                    "mov {cell}, qword ptr fs:[{offset} + {field}]",
                    cell = out(reg) cell,
                    offset = in(reg) self.0,
                    field = const offset_of!(Thread, cell),
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            cell
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn is_cell(self, cell: *const Cell) -> bool {
            // SAFETY: reads a field of the calling thread's `Thread`.
            unsafe {
                asm!(
                    "cmp qword ptr fs:[{offset} + {field}], {cell}",
                    "jne {no}",
                    cell = in(reg) cell,
                    offset = in(reg) self.0,
                    field = const offset_of!(Thread, cell),
                    no = label { return false },
                    options(readonly, nostack),
                );
            }
            true
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn set_cell(self, cell: *const Cell) {
            // SAFETY: writes a field of the calling thread's `Thread`, which is interior-mutable.
            unsafe {
                asm!(
                    "mov qword ptr fs:[{offset} + {field}], {cell}",
                    cell = in(reg) cell,
                    offset = in(reg) self.0,
                    field = const offset_of!(Thread, cell),
                    options(nostack, preserves_flags),
                );
            }
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn directory(self) -> &'static Directory {
            let directory: *const Directory;
            // SAFETY: reads a field of the calling thread's `Thread`, which is always a reference to a
            // directory; directories are never unmapped.
            unsafe {
                asm!(
                    "mov {directory}, qword ptr fs:[{offset} + {field}]",
                    directory = out(reg) directory,
                    offset = in(reg) self.0,
                    field = const offset_of!(Thread, directory),
                    options(pure, readonly, nostack, preserves_flags),
                );
                &*directory
            }
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn stay(self) {
            // SAFETY: writes a field of the calling thread's `Thread`, which is interior-mutable.
            unsafe {
                asm!(
                    "inc qword ptr fs:[{offset} + {field}]",
                    offset = in(reg) self.0,
                    field = const offset_of!(Thread, stays),
                    options(nostack),
                );
            }
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn stay_no_more(self) {
            // SAFETY: writes a field of the calling thread's `Thread`, which is interior-mutable.
            unsafe {
                asm!(
                    "dec qword ptr fs:[{offset} + {field}]",
                    offset = in(reg) self.0,
                    field = const offset_of!(Thread, stays),
                    options(nostack),
                );
            }
        }
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

    use super::super::{Thread, with};
    use crate::ledger::cell::Cell;
    use crate::ledger::shard::Directory;

    std::thread_local! {
        static THREAD: Thread = const { Thread::new() };
    }

    #[inline]
    pub(in crate::ledger::thread) fn first_word() -> *const u8 {
        THREAD.with(|thread| thread.cell.get().cast())
    }

    #[inline]
    pub(in crate::ledger::thread) fn second_word() -> *const u8 {
        THREAD.with(|thread| std::ptr::from_ref(thread.directory.get()).cast())
    }

    pub(in crate::ledger::thread) fn thread() -> *const Thread {
        THREAD.with(std::ptr::from_ref)
    }

    /// The words that scopes use.
    #[derive(Clone, Copy)]
    pub(in crate::ledger::thread) struct Words(());

    impl Words {
        #[inline(always)]
        pub(in crate::ledger::thread) fn of_thread() -> Self {
            Self(())
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn cell(self) -> *const Cell {
            with(|thread| thread.cell.get())
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn is_cell(self, cell: *const Cell) -> bool {
            self.cell() == cell
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn set_cell(self, cell: *const Cell) {
            with(|thread| thread.cell.set(cell));
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn directory(self) -> &'static Directory {
            with(|thread| thread.directory.get())
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn stay(self) {
            with(Thread::stay);
        }

        #[inline(always)]
        pub(in crate::ledger::thread) fn stay_no_more(self) {
            with(Thread::stay_no_more);
        }
    }
}

#[cfg(all(
    target_arch = "x86_64",
    target_os = "linux",
    not(any(miri, dogtag_thread_local, feature = "disable-initial-exec-tls"))
))]
pub(super) use initial_exec::{Words, first_word, second_word, thread};
#[cfg(not(all(
    target_arch = "x86_64",
    target_os = "linux",
    not(any(miri, dogtag_thread_local, feature = "disable-initial-exec-tls"))
)))]
pub(super) use thread_local::{Words, first_word, second_word, thread};

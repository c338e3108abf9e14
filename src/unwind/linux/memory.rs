//! Reads words of stacks, as far as they are readable.
//!
//! The kernel is asked whether a page is readable, by a system call that looks at a word there and then
//! refuses for another reason. For a thread's own stack that is done once: what is between the stack
//! pointer and the thread's block of thread-locals, which is above the stack in the same mapping, stays mapped for as long as
//! the thread runs. On other stacks each page costs a call.

use crate::ledger::thread::Word;
use std::sync::atomic::{Ordering, compiler_fence};

const PAGE: usize = 4096;
const WORD: usize = size_of::<usize>();

/// How many pages of a thread's own stack are asked for at once: 1 MiB. What is deeper is taken for another stack.
const OWN_PAGES: usize = 256;

/// How often a thread's own stack is looked for: threads that run coroutines are mostly on others.
const ATTEMPTS: u64 = 4;

/// What is known of the calling thread's own stack, in its record: a thread-local of this module's own might be
/// allocated when it is first used, in a shared library.
struct Own;

impl Own {
    /// A signal handler may interrupt this anywhere, and call it.
    fn set(&self, from: usize, to: usize) {
        Word::StackTo.set(0);
        compiler_fence(Ordering::SeqCst);
        Word::StackFrom.set(from as u64);
        compiler_fence(Ordering::SeqCst);
        Word::StackTo.set(to as u64);
    }

    fn range(&self) -> (usize, usize) {
        let to = Word::StackTo.get() as usize;
        compiler_fence(Ordering::SeqCst);
        (Word::StackFrom.get() as usize, to)
    }

    /// The readable pages around a stack pointer, if that is in the thread's own stack.
    #[cold]
    #[inline(never)]
    fn find(&self, sp: usize) -> Option<(usize, usize)> {
        let (known_from, known_to) = self.range();
        let to = if known_to > 0 { known_to } else { top_of_stack(sp)? };
        // What is known needs no second look.
        let below = if known_to > 0 { known_from } else { to };
        let from = sp / PAGE * PAGE;
        if from >= to
            || below.saturating_sub(from) > OWN_PAGES * PAGE
            || Word::StackFailures.get() >= ATTEMPTS
        {
            return None;
        }
        // From the stack pointer on, so that the first page between two stacks ends it.
        if (from..below).step_by(PAGE).all(is_readable) {
            self.set(from, to);
            return Some((from, to));
        }
        Word::StackFailures.set(Word::StackFailures.get() + 1);
        None
    }
}

/// An address near the top of the calling thread's own stack: its thread pointer, which the C libraries have
/// there, or of the main thread, what the kernel has put there.
fn top_of_stack(sp: usize) -> Option<usize> {
    let near = |address: usize| address > sp && address - sp <= OWN_PAGES * PAGE;
    // SAFETY: both only return a number.
    let is_main = unsafe { libc::syscall(libc::SYS_gettid) == i64::from(libc::getpid()) };
    let top = if is_main {
        // The main thread's block of thread-locals is somewhere else, and another stack may be below it.
        // SAFETY: reads a number that the kernel gave.
        unsafe { libc::getauxval(libc::AT_RANDOM) as usize }
    } else {
        thread_pointer()
    };
    Some(top).filter(|top| near(*top))
}

fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: reads the thread pointer.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("mov {}, fs:[0]", out(reg) pointer, options(pure, readonly, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(pure, nomem, nostack, preserves_flags));
    }
    pointer
}

/// Stacks' memory, with the last range that is known to be readable.
pub(super) struct Memory {
    from: usize,
    to: usize,
}

impl Memory {
    pub(super) fn of_stack(sp: usize) -> Self {
        let (from, to) = Own.range();
        if from <= sp && sp < to {
            return Self { from, to };
        }
        // The page that the thread is on needs no look.
        let page = sp / PAGE * PAGE;
        let (from, to) = Own.find(sp).unwrap_or((page, page + PAGE));
        Self { from, to }
    }

    /// The word at an address, which must be a multiple of its size. `None` where nothing can be read.
    #[inline]
    pub(super) fn read(&mut self, address: usize) -> Option<usize> {
        if !address.is_multiple_of(WORD) {
            return None;
        }
        if !(self.from <= address && address < self.to) {
            self.look(address)?;
        }
        // SAFETY: it is in a page that is readable. As it is of a stack that the thread is on or
        // goes back to, it stays so.
        Some(unsafe { std::ptr::with_exposed_provenance::<usize>(address).read_volatile() })
    }

    /// Whether all of `from..to` is known to be readable already.
    #[inline]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn has(&self, from: usize, to: usize) -> bool {
        self.from <= from && from <= to && to <= self.to
    }

    #[cold]
    #[inline(never)]
    fn look(&mut self, address: usize) -> Option<()> {
        let page = address / PAGE * PAGE;
        if !is_readable(page) {
            return None;
        }
        let after = page.checked_add(PAGE)?;
        if page == self.to {
            self.to = after;
        } else if after == self.from {
            self.from = page;
        } else {
            (self.from, self.to) = (page, after);
        }
        Some(())
    }
}

/// Whether the page of an address can be read. Asks the kernel to change the thread's signal mask from there in a
/// way that there is not: it reads the mask first. (As Abseil's `AddressIsReadable` does.)
pub(super) fn is_readable(address: usize) -> bool {
    const EINVAL: isize = -(libc::EINVAL as isize);
    const NO_SUCH_WAY: usize = !0;
    let mut result: isize;
    // SAFETY: the call changes nothing. It is made here since the C library's would change `errno`.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_rt_sigprocmask as isize => result,
            in("rdi") NO_SUCH_WAY,
            in("rsi") address,
            in("rdx") 0,
            in("r10") 8,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!(
            "svc 0",
            in("x8") libc::SYS_rt_sigprocmask,
            inlateout("x0") NO_SUCH_WAY as isize => result,
            in("x1") address,
            in("x2") 0,
            in("x3") 8,
            options(nostack),
        );
    }
    result == EINVAL
}

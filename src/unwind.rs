//! Takes the calling thread's call stack, inside an allocation.
//!
//! On Linux on x86-64 and AArch64, [`capture`] takes no lock, allocates nothing, waits for nobody and never
//! calls the loader. So it works wherever an allocation does: while this or another thread is in `dlopen`, in
//! a signal handler, in a thread that is ending, on any stack. It reads the compilers' unwind
//! tables (`.eh_frame`):
//!
//! | module | what it does |
//! | --- | --- |
//! | `modules` | finds the loaded programs and libraries and their tables, outside of allocations; memory-check's within |
//! | `needed` | tells which of them are never unloaded |
//! | `tables` | reads from the tables how to unwind at an address, with `gimli` |
//! | `rules` | a rule of how to unwind, in a word, and a lock-free cache of them for all threads |
//! | `memory` | reads the stack, once the kernel has said that the page is readable |
//! | `registers` | the registers, and what differs between the architectures |
//!
//! A frame that was met before costs some nanoseconds. A wrong table, an overwritten stack or an address of
//! nobody ends the stack early or makes it wrong: memory is read once the kernel has said that it is readable. Code without tables, such as a JIT
//! compiler's, is followed by its frame pointers; without those the stack ends there.
//!
//! Elsewhere the `backtrace` crate takes the stack, with what that locks and allocates.

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod linux;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
use linux as system;

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
mod other;
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
use other as system;

#[cfg(all(test, target_os = "linux", target_arch = "x86_64", not(miri)))]
mod tests;

/// Prepares taking call stacks: finds the loaded libraries. Called when a profiler starts, outside of
/// allocations: it allocates, and locks.
#[cfg_attr(not(feature = "profile"), allow(dead_code))]
pub(crate) fn prepare() {
    system::prepare();
}

/// Looks for libraries that were loaded or unloaded since. Called outside of allocations, now and then: it
/// asks the loader, which locks, and allocates if there are any. Until then, stacks end at frames of
/// new libraries, or go on by their frame pointers.
#[cfg_attr(not(feature = "profile"), allow(dead_code))]
pub(crate) fn refresh_if_needed() {
    system::refresh_if_needed();
}

/// Takes the call stack of a thread that a signal has interrupted into `frames`, beginning with the interrupted
/// instruction, as [`capture`] takes the caller's. None on other systems.
///
/// # Safety
///
/// `context` must be what a signal handler was given that has not returned.
#[cfg(any(feature = "sampled-guard", feature = "memory-check"))]
pub(crate) unsafe fn capture_interrupted(context: *const std::ffi::c_void, frames: &mut [usize]) -> usize {
    // SAFETY: the caller's context.
    unsafe { system::capture_interrupted(context, frames) }
}

/// Takes the calling thread's call stack into `frames` and returns how many frames there are: return
/// addresses, innermost first, beginning with the caller's own place in its caller.
///
/// Where a signal interrupted the thread, the frame is one more than the instruction's address, so
/// that the byte before each frame is in the code that it stands for.
#[cfg_attr(not(feature = "profile"), allow(dead_code))]
#[inline(always)]
pub(crate) fn capture(frames: &mut [usize]) -> usize {
    system::capture(frames)
}

/// Variant of [`capture`] that tells besides whether it knew all code that it met. It needs no preparation:
/// where it knew some not, [`try_refresh`] is for it.
#[cfg(feature = "memory-check")]
#[inline(always)]
pub(crate) fn capture_known(frames: &mut [usize]) -> (usize, bool) {
    system::capture_known(frames)
}

/// Looks for libraries that were loaded or unloaded since, and says whether there were any. Called inside an
/// allocation, whose thread's own allocations meanwhile take no stack. Waits for no other thread of ours, but asks
/// the loader, which locks.
#[cfg(feature = "memory-check")]
#[cold]
pub(crate) fn try_refresh() -> bool {
    system::try_refresh()
}

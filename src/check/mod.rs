//! Finds violations of memory rules, such as overruns and double frees, and reports who did what to
//! whose block (feature `memory-check`).
//!
//! skynet's `MEMORY_CHECK` distinguishes a double free from an overrun by a magic word
//! behind each block. This module keeps skynet's words and finds more.
//!
//! | violation | how sure |
//! | --- | --- |
//! | [`Overrun`](ViolationKind::Overrun): a write past the requested size, if only of a bit | certain for the first 32 bytes (16 of one that has shrunk in its place), 64 from 512 bytes on, and up to the backend's size class (256 at most) or, from 64 KiB on, to the end of a page, but for a zero at the second byte; of [C's blocks of 0 bytes](#blocks-of-0-bytes) certain, at the write, up to the end of a page |
//! | [`Underrun`](ViolationKind::Underrun): a write in front of the block | certain for the first 16 bytes |
//! | [`DoubleFree`](ViolationKind::DoubleFree): at once, later, from another thread | certain while the block is in quarantine |
//! | [`WriteAfterFree`](ViolationKind::WriteAfterFree) | certain while the block is in quarantine; of a block of 64 KiB or more at the write |
//! | [`ReadAfterFree`](ViolationKind::ReadAfterFree) | of a block of 64 KiB or more certain, at the read, while the block is in quarantine, with [exceptions](#large-blocks); of [C's of 0 bytes](#blocks-of-0-bytes), too |
//! | [`Overread`](ViolationKind::Overread) | of [C's blocks of 0 bytes](#blocks-of-0-bytes) certain, at the read |
//! | [`WildWrite`](ViolationKind::WildWrite), [`WildRead`](ViolationKind::WildRead): of the heap's memory where no block is, such as a MiB past a block | certain, at the access, in pages that have held no block, or whose blocks were given back some seconds ago, with [exceptions](#memory-without-blocks) |
//! | [`LayoutMismatch`](ViolationKind::LayoutMismatch): freed or resized with another size or alignment | certain |
//! | [`InvalidFree`](ViolationKind::InvalidFree): of a pointer that was never handed out, such as one to the stack, into a block, or from another allocator | certain; the pointer is not followed |
//! | [`RegionInUse`](ViolationKind::RegionInUse): a mapped region that is dropped before its blocks | certain |
//! | [`AllocDeallocMismatch`](ViolationKind::AllocDeallocMismatch): C++'s `delete` of `new[]` or `malloc`, `free` of `new`, and all other such pairs | certain |
//! | [`BadUsableSize`](ViolationKind::BadUsableSize): C's `malloc_usable_size` of a pointer to no live block | certain |
//! | the same by C's functions that copy, fill, print, read and write memory, such as `memcpy`, over either end of a block or in a freed one; [`Overread`](ViolationKind::Overread), [`ReadAfterFree`](ViolationKind::ReadAfterFree) | certain, at the call, while the block is live or in quarantine; with dogtag-c's feature `interpose` |
//!
//! A violation is found when the block is freed or reallocated, a write after free when the block
//! leaves the quarantine; [`verify`] finds both earlier, and the setting `look` the latter. A write that leaves every
//! byte as it was cannot be seen. Large freed blocks [have no access](#large-blocks): who reads or writes one is found
//! at once.
//!
//! A [handler](set_handler) decides what is done about a violation. Without one it is
//! [reported](report), and the process aborts.
//!
//! # Use it in debug builds and in CI only
//!
//! The feature changes the whole program, and costs both time and memory: a
//! program that parses JSON takes 2.5 times as long, and each block is at
//! least 96 bytes larger. So enable it by a feature of your own,
//!
//! ```toml
//! [features]
//! memory-check = ["dogtag/memory-check"]
//! ```
//!
//! and build with it where you test: `cargo test --features memory-check`.
//! Nothing else in the program has to change. Without the feature dogtag still
//! counts blocks whose cookie was overwritten: [`Snapshot::lost`].
//!
//! # Guards, patterns, quarantine
//!
//! A block is surrounded by guards, bytes from `0xF5` to `0xFC`. The second byte behind a block is 0, so
//! that a text without an end ends there, and the zero behind a text that is too long is still
//! found; with `fill=zero` it is the first one, and that zero is found only where C's functions
//! write it. In front of them is the block's
//! header, all mixed with the block's address. The block's *state* (live, freed) is kept
//! apart from the heap, where no overrun reaches it. Fresh memory is filled with
//! `0xCD` (the first 64 MiB of a block), freed memory with `0xDD`, unless it has no access (the patterns
//! of Microsoft's debug heap); zeroed memory is zero. A pointer that is read from either pattern
//! faults on x86-64.
//!
//! Freed blocks stay in *quarantine* before their memory is used again. It is a queue that each
//! thread enters with 32 blocks at a time; blocks that have not entered do not count towards its bounds. A fork
//! copies it. So each fork halves the bytes that
//! it may hold, down to 256 KiB, and a quarter of what is freed after that raises them again.
//! Blocks in quarantine are not live in any service's figures;
//! [`Snapshot::quarantine`] shows them. When an allocator's backend has no memory left, all
//! blocks of the allocator leave the quarantine, and the backend is asked again. `realloc` moves
//! the block, so that stale pointers to the old one are found; only a block that does not grow stays
//! in its place where there is no memory for a copy.
//!
//! # Large blocks
//!
//! A block of 64 KiB or more (1 MiB on systems other than x86-64) begins with a page of memory, and shares its pages
//! with nobody. While it is in quarantine these pages have no access: whoever reads or writes there is reported at
//! once, with the call stack, if call stacks are kept (as far as libraries go that were known before). If the process
//! goes on, the access is let through. A block that was read is like any other in quarantine then; one that was written to
//! is never used again. (One access is reported, not those that follow.)
//!
//! For that a handler of `SIGSEGV` and `SIGBUS` is set, when the first such block is freed at the latest. Handlers from before, and the
//! default, are called for every fault that is no freed block's, as their flags and masks say. If the program sets
//! another one after that, faults are that one's, and no more blocks lose their access. The handler of violations runs on
//! the stack of the thread that made the access, not on its small one for signals. Rust's standard library sets a
//! handler before `main`, and only where there is none: where large blocks were freed before `main`, a stack overflow ends the
//! process without the line "has overflowed its stack".
//!
//! A thread that blocks `SIGSEGV`, or whose own stack is the freed block and that has no other one for signals, ends the
//! process without a report, since the handler has no place there. A filter of system calls must allow `mprotect`,
//! `sigaction` and `sigaltstack`, and `madvise` or refuse it with an error; with dogtag-c's `interpose` no more blocks lose
//! their access once the program calls `prctl` for such a filter. `protect=0` helps in all these cases. A debugger stops at the access, not at the end.
//!
//! No more than 8,192 blocks at once have no access, and none of 256 MiB or more, since the system bounds a process's mappings;
//! and none whose pages the system refuses to change. What the kernel accesses for the program is no fault: a `read`
//! into such a block fails with `EFAULT`. A free takes some microseconds, of which a part is that other threads of the process
//! are interrupted. With the system's allocator as backend zeroed blocks of that size are written to, and so are in memory.
//! `protect=0` leaves all blocks their access.
//!
//! On Linux a block of 2 MiB or more gives its memory back to the system when it loses its access, unless its pages are
//! locked (`mlock`), the backend is neither jemalloc nor the system's allocator, or the system counts every byte that is
//! mapped (strict overcommit). It counts towards the quarantine's bytes with the page that has its header, and all such blocks
//! have a bound of their own: 64 times as many bytes of addresses, 1 GiB by default. So blocks that are larger than the
//! quarantine enter, too. Who uses the addresses next has pages made for them.
//!
//! # Blocks of 0 bytes
//!
//! C's `malloc(0)` and its kin, and C++'s `new char[0]`, return a pointer to a page without access: who reads or
//! writes there is reported at once, while the block is live and when it has been freed. What is said above of signals,
//! handlers and filters of system calls holds for these pages, too (another handler is noticed within a second), and
//! `protect=0` leaves them out. If the process goes on, the access is let through, and the page is not used again.
//!
//! The block's header has a page in front of that one. There are 4,096 such pairs, made when they are needed, 16 MiB in
//! memory if all are in use or in quarantine (where they do not count towards its bytes); the system bounds a
//! process's mappings. Where there are no more, or a block is to be aligned to more than 4 KiB (64 KiB other than on
//! x86-64), it is like any other: a write is found when it is freed, and a read is not seen. So it is with a block
//! that skynet's `realloc` makes so small. Rust has no blocks of 0 bytes.
//!
//! # Memory without blocks
//!
//! jemalloc maps ranges of some MiB, and keeps what it does not use. On Linux such pages have no access, and nor have
//! 2 MiB of addresses on each side of a range: whoever reads or writes there is reported at once, as a wild access. The
//! report names the nearest block, which need not be the one that was meant: a pointer that was never set may point
//! there, too. If the process goes on, the access is let through; what it writes there is in no block that comes later.
//!
//! Pages that hold blocks are not meant, if only one that is small: so the larger the heap, the more often a wild
//! access hits a block, or memory between two. Nor are those that jemalloc will take next, up to a multiple of 256 KiB.
//! Pages that were freed lose their access when jemalloc gives them back, after ten seconds or so. jemalloc's
//! bookkeeping keeps its access, as does what it has for blocks of 8 MiB and more once they have left the quarantine, an
//! arena that the program has made, and what is allocated while jemalloc starts.
//!
//! What is said above of signals, handlers and filters of system calls holds here, too: a filter has to allow
//! `mprotect`, or refuse it with an error, when the heap grows; with dogtag-c's `interpose` all pages have their access
//! back when the program calls `prctl` for a filter. The handler is set in C programs when they are loaded, in others
//! when a second thread allocates, or a thread has freed some 32 blocks; before that a wild access ends the process
//! without a report. A program that has set a handler of its own since is given such faults until the first large block
//! is freed. A Rust program that runs with the library preloaded says no more that it "has overflowed its stack".
//!
//! There are no more than 8,192 such runs of pages: beyond that pages keep their access. Where the system refuses to
//! give an access back, all pages get theirs. jemalloc is left as it is where the program has it `retain:false`,
//! `hpa:true` or guards of its own, or has set hooks before a thread of that arena's allocates, and by `protect=0`. (Hooks that are
//! set later have to give a page its access when it is committed.) With `ulimit -v` nothing is reserved beside a
//! range. Every 256 KiB by which the heap grows take a system call, and so does an extent that is given back; the kernel
//! makes no huge page of memory that has its access in parts, and large zeroed blocks in pages that were freed a moment
//! ago are written to.
//!
//! # Looks
//!
//! With `look=100` a thread of dogtag's looks at blocks in quarantine every 100 milliseconds, up to 2,048 each
//! time, and reports a write after free that it finds, so that it is known soon and not at the process's end. The
//! thread begins when a thread has freed some 32 blocks; in C programs, when they are loaded. Forked children begin one
//! when they free as many; those of C programs have none. There is none by default, since a program may depend on
//! having no other thread.
//!
//! # Copies
//!
//! With its feature `interpose` the crate dogtag-c replaces C's `memcpy`, `memmove`, `memset`, `strcpy`,
//! `strncpy`, `strcat`, `strncat`, their variants that return the end, that compilers choose for
//! `_FORTIFY_SOURCE` and that are for wide characters, `sprintf` and `snprintf` and theirs, and `read`,
//! `pread`, `recv`, `recvfrom`, `fread`, `fgets`, `write`, `pwrite`, `send` and `fwrite`. What they read and
//! write is looked up at the call, before anything is overwritten; what is printed or received is known
//! when the function returns, and looked up then. (With a shared glibc; `sprintf`, `snprintf` and `swprintf` on
//! x86-64. The fortified twins of `pread`, `recv`, `recvfrom` and `fread`, and the unlocked ones of stdio, are not
//! replaced.) A call takes some 10 ns longer, 20 ns for pointers into
//! small blocks, 200 ns for pointers into the middle of a block of a MiB.
//!
//! In a Rust program `copy_nonoverlapping`, `copy_from_slice`, `clone` and `Vec`'s growth go through the
//! same functions wherever the compiler makes a call of them. It does not where the length is a constant
//! up to some 128 bytes, nor for loops; `alloc_zeroed` and `realloc` never do. C's compilers replace calls
//! of small constant lengths by plain moves in the same way (`-fno-builtin` has them left). Copies within
//! the C library itself are not seen.
//!
//! # Settings
//!
//! The first allocation reads the environment variable `DOGTAG_CHECK`:
//! `DOGTAG_CHECK=quarantine=64M,backtrace=1 cargo test`. Settings that it does not
//! understand are reported on standard error and ignored.
//!
//! | setting | default | |
//! | --- | --- | --- |
//! | `quarantine` | `16M` | bytes in quarantine, guards and headers included, for each allocator, and a 64th of that (256 KiB at most) for each thread; 0 for none; larger blocks do not enter, but for those [without memory](#large-blocks), of which there are 64 times as many bytes |
//! | `quarantine-blocks` | `16384` | blocks in quarantine for each allocator, rounded up to a power of two, and 32 for each thread |
//! | `fill` | `1` | `zero` fills with zeros instead of patterns, so that nobody sees old contents, and ends texts right behind their block; 0 leaves fresh and freed memory as it is: faster, and writes to freed blocks are only seen around them |
//! | `backtrace` | `0` | 1 keeps the call stack of every allocation and free: slow. Allocates when libraries have come or gone, and ends the process if there is no memory then |
//! | `reaction` | `abort` | `leak` goes on after a report |
//! | `alloc-dealloc-mismatch` | `all` | which blocks are reported that another family's function frees: `new` only those of `new` and `new[]`, for programs with two C++ libraries, one of them on top of `malloc`; `none` |
//! | `new-delete-type-mismatch` | `1` | 0 does not report C++'s `delete` with another size or alignment |
//! | `copies` | `1` | 0 does not look at what C's functions read and write |
//! | `protect` | `64K` (`1M` other than on x86-64) | the size from which on freed blocks in quarantine [have no access](#large-blocks), and no less than the default; 0 for none, and for no pages behind [blocks of 0 bytes](#blocks-of-0-bytes) and [without blocks](#memory-without-blocks) |
//! | `look` | `0` | milliseconds from one [look](#looks) at the quarantine to the next; 0 for none |
//! | `patience` | `10` | seconds that a report may take to find the functions' names, before it has addresses instead; with 0 it has none, and no event is sent |
//!
//! A violation of a freed block is found while the block is in quarantine, and so by default within the 16,384 frees, or the
//! 16 MiB, that follow. What is freed and used again much later is found with more, at the cost of memory and, since what
//! leaves the quarantine is not in the processor's caches any more, of time: `DOGTAG_CHECK=quarantine=64M,quarantine-blocks=65536`.
//! Blocks of 2 MiB or more, which [have no memory](#large-blocks) meanwhile, stay for the 1 GiB of them that follow.
//!
//! # Memory
//!
//! The cost is 64 bytes in front of each block, or its alignment if that is larger,
//! and 32 or more behind; a page in front of each block of 64 KiB or more, and of each of C's of 0 bytes; a byte for each 16 bytes of the heap,
//! which a fork gives back where there are no blocks; the quarantine; and with
//! `backtrace=1` some 280 bytes for each different call stack.
//!
//! # Limits
//!
//! A write far from the block into another one, a read past its end or of small freed blocks but by C's [functions](#copies), and
//! a violation of memory from elsewhere are not seen; sanitizers see them. A pointer
//! that is freed again after its memory has been handed out once more is taken
//! for the new block. Of more than 65,534 allocators at once the others are not told apart,
//! and have no quarantine.
//!
//! A signal handler must not allocate or free, here as with nearly every allocator: the
//! thread may be reading the very block, and would wait for itself. A handler's copy or access that is a violation is
//! reported in it, which allocates.
//!
//! [`Snapshot::lost`]: crate::Snapshot::lost
//! [`Snapshot::quarantine`]: crate::Snapshot::quarantine

mod block_state;
mod instance_id;
mod magazine;
mod quarantine;
mod slot_stack;

#[cfg(not(dogtag_loom))]
pub(crate) mod access;
#[cfg(not(dogtag_loom))]
mod access_context;
#[cfg(not(dogtag_loom))]
mod address_ranges;
pub(crate) mod block;
#[cfg(not(dogtag_loom))]
mod checker;
#[cfg(not(dogtag_loom))]
pub(crate) mod claim;
#[cfg(not(dogtag_loom))]
mod depot;
#[cfg(all(
    feature = "jemalloc",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(dogtag_loom)
))]
mod extent_hooks;
#[cfg(not(dogtag_loom))]
pub(crate) mod fill;
#[cfg(not(dogtag_loom))]
mod handler;
#[cfg(not(dogtag_loom))]
mod hexdump;
#[cfg(not(dogtag_loom))]
mod inspect;
#[cfg(not(dogtag_loom))]
mod live;
#[cfg(not(dogtag_loom))]
pub(crate) mod protection;
#[cfg(not(dogtag_loom))]
mod reaction;
#[cfg(not(dogtag_loom))]
mod release;
#[cfg(not(dogtag_loom))]
mod report_thread;
#[cfg(not(dogtag_loom))]
pub(crate) mod scrubber;
#[cfg(not(dogtag_loom))]
mod settings;
#[cfg(not(dogtag_loom))]
mod shadow;
#[cfg(not(dogtag_loom))]
mod stack_depot;
#[cfg(not(dogtag_loom))]
mod text;
#[cfg(not(dogtag_loom))]
mod threads;
#[cfg(not(dogtag_loom))]
#[cfg_attr(
    not(all(
        feature = "jemalloc",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    )),
    allow(dead_code)
)]
mod uncommitted;
#[cfg(not(dogtag_loom))]
mod verify;
#[cfg(not(dogtag_loom))]
mod violation;
#[cfg(not(dogtag_loom))]
mod violation_kind;
#[cfg(not(dogtag_loom))]
mod wild_access;
#[cfg(not(dogtag_loom))]
mod zero_sized;

#[cfg(not(dogtag_loom))]
pub(crate) use threads::{learn_names_from, renamed as thread_was_renamed};

#[cfg(not(dogtag_loom))]
use crate::sys::fork::{ForkHook, ForkOrder};

/// Keeps what a fork has to copy from growing with all that was ever allocated.
#[cfg(not(dogtag_loom))]
static FORK_HOOK: ForkHook =
    ForkHook { order: ForkOrder::Last, before: about_to_fork, in_parent: || (), in_child: in_the_child };

#[cfg(not(dogtag_loom))]
fn in_the_child() {
    block_state::in_the_child();
    uncommitted::in_the_child();
    #[cfg(all(
        feature = "jemalloc",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    ))]
    extent_hooks::in_the_child();
    scrubber::in_the_child();
}

#[cfg(not(dogtag_loom))]
fn about_to_fork() {
    block_state::count_fork();
    shadow::give_back();
}

#[cfg(not(dogtag_loom))]
pub(crate) use verify::verify_at_exit;
#[cfg(not(dogtag_loom))]
pub use {
    access_context::AccessContext,
    handler::{set_handler, take_handler},
    live::{LiveBlock, LiveBlocks, assert_no_leaks, live_blocks},
    reaction::{Reaction, report},
    stack_depot::Backtrace,
    verify::{Verified, verify},
    violation::Violation,
    violation_kind::{Operation, ViolationKind},
};
#[cfg(not(dogtag_loom))]
pub(crate) use {
    block::{AROUND, BlockHeader, FRESH, Family, is_plain, layout},
    checker::{Checker, Noted, Returned, Whole},
    claim::Claim,
    depot::quarantined,
    release::Releases,
    settings::{Fill, Settings},
};

/// Has the backend's pages that hold no block lose their access, as far as they are the calling thread's. To be called
/// before a thread's first block is requested from a backend `B`; after that it does nothing.
#[cfg(not(dogtag_loom))]
#[inline]
pub(crate) fn begin_thread<B>() {
    #[cfg(all(
        feature = "jemalloc",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    ))]
    extent_hooks::begin::<B>();
}

/// Whether a page at that address has no access, or a block that begins there.
#[cfg(not(dogtag_loom))]
pub(crate) fn has_no_access(address: usize) -> bool {
    protection::has_no_access(address) || uncommitted::has(address)
}

/// Calls the handler for a region that is dropped while blocks in it are live. Returns if the process
/// goes on.
#[cfg(not(dogtag_loom))]
pub(crate) fn region_in_use(start: usize) {
    handler::react(&Violation::new(ViolationKind::RegionInUse, Operation::Unmap, start));
}

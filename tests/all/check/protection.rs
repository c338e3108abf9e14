//! Large freed blocks, to which the access is taken away while they are in quarantine.
#![allow(clippy::undocumented_unsafe_blocks, reason = "most tests violate an invariant on purpose")]

use super::{is_told_as, met, note, read, read_by_threads, victim, write};
use crate::child::{self, dealloc};
use crate::watch;
use dogtag::Dogtag;
use dogtag::check::{self, Operation, Reaction, Violation, ViolationKind};
use std::alloc::{GlobalAlloc, Layout, System, alloc, realloc};
use std::ffi::c_void;
use std::fs;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

const SIZE: usize = 1 << 20;
const LAYOUT: Layout = Layout::new::<[u8; SIZE]>();

/// Blocks from this size on lose their access.
const LARGE: usize = if cfg!(target_arch = "x86_64") { 64 << 10 } else { 1 << 20 };

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// A block of the victim's that was freed.
fn freed(size: usize) -> *mut u8 {
    unsafe {
        let block = victim().run(|| alloc(layout(size)));
        assert!(!block.is_null());
        block.write_bytes(7, size);
        dealloc(block, layout(size));
        block
    }
}

/// Whether a block is told of when it is read, by a handler that goes on.
fn is_told(block: *mut u8) -> bool {
    is_told_as(ViolationKind::ReadAfterFree, block)
}

#[test]
fn an_access_is_told_once_and_let_through() {
    survives!("");
    check::set_handler(note);
    for offset in [0, 1, 4095, 4096, SIZE / 2, SIZE - 1, SIZE, SIZE + 63] {
        let block = freed(SIZE);
        let address = block.wrapping_add(offset);
        let found = read(address);
        assert_eq!(met(), [(ViolationKind::ReadAfterFree, address as usize)], "{offset}");
        assert!(offset >= SIZE || found == 0xDD, "{found:x}");
        // From here on it is like any other in quarantine.
        assert_eq!((read(block), read(block.wrapping_add(SIZE - 1))), (0xDD, 0xDD));
        assert_eq!(check::verify().violations, 0);
        write(block);
        assert_eq!(check::verify().violations, 1);
        assert_eq!(met(), [(ViolationKind::WriteAfterFree, block as usize)]);

        let block = freed(SIZE);
        let address = block.wrapping_add(offset);
        write(address);
        assert_eq!(met(), [(ViolationKind::WriteAfterFree, address as usize)], "{offset}");
        assert_eq!(read(address), 1);
        write(block.wrapping_add(5));
        assert_eq!((met(), check::verify().violations), (vec![], 0));
        // Whoever frees it again is told all the same.
        unsafe { dealloc(block, LAYOUT) };
        assert_eq!(met(), [(ViolationKind::DoubleFree, block as usize)]);
    }
}

/// Wherever in a table of states its last page is.
#[cfg(target_arch = "x86_64")]
#[test]
fn an_access_to_the_end_of_the_last_page_is_told() {
    survives!("");
    check::set_handler(note);
    for pages in 1..40 {
        let size = SIZE + pages * 4096 - 20;
        let last = freed(size).wrapping_add(size + 20 + 4095);
        assert!(is_told(last), "{size}");
    }
}

#[test]
fn which_blocks_have_no_access_is_set() {
    survives!("protect=1M");
    check::set_handler(note);
    for (size, expected) in [(65_536, false), (SIZE - 1, false), (SIZE, true), (4 * SIZE, true)] {
        assert_eq!(is_told(freed(size)), expected, "{size}");
    }
}

#[test]
fn small_blocks_keep_their_access() {
    survives!("protect=1");
    check::set_handler(note);
    for (size, expected) in [(1, false), (LARGE - 1, false), (LARGE, true)] {
        assert_eq!(is_told(freed(size)), expected, "{size}");
    }
}

#[test]
fn all_blocks_keep_their_access() {
    survives!("protect=0");
    check::set_handler(note);
    let block = freed(SIZE);
    assert!(!is_told(block));
    assert_eq!(read(block), 0xDD);
    write(block);
    assert_eq!(check::verify().violations, 1);
}

/// The library's default reaction: a report, as of any other violation, and the end.
#[test]
fn an_access_is_reported_with_the_call_stack_of_who_made_it() {
    const SAID: [&str; 4] = [
        "dogtag: read after free: something read a block of 1048576 bytes after it was freed",
        "allocated  by victim",
        "in an access",
        "met at\n",
    ];

    #[inline(never)]
    fn reads_what_was_freed(block: *mut u8) {
        read(black_box(block));
        black_box(());
    }

    aborts!(
        "backtrace=1,patience=1000",
        SAID[0],
        SAID[1],
        SAID[2],
        SAID[3],
        "reads_what_was_freed",
        super::LINES
    );
    reads_what_was_freed(freed(SIZE));
}

#[test]
fn reaction_leak_lets_accesses_through() {
    survives!(
        "reaction=leak",
        "dogtag: read after free: something read a block of 1048576 bytes after it was freed",
        "dogtag: write after free: something wrote to a block of 1048576 bytes after it was freed"
    );
    assert_eq!(read(freed(SIZE)), 0xDD);
    let block = freed(SIZE);
    write(block);
    assert_eq!(read(block), 1);
}

/// Handlers take what stack they like, and may find violations themselves, whatever stack the signal came on.
#[test]
fn a_handler_has_the_threads_own_stack() {
    const DEEP: usize = 400 << 10;

    extern "C" fn on_a_plain_thread(block: *mut c_void) -> *mut c_void {
        read(block.cast());
        ptr::null_mut()
    }

    static OTHER: AtomicUsize = AtomicUsize::new(0);

    fn deep(violation: &Violation) -> Reaction {
        let mut large = [0_u8; DEEP];
        black_box(&mut large).fill(1);
        let other = OTHER.swap(0, Ordering::Relaxed);
        if other != 0 {
            // Said in a line, and let through.
            read(other as *mut u8);
        }
        assert!(black_box(&large).iter().all(|byte| *byte == 1));
        note(violation)
    }

    survives!("", "was met while another violation was being reported");
    check::set_handler(deep);
    // Threads of std have a small stack for signals.
    assert!(is_told(freed(SIZE)));
    OTHER.store(freed(SIZE) as usize, Ordering::Relaxed);
    assert!(is_told(freed(SIZE)));
    assert!(is_told(freed(SIZE)));
    let block = freed(SIZE);
    unsafe {
        let mut thread = std::mem::zeroed();
        assert_eq!(libc::pthread_create(&mut thread, ptr::null(), on_a_plain_thread, block.cast()), 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
    }
    assert_eq!(met(), [(ViolationKind::ReadAfterFree, block as usize)]);
}

#[test]
fn of_many_threads_that_read_a_block_one_is_told_of() {
    survives!("");
    check::set_handler(note);
    for _ in 0..50 {
        let block = freed(SIZE) as usize;
        read_by_threads([0, 5000, 2 * 5000, 3 * 5000].map(|offset| block + offset));
        let met = met();
        assert!(matches!(*met, [(ViolationKind::ReadAfterFree, _)]), "{met:?}");
    }
}

/// Whoever had the signal before is called for all else; who sets a handler later tells of faults himself, so no more
/// blocks lose their access.
#[test]
fn the_programs_own_handlers_of_faults_work() {
    const CODE: i32 = 42;

    extern "C" fn own(_: i32, info: *mut libc::siginfo_t, _: *mut c_void) {
        unsafe { libc::_exit(if (*info).si_addr().addr() == 64 { CODE } else { 1 }) };
    }

    static PROTECTED: AtomicUsize = AtomicUsize::new(0);
    static LET_THROUGH: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn lets_through(_: i32, info: *mut libc::siginfo_t, _: *mut c_void) {
        let page = PROTECTED.load(Ordering::Relaxed);
        unsafe {
            assert_eq!((*info).si_addr().addr(), page);
            libc::mprotect(page as *mut c_void, 4096, libc::PROT_READ | libc::PROT_WRITE);
        }
        LET_THROUGH.fetch_add(1, Ordering::Relaxed);
    }

    type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);

    static REPLACED: AtomicUsize = AtomicUsize::new(0);

    /// Calls the one that it has replaced.
    extern "C" fn hands_on(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
        let replaced = REPLACED.load(Ordering::Relaxed);
        unsafe { std::mem::transmute::<usize, Handler>(replaced)(signal, info, context) };
    }

    fn set(handler: Handler) {
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut former = action;
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, &mut former), 0);
            REPLACED.store(former.sa_sigaction, Ordering::Relaxed);
        }
    }

    fn overflow(depth: u64) -> u64 {
        let large = black_box([depth; 1000]);
        if depth == u64::MAX { 0 } else { overflow(depth + 1) + black_box(large)[7] }
    }

    if let Some(task) = child::task() {
        check::set_handler(note);
        let page = Layout::from_size_align(SIZE, 4096).unwrap();
        match task.as_str() {
            "before" => {
                set(own);
                assert!(is_told(freed(SIZE)));
                write(ptr::without_provenance_mut(64));
            }
            "without" => {
                assert!(is_told(freed(SIZE)));
                write(ptr::without_provenance_mut(64));
            }
            "chained" => {
                set(hands_on);
                assert!(is_told(freed(SIZE)));
                write(ptr::without_provenance_mut(64));
            }
            "barrier" => {
                set(lets_through);
                assert!(is_told(freed(SIZE)));
                // The program's own protection of a live block.
                unsafe {
                    let block = alloc(page);
                    PROTECTED.store(block as usize, Ordering::Relaxed);
                    libc::mprotect(block.cast(), 4096, libc::PROT_READ);
                    write(block);
                    assert_eq!((read(block), met()), (1, vec![]));
                    dealloc(block, page);
                }
                assert_eq!(LET_THROUGH.load(Ordering::Relaxed), 1);
            }
            "leaked" => {
                set(lets_through);
                // Among blocks without access, one that was leaked when it had its access.
                let mut blocks: Vec<*mut u8> = (0..20).map(|_| unsafe { alloc(page) }).collect();
                blocks.sort();
                let leaked = blocks.remove(10);
                blocks.into_iter().for_each(|block| unsafe { dealloc(block, page) });
                unsafe {
                    leaked.add(SIZE).write(1);
                    dealloc(leaked, page);
                    assert_eq!(met().len(), 1);
                    PROTECTED.store(leaked as usize, Ordering::Relaxed);
                    libc::mprotect(leaked.cast(), 4096, libc::PROT_NONE);
                }
                write(leaked);
                assert_eq!((LET_THROUGH.load(Ordering::Relaxed), met()), (1, vec![]));
            }
            "later" => {
                assert!(is_told(freed(SIZE)));
                set(own);
                let block = freed(SIZE);
                assert!(!is_told(block));
                write(block);
                assert_eq!(check::verify().violations, 1);
                write(ptr::without_provenance_mut(64));
            }
            _ => {
                assert!(is_told(freed(SIZE)));
                black_box(overflow(0));
            }
        }
        return;
    }
    let test = here!();
    let run = |task| child::run(test, task, "");
    for task in ["before", "later"] {
        let output = run(task);
        assert_eq!(output.status.code(), Some(CODE), "{task}: {output:?}");
    }
    for task in ["without", "chained"] {
        let output = run(task);
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{task}: {output:?}");
    }
    for task in ["barrier", "leaked"] {
        let output = run(task);
        assert!(output.status.success(), "{task}: {output:?}");
    }
    let overflown = run("overflow");
    assert!(String::from_utf8_lossy(&overflown.stderr).contains("has overflowed its stack"), "{overflown:?}");
}

#[test]
fn a_forked_child_tells_of_its_parents_blocks_and_its_own() {
    survives!("");
    check::set_handler(note);
    for size in [SIZE, 20 * SIZE] {
        let block = freed(size);
        let child = unsafe { libc::fork() };
        if child == 0 {
            let is_right = is_told(block) && is_told(freed(size)) && check::verify().violations == 0;
            unsafe { libc::_exit(i32::from(!is_right)) };
        }
        let status = watch::ended(child);
        assert!(status.success(), "{status}");
        // What the child did is its own.
        assert!(is_told(block));
    }
}

#[test]
fn realloc_leaves_a_block_without_access_behind() {
    survives!("");
    check::set_handler(note);
    unsafe {
        let mut block = victim().run(|| alloc(layout(SIZE)));
        block.write_bytes(7, SIZE);
        let mut size = SIZE;
        for new_size in [2 * SIZE, SIZE + 1, SIZE + 5000, 70_000, 65_536, 100, 3 * SIZE] {
            let moved = victim().run(|| realloc(block, layout(size), new_size));
            assert_ne!(moved, block);
            let kept = std::slice::from_raw_parts(moved, new_size.min(size));
            assert!(kept[..100].iter().all(|byte| *byte == 7));
            assert_eq!(is_told(block), size >= LARGE, "{size}");
            moved.write_bytes(7, new_size);
            (block, size) = (moved, new_size);
        }
        dealloc(block, layout(size));
    }
    assert_eq!((victim().usage().bytes(), check::verify().violations), (0, 0));
}

/// Memory for some blocks, which the backend uses itself as soon as they are given back.
struct Few {
    left: AtomicUsize,
}

unsafe impl GlobalAlloc for Few {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let take = |left: usize| left.checked_sub(1);
        if layout.size() >= SIZE && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err()
        {
            return ptr::null_mut();
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.left.fetch_add(usize::from(layout.size() >= SIZE), Ordering::SeqCst);
        unsafe {
            block.write_bytes(0x55, layout.size());
            System.dealloc(block, layout);
        }
    }
}

#[test]
fn blocks_have_their_access_back_when_there_is_no_memory_left_and_when_the_allocator_ends() {
    survives!("");
    check::set_handler(note);
    let memory = Dogtag::with_backend(Few { left: AtomicUsize::new(20) });
    for _ in 0..3 {
        unsafe {
            // More than there are, unless those in quarantine are given up.
            let blocks: Vec<_> = (0..15).map(|_| memory.alloc(LAYOUT)).collect();
            for block in &blocks {
                assert!(!block.is_null());
                block.write_bytes(9, SIZE);
            }
            for block in &blocks {
                memory.dealloc(*block, LAYOUT);
            }
            assert!(is_told(blocks[14]));
        }
    }
    drop(memory);
    assert_eq!(met(), []);
}

#[test]
fn the_memory_is_used_again_when_blocks_have_left_the_quarantine() {
    survives!("quarantine=8M");
    check::set_handler(note);
    for round in 0..300_usize {
        let size = 65_536 + round * 7919 % SIZE;
        unsafe {
            let block = alloc(layout(size));
            block.write_bytes(3, size);
            dealloc(block, layout(size));
        }
    }
    let before = watch::memory().mapped;
    (0..300).for_each(|_| _ = freed(SIZE));
    assert!(watch::memory().mapped <= before + (16 << 20));
    assert_eq!((met(), check::verify().violations), (vec![], 0));
}

/// What stands in front of a block can be overwritten all the time.
#[test]
fn a_header_that_is_overwritten_is_told_of_wherever_it_is_met() {
    survives!("quarantine=8M");
    check::set_handler(note);
    let told = |block: *mut u8| vec![(ViolationKind::WriteAfterFree, block as usize)];
    for (offset, length) in [(1, 1), (40, 8), (64, 64)] {
        let overwritten = || {
            let block = freed(SIZE);
            unsafe { block.sub(offset).write_bytes(1, length) };
            block
        };
        let block = overwritten();
        assert_eq!(check::verify().violations, 1);
        assert_eq!(met(), told(block));
        assert_eq!(check::verify().violations, 0);
        // Its pages are nobody's any more; who goes on to use them is let through.
        write(block);
        write(block.wrapping_add(SIZE / 2));
        assert_eq!(met(), []);

        let block = overwritten();
        (0..100).for_each(|_| _ = freed(SIZE));
        assert_eq!(met(), told(block));

        let block = overwritten();
        read(block.wrapping_add(SIZE / 2));
        let met = met();
        assert!(
            matches!(*met, [(ViolationKind::WriteAfterFree | ViolationKind::ReadAfterFree, _)]),
            "{met:?}"
        );
        check::verify();
        super::met();
    }
}

/// Each makes mappings more, of which the system lets a process have no more than so many.
#[cfg(target_os = "linux")]
#[test]
fn no_more_blocks_lose_their_access_than_the_system_has_mappings_for() {
    survives!("quarantine=4G,quarantine-blocks=200000,fill=0");
    const MOST: usize = 8192;

    let size = layout(LARGE);
    let blocks: std::collections::HashSet<usize> =
        (0..MOST + 100).map(|_| unsafe { alloc(size) } as usize).collect();
    blocks.iter().for_each(|block| unsafe { dealloc(ptr::with_exposed_provenance_mut(*block), size) });
    // (Allocators have mappings without access themselves.)
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let begins = |line: &str| usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let closed = maps.lines().filter(|line| line.split(' ').nth(1) == Some("---p"));
    let closed = closed.filter(|line| blocks.contains(&begins(line))).count();
    assert!((MOST - 10..=MOST).contains(&closed), "{closed}");
}

/// The kernel's accesses are no faults.
#[test]
fn a_system_call_with_a_freed_block_fails() {
    survives!("");
    check::set_handler(note);
    let block = freed(SIZE);
    let file = fs::File::open("/dev/zero").unwrap();
    let read = unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&file), block.cast(), 100) };
    assert_eq!((read, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)));
    assert_eq!((met(), check::verify().violations), (vec![], 0));
}

#[test]
fn an_access_says_what_it_was() {
    survives!("");
    check::set_handler(|violation| {
        assert_eq!(violation.operation(), Operation::Access);
        assert_eq!(violation.layout(), Some(layout(SIZE)));
        assert_eq!(violation.first_wrong(), Some(100));
        assert_eq!(violation.address(), violation.block().unwrap() + 100);
        assert_eq!(violation.allocated().map(|context| context.service()), Some("victim"));
        assert!(violation.freed().is_some());
        note(violation)
    });
    read(freed(SIZE).wrapping_add(100));
    write(freed(SIZE).wrapping_add(100));
    assert_eq!(met().len(), 2);
}

/// From this size on blocks lose their memory.
#[cfg(target_os = "linux")]
const EMPTIED: usize = 2 << 20;

/// How many of a block's pages are in memory.
#[cfg(target_os = "linux")]
fn pages_in_memory(block: *mut u8, size: usize) -> usize {
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let mut pages = vec![0_u8; size / page];
    assert_eq!(unsafe { libc::mincore(block.cast(), size / page * page, pages.as_mut_ptr()) }, 0);
    pages.iter().filter(|page| **page & 1 != 0).count()
}

/// Bytes in quarantine.
#[cfg(target_os = "linux")]
fn held() -> usize {
    dogtag::snapshot().quarantine.expect("with memory-check").bytes as usize
}

#[cfg(target_os = "linux")]
#[test]
fn the_memory_of_the_largest_is_given_back() {
    survives!("");
    check::set_handler(note);
    for (size, is_emptied) in [(EMPTIED - 1, false), (EMPTIED, true), (5 * EMPTIED + 77, true)] {
        for align in [8, 4 << 20] {
            let layout = Layout::from_size_align(size, align).unwrap();
            let block = unsafe { alloc(layout) };
            assert!(block.addr().is_multiple_of(align) && !block.is_null());
            unsafe { block.write_bytes(7, size) };
            assert_ne!(pages_in_memory(block, size), 0);
            unsafe {
                *libc::__errno_location() = 77;
                dealloc(block, layout);
                assert_eq!(*libc::__errno_location(), 77);
            }
            assert_eq!(pages_in_memory(block, size) == 0, is_emptied, "{size}");
            // A report finds it as all freed blocks are.
            assert!(is_told(block.wrapping_add(size / 2)));
            assert_eq!((read(block), read(block.wrapping_add(size - 1))), (0xDD, 0xDD));
            assert_eq!((met(), check::verify().violations), (vec![], 0));
            write(block.wrapping_add(size - 1));
            assert_eq!(check::verify().violations, 1);
            assert_eq!(met(), [(ViolationKind::WriteAfterFree, block as usize)]);
        }
    }
    // Another backend's may be in a device.
    let memory = Dogtag::with_backend(Few { left: AtomicUsize::new(20) });
    let block = unsafe { memory.alloc(layout(EMPTIED)) };
    unsafe {
        block.write_bytes(7, EMPTIED);
        memory.dealloc(block, layout(EMPTIED));
    }
    assert_ne!(pages_in_memory(block, EMPTIED), 0);
    assert!(is_told(block));
}

/// They are bounded by their addresses, and by the bytes of memory only with what is left of them.
#[cfg(target_os = "linux")]
#[test]
fn blocks_without_memory_may_be_larger_than_the_quarantine() {
    const MIB: usize = 1 << 20;

    survives!("quarantine=1M");
    check::set_handler(note);
    let block = freed(10 * MIB);
    (0..10).for_each(|_| _ = freed(4 * MIB));
    assert!(is_told(block));
    let before = held();
    // A block that is larger than all of it does not make the others leave.
    _ = freed(65 * MIB);
    assert!((before..before + MIB).contains(&held()), "{before} {}", held());
    assert_eq!(met(), []);
    let mut most = 0;
    for number in 0..100 {
        let block = freed(4 * MIB + number * 4096);
        most = most.max(held());
        unsafe {
            let zeros = std::alloc::alloc_zeroed(layout(4 * MIB));
            assert!(std::slice::from_raw_parts(zeros, 4 * MIB).iter().all(|byte| *byte == 0));
            dealloc(zeros, layout(4 * MIB));
        }
        assert!(is_told(block));
    }
    assert!((50 * MIB..64 * MIB + 8 * MIB).contains(&most), "{most}");
    assert_eq!((met(), check::verify().violations), (vec![], 0));
}

/// As it does where they are locked, or the program may not ask.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn blocks_whose_memory_the_system_keeps_count_with_it() {
    survives!("quarantine=8M");
    check::set_handler(note);
    let statement = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32;
    let mut filter = [
        statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        statement((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, libc::SYS_madvise as u32),
        statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, REFUSE),
        statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
    let before = held();
    let block = unsafe { alloc(layout(2 * EMPTIED)) };
    unsafe {
        *libc::__errno_location() = 77;
        dealloc(block, layout(2 * EMPTIED));
        assert_eq!(*libc::__errno_location(), 77);
    }
    assert_ne!(pages_in_memory(block, 2 * EMPTIED), 0);
    let after = held();
    assert!(after > before + 2 * EMPTIED, "{before} {after}");
    assert!(is_told(block));
    // What does not fit goes back, with its access.
    let before = held();
    for _ in 0..3 {
        _ = freed(5 * EMPTIED);
        assert!(held() < before + EMPTIED, "{before} {}", held());
    }
    assert_eq!(met(), []);
    let blocks: Vec<_> = (0..10).map(|_| freed(EMPTIED)).collect();
    assert!(held() < 13 << 20, "{}", held());
    assert!(is_told(blocks[9]));
}

#[cfg(target_os = "linux")]
#[test]
fn who_is_confined_keeps_the_memory() {
    survives!("");
    check::set_handler(note);
    dogtag::__private::memory_check::confine();
    let block = freed(EMPTIED);
    assert!(!is_told(block) && pages_in_memory(block, EMPTIED) != 0);
    assert_eq!((read(block), read(block.wrapping_add(EMPTIED - 1))), (0xDD, 0xDD));
    let before = held();
    _ = freed(10 * EMPTIED);
    assert!(held() < before + EMPTIED, "{before} {}", held());
    assert_eq!((met(), check::verify().violations), (vec![], 0));
}

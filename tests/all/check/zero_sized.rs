//! Blocks of 0 bytes, as C and C++ ask for them, at pages without access.
#![allow(clippy::undocumented_unsafe_blocks, reason = "most tests violate an invariant on purpose")]

use super::{is_told_as, met, note, read, read_by_threads, victim, write};
use crate::child;
use crate::watch;
use dogtag::__private::blocks::{
    Accessor, Claim, Family, allocate_zero_sized, check_access, check_accesses, free, resize, size,
};
use dogtag::__private::memory_check::confine;
use dogtag::check::{self, Operation, ViolationKind};
use dogtag::{Dogtag, snapshot};
use std::alloc::{Layout, System};
use std::collections::HashSet;
use std::ffi::c_void;
use std::hint::black_box;
use std::ptr;

/// Where a process has its blocks of 0 bytes, as C has them beside Rust's.
static HEAP: Dogtag = Dogtag::new();

const PAGE: usize = if cfg!(target_arch = "x86_64") { 4 << 10 } else { 64 << 10 };
/// How many there may be at once at pages without access.
const SLOTS: usize = 4096;

fn layout(align: usize) -> Layout {
    Layout::from_size_align(0, align).unwrap()
}

fn allocate_in(heap: &Dogtag<impl std::alloc::GlobalAlloc>, align: usize) -> *mut u8 {
    let block = victim().run(|| allocate_zero_sized(heap, Family::Malloc, layout(align)));
    assert!(!block.is_null() && block.addr().is_multiple_of(align));
    block
}

fn allocate() -> *mut u8 {
    allocate_in(&HEAP, 16)
}

fn give_back(block: *mut u8) {
    unsafe { free(&HEAP, block, Claim::of(Family::Malloc)) };
}

fn freed() -> *mut u8 {
    let block = allocate();
    give_back(block);
    block
}

/// Whether a live block is told of when it is read, by a handler that goes on.
fn is_told(block: *mut u8) -> bool {
    is_told_as(ViolationKind::Overread, block)
}

#[test]
fn an_access_is_told_once_and_let_through() {
    survives!("");
    check::set_handler(note);
    for offset in [0, 1, 15, 16, 100, PAGE - 1] {
        type Access = fn(*mut u8);
        let accesses: [(Access, _, _); 2] = [
            (|address| _ = read(address), ViolationKind::Overread, ViolationKind::ReadAfterFree),
            (write, ViolationKind::Overrun, ViolationKind::WriteAfterFree),
        ];
        for (access, of_live, of_freed) in accesses {
            let block = allocate();
            access(block.wrapping_add(offset));
            assert_eq!(met(), [(of_live, block as usize + offset)]);
            // From here on nobody minds.
            write(block);
            assert_eq!((read(block), check::verify().violations), (1, 0));
            give_back(block);
            assert_eq!(met(), []);
            give_back(block);
            assert_eq!(met(), [(ViolationKind::DoubleFree, block as usize)]);

            let block = freed();
            access(block.wrapping_add(offset));
            assert_eq!(met(), [(of_freed, block as usize + offset)]);
            write(block);
            assert_eq!((read(block), check::verify().violations), (1, 0));
            give_back(block);
            assert_eq!(met(), [(ViolationKind::DoubleFree, block as usize)]);
        }
    }
    assert_eq!(victim().usage().blocks(), 0);
}

/// The library's default reaction: a report, as of any other violation, and the end.
#[test]
fn an_access_is_reported_with_the_call_stack_of_who_made_it() {
    const SAID: [&str; 4] = [
        "dogtag: overrun: something wrote past the end of a block of 0 bytes",
        "allocated  by victim",
        "in an access",
        "met at\n",
    ];

    #[inline(never)]
    fn writes_to_nothing(block: *mut u8) {
        write(black_box(block));
        black_box(());
    }

    aborts!(
        "backtrace=1,patience=1000",
        SAID[0],
        SAID[1],
        SAID[2],
        SAID[3],
        "writes_to_nothing",
        super::LINES
    );
    writes_to_nothing(allocate());
}

#[test]
fn reaction_leak_lets_accesses_through() {
    survives!(
        "reaction=leak",
        "dogtag: overread: something read outside of a block of 0 bytes",
        "dogtag: write after free: something wrote to a block of 0 bytes after it was freed"
    );
    let block = allocate();
    assert_eq!(read(block), 0);
    let block = freed();
    write(block);
    assert_eq!(read(block), 1);
}

#[test]
fn an_access_says_what_it_was() {
    survives!("");
    check::set_handler(|violation| {
        assert_eq!(violation.operation(), Operation::Access);
        assert_eq!(violation.layout(), Some(layout(64)));
        assert_eq!(violation.first_wrong(), Some(100));
        assert_eq!(violation.address(), violation.block().unwrap() + 100);
        assert_eq!(violation.allocated().map(|context| context.service()), Some("victim"));
        assert_eq!(violation.freed().is_some(), violation.kind() == ViolationKind::WriteAfterFree);
        note(violation)
    });
    let block = allocate_in(&HEAP, 64);
    read(block.wrapping_add(100));
    let block = allocate_in(&HEAP, 64);
    give_back(block);
    write(block.wrapping_add(100));
    assert_eq!(met().len(), 2);
}

/// Books, sizes, lists and verification are those of any other block.
#[test]
fn they_are_blocks_like_others() {
    survives!("");
    check::set_handler(note);
    let first = check::verify();
    let blocks: HashSet<*mut u8> = (0..100).map(|_| allocate()).collect();
    assert_eq!(blocks.len(), 100);
    let usage = victim().usage();
    assert_eq!((usage.bytes(), usage.blocks()), (0, 100));
    let live = check::live_blocks(&victim());
    assert_eq!(live.blocks.iter().map(|block| block.address as *mut u8).collect::<HashSet<_>>(), blocks);
    assert!(live.blocks.iter().all(|block| block.layout == layout(16)));
    let more = check::verify().live_blocks - first.live_blocks;
    assert!((100..150).contains(&more), "{more}");
    let quarantined = || snapshot().quarantine.unwrap().blocks;
    let before = quarantined();
    for block in &blocks {
        assert_eq!(size(&HEAP, *block), Some(0));
        give_back(*block);
    }
    assert_eq!(victim().usage().blocks(), 0);
    let more = quarantined() - before;
    assert!((100..150).contains(&more), "{more}");
    check::assert_no_leaks(&victim());
    assert_eq!((met(), check::verify().violations), (vec![], 0));
    // What the program takes it for is compared.
    let mut wrong = Claim::of(Family::NewArray);
    let block = allocate();
    unsafe { free(&HEAP, block, wrong) };
    assert_eq!(met(), [(ViolationKind::AllocDeallocMismatch, block as usize)]);
    wrong = Claim { size: Some(1), ..Claim::of(Family::Malloc) };
    let block = allocate();
    unsafe { free(&HEAP, block, wrong) };
    assert_eq!(met(), [(ViolationKind::LayoutMismatch, block as usize)]);
    assert_eq!(size(&HEAP, allocate().wrapping_add(16)), None);
    assert_eq!(met().len(), 1);
}

#[test]
fn whatever_they_are_aligned_to() {
    survives!("");
    check::set_handler(note);
    for align in [1, 16, 64, 4096, 1 << 17, 1 << 21] {
        let block = allocate_in(&HEAP, align);
        give_back(block);
        let block = allocate_in(&HEAP, align);
        assert_eq!(is_told(block), align <= PAGE, "{align}");
        give_back(block);
    }
}

#[test]
fn realloc_moves_them_to_more() {
    survives!("");
    check::set_handler(note);
    for new_size in [1, 100, 70_000, 0] {
        let block = allocate();
        let claim = Claim::of(Family::Malloc);
        let new = Layout::from_size_align(new_size, 16).ok();
        let moved = victim().run(|| unsafe { resize(&HEAP, block, claim, new) });
        assert!(!moved.is_null() && moved != block);
        unsafe { moved.write_bytes(7, new_size) };
        assert_eq!((size(&HEAP, moved), victim().usage().blocks()), (Some(new_size), 1));
        read(block);
        assert_eq!(met(), [(ViolationKind::ReadAfterFree, block as usize)]);
        give_back(moved);
    }
    // Where there is no memory it stays.
    let block = allocate();
    let too_large = Layout::from_size_align(1 << 60, 16).ok();
    assert!(unsafe { resize(&HEAP, block, Claim::of(Family::Malloc), too_large) }.is_null());
    assert_eq!(size(&HEAP, block), Some(0));
    assert!(is_told(block));
}

/// Those that there is no slot for are blocks like others, too.
#[test]
fn there_are_only_so_many() {
    survives!("quarantine-blocks=32");
    check::set_handler(note);
    for _ in 0..3 {
        let blocks: Vec<_> = (0..SLOTS + 1000).map(|_| allocate()).collect();
        assert_eq!(blocks.iter().collect::<HashSet<_>>().len(), blocks.len());
        // What freed ones are not in quarantine any more, and one that is lost in each round.
        let has_page = |block: &&*mut u8| block.addr().is_multiple_of(PAGE);
        let with_page = blocks.iter().filter(has_page).count();
        assert!((SLOTS - 100..=SLOTS + 30).contains(&with_page), "{with_page}");
        for block in &blocks {
            assert_eq!(size(&HEAP, *block), Some(0));
        }
        assert_eq!(check::verify().violations, 0);
        assert!(is_told(blocks[7]));
        blocks.into_iter().for_each(give_back);
        assert_eq!((met(), victim().usage().blocks()), (vec![], 0));
    }
}

/// However many come and go.
#[test]
fn slots_are_used_again() {
    survives!("quarantine-blocks=64");
    check::set_handler(note);
    let mut ever = HashSet::new();
    for _ in 0..20_000 {
        let block = freed();
        assert!(block.addr().is_multiple_of(PAGE));
        ever.insert(block);
    }
    assert!(ever.len() < 300, "{}", ever.len());
    // Not those whose access was let through.
    let lost = freed();
    write(lost);
    assert_eq!(met(), [(ViolationKind::WriteAfterFree, lost as usize)]);
    assert!((0..2000).all(|_| freed() != lost));
    assert_eq!((met(), check::verify().violations), (vec![], 0));
}

#[cfg(target_os = "linux")]
#[test]
fn pages_of_free_slots_are_given_back() {
    survives!("quarantine=0");
    let blocks: Vec<_> = (0..SLOTS).map(|_| allocate()).collect();
    let in_memory = || {
        let is_there = |block: &&*mut u8| {
            let mut found = 0;
            let page = block.wrapping_sub(PAGE);
            assert_eq!(unsafe { libc::mincore(page.wrapping_add(PAGE - 4096).cast(), 4096, &mut found) }, 0);
            found & 1 != 0
        };
        blocks.iter().filter(is_there).count()
    };
    assert_eq!(in_memory(), SLOTS);
    blocks.iter().for_each(|block| give_back(*block));
    let left = in_memory();
    assert!((1..=64).contains(&left), "{left}");
    // And they are there again.
    let again: HashSet<_> = (0..SLOTS).map(|_| allocate()).collect();
    assert_eq!(again, blocks.iter().copied().collect());
    again.into_iter().for_each(give_back);
    assert_eq!(check::verify().violations, 0);
}

/// Nothing is known of the block, but that it is nobody's.
#[test]
fn an_access_to_one_that_has_left_the_quarantine_is_told() {
    survives!("quarantine=0");
    check::set_handler(|violation| {
        assert_eq!((violation.block(), violation.operation()), (None, Operation::Access));
        note(violation)
    });
    for _ in 0..10 {
        let [first, second] = [freed(), allocate()];
        assert_eq!(first, second, "the last one first");
        give_back(second);
        read(second);
        assert_eq!(met(), [(ViolationKind::ReadAfterFree, second as usize)]);
        write(second);
        assert_eq!(met(), []);
        assert_ne!(allocate(), second);
    }
}

#[test]
fn protect_0_leaves_them_like_others() {
    survives!("protect=0");
    check::set_handler(note);
    let block = allocate();
    assert!(!is_told(block));
    write(block);
    give_back(block);
    assert_eq!(met(), [(ViolationKind::Overrun, block as usize)]);
}

/// A system call may end the process then.
#[test]
fn there_are_no_more_once_the_program_filters_its_system_calls() {
    survives!("quarantine=0");
    check::set_handler(note);
    let before: Vec<_> = (0..500).map(|_| allocate()).collect();
    confine();
    let block = allocate();
    assert!(!is_told(block));
    give_back(block);
    before[1..].iter().for_each(|block| give_back(*block));
    assert!(is_told(before[0]));
}

/// Faults are that handler's, from soon after on.
#[test]
fn there_are_no_more_once_the_program_handles_faults_itself() {
    extern "C" fn own(_: i32, _: *mut libc::siginfo_t, _: *mut c_void) {
        unsafe { libc::_exit(1) };
    }

    survives!("");
    check::set_handler(note);
    assert!(is_told(allocate()));
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = own as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
    }
    let block = loop {
        let block = allocate();
        if !block.addr().is_multiple_of(PAGE) {
            break block;
        }
        give_back(block);
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    assert!(!is_told(block));
}

/// What stands in front of a block can be overwritten all the time.
#[test]
fn a_header_that_is_overwritten_is_told_of_wherever_it_is_met() {
    survives!("quarantine-blocks=32");
    check::set_handler(note);
    let spoil = |block: *mut u8, offset: usize| unsafe { *block.sub(offset) ^= 1 };
    for offset in [1, 16, 20, 40] {
        let live = || {
            let block = allocate();
            spoil(block, offset);
            block
        };
        let underrun = |block: *mut u8| vec![(ViolationKind::Underrun, block as usize)];
        let block = live();
        give_back(block);
        assert_eq!(met(), underrun(block), "{offset}");
        write(block);
        assert_eq!(met(), []);

        let block = live();
        assert_eq!(check::verify().violations, 1);
        assert_eq!(met(), underrun(block));
        write(block);
        give_back(block);
        assert_eq!((met(), check::verify().violations), (vec![], 0));

        let block = live();
        size(&HEAP, block);
        assert_eq!(met(), underrun(block));
        let claim = Claim::of(Family::Malloc);
        unsafe { resize(&HEAP, block, claim, Layout::from_size_align(10, 16).ok()) };
        assert_eq!(met(), []);

        // An access is what it is, too.
        let block = live();
        write(block);
        assert_eq!(met(), [(ViolationKind::Overrun, block as usize)]);
        give_back(block);
        assert_eq!(met(), []);

        let dead = || {
            let block = freed();
            spoil(block, offset);
            block
        };
        let told = |block: *mut u8| vec![(ViolationKind::WriteAfterFree, block as usize)];
        let block = dead();
        assert_eq!(check::verify().violations, 1);
        assert_eq!(met(), told(block));
        write(block);
        assert_eq!(met(), []);

        let block = dead();
        (0..200).for_each(|_| _ = freed());
        assert_eq!(met(), told(block));

        let block = dead();
        read(block);
        assert_eq!(met(), [(ViolationKind::ReadAfterFree, block as usize)]);
    }
}

#[test]
fn of_many_threads_that_read_a_block_one_is_told_of() {
    survives!("");
    check::set_handler(note);
    for round in 0..50 {
        let block = if round % 2 == 0 { allocate() } else { freed() } as usize;
        read_by_threads([0, 500, 2 * 500, 3 * 500].map(|offset| block + offset));
        assert_eq!(met().len(), 1);
    }
}

#[test]
fn threads_take_and_give_back_slots_at_once() {
    survives!("quarantine-blocks=32");
    check::set_handler(note);
    // The first one asks whether faults are heard of; who comes meanwhile has a block like others.
    give_back(allocate());
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                for round in 0..2000 {
                    let blocks: Vec<_> = (0..round % 30).map(|_| allocate()).collect();
                    for block in &blocks {
                        assert!(block.addr().is_multiple_of(PAGE));
                        assert_eq!(size(&HEAP, *block), Some(0));
                    }
                    blocks.into_iter().for_each(give_back);
                }
            });
        }
    });
    assert_eq!((met(), check::verify().violations), (vec![], 0));
    assert_eq!(victim().usage().blocks(), 0);
}

#[test]
fn a_forked_child_tells_of_its_parents_blocks_and_its_own() {
    survives!("");
    check::set_handler(note);
    let [live, dead] = [allocate(), freed()];
    let child = unsafe { libc::fork() };
    if child == 0 {
        let is_right = is_told(live) && is_told(allocate()) && check::verify().violations == 0;
        read(dead);
        let is_right = is_right && met() == [(ViolationKind::ReadAfterFree, dead as usize)];
        unsafe { libc::_exit(i32::from(!is_right)) };
    }
    let status = watch::ended(child);
    assert!(status.success(), "{status}");
    // What the child did is its own.
    assert!(is_told(live));
    give_back(live);
    read(dead);
    assert_eq!(met(), [(ViolationKind::ReadAfterFree, dead as usize)]);
}

static WRITER: Accessor = Accessor { function: "memcpy", is_write: true };
static READER: Accessor = Accessor { function: "memcpy", is_write: false };

/// C's functions say so before they do it.
#[test]
fn copies_are_told_by_name_and_once() {
    survives!("");
    check::set_handler(|violation| {
        assert_eq!(violation.operation().to_string(), "memcpy");
        note(violation)
    });
    check_accesses();
    for (by, of_live, of_freed) in [
        (&WRITER, ViolationKind::Overrun, ViolationKind::WriteAfterFree),
        (&READER, ViolationKind::Overread, ViolationKind::ReadAfterFree),
    ] {
        for offset in [0, 1, 100] {
            let block = allocate();
            let address = block as usize + offset;
            check_access(address, 0, by);
            assert_eq!(met(), []);
            check_access(address, 8, by);
            assert_eq!(met(), [(of_live, address)]);
            write(block);
            check_access(address, 8, by);
            give_back(block);
            assert_eq!(met(), []);

            let block = freed();
            let address = block as usize + offset;
            check_access(address, 0, by);
            assert_eq!(met(), []);
            check_access(address, 8, by);
            assert_eq!(met(), [(of_freed, address)]);
            write(block);
            check_access(address, 8, by);
            assert_eq!((met(), check::verify().violations), (vec![], 0));
        }
    }
}

/// Its blocks in quarantine are given up, and those that the program still has are forgotten.
#[test]
fn an_allocator_that_ends_leaves_its_slots() {
    survives!("");
    check::set_handler(note);
    for _ in 0..100 {
        let heap = Dogtag::with_backend(System);
        let blocks: Vec<_> = (0..100).map(|_| allocate_in(&heap, 16)).collect();
        assert!(blocks.iter().all(|block| block.addr().is_multiple_of(PAGE)));
        for block in &blocks[1..] {
            unsafe { free(&heap, *block, Claim::of(Family::Malloc)) };
        }
        // Another heap's.
        give_back(blocks[0]);
        assert_eq!(met(), [(ViolationKind::InvalidFree, blocks[0] as usize)]);
        drop(heap);
    }
    assert!(allocate().addr().is_multiple_of(PAGE));
    assert_eq!((met(), check::verify().violations), (vec![], 0));
}

/// Where no page can be had.
#[cfg(target_os = "linux")]
#[test]
fn without_addresses_they_are_like_others() {
    if child::task().is_none() {
        let output = child::run(here!(), "", "");
        assert!(output.status.success(), "{output:?}");
        return;
    }
    check::set_handler(note);
    let used = watch::memory().mapped as libc::rlim_t;
    let limit = libc::rlimit { rlim_cur: used + (20 << 20), rlim_max: libc::RLIM_INFINITY };
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    let blocks: Vec<_> = (0..10).map(|_| allocate()).collect();
    assert!(!blocks.iter().any(|block| is_told(*block)));
    blocks.into_iter().for_each(give_back);
    assert_eq!((met(), check::verify().violations), (vec![], 0));
}

//! Accesses to memory of the heap that holds no block: jemalloc's pages have no access then.
#![allow(clippy::undocumented_unsafe_blocks, reason = "most tests violate an invariant on purpose")]

use super::{is_told_as, met, note, read, read_by_threads, victim, write};
use crate::child::{self, dealloc};
use crate::watch;
use dogtag::check::{self, ViolationKind};
use std::alloc::{Layout, alloc, alloc_zeroed};
use std::ffi::c_void;
use std::fs;
use std::hint::black_box;
use std::{ptr, thread};

const MIB: usize = 1 << 20;
const SIZE: usize = 512 << 10;
const LAYOUT: Layout = Layout::new::<[u8; SIZE]>();

/// Has jemalloc give pages back that hold no block.
fn purge() {
    unsafe {
        let none = ptr::null_mut();
        tikv_jemalloc_sys::mallctl(c"arena.4096.purge".as_ptr(), none, ptr::null_mut(), none, 0);
    }
}

/// Pages that hold no block any more; without a quarantine.
fn gone() -> *mut u8 {
    unsafe {
        let block = victim().run(|| alloc(LAYOUT));
        assert!(!block.is_null());
        block.write_bytes(7, SIZE);
        dealloc(block, LAYOUT);
        purge();
        block.wrapping_add(SIZE / 2)
    }
}

/// What a new thread does. Faults are told of once there is one.
fn in_a_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    thread::scope(|threads| threads.spawn(work).join().unwrap())
}

/// What each of some hundred new threads does: their blocks are in every arena.
fn in_every_arena(work: impl Fn() + Sync) {
    thread::scope(|threads| (0..100).for_each(|_| _ = threads.spawn(&work)));
}

#[test]
fn an_access_is_told_once_and_let_through() {
    survives!("quarantine=0");
    check::set_handler(note);
    in_a_thread(|| {
        let page = gone();
        assert!(is_told_as(ViolationKind::WildRead, page));
        assert_eq!((read(page), met()), (0, vec![]));
        let next = page.wrapping_add(4096 * 16);
        write(next);
        assert_eq!(met(), [(ViolationKind::WildWrite, next as usize)]);
        assert_eq!((read(next), met()), (1, vec![]));
        write(page);
        assert_eq!(met(), []);
    });
}

/// What a wild pointer has written is in no block that comes later.
#[test]
fn memory_that_was_written_to_is_zeros_when_it_is_used() {
    survives!("quarantine=0,fill=0");
    check::set_handler(note);
    in_a_thread(|| {
        let page = gone();
        write(page);
        assert_eq!(met().len(), 1);
        let mut is_there = false;
        // jemalloc takes the lowest addresses first.
        for _ in 0..64 {
            let block = unsafe { alloc_zeroed(LAYOUT) };
            let bytes = unsafe { std::slice::from_raw_parts(block, SIZE) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            is_there |= bytes.as_ptr_range().contains(&page.cast_const());
        }
        assert!(is_there, "the memory was used again");
    });
}

/// Blocks at the beginning and at the end of what jemalloc has mapped, too.
#[test]
fn accesses_a_mebibyte_away_from_a_threads_only_block_are_told() {
    survives!("");
    check::set_handler(note);
    // Each in an arena that holds nothing else: the harness has no more threads than two.
    for offset in [MIB, MIB.wrapping_neg()] {
        in_a_thread(|| {
            let block = victim().run(|| unsafe { alloc(Layout::new::<u64>()) });
            assert!(is_told_as(ViolationKind::WildRead, block.wrapping_add(offset)), "{offset:#x}");
            unsafe { dealloc(block, Layout::new::<u64>()) };
        });
    }
}

/// The library's default reaction: a report, as of any other violation, and the end.
#[test]
fn an_access_is_reported_with_the_nearest_block_and_the_call_stack() {
    const SAID: [&str; 5] = [
        "dogtag: wild write: something wrote to memory of the heap that holds no block",
        "bytes past the end of the nearest block",
        "allocated  by victim",
        "in an access",
        "met at\n",
    ];

    #[inline(never)]
    fn writes_far_away(block: *mut u8) {
        write(black_box(block));
        black_box(());
    }

    aborts!(
        "backtrace=1,quarantine=0",
        SAID[0],
        SAID[1],
        SAID[2],
        SAID[3],
        SAID[4],
        "writes_far_away",
        super::LINES
    );
    in_a_thread(|| {
        // The nearest block: in front of the pages that hold none.
        let near = victim().run(|| unsafe { alloc(LAYOUT) });
        let page = gone();
        assert!(page > near);
        writes_far_away(page);
    });
}

#[test]
fn all_pages_keep_their_access() {
    survives!("protect=0,quarantine=0");
    check::set_handler(note);
    in_a_thread(|| {
        let page = gone();
        assert_eq!((read(page), met()), (0, vec![]));
    });
}

#[test]
fn many_threads_that_read_a_page_go_on() {
    survives!("quarantine=0");
    check::set_handler(note);
    let page = in_a_thread(|| gone() as usize);
    read_by_threads([0, 1, 2, 3].map(|offset| page + offset));
    assert!(!met().is_empty());
}

#[test]
fn a_forked_child_tells_too() {
    survives!("quarantine=0");
    check::set_handler(note);
    in_a_thread(|| {
        let page = gone();
        let child = unsafe { libc::fork() };
        if child == 0 {
            let is_right = is_told_as(ViolationKind::WildRead, page)
                && is_told_as(ViolationKind::WildRead, gone().wrapping_add(4096 * 16));
            unsafe { libc::_exit(i32::from(!is_right)) };
        }
        let status = watch::ended(child);
        assert!(status.success(), "{status}");
        assert!(is_told_as(ViolationKind::WildRead, page));
    });
}

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

/// The system bounds a process's mappings.
#[test]
fn there_are_no_more_mappings_than_the_bound_allows() {
    const BLOCKS: usize = 20_000;
    /// jemalloc parts nothing of the pages that it takes for one.
    const BLOCK: Layout = Layout::new::<[u8; (60 << 10) - 512]>();

    let write_ends = |block: *mut u8| unsafe {
        block.write(1);
        block.add(BLOCK.size() - 1).write(1);
    };
    survives!("quarantine=0,fill=0");
    check::set_handler(note);
    in_a_thread(|| {
        let before = mappings();
        let blocks: Vec<_> = (0..BLOCKS).map(|_| unsafe { alloc(BLOCK) }).collect();
        assert!(mappings() < before + 1000, "blocks beside each other are in one");
        for block in blocks.iter().step_by(2) {
            unsafe { dealloc(*block, BLOCK) };
        }
        purge();
        let parted = mappings();
        assert!((before + 8000..before + 2 * 8192 + 1000).contains(&parted), "{before}, {parted}");
        // What came after the bound has its access, and all can be used again.
        for _ in blocks.iter().step_by(2) {
            write_ends(black_box(unsafe { alloc(BLOCK) }));
        }
        let used_again = mappings();
        assert!(used_again < before + 1000, "{before}, {used_again}");
        for block in blocks.into_iter().skip(1).step_by(2) {
            write_ends(block);
        }
    });
    assert_eq!(met(), []);
}

/// Each has its access alone, amid pages that hold no block.
#[test]
fn blocks_far_apart_make_no_more_mappings_than_the_bound_allows() {
    const BLOCKS: usize = 20_000;

    survives!("quarantine=0,fill=0");
    let layout = Layout::from_size_align(20 << 10, MIB).unwrap();
    in_a_thread(|| {
        let before = mappings();
        for number in 0..BLOCKS {
            let block = black_box(unsafe { alloc(layout) });
            assert!(!block.is_null(), "number {number}");
            unsafe { block.write(1) };
        }
        let with_all = mappings();
        assert!((before + 8000..before + 2 * 8192 + 1000).contains(&with_all), "{before}, {with_all}");
    });
}

/// A process that has as many mappings as the system allows gets what it got without this.
#[test]
fn memory_is_had_where_the_system_allows_no_more_mappings() {
    const MOST: usize = 200_000;
    const BLOCK: Layout = Layout::new::<[u8; MIB]>();

    survives!("quarantine=0,fill=0");
    in_a_thread(|| {
        // Pages without blocks between others, each a mapping.
        let blocks: Vec<_> = (0..200).map(|_| unsafe { alloc(BLOCK) }).collect();
        for block in blocks.iter().step_by(2) {
            unsafe { dealloc(*block, BLOCK) };
        }
        purge();
        let page = |number: usize| unsafe {
            let access = if number.is_multiple_of(2) { libc::PROT_NONE } else { libc::PROT_READ };
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(ptr::null_mut(), 4096, access, flags, -1, 0)
        };
        let taken = (0..MOST).map(page).take_while(|page| *page != libc::MAP_FAILED).count();
        // Not at the beginning of such pages: in their middle it takes two mappings more.
        let layout = Layout::from_size_align(20 << 10, 128 << 10).unwrap();
        for number in 0..100 {
            let block = unsafe { alloc(layout) };
            assert!(!block.is_null(), "number {number}, with {taken} mappings more");
            unsafe { block.write_bytes(1, layout.size()) };
        }
    });
}

/// A filter of system calls that refuses to change accesses, as some sandboxes have.
#[cfg(target_arch = "x86_64")]
#[test]
fn memory_is_had_where_a_filter_refuses_to_change_accesses() {
    fn refuse_mprotect() {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut steps = [
            step(LOAD, 0, 0, 0),
            step(IS, 0, 1, libc::SYS_mprotect as u32),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter), 0);
        }
    }

    survives!("quarantine=0,fill=0");
    in_a_thread(|| {
        gone();
        refuse_mprotect();
        for size in [100, 5000, SIZE, 3 * SIZE, 20 * SIZE] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            for _ in 0..20 {
                let block = unsafe { alloc_zeroed(layout) };
                assert!(!block.is_null(), "{size}");
                let bytes = unsafe { std::slice::from_raw_parts_mut(block, size) };
                assert!(bytes.iter().all(|byte| *byte == 0));
                bytes.fill(1);
            }
        }
        unsafe {
            let block = alloc(LAYOUT);
            dealloc(block, LAYOUT);
            purge();
            read(block);
        }
    });
}

/// jemalloc has no data of such a thread's, and must not make them where it joins what is free.
#[test]
fn a_thread_that_only_frees_waits_for_nobody() {
    const BLOCK: Layout = Layout::new::<[u8; 40 << 10]>();
    const BLOCKS: usize = 64;

    extern "C" fn free_all(blocks: *mut c_void) -> *mut c_void {
        let blocks = unsafe { &*blocks.cast::<[*mut u8; BLOCKS]>() };
        blocks.iter().for_each(|block| unsafe { dealloc(*block, BLOCK) });
        ptr::null_mut()
    }

    survives!("quarantine=0,fill=0");
    let mut blocks = [(); BLOCKS].map(|()| unsafe { alloc(BLOCK) });
    unsafe {
        let mut thread = std::mem::zeroed();
        let all = blocks.as_mut_ptr().cast();
        assert_eq!(libc::pthread_create(&mut thread, ptr::null(), free_all, all), 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
    }
}

/// What jemalloc was told by the program is left as it is.
#[test]
fn a_program_may_have_settings_of_its_own_for_jemalloc() {
    const SETTINGS: [&str; 4] = ["retain:false", "hpa:true", "percpu_arena:percpu", "narenas:1"];

    if child::task().is_some() {
        in_every_arena(|| {
            let blocks = [100, 5000, SIZE].map(|size| {
                let layout = Layout::from_size_align(size, 8).unwrap();
                let block = unsafe { alloc(layout) };
                unsafe { block.write_bytes(1, size) };
                (block, layout)
            });
            blocks.into_iter().for_each(|(block, layout)| unsafe { dealloc(block, layout) });
        });
        purge();
        assert_eq!(check::verify().violations, 0);
        return;
    }
    for settings in SETTINGS {
        let mut program = child::again(here!(), settings, "quarantine=0");
        let output = watch::output(program.env("_RJEM_MALLOC_CONF", settings));
        assert!(output.status.success(), "{settings}: {output:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("dogtag:"), "{output:?}");
    }
}

//! Looks at the quarantine now and then (setting `look`).

use super::{LAYOUT, culprit, met, note};
use crate::child::dealloc;
use crate::watch;
use dogtag::check::{self, Operation, Reaction, Violation, ViolationKind};
#[cfg(target_os = "linux")]
use std::fs;
use std::time::Duration;

/// Frees so many blocks that the thread that looks has begun, and returns one of them.
fn freed() -> *mut u8 {
    let mut last = std::ptr::null_mut();
    for _ in 0..100 {
        last = culprit();
        // SAFETY: the block is live.
        unsafe { dealloc(last, LAYOUT) };
    }
    last
}

/// Waits until something is met. If nobody ever looks, the test hangs, and is ended.
fn wait() -> Vec<(ViolationKind, usize)> {
    loop {
        match met() {
            none if none.is_empty() => std::thread::sleep(Duration::from_millis(1)),
            met => return met,
        }
    }
}

#[cfg(target_os = "linux")]
fn names_of_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("comm")).ok();
    tasks.filter_map(name).collect()
}

#[test]
fn a_write_after_free_is_told_soon() {
    survives!("look=1");

    fn by_a_look(violation: &Violation) -> Reaction {
        assert_eq!(violation.operation(), Operation::Look);
        assert_eq!(violation.met().thread_name(), "dogtag");
        note(violation)
    }

    check::set_handler(by_a_look);
    for _ in 0..3 {
        let block = freed();
        // SAFETY: none; the block is freed.
        unsafe { block.write_volatile(1) };
        assert_eq!(wait(), [(ViolationKind::WriteAfterFree, block as usize)]);
        // Once.
        assert_eq!(check::verify().violations, 0);
    }
}

#[test]
fn a_forked_child_looks_once_it_frees() {
    survives!("look=1");
    check::set_handler(note);
    let block = freed();
    // SAFETY: the child ends by itself.
    let child = unsafe { libc::fork() };
    if child == 0 {
        freed();
        // SAFETY: none; the block is freed.
        unsafe { block.write_volatile(1) };
        let is_right = wait() == [(ViolationKind::WriteAfterFree, block as usize)];
        // SAFETY: ends the process.
        unsafe { libc::_exit(i32::from(!is_right)) };
    }
    let status = watch::ended(child);
    assert!(status.success(), "{status}");
    assert_eq!((met(), check::verify().violations), (vec![], 0));
}

/// Looks while blocks enter and leave the quarantine, of all sizes and by several threads.
#[test]
fn looks_find_nothing_where_nothing_is_wrong() {
    survives!("look=1,quarantine=4M");
    check::set_handler(note);
    std::thread::scope(|threads| {
        for thread in 1..4_usize {
            threads.spawn(move || {
                for round in 0..30_000_usize {
                    let size = 1 + round * thread * 7919 % if round % 64 == 0 { 200_000 } else { 2000 };
                    drop(std::hint::black_box(vec![1_u8; size]));
                }
            });
        }
    });
    assert_eq!((met(), check::verify().violations), (vec![], 0));
}

#[cfg(target_os = "linux")]
#[test]
fn nobody_looks_if_not_asked_to() {
    survives!("");
    freed();
    let names = names_of_threads();
    assert!(!names.iter().any(|name| name.trim() == "dogtag"), "{names:?}");
}

//! Tests of what kills a process, in a process of its own: the test program
//! runs itself again, for its test `a_child` alone.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

#[path = "../watch/mod.rs"]
pub mod watch;

use std::alloc::Layout;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// Has `a_child` do a task, with those settings of memory-check. Killed if it hangs.
pub fn run(task: &str, settings: &str) -> Output {
    watch::output(&mut again(task, settings))
}

/// This program, for `a_child` to do a task.
pub fn again(task: &str, settings: &str) -> Command {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program
        .args(["--exact", "a_child", "--nocapture", "--test-threads=1"])
        .env("DOGTAG_TEST_TASK", task)
        .env("DOGTAG_CHECK", settings)
        // So that what it sends to its group stays there.
        .process_group(0);
    program
}

/// What this process is to do, if it is such a child.
pub fn task() -> Option<String> {
    let task = std::env::var("DOGTAG_TEST_TASK").ok()?;
    // SAFETY: says that no core shall be dumped.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }) };
    Some(task)
}

/// Frees a block as if it came from anywhere: the compiler leaves out what is written to a
/// block that it sees freed next.
///
/// # Safety
///
/// As for [`std::alloc::dealloc`].
pub unsafe fn dealloc(block: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise, or none where a crime is committed.
    unsafe { std::alloc::dealloc(std::hint::black_box(block), layout) };
}

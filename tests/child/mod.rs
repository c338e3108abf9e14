//! Tests of what kills a process, in a process of its own: the test program
//! runs itself again, for its test `a_child` alone.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

use std::alloc::Layout;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Has `a_child` do a task, with those settings of memory-check.
pub fn run(task: &str, settings: &str) -> Output {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_child", "--nocapture", "--test-threads=1"])
        .env("DOGTAG_TEST_TASK", task)
        .env("DOGTAG_CHECK", settings)
        // So that what it forks can be killed with it.
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A child that hangs is a failure, not something to wait for.
    let (id, is_over) = (child.id() as libc::pid_t, Arc::new(AtomicBool::new(false)));
    let watchdog = std::thread::spawn({
        let is_over = is_over.clone();
        move || {
            std::thread::park_timeout(PATIENCE);
            if !is_over.load(Ordering::SeqCst) {
                // SAFETY: the group is our child's, for which nobody has waited yet.
                unsafe { libc::kill(-id, libc::SIGKILL) };
            }
        }
    });
    let output = child.wait_with_output().unwrap();
    is_over.store(true, Ordering::SeqCst);
    watchdog.thread().unpark();
    watchdog.join().unwrap();
    output
}

const PATIENCE: Duration = Duration::from_secs(120);

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

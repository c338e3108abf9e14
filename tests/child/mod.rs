//! Tests in a process of their own: the test program runs itself again, for one test alone.
#![allow(dead_code, unused_macros, reason = "each test binary uses the part that it needs")]

#[path = "../sampled/mod.rs"]
mod sampled;
#[path = "../watch/mod.rs"]
pub mod watch;

#[allow(unused_imports, reason = "each test binary uses the part that it needs")]
pub use sampled::is_every_block_sampled;

/// Has the profiler run from the beginning, where `DOGTAG_PROFILE` says so.
#[cfg(all(feature = "profile", target_os = "linux"))]
const _: () = {
    #[used]
    #[unsafe(link_section = ".init_array")]
    static START: extern "C" fn() = start;

    extern "C" fn start() {
        if let Err(error) = dogtag::profile::Profiler::from_env() {
            eprintln!("{error}");
            std::process::exit(2);
        }
    }
};

/// Has the sampled guard run from the beginning, where `DOGTAG_SAMPLED_GUARD` says so.
#[cfg(all(feature = "sampled-guard", target_os = "linux"))]
const _: () = {
    #[used]
    #[unsafe(link_section = ".init_array")]
    static START: extern "C" fn() = start;

    extern "C" fn start() {
        if let Err(error) = dogtag::sampled_guard::SampledGuard::from_env() {
            eprintln!("{error}");
            std::process::exit(2);
        }
    }
};

use std::alloc::Layout;
use std::any::type_name;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// Begins a test that needs a process of its own: it sets what is the whole process's, reads figures
/// of the whole process, or expects that nobody else looks at its services. May be given the settings
/// of memory-check.
macro_rules! alone {
    () => {
        alone!("")
    };
    ($settings:expr) => {
        if $crate::child::has_run_alone(here!(), $settings) {
            return;
        }
    };
}

/// The path of the test function that this stands in, as the test program knows it.
macro_rules! here {
    () => {{
        fn here() {}
        $crate::child::test_of(here)
    }};
}

/// The test that a function stands in.
pub fn test_of<F: Fn()>(_: F) -> &'static str {
    // The crate's name comes first.
    let path = type_name::<F>().split_once("::").map_or("", |(_, path)| path);
    path.rsplit_once("::").map_or("", |(test, _)| test)
}

/// Runs a test in a process of its own, and fails if that does; `false` in that process.
pub fn has_run_alone(test: &str, settings: &str) -> bool {
    if task().is_some() {
        return false;
    }
    let output = run(test, "", settings);
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    // A name that no test has would pass as well.
    assert!(output.status.success() && out.contains("1 passed"), "{}\n{out}{err}", output.status);
    print!("{out}");
    true
}

/// Has a test do a task, with those settings of memory-check. Killed if it hangs.
pub fn run(test: &str, task: &str, settings: &str) -> Output {
    watch::output(&mut again(test, task, settings))
}

/// This program, for a test to do a task.
pub fn again(test: &str, task: &str, settings: &str) -> Command {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
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
    // SAFETY: the block is live and of that layout, or none of it where a violation is committed.
    unsafe { std::alloc::dealloc(std::hint::black_box(block), layout) };
}

//! One model of programs that allocate, and what carries them out, for all tests that run random ones. A
//! test chooses the operations, the memory, the threads, and where random numbers come from.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

pub mod account;
pub mod addresses;
pub mod block;
pub mod collection;
pub mod memory;
pub mod piece;
pub mod thread;

use dogtag::Service;

/// What a test may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nobody else does anything, so that each denial and the thread's own figures are known, too.
    Alone,
    /// Others go on meanwhile: what limits deny is only bounded.
    Among,
}

/// Does what is the test's own: its blocks are nobody's.
pub fn aside<R>(work: impl FnOnce() -> R) -> R {
    Service::unattributed().run(work)
}

/// Puts the thread into nobody's service for good: that of the program may be at its limit, and
/// what is wrong is to be told.
pub fn get_out() {
    std::mem::forget(Service::unattributed().enter());
}

/// `assert!` for where the thread is in a service of the program.
macro_rules! ensure {
    ($condition:expr $(, $($text:tt)+)?) => {{
        let holds = $condition;
        if !holds {
            $crate::engine::get_out();
        }
        assert!(holds $(, $($text)+)?);
    }};
}
pub(crate) use ensure;

//! Whether the tests run under the profiler.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

/// Whether the profiler samples every allocation.
pub fn is_every_block_sampled() -> bool {
    #[cfg(feature = "profile")]
    {
        dogtag::profile::Profiler::running().is_some_and(|profiler| profiler.interval() == 1)
    }
    #[cfg(not(feature = "profile"))]
    false
}

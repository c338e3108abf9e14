//! Which code holds the memory: a live heap profile by service and call stack.
//!
//! [`Profiler::builder`] starts sampling; [`live`] and [`allocated`] say, at any time, which service
//! holds how much by which call stack.

mod buckets;
mod collect;
mod error;
mod profiler;
mod stacks;
mod unwind;

pub use collect::Kind;
pub use error::ProfileError;
pub use profiler::{Profiler, ProfilerBuilder};

#[cfg(test)]
mod tests;

//! Mapped regions: memory from a window of `mmap`, and another allocator for what it has no
//! room for.
//!
//! A region is memory that is the system's rather than the heap's: a device's, huge pages, what
//! processes share, what must not be swapped, or what has a hard ceiling. Blocks are placed in it
//! as in a heap, of any size and alignment; free neighbours are merged, and nothing of the
//! bookkeeping lies in the window itself: whoever else sees its memory sees nothing but what
//! was put there, and what was never handed out is known to be zero.
//!
//! ```
//! use dogtag_mapped::MappedRegion;
//!
//! let region = MappedRegion::builder(1 << 20).name("scratch").guard_pages().map()?;
//! let mut numbers = allocator_api2::vec::Vec::new_in(&region);
//! numbers.extend(0..1000);
//! assert!(region.stats().used >= 4000);
//! # Ok::<(), dogtag_mapped::MapError>(())
//! ```
//!
//! All operations take a lock, and constant time, unless the window is so full that only ranges
//! of just about the size may do: then all of these are looked at. A region is for few threads
//! at once, or for blocks that are worth the wait. As the global allocator's backend it has
//! another one behind it: [`MappedRegion::deferred`]. For Linux.

#![deny(missing_docs)]
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

#[cfg(not(target_os = "linux"))]
compile_error!("dogtag-mapped needs Linux");

mod error;
mod fallback;
mod mapping;
mod quick_lists;
mod region;
mod registry;
mod tlsf;
mod window;

pub use dogtag::{Region, RegionStats};
pub use error::MapError;
pub use fallback::{Fallback, FallbackStats, Owns};
pub use mapping::{HugePages, Protection};
pub use region::{MappedRegion, RegionBuilder};

//! Memory from windows of `mmap`, for programs that allocate with [`dogtag`], and an allocator
//! behind a window for what does not fit.
//!
//! A [`MappedRegion`] is memory that a heap cannot give: a device's, huge pages, memory that
//! processes share, that is never swapped, or with a hard ceiling. It places blocks of any size and
//! alignment, and merges free neighbours at once. The bookkeeping is outside of the window: other
//! processes that map its memory see nothing but what was put there, and memory that was never
//! handed out is known to be zero.
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
//! - Collections in a region are charged to dogtag's [services](dogtag::Service), as all blocks are.
//! - [`dogtag::snapshot`] has a row for each region, and [`dogtag::balance`] counts its pages once.
//! - With dogtag's feature `memory-check` blocks in regions have guards too, and a region that is
//!   dropped while blocks in it are live is reported.
//! - A forked child finds every region whole.
//!
//! # Cost
//!
//! Every operation takes the region's lock: a region is for few threads at once, or for large
//! blocks. It takes constant time (two-level segregated fit), unless the window is so full that only
//! ranges of about the wanted size may do: then it looks at all of these.
//!
//! # As the global allocator's backend
//!
//! [`MappedRegion::deferred`] makes a region that can stand in a `static`, and [`Fallback`] puts another
//! allocator behind it.
//!
//! # Features
//!
//! | feature | what it adds |
//! | --- | --- |
//! | `serde` | `Serialize` and `Deserialize` for [`FallbackStats`] and [`RegionStats`] |
//! | `memory-check` | dogtag's feature of that name |
//! | `jemalloc` | dogtag's feature of that name |
//!
//! For Linux.

// Under loom the core has no allocator.
#![cfg(not(dogtag_loom))]
#![deny(missing_docs, missing_debug_implementations)]
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

#[cfg(not(target_os = "linux"))]
compile_error!("dogtag-mapped needs Linux");

mod entry;
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

//! Which code holds the memory: a live heap profile by service and call stack.
//!
//! [`Profiler::builder`] starts sampling; [`live`] and [`allocated`] say, at any time, which service
//! holds how much by which call stack.

mod buckets;
mod calibrate;
mod collect;
mod error;
mod folded;
mod frame;
mod frames;
mod heading;
mod kept;
mod mappings;
mod own;
mod places;
mod pprof;
mod profiler;
mod report;
mod row;
mod sources;
mod stacks;
mod symbol_table;
mod symbols;
mod table;
#[cfg(test)]
mod tests;
mod views;

use crate::unwind;
pub use collect::Kind;
pub use error::ProfileError;
pub use frame::Frame;
pub use pprof::Pprof;
pub use profiler::{Profiler, ProfilerBuilder};
pub use report::Profile;
pub use row::{Origin, ProfileRow, ProfileService};
pub use views::{ByCode, ByFunction, ByService, CalleeRow, CodeRow, FunctionRow, ServiceRow};

/// Takes a profile of what is live: which service holds how much, by which call stack.
///
/// It goes through the table of samples and adds the services up, as [`snapshot`](crate::snapshot()) does;
/// no thread is stopped. What it allocates is charged to the service `dogtag::profile`. While other threads
/// go on, a service's figures are of a slightly different moment.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use dogtag::profile::{self, Profiler};
///
/// let profiler = Profiler::builder().interval(1).start()?;
/// let cache = dogtag::Service::register("cache")?;
/// let entries = cache.run(|| vec![0_u8; 1 << 20]);
///
/// let live = profile::live();
/// let row = live.rows.iter().find(|row| row.service == "cache").unwrap();
/// assert_eq!((row.objects, row.bytes), (1, 1 << 20));
/// println!("{live}");
/// # drop(entries);
/// # profiler.stop();
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn live() -> Profile {
    taken(collect::live)
}

/// Takes a profile of what was allocated since sampling began, freed or not.
///
/// [`Profile::difference`] of two of them has what was allocated in between. Services that have ended
/// are one row for each call stack, `[ended services]`.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use dogtag::profile::{self, Profiler};
///
/// let profiler = Profiler::builder().interval(1).start()?;
/// let parser = dogtag::Service::register("parser")?;
/// let before = profile::allocated();
/// parser.run(|| drop(vec![0_u8; 1000]));
///
/// let allocated = profile::allocated().difference(&before);
/// let bytes: i64 = allocated.rows.iter().filter(|row| row.service == "parser").map(|row| row.bytes).sum();
/// assert_eq!(bytes, 1000);
/// # profiler.stop();
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn allocated() -> Profile {
    taken(collect::allocated)
}

fn taken(collect: fn() -> collect::Collected) -> Profile {
    let _scope = own::enter();
    unwind::refresh_if_needed();
    Profile::new(collect())
}

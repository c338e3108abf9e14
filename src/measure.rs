//! Measures what a piece of code allocates.

use crate::ledger::thread;
use crate::usage::Usage;

/// Runs `work` and returns what it returned, with what the calling thread has allocated and freed
/// meanwhile, in all services.
///
/// It is meant for tests such as "this makes exactly three allocations". Attribution to services
/// does not change. Other threads that work for `work` are not counted. [`Usage::denied`] and
/// [`Usage::peak_bytes`] belong to services, and are 0 here.
///
/// The cost is a sum over the thread's cells: up to 256 for each service that this thread has
/// touched, or one that ended before it began. On a thread for whose cells the system had no
/// memory, and while thread-local variables are destroyed, the figures are 0.
///
/// # Panics
///
/// Panics if `work` does.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// let (words, usage) = dogtag::measure(|| ["a", "b"].map(String::from));
/// assert_eq!((usage.allocated_blocks, usage.allocated_bytes), (2, 2));
/// let (_, usage) = dogtag::measure(|| drop(words));
/// assert_eq!(usage.freed_blocks, 2);
/// # }
/// ```
#[must_use = "to run `work` alone needs no measuring"]
pub fn measure<R>(work: impl FnOnce() -> R) -> (R, Usage) {
    let before = thread::own_usage();
    let result = work();
    (result, thread::own_usage().since(&before))
}

//! What a piece of code allocates.

use crate::ledger::thread;
use crate::usage::Usage;

/// Runs `work`, and tells what the calling thread has allocated and freed
/// meanwhile, for whichever services. Who it is attributed to does not change.
///
/// For tests of the kind "this makes exactly three allocations". What other
/// threads do on behalf of `work` is not counted. [`Usage::denied`] and
/// [`Usage::peak_bytes`] are those of services, and 0 here.
///
/// Adds up the thread's cells: up to 256 for each service that this thread, or one
/// that ended before it began, has touched. A thread for which the system had no
/// memory, or whose thread-local variables are being destroyed, is not counted.
///
/// # Panics
///
/// When `work` does.
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

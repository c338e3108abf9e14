//! What the programs have whose allocator knows no services, or a fixed few.

use crate::workloads::Services;

/// Nobody is told apart.
#[derive(Clone, Copy)]
pub struct NoServices;

impl Services for NoServices {
    type Service = ();

    fn service(self, _: u64) {}

    fn run<R>(self, (): &(), work: impl FnOnce() -> R) -> R {
        work()
    }

    fn request<F: Future + Send>(self, _: u64, future: F) -> impl Future<Output = F::Output> + Send {
        future
    }
}

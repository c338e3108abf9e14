//! A violation of a guarded block, for tests of who tells of it. The process goes on.

use dogtag::sampled_guard::{Figures, Reaction, SampledGuard, SampledGuardError, figures, is_guarded};
use std::hint::black_box;
use std::time::Duration;

/// Has the sampled guard catch one read of a freed block, and stops it. Returns its figures; `None` with
/// memory-check, which looks at every block in its place.
pub fn catches_one() -> Option<Figures> {
    let builder = SampledGuard::builder().rate(1).per_second(0).slots(200).reaction(Reaction::Continue);
    // However slow the machine is.
    let guard = match builder.patience(Duration::from_secs(1000)).start() {
        Err(SampledGuardError::MemoryCheck) => return None,
        started => started.unwrap(),
    };
    let block =
        std::iter::repeat_with(|| Box::new([7_u8; 100])).take(1000).find(|it| is_guarded(it.as_ptr()));
    let block = block.expect("every block is guarded for which there is a slot");
    let freed = block.as_ptr();
    drop(block);
    // SAFETY: none: this is the violation.
    black_box(unsafe { black_box(freed).read_volatile() });
    guard.stop();
    Some(figures())
}

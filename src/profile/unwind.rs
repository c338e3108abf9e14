//! Call stacks. (Placeholder until the lane's own is here.)
pub(super) fn prepare() {}
pub(super) fn capture(frames: &mut [usize]) -> usize {
    let mut taken = 0;
    // SAFETY: the unwinder of the C library's may be used by several threads.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            if taken < frames.len() {
                frames[taken] = frame.ip() as usize;
                taken += 1;
            }
            taken < frames.len()
        });
    }
    taken
}

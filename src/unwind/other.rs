//! Call stacks on other systems: the `backtrace` crate's.

#[cfg_attr(not(feature = "profile"), allow(dead_code))]
pub(super) fn prepare() {
    let mut frames = [0; 4];
    // The unwinder may load itself, and allocate, when it is first used.
    capture(&mut frames);
}

#[cfg_attr(not(feature = "profile"), allow(dead_code))]
pub(super) fn refresh_if_needed() {}

/// # Safety
///
/// None.
#[cfg(any(feature = "sampled-guard", feature = "memory-check"))]
pub(super) unsafe fn capture_interrupted(_: *const std::ffi::c_void, _: &mut [usize]) -> usize {
    0
}

#[inline(never)]
pub(super) fn capture(frames: &mut [usize]) -> usize {
    let mut count = 0;
    // SAFETY: without a lock, two threads may not look up names at once; taking a stack looks up none.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            let Some(place) = frames.get_mut(count) else { return false };
            *place = frame.ip() as usize;
            count += 1;
            true
        });
    }
    count
}

#[cfg(feature = "memory-check")]
#[inline(always)]
pub(super) fn capture_known(frames: &mut [usize]) -> (usize, bool) {
    (capture(frames), true)
}

#[cfg(feature = "memory-check")]
pub(super) fn try_refresh() -> bool {
    false
}

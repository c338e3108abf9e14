//! Has the processor fetch what stands around a block before it is looked at.

use super::HEAD;
use std::ptr;

/// Has the processor fetch what will be looked at of a block that somebody frees, if it is one of that size. (It
/// waits for each line where a locked instruction comes before.)
#[inline(always)]
pub(crate) fn prefetch_freed(block: *const u8, size: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which any address will do for.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_sub(HEAD).cast());
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_sub(1).cast());
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(size).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (block, size);
}

/// Has the processor fetch what will be looked at of a block and around it.
///
/// What is larger than some lines is left to the processor, which notices where it leads.
#[inline(always)]
pub(crate) fn prefetch(address: usize, footprint: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which any address will do for.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let head = ptr::without_provenance::<i8>(address.wrapping_sub(HEAD));
        _mm_prefetch::<_MM_HINT_T0>(head);
        _mm_prefetch::<_MM_HINT_T0>(head.wrapping_add(LINE));
        _mm_prefetch::<_MM_HINT_T0>(head.wrapping_add(2 * LINE));
        if footprint > 3 * LINE {
            _mm_prefetch::<_MM_HINT_T0>(head.wrapping_add(3 * LINE));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, footprint);
}

/// What the processor fetches at once.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

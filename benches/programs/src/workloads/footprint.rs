//! How much memory blocks of one size take.

use super::memory;
use std::alloc::{Layout, alloc};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the process had before its first block, in bytes.
static BEFORE: AtomicU64 = AtomicU64::new(0);

/// What is not the blocks', and so is not counted; 0 for other workloads, of which all
/// is.
pub fn before() -> u64 {
    BEFORE.load(Ordering::Relaxed)
}

/// Blocks of that size are allocated, filled, and live until the process ends:
/// a million, or as many as make 512 MiB. The time is that of one.
pub fn live(size: usize) -> f64 {
    let number = 1_000_000.min((512 << 20) / size);
    let layout = Layout::from_size_align(size, 8.min(size)).unwrap();
    BEFORE.store(memory("VmRSS:"), Ordering::Relaxed);
    let start = std::time::Instant::now();
    for _ in 0..number {
        // SAFETY: the layout is not empty.
        unsafe { black_box(alloc(layout)).write_bytes(1, size) };
    }
    start.elapsed().as_secs_f64() * 1e9 / number as f64
}

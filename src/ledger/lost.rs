//! Blocks whose owner can no longer be told, because something wrote past the
//! end of the block and into its cookie.

use crate::usage::Usage;
use std::sync::atomic::{AtomicU64, Ordering};

static BYTES: AtomicU64 = AtomicU64::new(0);
static BLOCKS: AtomicU64 = AtomicU64::new(0);

/// Counts a block that was freed and whose owner is not known. It stays live
/// in its service's figures.
pub(crate) fn add_lost(size: usize) {
    BYTES.fetch_add(size as u64, Ordering::Relaxed);
    BLOCKS.fetch_add(1, Ordering::Relaxed);
}

/// What was lost so far, as frees without an allocation.
pub(crate) fn lost() -> Usage {
    Usage {
        freed_bytes: BYTES.load(Ordering::Relaxed),
        freed_blocks: BLOCKS.load(Ordering::Relaxed),
        ..Usage::default()
    }
}

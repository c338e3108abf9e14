//! The pool as snapshots and the balance see it: an arena, whose blocks are not the backend's.

use super::{figures, pool};
use crate::arenas::{Arena, Arenas, Region, RegionStats, register_arenas};
use crate::sync::Ordering;
use crate::unwind;

static ARENAS: Arenas = Arenas { list };

pub(super) fn register() {
    register_arenas(&ARENAS);
}

fn list() -> Vec<Arena> {
    // Not inside an allocation: libraries that were opened meanwhile will be in call stacks.
    unwind::refresh_if_needed();
    let (addresses, figures) = (pool::addresses(), figures());
    let bytes = pool::BYTES.load(Ordering::Relaxed) as usize;
    let stats = RegionStats {
        size: addresses.len(),
        used: bytes,
        blocks: figures.guarded as usize,
        refused: figures.refused,
        ..RegionStats::default()
    };
    let region = Region { name: "dogtag::sampled_guard".to_owned(), stats };
    vec![Arena { region, addresses, counted: bytes }]
}

//! Ranges of addresses in which an allocator's blocks are, or were, so that its end need not look
//! through all blocks of the process.

use super::block_state::Entry;
use super::shadow;
use crate::sync::{AtomicUsize, Ordering};
use std::ops::RangeInclusive;

/// Some stretches of addresses: few, but more than one, since a region may have
/// another allocator behind it, far away.
#[derive(Debug)]
pub(crate) struct Spans([Span; 4]);

/// From the first block to the last one; at the beginning, none.
#[derive(Debug)]
struct Span {
    first: AtomicUsize,
    last: AtomicUsize,
}

/// What is nearer to a span than that belongs to it, rather than to another.
const NEAR: usize = 16 << 20;

impl Spans {
    pub(crate) const fn new() -> Self {
        Self([const { Span { first: AtomicUsize::new(usize::MAX), last: AtomicUsize::new(0) } }; 4])
    }

    /// Has a block's address be in one of them.
    #[inline]
    pub(crate) fn note(&self, address: usize) {
        if !self.0.iter().any(|span| span.range().contains(&address)) {
            self.widen(address);
        }
    }

    #[cold]
    fn widen(&self, address: usize) {
        let near = address.saturating_sub(NEAR)..=address.saturating_add(NEAR);
        let takes = |span: &&Span| {
            let range = span.range();
            range.is_empty() || (near.start() <= range.end() && range.start() <= near.end())
        };
        // Others may be at it as well: then a span becomes wider than it need be.
        let [.., last] = &self.0;
        let span = self.0.iter().find(takes).unwrap_or(last);
        span.first.fetch_min(address, Ordering::Relaxed);
        span.last.fetch_max(address, Ordering::Relaxed);
    }

    /// Calls `each` for every block there, of this allocator or another.
    pub(crate) fn for_each(&self, mut each: impl FnMut(usize, &'static Entry)) {
        self.0.iter().for_each(|span| shadow::for_each_in(span.range(), &mut each));
    }
}

impl Span {
    #[inline]
    fn range(&self) -> RangeInclusive<usize> {
        self.first.load(Ordering::Relaxed)..=self.last.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(spans: &Spans) -> Vec<RangeInclusive<usize>> {
        spans.0.iter().map(Span::range).filter(|range| !range.is_empty()).collect()
    }

    #[test]
    fn what_is_far_away_has_a_span_of_its_own() {
        const GIB: usize = 1 << 30;
        let spans = Spans::new();
        assert_eq!(ranges(&spans), []);
        [GIB, GIB + 64, GIB - 64, 5 * GIB, 5 * GIB + 16].iter().for_each(|address| spans.note(*address));
        assert_eq!(ranges(&spans), [GIB - 64..=GIB + 64, 5 * GIB..=5 * GIB + 16]);
        [7, 9, 11, 13].iter().for_each(|address| spans.note(*address * GIB));
        assert_eq!(ranges(&spans).len(), 4);
        assert_eq!(ranges(&spans)[3], 9 * GIB..=13 * GIB);
    }

    proptest! {
        #[test]
        fn every_address_is_in_a_span(addresses in prop::collection::vec(0_usize..1 << 47, 1..100)) {
            let spans = Spans::new();
            addresses.iter().for_each(|address| spans.note(*address));
            for address in addresses {
                prop_assert!(ranges(&spans).iter().any(|range| range.contains(&address)));
            }
        }
    }
}

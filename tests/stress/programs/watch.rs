//! What must hold of the figures while threads go on: nothing is negative, nothing goes back.

use crate::engine::aside;
use dogtag::Usage;
use std::collections::HashMap;

/// What was seen of each service, by name and handle.
#[derive(Default)]
pub struct Watch {
    rows: HashMap<(String, u32), Usage>,
    totals: Usage,
}

impl Watch {
    pub fn look(&mut self) {
        aside(|| {
            let snapshot = dogtag::snapshot();
            expect_growth("totals", self.totals, snapshot.totals);
            expect_growth("what has ended", Usage::default(), with_peak(u64::MAX, snapshot.ended));
            self.totals = snapshot.totals;
            for row in snapshot.rows {
                let before = self.rows.entry((row.name, row.handle)).or_default();
                expect_growth("a row", *before, row.usage);
                let family = with_peak(u64::MAX, row.usage_with_children);
                expect_growth("a row with children", with_peak(0, row.usage), family);
                *before = row.usage;
            }
        });
    }
}

/// The same figures, but for the peak.
pub fn with_peak(peak_bytes: u64, mut usage: Usage) -> Usage {
    usage.peak_bytes = peak_bytes;
    usage
}

/// A later reading has no less of anything, and no more freed than allocated.
pub fn expect_growth(what: &str, before: Usage, after: Usage) {
    let figures = |usage: Usage| {
        let Usage { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks, denied, .. } = usage;
        [allocated_bytes, allocated_blocks, freed_bytes, freed_blocks, denied]
    };
    let has_grown = figures(before).iter().zip(figures(after)).all(|(before, after)| *before <= after);
    let is_positive =
        after.allocated_bytes >= after.freed_bytes && after.allocated_blocks >= after.freed_blocks;
    assert!(
        has_grown && is_positive && after.peak_bytes >= after.bytes(),
        "{what}: {before:?}, then {after:?}"
    );
}

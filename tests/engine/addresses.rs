//! Where memory is that somebody has.

use std::collections::BTreeMap;
use std::ptr::NonNull;

/// Which addresses are taken: no two of those who have some have the same.
#[derive(Debug, Default)]
pub struct Addresses {
    /// By where they begin: where they end.
    ranges: BTreeMap<usize, usize>,
}

impl Addresses {
    pub const fn new() -> Self {
        Self { ranges: BTreeMap::new() }
    }

    /// Takes a range, of which nobody may have a part. An empty one is nowhere.
    pub fn take(&mut self, start: NonNull<u8>, len: usize) {
        let (start, end) = (start.addr().get(), start.addr().get() + len);
        if len == 0 {
            return;
        }
        let before = self.ranges.range(..end).next_back();
        assert!(before.is_none_or(|(_, other)| *other <= start), "{start:#x}..{end:#x} is {before:x?}'s too");
        self.ranges.insert(start, end);
    }

    pub fn give_back(&mut self, start: NonNull<u8>, len: usize) {
        if len > 0 {
            let end = self.ranges.remove(&start.addr().get());
            assert_eq!(end, Some(start.addr().get() + len));
        }
    }
}

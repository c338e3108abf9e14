//! Plain numbers: what a reader of the ledger gets.

use std::ops::{Add, AddAssign, Sub};

/// How much memory was allocated and freed, and so how much is live.
///
/// Sizes are the bytes the program asked for (`Layout::size`), not what the
/// backend rounds them up to. All but the peak only ever grow, so a later
/// reading less an earlier one tells what happened in between (not the other way
/// round), with the later one's peak. They are sums
/// over all threads: the allocation is counted where it was made and the free
/// where it was freed. (A program that allocates and frees 16 EiB takes a counter past its
/// end. Then it begins again at 0, and what is live stays right.)
///
/// ```
/// use dogtag::Usage;
///
/// let before = Usage { allocated_bytes: 300, allocated_blocks: 3, ..Usage::default() };
/// let after = Usage { allocated_bytes: 364, allocated_blocks: 4, freed_bytes: 100, ..before };
/// assert_eq!(after.bytes(), 264);
/// assert_eq!(after.blocks(), 4);
/// assert_eq!((after - before).allocated_bytes, 64);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Usage {
    /// Bytes allocated since the service was registered.
    pub allocated_bytes: u64,
    /// Blocks allocated since the service was registered.
    pub allocated_blocks: u64,
    /// Bytes freed since the service was registered, by whichever thread or service.
    pub freed_bytes: u64,
    /// Blocks freed since the service was registered, by whichever thread or service.
    pub freed_blocks: u64,
    /// The service's allocations that were refused, by its own limit or by one of
    /// a service above it.
    pub denied: u64,
    /// The most bytes that were live at once, since the service was registered or
    /// its peak was [reset](crate::Service::reset_peak).
    ///
    /// Never less than any reading. It may be less than what was live between two
    /// readings, by up to 1 MiB for each thread that allocated. It may be more by
    /// what others freed and allocated again while a reading was taken, as the
    /// reading itself. Of a sum over services: the sum of their peaks; of
    /// [`totals`](crate::totals): the most that was ever read.
    pub peak_bytes: u64,
}

impl Usage {
    /// Live bytes: allocated and not yet freed.
    ///
    /// Never negative for a reading, also while other threads run. For a
    /// difference of readings, in which more may have been freed than
    /// allocated, it is 0 then.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        live(self.allocated_bytes, self.freed_bytes)
    }

    /// Live blocks: allocated and not yet freed.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        live(self.allocated_blocks, self.freed_blocks)
    }

    /// The sum of figures of this process, which past the end of a counter begins again with it.
    /// (The peaks', which are no counters, ends.)
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            allocated_bytes: self.allocated_bytes.wrapping_add(other.allocated_bytes),
            allocated_blocks: self.allocated_blocks.wrapping_add(other.allocated_blocks),
            freed_bytes: self.freed_bytes.wrapping_add(other.freed_bytes),
            freed_blocks: self.freed_blocks.wrapping_add(other.freed_blocks),
            denied: self.denied.wrapping_add(other.denied),
            peak_bytes: self.peak_bytes.saturating_add(other.peak_bytes),
        }
    }
}

/// What is allocated and not freed, though the first counter may have begun again already.
const fn live(allocated: u64, freed: u64) -> u64 {
    let live = allocated.wrapping_sub(freed);
    let is_negative = allocated < freed && live > i64::MAX as u64;
    if is_negative { 0 } else { live }
}

impl Add for Usage {
    type Output = Self;

    /// Figures of another process may be anything: what is too large for a sum is the largest
    /// there is.
    fn add(self, other: Self) -> Self {
        Self {
            allocated_bytes: self.allocated_bytes.saturating_add(other.allocated_bytes),
            allocated_blocks: self.allocated_blocks.saturating_add(other.allocated_blocks),
            freed_bytes: self.freed_bytes.saturating_add(other.freed_bytes),
            freed_blocks: self.freed_blocks.saturating_add(other.freed_blocks),
            denied: self.denied.saturating_add(other.denied),
            peak_bytes: self.peak_bytes.saturating_add(other.peak_bytes),
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Usage {
    type Output = Self;

    /// What happened between an earlier reading (`other`) and this one.
    fn sub(self, other: Self) -> Self {
        Self {
            allocated_bytes: self.allocated_bytes.wrapping_sub(other.allocated_bytes),
            allocated_blocks: self.allocated_blocks.wrapping_sub(other.allocated_blocks),
            freed_bytes: self.freed_bytes.wrapping_sub(other.freed_bytes),
            freed_blocks: self.freed_blocks.wrapping_sub(other.freed_blocks),
            denied: self.denied.wrapping_sub(other.denied),
            peak_bytes: self.peak_bytes,
        }
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(usages: I) -> Self {
        usages.fold(Self::default(), Self::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_that_are_too_large_are_the_largest() {
        let huge = Usage {
            allocated_bytes: u64::MAX,
            allocated_blocks: u64::MAX - 1,
            freed_bytes: 3,
            freed_blocks: u64::MAX,
            denied: u64::MAX,
            peak_bytes: u64::MAX,
        };
        let sum: Usage = [huge, huge, Usage { freed_bytes: 4, ..Usage::default() }].into_iter().sum();
        let largest = Usage { allocated_blocks: u64::MAX, freed_bytes: 10, ..huge };
        assert_eq!(sum, largest);
        assert_eq!((sum.bytes(), sum.blocks()), (u64::MAX - 10, 0));
    }

    #[test]
    fn what_is_live_is_right_past_the_end_of_a_counter() {
        let at_its_end = |bytes| Usage { allocated_bytes: bytes, freed_bytes: bytes, ..Usage::default() };
        let before = at_its_end(u64::MAX - 10);
        let allocated = Usage { allocated_bytes: before.allocated_bytes.wrapping_add(100), ..before };
        assert_eq!((allocated.bytes(), (allocated - before).bytes()), (100, 100));
        let freed = Usage { freed_bytes: before.freed_bytes.wrapping_add(100), ..allocated };
        assert_eq!((freed.bytes(), (freed - allocated).bytes(), (freed - before).bytes()), (0, 0, 0));
        assert_eq!((freed - before).freed_bytes, 100);
        let sum = allocated.and(Usage { allocated_bytes: 7, ..Usage::default() });
        assert_eq!(sum.bytes(), 107);
        // Less was allocated than freed.
        assert_eq!(Usage { allocated_bytes: 3, freed_bytes: 5, ..Usage::default() }.bytes(), 0);
    }
}

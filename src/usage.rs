//! The figures that a reader of the ledger gets: plain numbers.

use std::ops::{Add, AddAssign};

/// Counts the memory that was allocated and freed, and so what is live.
///
/// Sizes are the bytes that the program asked for (`Layout::size`), before the backend rounds them
/// up. All fields but the peak are counters that only grow; [`since`](Self::since)
/// subtracts an earlier reading. They are sums over all threads. (A counter that passes 16 EiB
/// begins again at 0. What is live, and what happened since an earlier reading, stay exact.)
///
/// More fields may come. Code that makes figures up, such as a test of a dashboard, starts from
/// [`Usage::default`] and assigns fields.
///
/// ```
/// use dogtag::Usage;
///
/// let mut before = Usage::default();
/// (before.allocated_bytes, before.allocated_blocks) = (300, 3);
/// let mut after = before;
/// (after.allocated_bytes, after.allocated_blocks, after.freed_bytes) = (364, 4, 100);
/// assert_eq!(after.bytes(), 264);
/// assert_eq!(after.blocks(), 4);
/// assert_eq!(after.since(&before).allocated_bytes, 64);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Usage {
    /// Bytes allocated since the service was registered.
    pub allocated_bytes: u64,
    /// Blocks allocated since the service was registered.
    pub allocated_blocks: u64,
    /// Bytes freed since the service was registered, by any thread, in any service.
    pub freed_bytes: u64,
    /// Blocks freed since the service was registered, by any thread, in any service.
    pub freed_blocks: u64,
    /// Allocations of the service that failed, because of its own hard limit or an ancestor's.
    pub denied: u64,
    /// The most bytes that were live at once, since the service was registered or
    /// its peak was [reset](crate::Service::reset_peak).
    ///
    /// It may be less than what was live between two readings, by up to 1 MiB for each thread that
    /// allocated. It is never more, but that it is no less than [`bytes`](Self::bytes) of the same
    /// reading: these may be more than ever were live at once, by what other threads freed and
    /// allocated again while the reading was taken. Later readings know nothing of that. A sum over
    /// services has the sum of their peaks. [`totals`](crate::totals) has the highest that was ever
    /// read.
    pub peak_bytes: u64,
}

impl Usage {
    /// Counts nothing: [`Usage::default`] for constants and statics.
    ///
    /// ```
    /// use dogtag::Usage;
    /// use std::sync::Mutex;
    ///
    /// static LAST: Mutex<Usage> = Mutex::new(Usage::NONE);
    /// assert_eq!(*LAST.lock().unwrap(), Usage::default());
    /// ```
    pub const NONE: Self = Self {
        allocated_bytes: 0,
        allocated_blocks: 0,
        freed_bytes: 0,
        freed_blocks: 0,
        denied: 0,
        peak_bytes: 0,
    };

    /// Returns the live bytes: allocated and not yet freed.
    ///
    /// A reading never has more freed than allocated, also while other threads run. The difference
    /// of two readings ([`since`](Self::since)) may; then this is 0.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        growth(self.allocated_bytes, self.freed_bytes)
    }

    /// Returns the live blocks: allocated and not yet freed; 0 if more were freed.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        growth(self.allocated_blocks, self.freed_blocks)
    }

    /// Returns what was allocated, freed and denied since an earlier reading of the same service, or
    /// of the same totals.
    ///
    /// Each counter of the result is this reading's minus the earlier one's. It is exact, also when
    /// the counter has begun again at 0 in between. It is 0 where this reading's counter is behind
    /// the earlier one's, because the readings were swapped or belong to different services. (A
    /// counter that is smaller by 8 EiB or more has begun again; by less, it is behind.)
    ///
    /// [`peak_bytes`](Self::peak_bytes) is not a counter: the result has this reading's, the highest
    /// since the service was registered or its peak was reset. To have a peak of the time between,
    /// [reset](crate::Service::reset_peak) it at the earlier reading.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::RegisterError> {
    /// let parser = dogtag::Service::register("parser")?;
    /// let before = parser.usage();
    /// let tree = parser.run(|| vec![0_u64; 10]);
    /// let parsed = parser.usage().since(&before);
    /// assert_eq!((parsed.allocated_bytes, parsed.freed_bytes, parsed.bytes()), (80, 0, 80));
    /// drop(tree);
    /// assert_eq!(parser.usage().since(&before).bytes(), 0);
    /// // The other way round nothing has happened.
    /// assert_eq!(before.since(&parser.usage()).allocated_bytes, 0);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            allocated_bytes: growth(self.allocated_bytes, earlier.allocated_bytes),
            allocated_blocks: growth(self.allocated_blocks, earlier.allocated_blocks),
            freed_bytes: growth(self.freed_bytes, earlier.freed_bytes),
            freed_blocks: growth(self.freed_blocks, earlier.freed_blocks),
            denied: growth(self.denied, earlier.denied),
            peak_bytes: self.peak_bytes,
        }
    }

    /// Adds figures of this process: a counter wraps, as each of them does at its end. (Peaks are no
    /// counters, and saturate.)
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

/// How much a counter is ahead of another one, though it may have begun again at 0 already; 0 if
/// it is behind.
const fn growth(counter: u64, other: u64) -> u64 {
    let ahead = counter.wrapping_sub(other);
    let is_behind = counter < other && ahead > i64::MAX as u64;
    if is_behind { 0 } else { ahead }
}

impl Add for Usage {
    type Output = Self;

    /// Adds figure by figure, and saturates: figures that another process wrote may be anything.
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
    /// Adds figure by figure, and saturates.
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Usage {
    /// Adds figure by figure, and saturates.
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
    fn since_never_goes_below_zero() {
        let earlier = Usage {
            allocated_bytes: 10,
            allocated_blocks: 1,
            freed_bytes: 5,
            freed_blocks: 9,
            denied: 3,
            peak_bytes: 7,
        };
        let later = Usage { allocated_bytes: 30, freed_bytes: 6, denied: 4, peak_bytes: 20, ..earlier };
        let between =
            Usage { allocated_bytes: 20, freed_bytes: 1, denied: 1, peak_bytes: 20, ..Usage::default() };
        assert_eq!(later.since(&earlier), between);
        assert_eq!(earlier.since(&later), Usage { peak_bytes: 7, ..Usage::default() });
        // Of figures that were made up, and far apart.
        let huge = Usage { allocated_bytes: u64::MAX, ..earlier };
        assert_eq!(huge.since(&earlier).allocated_bytes, u64::MAX - 10);
    }

    #[test]
    fn what_is_live_is_right_past_the_end_of_a_counter() {
        let at_its_end = |bytes| Usage { allocated_bytes: bytes, freed_bytes: bytes, ..Usage::default() };
        let before = at_its_end(u64::MAX - 10);
        let allocated = Usage { allocated_bytes: before.allocated_bytes.wrapping_add(100), ..before };
        assert_eq!((allocated.bytes(), allocated.since(&before).bytes()), (100, 100));
        let freed = Usage { freed_bytes: before.freed_bytes.wrapping_add(100), ..allocated };
        assert_eq!((freed.bytes(), freed.since(&allocated).bytes(), freed.since(&before).bytes()), (0, 0, 0));
        assert_eq!(freed.since(&before).freed_bytes, 100);
        let sum = allocated.and(Usage { allocated_bytes: 7, ..Usage::default() });
        assert_eq!(sum.bytes(), 107);
        // Less was allocated than freed.
        assert_eq!(Usage { allocated_bytes: 3, freed_bytes: 5, ..Usage::default() }.bytes(), 0);
    }
}

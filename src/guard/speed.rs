//! How fast the use of memory grows, and so when to look again.

use super::ceiling::Reading;
use std::time::Duration;

/// The speed at which the use grows, by the last looks.
#[derive(Debug, Default)]
pub(super) struct Speed {
    last: Option<(Duration, u64)>,
    /// In bytes a second.
    growth: f64,
}

/// The time between two looks, at least and at most.
pub(super) const SHORTEST: Duration = Duration::from_millis(1);
pub(super) const LONGEST: Duration = Duration::from_millis(100);

/// What a process may grow by in a second without having done so before.
const SUDDEN: f64 = (4_u64 << 30) as f64;

impl Speed {
    pub(super) fn note(&mut self, now: Duration, used: u64) {
        /// In less, a figure of pages says nothing.
        const WINDOW: Duration = Duration::from_millis(5);

        let Some((at, before)) = self.last else { return self.last = Some((now, used)) };
        let passed = now.saturating_sub(at);
        if passed >= WINDOW {
            let growth = used.saturating_sub(before) as f64 / passed.as_secs_f64();
            // It is remembered for a while, since many grow by jumps.
            self.growth = growth.max(self.growth / (1.0 + 10.0 * passed.as_secs_f64()));
            self.last = Some((now, used));
        }
    }

    /// From where on what is free is given back: the faster it grows, the earlier.
    pub(super) fn line(&self, ceiling: u64) -> u64 {
        let soon = (self.growth / 10.0) as u64;
        ceiling - soon.clamp(ceiling / 16, ceiling / 4)
    }

    /// When to look again.
    pub(super) fn interval(&self, reading: &Reading) -> Duration {
        let left = reading.ceiling.saturating_sub(reading.used) as f64;
        Duration::from_secs_f64((left / SUDDEN.max(2.0 * self.growth)).min(1.0)).clamp(SHORTEST, LONGEST)
    }

    /// After how many bytes that are allocated to look again at the latest.
    pub(super) fn most_allocated(reading: &Reading) -> u64 {
        (reading.ceiling.saturating_sub(reading.used) / 4).max(1 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn reading(used: u64) -> Reading {
        Reading { used, ceiling: GIB, own: 0 }
    }

    #[test]
    fn the_nearer_and_the_faster_the_more_often() {
        let mut speed = Speed::default();
        assert_eq!(speed.interval(&reading(0)), LONGEST);
        assert_eq!(speed.line(GIB), GIB - GIB / 16);
        assert_eq!(speed.interval(&reading(GIB - (40 << 20))), Duration::from_nanos(9_765_625));
        assert_eq!(speed.interval(&reading(GIB)), SHORTEST);
        assert_eq!(speed.interval(&reading(2 * GIB)), SHORTEST);
        assert_eq!(speed.interval(&Reading { ceiling: u64::MAX, ..reading(5) }), LONGEST);
        // 8 GiB a second.
        speed.note(Duration::ZERO, 0);
        speed.note(Duration::from_millis(4), GIB);
        speed.note(Duration::from_millis(50), 8 * GIB / 20);
        assert_eq!(speed.interval(&reading(GIB / 2)), Duration::from_secs_f64(1.0 / 32.0));
        assert_eq!(speed.line(GIB), GIB - GIB / 4);
        // Which is forgotten at last.
        (2..1000).for_each(|i| speed.note(i * Duration::from_millis(50), 8 * GIB / 20));
        assert_eq!(speed.line(GIB), GIB - GIB / 16);
        assert_eq!(speed.interval(&reading(GIB / 2)), LONGEST);
    }
}

//! How many names have series within an hour: whoever stores series keeps those of all names of late,
//! also where services come and go by the million.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bounds the names that an exporter shows: so many within an hour. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Names {
    shown: Arc<Mutex<Shown>>,
}

/// The names that were shown, and when that was last.
#[derive(Debug, Default)]
pub(super) struct Shown(HashMap<String, Instant>);

impl Names {
    /// After that a name that is not shown any more makes way for another one. Prometheus keeps what it has
    /// not written to disk yet, two hours and some, at hand.
    const KEPT: Duration = Duration::from_secs(3600);

    pub(super) fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    /// Forgets those that were not shown for long. To be done before any is [admitted](Self::admit).
    pub(super) fn forget(&mut self, now: Instant) {
        self.0.retain(|_, last| now.saturating_duration_since(*last) < Names::KEPT);
    }

    /// Whether the name may be shown: it was of late, or there are fewer than `most`.
    pub(super) fn admit(&mut self, name: &str, most: usize, now: Instant) -> bool {
        if let Some(last) = self.0.get_mut(name) {
            *last = now;
            return true;
        }
        let is_admitted = self.0.len() < most;
        if is_admitted {
            self.0.insert(name.to_owned(), now);
        }
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_way_an_hour_after_they_were_shown_last() {
        let mut shown = Shown::default();
        let start = Instant::now();
        let mut at = |minutes: u64, name| {
            let now = start + Duration::from_secs(60 * minutes);
            shown.forget(now);
            shown.admit(name, 2, now)
        };
        assert!(at(0, "stays") && at(0, "leaves"));
        assert!(!at(30, "third") && at(30, "stays"));
        assert!(!at(59, "third"));
        // The one that was not shown since.
        assert!(at(60, "third") && at(60, "stays") && !at(60, "leaves"));
    }
}

//! The layers of the process, and an epoch that changes when they may have been exchanged.

use crate::service::gate;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};
use std::sync::PoisonError;

/// A [`ServiceLayer`](super::ServiceLayer), which may be gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerId {
    /// Never given again.
    number: u64,
    /// Holds that number as long as the layer exists.
    place: &'static AtomicU64,
}

static NUMBERS: AtomicU64 = AtomicU64::new(1);
static LAYERS: AtomicUsize = AtomicUsize::new(0);
/// Places whose layers are gone.
static UNUSED: Mutex<Vec<&'static AtomicU64>> = Mutex::new(Vec::new());

impl LayerId {
    pub(super) fn begin() -> Self {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let _gate = gate();
        let unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let place = unused.unwrap_or_else(|| Box::leak(Box::default()));
        place.store(number, Ordering::Release);
        LAYERS.fetch_add(1, Ordering::Relaxed);
        Self { number, place }
    }

    /// Notes that the layer is dropped. Only the layer may call this.
    pub(super) fn end(self) {
        self.place.store(0, Ordering::Release);
        LAYERS.fetch_sub(1, Ordering::Release);
        let _gate = gate();
        UNUSED.lock().unwrap_or_else(PoisonError::into_inner).push(self.place);
    }

    pub(super) fn number(self) -> u64 {
        self.number
    }

    pub(super) fn is_there(self) -> bool {
        self.place.load(Ordering::Acquire) == self.number
    }
}

/// Whether this process has a layer.
pub(super) fn is_any_layer() -> bool {
    LAYERS.load(Ordering::Acquire) != 0
}

impl PartialEq for LayerId {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for LayerId {}

/// Changes whenever a layer may have got another subscriber, or a subscriber another layer.
#[inline]
pub(super) fn epoch() -> u64 {
    EPOCH.load(Ordering::Acquire)
}

/// Begins an epoch. A layer calls this when tracing calls it in a way that an exchange would cause.
pub(super) fn begin_epoch() {
    EPOCH.fetch_add(1, Ordering::AcqRel);
}

static EPOCH: AtomicU64 = AtomicU64::new(1);

//! Those who can do without some of their memory, and say so: they are asked before anybody is cancelled.

use crate::contained::{contain, drop_contained};
use crate::events::{self, GuardEvent, WeakSubscriber};
use crate::ledger::slots::UNATTRIBUTED;
use crate::service::{Scope, gate};
use crate::sys;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Says how short memory is, to those who [registered](on_pressure).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pressure {
    /// The bytes that count against the ceiling.
    pub used: u64,
    /// The ceiling, in bytes.
    pub ceiling: u64,
    /// How many bytes should be let go of, by all who are asked together.
    pub wanted: u64,
}

/// Has `callback` called when memory is short, before a [`Guard`](super::Guard) cancels anybody: for caches
/// and others that can do without some of what they hold. It is registered until what is returned is dropped.
///
/// A thread of dogtag's own calls those who registered, in their order. It is not the one that watches, so
/// they may wait, but not for long: from the ceiling on, services are cancelled after 5 milliseconds, whether
/// all have returned or not. They are asked again after a second at the earliest, and after all have returned. A
/// panic is contained, and reported by a `tracing` event (level error). While there is no guard, nobody is
/// asked. A call may go on when the registration is dropped; the callback is dropped after it.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// let cache: Arc<Mutex<Vec<String>>> = Arc::default();
/// let registered = dogtag::guard::on_pressure({
///     let cache = Arc::downgrade(&cache);
///     move |pressure| {
///         if let Some(cache) = cache.upgrade() {
///             *cache.lock().unwrap() = Vec::new();
///         }
///     }
/// });
/// // For as long as the process lives:
/// registered.forget();
/// ```
pub fn on_pressure(callback: impl Fn(&Pressure) + Send + Sync + 'static) -> OnPressure {
    register(Arc::new(callback))
}

/// Keeps a callback registered until it is dropped: [`on_pressure`].
#[derive(Debug)]
#[must_use = "the callback is registered until this is dropped"]
pub struct OnPressure(u64);

impl OnPressure {
    /// Keeps the callback registered for as long as the process lives.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for OnPressure {
    fn drop(&mut self) {
        let _scope = Scope::enter(&UNATTRIBUTED);
        let removed = with_callbacks(|callbacks| {
            let place = callbacks.iter().position(|known| known.number == self.0)?;
            COUNT.fetch_sub(1, Ordering::Relaxed);
            Some(callbacks.remove(place))
        });
        drop_contained(removed);
    }
}

/// Those who are asked.
pub(super) type Callback = Arc<dyn Fn(&Pressure) + Send + Sync>;

#[derive(Clone)]
struct Registered {
    number: u64,
    callback: Callback,
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registered({})", self.number)
    }
}

pub(super) fn register(callback: Callback) -> OnPressure {
    static NEXT: AtomicU64 = AtomicU64::new(0);

    let _scope = Scope::enter(&UNATTRIBUTED);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    with_callbacks(|callbacks| callbacks.push(Registered { number, callback }));
    COUNT.fetch_add(1, Ordering::Relaxed);
    OnPressure(number)
}

/// The lock is taken within the gate alone, so that no forked child finds it taken.
fn with_callbacks<R>(work: impl FnOnce(&mut Vec<Registered>) -> R) -> R {
    static CALLBACKS: Mutex<Vec<Registered>> = Mutex::new(Vec::new());

    let _gate = gate();
    let mut callbacks: MutexGuard<'_, _> = CALLBACKS.lock().unwrap_or_else(PoisonError::into_inner);
    work(&mut callbacks)
}

/// How many are registered.
static COUNT: AtomicUsize = AtomicUsize::new(0);

pub(super) fn is_any() -> bool {
    COUNT.load(Ordering::Relaxed) > 0
}

/// Asks all who are registered, by a thread of its own. `is_at_work` is set until they have returned.
pub(super) fn ask(pressure: Pressure, subscriber: Arc<WeakSubscriber>, is_at_work: &Arc<AtomicBool>) {
    is_at_work.store(true, Ordering::SeqCst);
    let work = {
        let is_at_work = Arc::clone(is_at_work);
        move || {
            let _scope = Scope::enter(&UNATTRIBUTED);
            for Registered { callback, .. } in with_callbacks(|callbacks| callbacks.clone()) {
                // Nor may a scope that one of them forgets keep the thread.
                let _scope = Scope::enter(&UNATTRIBUTED);
                if contain(|| callback(&pressure)).is_none() {
                    subscriber.receives(|| events::guard(GuardEvent::Panicked));
                }
                drop_contained(callback);
            }
            is_at_work.store(false, Ordering::SeqCst);
        }
    };
    if !sys::spawn(work) {
        // At the next time there may be one.
        is_at_work.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callbacks_come_and_go() {
        let kept = Arc::new(());
        let callback = {
            let kept = Arc::clone(&kept);
            move |_: &Pressure| drop(Arc::clone(&kept))
        };
        let registered = on_pressure(callback);
        assert!(is_any());
        assert_eq!(Arc::strong_count(&kept), 2);
        drop(registered);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}

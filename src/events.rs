//! The `tracing` events of this crate; none is emitted inside an allocation.
//!
//! What was noticed there is told afterwards, when users call for other reasons,
//! and from another thread. For the caller may be a tracing subscriber, and hold its
//! lock. It is one thread that tells everything, which `service::limits` starts. Where there is
//! no memory for it, or for what it is to tell, the program goes on without.

use crate::contained::{contain, drop_contained};
#[cfg(feature = "tracing-layer")]
use crate::format::beginning;
use crate::ledger::anomalies;
use crate::ledger::pending_events;
use crate::ledger::slots::UNATTRIBUTED;
#[cfg(feature = "tracing-layer")]
use crate::service::RegisterError;
use crate::service::{Scope, Service, start_announcer};
use crate::sync::{AtomicU64, Mutex, MutexGuard};
use crate::sys;
use std::collections::VecDeque;
use std::sync::PoisonError;
use tracing::Dispatch;
use tracing::dispatcher::{WeakDispatch, get_default, with_default};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::NoSubscriber;

/// Has the `tracing` events emitted that are due.
#[inline]
pub(crate) fn deliver() {
    if pending_events::needs_attention() {
        attend();
    }
}

/// Has somebody tell of what went wrong inside allocations, once a second: mostly it goes on.
#[cold]
fn attend() {
    static LAST: AtomicU64 = AtomicU64::new(0);

    if !sys::is_time(&LAST) {
        return;
    }
    // First: what happens from here on is for the next time.
    pending_events::attend();
    let _scope = Scope::enter(&UNATTRIBUTED);
    if pending_events::is_any() {
        start_announcer();
    }
    tell_later(LevelFilter::ERROR, || Some(Event::Anomalies));
}

/// A service has begun.
pub(crate) fn registered(service: &Service) {
    tell_later(LevelFilter::TRACE, || {
        Some(Event::Registered {
            name: try_copy(service.name())?,
            handle: service.handle(),
            parent: match service.parent() {
                Some(parent) => Some(try_copy(parent.name())?),
                None => None,
            },
        })
    });
}

/// A service's last clone was dropped, just now.
pub(crate) fn retired(name: &str, handle: u32) {
    tell_later(LevelFilter::TRACE, || Some(Event::Retired { name: try_copy(name)?, handle }));
}

/// A span names a service that there cannot be. Told once a second: others
/// will follow.
#[cfg(feature = "tracing-layer")]
pub(crate) fn span_without_service(name: &str, error: RegisterError) {
    static LAST: AtomicU64 = AtomicU64::new(0);

    if sys::is_time(&LAST) {
        let name = beginning(name, Service::MAX_NAME_LEN);
        tell_later(LevelFilter::ERROR, || Some(Event::NotRegistered { name: try_copy(name)?, error }));
    }
}

/// Emits what has happened to services since; by the thread that announces.
pub(crate) fn tell() {
    while let Some((event, subscriber)) = { waiting().pop_front() } {
        let Some(subscriber) = subscriber.upgrade() else { continue };
        // A subscriber's panic must not end the announcements; nor that of its drop, should this
        // be the last one who has it.
        let subscriber = Subscriber(subscriber);
        contain(|| subscriber.receives(|| event.emit()));
        drop_contained(subscriber);
    }
}

enum Event {
    Registered {
        name: String,
        handle: u32,
        parent: Option<String>,
    },
    Retired {
        name: String,
        handle: u32,
    },
    #[cfg(feature = "tracing-layer")]
    NotRegistered {
        name: String,
        error: RegisterError,
    },
    /// Whatever went wrong inside allocations and was not told yet.
    Anomalies,
}

impl Event {
    fn emit(self) {
        match self {
            Self::Registered { name, handle, parent } => {
                tracing::trace!(target: "dogtag", service = name, handle, parent, "a service was registered");
            }
            Self::Retired { name, handle } => {
                tracing::trace!(target: "dogtag", service = name, handle, "a service was retired");
            }
            #[cfg(feature = "tracing-layer")]
            Self::NotRegistered { name, error } => {
                tracing::error!(
                    target: "dogtag",
                    service = name,
                    error = &error as &dyn std::error::Error,
                    "a span runs in no service: the one that it names cannot be registered",
                );
            }
            Self::Anomalies => tell_of_mishaps(),
        }
    }
}

fn tell_of_mishaps() {
    if let Some(blocks) = anomalies::LOST.take_news() {
        let (total_blocks, total_bytes) = anomalies::LOST.so_far();
        tracing::error!(
            target: "dogtag",
            blocks,
            total_blocks,
            total_bytes,
            "blocks were freed whose owner had been overwritten: something writes outside of its memory",
        );
    }
    if let Some(blocks) = anomalies::OWNERLESS.take_news() {
        let (total_blocks, total_bytes) = anomalies::OWNERLESS.so_far();
        tracing::warn!(
            target: "dogtag",
            blocks,
            total_blocks,
            total_bytes,
            "blocks were charged to nobody: the system gave no memory to note their owner",
        );
    }
    if let Some(threads) = anomalies::SHARING.take_news() {
        let (total_threads, _) = anomalies::SHARING.so_far();
        tracing::warn!(
            target: "dogtag",
            threads,
            total_threads,
            "threads share their counters and are slower: the system gave no memory for their own",
        );
    }
    #[cfg(feature = "tracing-layer")]
    if let Some(spans) = anomalies::UNENTERED.take_news() {
        let (total_spans, _) = anomalies::UNENTERED.so_far();
        tracing::warn!(
            target: "dogtag",
            spans,
            total_spans,
            "spans were entered without their service: there was no memory to note them",
        );
    }
}

/// A copy, if there is memory for it.
fn try_copy(text: &str) -> Option<String> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).ok()?;
    copy.push_str(text);
    Some(copy)
}

/// Whoever registers or drops a service may be a subscriber, in the middle of its
/// work. So another thread tells, if anybody may want to know.
fn tell_later(level: LevelFilter, event: impl FnOnce() -> Option<Event>) {
    /// Where nobody listens fast enough, the rest is not told.
    const MOST: usize = 10_000;

    if LevelFilter::current() < level || pending_events::is_off() {
        return;
    }
    let is_told = event().is_some_and(|event| {
        let item = (event, get_default(Dispatch::downgrade));
        let mut waiting = waiting();
        let has_room = waiting.len() < MOST && waiting.try_reserve(1).is_ok();
        if has_room {
            waiting.push_back(item);
        }
        has_room
    });
    if !is_told {
        // Anomalies can be told later.
        pending_events::ask_for_attention();
    }
    start_announcer();
    pending_events::PARKER.unpark();
}

fn waiting() -> MutexGuard<'static, VecDeque<(Event, WeakDispatch)>> {
    static WAITING: Mutex<VecDeque<(Event, WeakDispatch)>> = Mutex::new(VecDeque::new());

    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calling thread's tracing subscriber.
#[cfg(feature = "memory-check")]
pub(crate) fn subscriber() -> Subscriber {
    Subscriber(get_default(Dispatch::clone))
}

/// A tracing subscriber, for another thread.
pub(crate) struct Subscriber(Dispatch);

impl Subscriber {
    /// Lets it receive what `emit` emits; if it is none, the thread's own does.
    pub(crate) fn receives(&self, emit: impl FnOnce()) {
        if self.0.is::<NoSubscriber>() {
            emit();
        } else {
            with_default(&self.0, emit);
        }
    }
}

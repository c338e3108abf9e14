//! The `tracing` events of this crate; none is emitted inside an allocation.
//!
//! What was noticed there is told afterwards, when users call for other reasons,
//! and from another thread. For the caller may be a tracing subscriber, and hold its
//! lock. What happens to services and what limits do is told by one thread, which
//! `service::limits` starts.

use crate::ledger::{self, due};
#[cfg(feature = "tracing-layer")]
use crate::service::RegisterError;
use crate::service::{Service, start_announcer};
use crate::sys;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::Dispatch;
use tracing::dispatcher::{WeakDispatch, get_default, with_default};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::NoSubscriber;

/// Has the `tracing` events emitted that are due.
#[inline]
pub(crate) fn deliver() {
    if ledger::lost().freed_blocks != TOLD.load(Ordering::Relaxed) {
        tell_of_lost_blocks();
    }
}

/// A service has begun.
pub(crate) fn registered(service: &Service) {
    tell_later(LevelFilter::TRACE, || Event::Registered {
        name: service.name().to_owned(),
        handle: service.handle(),
        parent: service.parent().map(|parent| parent.name().to_owned()),
    });
}

/// A service's last clone was dropped, just now.
pub(crate) fn retired(name: &str, handle: u32) {
    tell_later(LevelFilter::TRACE, || Event::Retired { name: name.to_owned(), handle });
}

/// A span names a service that there cannot be. Told once a second: others
/// will follow.
#[cfg(feature = "tracing-layer")]
pub(crate) fn span_without_service(name: &str, error: RegisterError) {
    static LAST: AtomicU64 = AtomicU64::new(0);

    if sys::is_time(&LAST) {
        tell_later(LevelFilter::ERROR, || Event::NotRegistered { name: name.to_owned(), error });
    }
}

/// Emits what has happened to services since; by the thread that announces.
pub(crate) fn tell() {
    while let Some((event, subscriber)) = { waiting().pop_front() } {
        let Some(subscriber) = subscriber.upgrade() else { continue };
        // A subscriber's panic must not end the announcements.
        let _ = catch_unwind(AssertUnwindSafe(|| Subscriber(subscriber).receives(|| event.emit())));
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
        }
    }
}

/// Whoever registers or drops a service may be a subscriber, in the middle of its
/// work. So another thread tells, if anybody may want to know.
fn tell_later(level: LevelFilter, event: impl FnOnce() -> Event) {
    /// Where nobody listens fast enough, the rest is not told.
    const MOST: usize = 10_000;

    if LevelFilter::current() < level || due::is_off() {
        return;
    }
    let item = (event(), get_default(Dispatch::downgrade));
    let mut waiting = waiting();
    if waiting.len() < MOST {
        waiting.push_back(item);
    }
    let is_first = waiting.len() == 1;
    drop(waiting);
    start_announcer();
    if is_first && let Some(announcer) = due::ANNOUNCER.get() {
        announcer.unpark();
    }
}

fn waiting() -> MutexGuard<'static, VecDeque<(Event, WeakDispatch)>> {
    static WAITING: Mutex<VecDeque<(Event, WeakDispatch)>> = Mutex::new(VecDeque::new());

    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calling thread's tracing subscriber.
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

/// Lost blocks that were told of.
static TOLD: AtomicU64 = AtomicU64::new(0);

#[cold]
fn tell_of_lost_blocks() {
    /// Set while a thread is telling: one is enough, should it have to wait.
    static UNDER_WAY: AtomicBool = AtomicBool::new(false);

    if UNDER_WAY.swap(true, Ordering::Acquire) {
        return;
    }
    let subscriber = subscriber();
    let work = move || {
        let lost = ledger::lost();
        let new = lost.freed_blocks - TOLD.swap(lost.freed_blocks, Ordering::Relaxed);
        let _is_over = Reset(&UNDER_WAY);
        subscriber.receives(|| {
            tracing::error!(
                target: "dogtag",
                blocks = new,
                total_blocks = lost.freed_blocks,
                total_bytes = lost.freed_bytes,
                "blocks were freed whose owner had been overwritten: \
                 something writes outside of its memory",
            );
        });
    };
    if !sys::spawn(Box::new(work)) {
        // The snapshot still tells; perhaps there is a thread next time.
        UNDER_WAY.store(false, Ordering::Release);
    }
}

/// Takes a flag back, though a subscriber panics.
struct Reset(&'static AtomicBool);

impl Drop for Reset {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

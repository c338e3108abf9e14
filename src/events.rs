//! The `tracing` events of this crate; none is emitted inside an allocation.
//!
//! What happens there is announced afterwards, when users call for other reasons,
//! and from another thread: the caller may be a tracing subscriber, and hold its
//! lock. One thread announces everything, the announcer. Where there is
//! no memory for it, or for an event, the program goes on without.
//!
//! Events carry plain data. What limits do is announced by a function that `service` registers
//! ([`announce_limits_by`]).

#[cfg(feature = "guard")]
mod guard;

#[cfg(feature = "guard")]
pub(crate) use guard::GuardEvent;

use crate::contained::{contain, drop_contained};
#[cfg(feature = "tracing-layer")]
use crate::format::beginning;
use crate::ledger::pending_events::{self, EventFlags};
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::ledger::{anomalies, named, thread};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use crate::sys;
use std::collections::VecDeque;
#[cfg(feature = "tracing-layer")]
use std::fmt;
use std::sync::{OnceLock, PoisonError};
use tracing::Dispatch;
use tracing::dispatcher::{WeakDispatch, get_default, with_default};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::NoSubscriber;

/// Announces what happened inside allocations, if anything did.
#[inline]
pub(crate) fn deliver() {
    if pending_events::needs_attention() {
        deliver_slow();
    }
}

/// Announces what went wrong inside allocations, once a second at most: mostly it goes on.
#[cold]
fn deliver_slow() {
    static LAST: AtomicU64 = AtomicU64::new(0);

    if !sys::is_time(&LAST) {
        return;
    }
    // First: what happens from here on is for the next time.
    pending_events::attend();
    let former = thread::go_to(&UNATTRIBUTED);
    if pending_events::is_any() {
        start_announcer();
    }
    tell_later(LevelFilter::ERROR, || Some(Event::Anomalies));
    thread::leave_for(former);
}

/// Announces that a service, which the caller holds, has begun.
pub(crate) fn registered(service: &'static Record) {
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

/// Announces that a service's last clone was dropped, just now.
pub(crate) fn retired(name: &str, handle: u32) {
    tell_later(LevelFilter::TRACE, || Some(Event::Retired { name: try_copy(name)?, handle }));
}

/// Announces that a service, which the caller holds, was cancelled, with what its family held.
#[cfg(feature = "guard")]
pub(crate) fn cancelled(service: &'static Record, bytes: u64, reason: &str) {
    tell_later(LevelFilter::WARN, || {
        Some(Event::Cancelled {
            name: try_copy(service.name())?,
            handle: service.handle(),
            bytes,
            reason: try_copy(reason)?,
        })
    });
}

/// Announces a step of the guard's.
#[cfg(feature = "guard")]
pub(crate) fn guard(event: GuardEvent) {
    tell_later(event.level(), || Some(Event::Guard(event)));
}

/// Announces that a span names a service that there cannot be, once a second at most: others
/// will follow. Of the name no more than `most` bytes are shown.
#[cfg(feature = "tracing-layer")]
pub(crate) fn span_without_service(name: &str, most: usize, error: &dyn std::error::Error) {
    static LAST: AtomicU64 = AtomicU64::new(0);

    if sys::is_time(&LAST) {
        let name = beginning(name, most);
        tell_later(LevelFilter::ERROR, || {
            Some(Event::NotRegistered { name: try_copy(name)?, error: Reason::try_of(error)? })
        });
    }
}

/// Announces that a rule of spans names more services than are kept, with the first name that is left out.
#[cfg(feature = "tracing-layer")]
pub(crate) fn rule_names_too_many(name: &str, kept: usize, most: usize) {
    let name = beginning(name, most);
    tell_later(LevelFilter::WARN, || Some(Event::TooManyChosen { name: try_copy(name)?, kept }));
}

/// Announces which spans can have no services, whatever their subscriber is: those above that level, which
/// are not in the program.
#[cfg(feature = "tracing-layer")]
pub(crate) fn spans_are_compiled_out(above: LevelFilter) {
    tell_later(LevelFilter::WARN, || Some(Event::CompiledOut { above }));
}

/// Announces that no span has a service, since the subscriber has no registry.
#[cfg(feature = "tracing-layer")]
pub(crate) fn spans_without_registry() {
    tell_later(LevelFilter::WARN, || Some(Event::WithoutRegistry));
}

/// Has the announcer call `announce` for each limited service that something has happened to. The
/// service is retained, and `announce` has to release it.
pub(crate) fn announce_limits_by(announce: fn(&'static Record, EventFlags)) {
    // It is always the same one.
    let _ = ANNOUNCE_LIMITS.set(announce);
}

static ANNOUNCE_LIMITS: OnceLock<fn(&'static Record, EventFlags)> = OnceLock::new();

/// Starts the announcer, a thread that does nothing else: limits are reached inside an allocation, and
/// the caller that ends a scope or registers a service may hold any lock.
///
/// If there is no thread to be had, the next end of a scope tries again.
pub(crate) fn start_announcer() {
    if pending_events::is_off() || pending_events::HAS_ANNOUNCER.swap(true, Ordering::SeqCst) {
        return;
    }
    let announce = || {
        loop {
            // A service's beginning comes before its other events.
            tell();
            // Where nothing is registered, no service has a limit.
            if let Some(announce) = ANNOUNCE_LIMITS.get() {
                pending_events::take(announce);
            }
            pending_events::PARKER.park();
        }
    };
    if !sys::spawn(announce) {
        pending_events::HAS_ANNOUNCER.store(false, Ordering::SeqCst);
        pending_events::ask_for_attention();
    }
}

/// Emits the events that wait. Only the announcing thread calls this.
fn tell() {
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
    #[cfg(feature = "guard")]
    Cancelled {
        name: String,
        handle: u32,
        bytes: u64,
        reason: String,
    },
    #[cfg(feature = "guard")]
    Guard(GuardEvent),
    #[cfg(feature = "tracing-layer")]
    NotRegistered {
        name: String,
        error: Reason,
    },
    #[cfg(feature = "tracing-layer")]
    TooManyChosen {
        name: String,
        kept: usize,
    },
    #[cfg(feature = "tracing-layer")]
    CompiledOut {
        above: LevelFilter,
    },
    #[cfg(feature = "tracing-layer")]
    WithoutRegistry,
    /// Whatever went wrong inside allocations and was not announced yet.
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
            #[cfg(feature = "guard")]
            Self::Cancelled { name, handle, bytes, reason } => {
                tracing::warn!(target: "dogtag", service = name, handle, bytes, reason, "a service was cancelled");
            }
            #[cfg(feature = "guard")]
            Self::Guard(event) => event.emit(),
            #[cfg(feature = "tracing-layer")]
            Self::NotRegistered { name, error } => {
                tracing::error!(
                    target: "dogtag",
                    service = name,
                    error = &error as &dyn std::error::Error,
                    "a span runs in no service: the one that it names cannot be registered",
                );
            }
            #[cfg(feature = "tracing-layer")]
            Self::TooManyChosen { name, kept } => {
                tracing::warn!(
                    target: "dogtag",
                    name,
                    kept,
                    "the rule of a layer names too many services: spans with further names stay in the \
                     service around them",
                );
            }
            #[cfg(feature = "tracing-layer")]
            Self::CompiledOut { above } => {
                tracing::warn!(
                    target: "dogtag",
                    %above,
                    "spans above this level are not compiled in, and have no services: see tracing's features \
                     `max_level_*` and `release_max_level_*`",
                );
            }
            #[cfg(feature = "tracing-layer")]
            Self::WithoutRegistry => {
                tracing::warn!(
                    target: "dogtag",
                    "no span has a service: the subscriber that `attributed` is around has no `Registry`",
                );
            }
            Self::Anomalies => emit_anomalies(),
        }
    }
}

fn emit_anomalies() {
    if let Some(blocks) = anomalies::LOST.take_new() {
        let (total_blocks, total_bytes) = anomalies::LOST.so_far();
        tracing::error!(
            target: "dogtag",
            blocks,
            total_blocks,
            total_bytes,
            "blocks were freed whose owner had been overwritten: something writes outside of its memory",
        );
    }
    if let Some(blocks) = anomalies::OWNERLESS.take_new() {
        let (total_blocks, total_bytes) = anomalies::OWNERLESS.so_far();
        tracing::warn!(
            target: "dogtag",
            blocks,
            total_blocks,
            total_bytes,
            "blocks were charged to nobody: the system gave no memory to note their owner",
        );
    }
    if let Some(threads) = anomalies::SHARING.take_new() {
        let (total_threads, _) = anomalies::SHARING.so_far();
        tracing::warn!(
            target: "dogtag",
            threads,
            total_threads,
            "threads share their counters and are slower: the system gave no memory for their own",
        );
    }
    if anomalies::UNNAMED.take_new().is_some() {
        tracing::warn!(
            target: "dogtag",
            names = named::MOST,
            "threads have more names than that: the others work for the service \"other threads\"",
        );
    }
    #[cfg(feature = "tracing-layer")]
    if let Some(spans) = anomalies::UNENTERED.take_new() {
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

/// The text of an error.
#[cfg(feature = "tracing-layer")]
#[derive(Debug)]
struct Reason(String);

#[cfg(feature = "tracing-layer")]
impl Reason {
    /// The error's text, if there is memory for it.
    fn try_of(error: &dyn std::error::Error) -> Option<Self> {
        use fmt::Write;

        struct Text(String);

        impl Write for Text {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.try_reserve(text.len()).map_err(|_| fmt::Error)?;
                self.0.push_str(text);
                Ok(())
            }
        }

        let mut text = Text(String::new());
        write!(text, "{error}").ok()?;
        Some(Self(text.0))
    }
}

#[cfg(feature = "tracing-layer")]
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(feature = "tracing-layer")]
impl std::error::Error for Reason {}

/// Queues an event for the announcer, if a subscriber may want to know: the caller that registers
/// or drops a service may be a subscriber, in the middle of its work.
fn tell_later(level: LevelFilter, event: impl FnOnce() -> Option<Event>) {
    /// Where subscribers are slower than that, further events are dropped.
    const MOST: usize = 10_000;

    if LevelFilter::current() < level || pending_events::is_off() {
        return;
    }
    let is_queued = event().is_some_and(|event| {
        let item = (event, get_default(Dispatch::downgrade));
        let mut waiting = waiting();
        let fits = waiting.len() < MOST && waiting.try_reserve(1).is_ok();
        if fits {
            waiting.push_back(item);
        }
        fits
    });
    if !is_queued {
        // Anomalies can be announced later.
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

/// The calling thread's tracing subscriber, which may go away meanwhile.
#[cfg(any(feature = "guard", feature = "report"))]
pub(crate) fn weak_subscriber() -> WeakSubscriber {
    WeakSubscriber(get_default(Dispatch::downgrade))
}

/// A tracing subscriber that may go away.
#[cfg(any(feature = "guard", feature = "report"))]
pub(crate) struct WeakSubscriber(WeakDispatch);

#[cfg(any(feature = "guard", feature = "report"))]
impl WeakSubscriber {
    pub(crate) fn upgrade(&self) -> Option<Subscriber> {
        self.0.upgrade().map(Subscriber)
    }

    /// Lets it receive what `emit` emits, which is done in any case.
    #[cfg(feature = "guard")]
    pub(crate) fn receives(&self, emit: impl FnOnce()) {
        match self.upgrade() {
            Some(subscriber) => {
                subscriber.receives(emit);
                drop_contained(subscriber);
            }
            None => emit(),
        }
    }
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

//! The thread that watches: it looks, and does what is to be done.

use super::ceiling::{Meter, Reading};
use super::escalation::{Callbacks, Escalation, Look, Step};
use super::figures::{self, COUNTERS, count};
use super::policy::{History, Policy};
use super::pressure::{self, Pressure};
use super::running;
use super::speed::{LONGEST, SHORTEST, Speed};
use crate::backend;
use crate::contained::{contain, drop_contained};
use crate::events::{self, GuardEvent, WeakSubscriber};
use crate::ledger::nudge;
use crate::ledger::slots::UNATTRIBUTED;
use crate::service::cancel::{self, CancelReason};
use crate::service::cancellable::{self, Cancellable};
use crate::service::{Scope, Service};
use crate::sys::Parker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What the guard's thread shares with whoever has the guard.
pub(super) struct Shared {
    stops: AtomicBool,
    /// Rung when the thread is done.
    pub(super) done: Parker,
    /// The thread, as the system knows it; 0 before it has begun.
    thread: AtomicUsize,
}

impl Shared {
    pub(super) const fn new() -> Self {
        Self { stops: AtomicBool::new(false), done: Parker::new(), thread: AtomicUsize::new(0) }
    }

    /// Ends the thread, and waits for that. Not on the thread itself, where a closure of the program's may be
    /// what drops the guard.
    pub(super) fn stop(&self) {
        self.stops.store(true, Ordering::SeqCst);
        nudge::PARKER.unpark();
        if self.thread.load(Ordering::SeqCst) != this_thread() {
            self.done.park();
        }
    }

    fn stops(&self) -> bool {
        self.stops.load(Ordering::SeqCst)
    }
}

fn this_thread() -> usize {
    // SAFETY: asks for a number, and has no preconditions.
    unsafe { libc::pthread_self() as usize }
}

/// What the thread has.
pub(super) struct Watch {
    meter: Meter,
    policy: Policy,
    /// Services that hold less are left alone.
    least: Option<u64>,
    escalation: Escalation<Service>,
    speed: Speed,
    history: History,
    /// Kept between looks, so that few of them allocate.
    cancellable: Vec<Cancellable>,
    are_at_work: Arc<AtomicBool>,
    subscriber: Arc<WeakSubscriber>,
    began: Instant,
    is_unreadable: bool,
}

impl Watch {
    pub(super) fn new(meter: Meter, policy: Policy, least: Option<u64>, grace: Duration) -> Self {
        Self {
            meter,
            policy,
            least,
            escalation: Escalation::new(grace),
            speed: Speed::default(),
            history: History::default(),
            cancellable: Vec::new(),
            are_at_work: Arc::new(AtomicBool::new(false)),
            subscriber: Arc::new(events::weak_subscriber()),
            began: Instant::now(),
            is_unreadable: false,
        }
    }

    pub(super) fn run(mut self, shared: &Shared) {
        shared.thread.store(this_thread(), Ordering::SeqCst);
        {
            let _scope = Scope::enter(&UNATTRIBUTED);
            while !shared.stops() {
                let looked = Instant::now();
                // Whatever panics here, memory is watched on.
                let (interval, most) = contain(|| self.act(shared)).unwrap_or((LONGEST, u64::MAX));
                if interval > SHORTEST && most < u64::MAX {
                    nudge::arm(most);
                }
                nudge::PARKER.park_until(Some(looked + interval));
                nudge::disarm();
                // Those who allocate and free much wake it often, and in vain.
                let rest = SHORTEST.saturating_sub(looked.elapsed());
                if !rest.is_zero() && !shared.stops() {
                    std::thread::sleep(rest);
                }
            }
            // A closure of the program's is dropped with it.
            drop_contained(self);
        }
        running::end();
        shared.done.unpark();
    }

    /// Looks, and does what is to be done. Returns when to look again, and after how many bytes that are
    /// allocated.
    fn act(&mut self, shared: &Shared) -> (Duration, u64) {
        while !shared.stops() {
            let Some(reading) = self.read() else { return (LONGEST, u64::MAX) };
            let now = self.began.elapsed();
            let Reading { used, ceiling, .. } = reading;
            let look = Look { now, used, ceiling, line: self.speed.line(ceiling) };
            let callbacks = match (self.are_at_work.load(Ordering::SeqCst), pressure::is_any()) {
                (true, _) => Callbacks::AtWork,
                (false, true) => Callbacks::Idle,
                (false, false) => Callbacks::None,
            };
            let step = self.escalation.next(look, callbacks, |one| one.usage_with_children().bytes());
            count(&COUNTERS.given_back_bytes, self.escalation.take_given_back());
            match step {
                Step::Rest => {
                    if self.policy.needs_growth() && used >= ceiling / 2 && self.history.is_due(now) {
                        cancellable::list(&mut self.cancellable);
                        self.history.note(now, &self.cancellable);
                    }
                    let interval =
                        if self.escalation.waits() { SHORTEST } else { self.speed.interval(&reading) };
                    return (interval, Speed::most_allocated(&reading));
                }
                Step::Purge => self.purge(look),
                Step::Ask => self.ask(look),
                Step::Cancel => self.cancel(look),
                Step::Tell(service) => {
                    count(&COUNTERS.unresponsive, 1);
                    let (name, handle) = (service.name().to_owned(), service.handle());
                    let bytes = service.usage_with_children().bytes();
                    self.tell(GuardEvent::Unresponsive { name, handle, bytes });
                }
            }
        }
        (LONGEST, u64::MAX)
    }

    /// Reads what is used. `None` if that cannot be read, which is told once.
    fn read(&mut self) -> Option<Reading> {
        count(&COUNTERS.polls, 1);
        let now = self.began.elapsed();
        match self.meter.read(now) {
            Ok(reading) => {
                figures::note(reading);
                self.speed.note(now, reading.used);
                self.is_unreadable = false;
                Some(reading)
            }
            Err(error) => {
                count(&COUNTERS.failed_polls, 1);
                if !std::mem::replace(&mut self.is_unreadable, true) {
                    self.tell(GuardEvent::Unreadable { error });
                }
                None
            }
        }
    }

    fn purge(&mut self, look: Look) {
        backend::give_back();
        backend::trim();
        let now = self.began.elapsed();
        self.escalation.purged(now, now - look.now);
        let after = self.meter.read(now).map_or(look.used, |reading| reading.used);
        let given_back = look.used.saturating_sub(after);
        count(&COUNTERS.purges, 1);
        count(&COUNTERS.purged_bytes, given_back);
        self.tell(GuardEvent::Purged { used: look.used, ceiling: look.ceiling, given_back });
    }

    fn ask(&mut self, look: Look) {
        let Look { used, ceiling, .. } = look;
        let pressure = Pressure { used, ceiling, wanted: look.wanted() };
        count(&COUNTERS.pressure_calls, 1);
        self.tell(GuardEvent::Asked { used, ceiling, wanted: pressure.wanted });
        pressure::ask(pressure, Arc::clone(&self.subscriber), &self.are_at_work);
    }

    fn cancel(&mut self, look: Look) {
        let Look { now, used, ceiling, .. } = look;
        cancellable::list(&mut self.cancellable);
        let least = self.least.unwrap_or(ceiling / 1024);
        self.cancellable.retain(|one| one.bytes >= least);
        while let Some(index) = self.policy.pick(&self.cancellable, &self.history) {
            let chosen = self.cancellable.remove(index);
            let Some(service) = chosen.hold() else { continue };
            // All that ends with it gives back what it holds.
            let bytes = service.usage_with_children().bytes();
            let reason = CancelReason::Ceiling { used, ceiling };
            let mut is_cancelled = false;
            self.subscriber.receives(|| is_cancelled = cancel::cancel(service.record(), reason));
            if is_cancelled {
                count(&COUNTERS.cancelled, 1);
                let above = service.clone();
                let is_below = |one: &Service| ancestors(one).any(|ancestor| ancestor == above);
                return self.escalation.cancelled(now, service, bytes, is_below);
            }
        }
        if self.escalation.helpless(now) {
            count(&COUNTERS.helpless, 1);
            self.tell(GuardEvent::Helpless { used, ceiling });
        }
    }

    /// Emits an event, for whom the guard was begun.
    fn tell(&self, event: GuardEvent) {
        self.subscriber.receives(|| events::guard(event));
    }
}

fn ancestors(service: &Service) -> impl Iterator<Item = Service> {
    std::iter::successors(service.parent(), Service::parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{thread, threshold};

    /// (The tests of the library itself have another allocator.)
    #[test]
    fn who_allocates_much_wakes_the_thread() {
        // What other tests allocate meanwhile is nothing against it.
        const MUCH: u64 = 1 << 50;

        let service = Service::register("allocates much").unwrap();
        let allocate = |bytes: u64| {
            let (record, bytes) = (service.record(), bytes.try_into().unwrap());
            drop(threshold::ask(thread::account(record), record, bytes, None));
        };
        allocate(MUCH);
        assert!(!nudge::is_armed());
        nudge::arm(MUCH);
        allocate(MUCH / 4);
        allocate(MUCH / 4);
        assert!(nudge::is_armed());
        allocate(MUCH / 2);
        assert!(!nudge::is_armed());
        let (began, most) = (Instant::now(), Duration::from_secs(100));
        nudge::PARKER.park_until(Some(began + most));
        assert!(began.elapsed() < most);
    }
}

//! The spans that the calling thread is in, and the services it goes back to when
//! it leaves them.
//!
//! Spans may be left in another order than they were entered. So each entry that
//! took the thread to a service knows what the thread was in before, and one that
//! is taken out from between two others hands that on to the one above it.
//!
//! The layer that is called when a span is left may be another one than the layer that was called
//! when it was entered, or there may be none: layers can be exchanged and taken away. So an entry
//! knows its span by its token, which that layer finds with the span. An entry also ends when its
//! span is closed, when the subscriber says that the thread is not in it, and when no layer is left
//! that would be called.
//!
//! While tracing is at work for itself the thread is *apart*, in the unattributed
//! service; spans that are entered or left meanwhile change where it goes back to.

use super::layer_id::{LayerId, epoch, is_any_layer};
use super::token::{Origin, Token, is_same};
use crate::ledger::anomalies;
use crate::ledger::recall::Generation;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::ledger::thread;
use crate::service::{Scope, Service};
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::ptr;

/// Identifies a span by its number in its subscriber and the layer that is called for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) layer: LayerId,
    pub(super) span: u64,
}

/// The subscriber that has just called a layer.
pub(super) trait Here {
    /// Returns the token of the span with that number there.
    fn token(&self, span: u64) -> Option<Token>;
    /// Returns the number of the span that the calling thread is in.
    fn current(&self) -> Current;
}

#[derive(Clone, Copy)]
pub(super) enum Current {
    Unknown,
    None,
    Span(u64),
}

/// Enters a span, which runs in that service. The caller holds the service. Where the calling
/// thread is in it already by way of the span that it comes from, it stays where it
/// is, which may be a scope that was entered by hand since.
pub(super) fn enter(key: Key, token: Token, service: Origin) {
    SPANS.with(|spans| _ = spans.enter(key, token, service));
}

/// Enters a span if the calling thread remembers its service for that generation, which the span's
/// place has.
#[inline]
pub(super) fn enter_remembered(key: Key, place: &Generation, generation: u64) -> bool {
    SPANS.with(|spans| {
        let memory = spans.memory(key.span).get();
        if !memory.is_of(key, generation) {
            return false;
        }
        let is_entered = spans.enter(key, memory.token, memory.service);
        if !is_entered || memory.service.is_none() || place.is_still(generation) {
            return true;
        }
        spans.remove_last();
        false
    })
}

/// Returns what the calling thread remembers for that generation of a span, which its place has: a
/// clone of the service, if it has one.
pub(super) fn remembered(key: Key, place: &Generation) -> Option<Option<(Service, Token)>> {
    let generation = place.get();
    let memory = SPANS.with(|spans| spans.memory(key.span).get());
    if !memory.is_of(key, generation) {
        return None;
    }
    let Some((record, origin)) = memory.service else { return Some(None) };
    let service = Service::try_of(record)?;
    // Otherwise it may be any service's clone by now.
    place.is_still(generation).then_some(Some((service, origin)))
}

/// Notes for the calling thread what a span is, for that generation of its place.
pub(super) fn remember(key: Key, generation: u64, token: Token, service: Origin) {
    let memory =
        Memory { layer: key.layer.number(), span: key.span, epoch: epoch(), generation, token, service };
    SPANS.with(|spans| spans.memory(key.span).set(memory));
}

/// Leaves a span; the calling thread may never have entered it, as far as
/// is known here. `false` if the layer and the span's number cannot decide that, since layers
/// have been exchanged.
#[inline]
pub(super) fn exit(key: Key) -> bool {
    SPANS.with(|spans| {
        if spans.epoch.get() != epoch() {
            return spans.entered.borrow().is_empty();
        }
        let last = spans.entered.borrow_mut().pop_if(|last| last.key == key);
        match last {
            Some(last) => spans.leave(last),
            None => return spans.remove_where(|entry| entry.key == key),
        }
        true
    })
}

/// Leaves a span that the subscriber finds by its number, if it is still open.
#[cold]
pub(super) fn exit_here(key: Key, here: &impl Here) {
    SPANS.with(|spans| {
        if spans.entered.borrow().is_empty() {
            return;
        }
        match here.token(key.span) {
            Some(token) => spans.remove_where(|entry| entry.token == token),
            None => spans.remove_where(|entry| entry.key == key),
        };
        spans.look_after(here);
    });
}

/// Compares the spans that the thread is in with what the calling subscriber says, if layers were
/// exchanged since that was done last.
#[inline]
pub(super) fn look_after(here: &impl Here) {
    SPANS.with(|spans| {
        if spans.epoch.get() != epoch() && !spans.entered.borrow().is_empty() {
            spans.look_after(here);
        }
    });
}

/// Takes the calling thread out of a span that is closed.
pub(super) fn close(token: Token) {
    SPANS.with(|spans| {
        if !spans.entered.borrow().is_empty() {
            while spans.remove_where(|entry| entry.token == token) {}
        }
    });
    leave_if_nobody_tells();
}

/// Leaves all spans if no layer is left that would be called when they are left.
#[inline]
pub(super) fn leave_if_nobody_tells() {
    SPANS.with(|spans| {
        if spans.entered.borrow().is_empty() || is_any_layer() || !spans.decide() {
            return;
        }
        while spans.remove_last() {}
    });
}

/// Changes the service of a span, while the calling thread may be in it. The caller holds the
/// service.
pub(super) fn change(token: Token, record: &'static Record) {
    SPANS.with(|spans| {
        let entered = &mut *spans.entered.borrow_mut();
        for place in 0..entered.len() {
            let (to_here, above) = entered.split_at_mut(place + 1);
            let entry = &mut to_here[place];
            if entry.token != token {
                continue;
            }
            let former = entry.service.replace((record, token));
            // What stood in for it: the service that the first one above goes back to, or
            // the current one. A child that has stayed there for it, stays there.
            let mut above = above.iter_mut();
            let replaced = match above.find(|above| above.previous.is_some() || above.inherits(token, former))
            {
                Some(above) => {
                    let stayed = above.stays_in();
                    thread::retain(record);
                    let replaced = above.previous.replace(record);
                    stayed.into_iter().for_each(thread::release);
                    replaced
                }
                None => Some(spans.go_to(record)),
            };
            let former = former.map(|(record, _)| record);
            match (entry.previous, replaced) {
                (Some(_), Some(replaced)) => thread::release(replaced),
                (None, Some(replaced)) => {
                    entry.previous = Some(replaced);
                    former.into_iter().for_each(thread::release);
                }
                // The child has taken over what stood in for it.
                (Some(_), None) => {}
                // It held that one, staying there.
                (None, None) => entry.previous = former,
            }
        }
    });
}

/// Sends a service, which the caller holds, to a span's layer: `deliver` calls that layer through its
/// subscriber. Returns whether the layer has received it.
pub(super) fn send(span: u64, record: &'static Record, deliver: impl FnOnce()) -> bool {
    /// Takes the letter back even if a layer panics, and restores one that was under way before.
    struct Sent(Option<(u64, &'static Record)>);

    impl Drop for Sent {
        fn drop(&mut self) {
            SPANS.with(|spans| spans.letter.set(self.0));
        }
    }

    let _sent = Sent(SPANS.with(|spans| spans.letter.replace(Some((span, record)))));
    deliver();
    SPANS.with(|spans| spans.letter.get().is_none())
}

/// Receives the service that was sent to a span's layer.
pub(super) fn receive(span: u64) -> Option<Service> {
    SPANS.with(|spans| {
        let (to, record) = spans.letter.get()?;
        if to != span {
            return None;
        }
        spans.letter.set(None);
        Some(Service::of_held(record))
    })
}

/// Keeps the calling thread apart until it is dropped: what it allocates is nobody's.
pub(super) struct Apart {
    is_outermost: bool,
    _not_send: PhantomData<*const ()>,
}

impl Apart {
    #[inline]
    pub(super) fn enter() -> Self {
        let is_outermost = SPANS.with(|spans| {
            let is_outermost = spans.apart_from.get().is_none();
            if is_outermost {
                spans.apart_from.set(Some(thread::enter(&UNATTRIBUTED)));
            }
            is_outermost
        });
        Self { is_outermost, _not_send: PhantomData }
    }
}

impl Drop for Apart {
    #[inline]
    fn drop(&mut self) {
        if self.is_outermost {
            SPANS.with(|spans| spans.apart_from.take().into_iter().for_each(thread::leave_for));
        }
    }
}

/// What a thread remembers of a span, so that it need not look it up. Nothing holds the service:
/// see [`recall`](crate::ledger::recall).
#[derive(Clone, Copy)]
struct Memory {
    layer: u64,
    span: u64,
    epoch: u64,
    generation: u64,
    token: Token,
    service: Origin,
}

impl Memory {
    // No layer has the number 0.
    const NONE: Self = Self { layer: 0, span: 0, epoch: 0, generation: 0, token: Token::NONE, service: None };

    #[inline]
    fn is_of(&self, key: Key, generation: u64) -> bool {
        (self.layer, self.span, self.generation, self.epoch)
            == (key.layer.number(), key.span, generation, epoch())
    }
}

/// Spans that a thread remembers, in places that others may take.
const MEMORIES: usize = 32;

#[derive(Clone, Copy)]
struct Entered {
    key: Key,
    token: Token,
    /// When it was certain last that the thread is in it.
    epoch: u64,
    /// Held, as a scope, where there is nothing that the thread goes back to; otherwise no more
    /// than a name for where it was taken.
    service: Origin,
    /// What the thread was in before, if this took it elsewhere; counted as a scope.
    previous: Option<&'static Record>,
}

impl Entered {
    /// Whether this runs in a service because that span does.
    fn inherits(&self, token: Token, service: Origin) -> bool {
        self.token != token && is_same(self.service, service)
    }

    /// The service that it holds since it did not take the thread elsewhere.
    fn stays_in(&self) -> Option<&'static Record> {
        if self.previous.is_some() {
            return None;
        }
        self.service.map(|(record, _)| record)
    }
}

struct Spans {
    memories: [Cell<Memory>; MEMORIES],
    entered: RefCell<ManuallyDrop<Vec<Entered>>>,
    /// When it was certain last that the thread is in all of these.
    epoch: Cell<u64>,
    /// A span, and the service that its layer is to give it; the sender holds it.
    letter: Cell<Option<(u64, &'static Record)>>,
    /// While the thread is apart: where it goes back to.
    apart_from: Cell<Option<&'static Record>>,
    /// Set when the thread's end has begun.
    is_closed: Cell<bool>,
}

thread_local! {
    // Without a destructor, so that it can be used until the very end.
    static SPANS: Spans = const {
        Spans {
            memories: [const { Cell::new(Memory::NONE) }; MEMORIES],
            entered: RefCell::new(ManuallyDrop::new(Vec::new())),
            epoch: Cell::new(0),
            letter: Cell::new(None),
            apart_from: Cell::new(None),
            is_closed: Cell::new(false),
        }
    };
    static AT_THREAD_EXIT: Close = const { Close };
}

impl Spans {
    fn memory(&self, span: u64) -> &Cell<Memory> {
        &self.memories[span as usize % MEMORIES]
    }

    /// Whether it is noted that the thread has entered the span.
    #[inline]
    fn enter(&self, key: Key, token: Token, service: Origin) -> bool {
        let entered = &mut *self.entered.borrow_mut();
        if entered.len() == entered.capacity() && !self.reserve(entered) {
            return false;
        }
        let epoch = epoch();
        if entered.is_empty() {
            self.epoch.set(epoch);
        }
        let previous = service.and_then(|(record, origin)| {
            // Where the span runs in what the thread is in by way of the same span.
            let is_there = origin != token
                && (entered.iter().rev().find(|entry| entry.previous.is_some()))
                    .is_some_and(|innermost| is_same(innermost.service, service));
            if is_there {
                thread::retain(record);
                return None;
            }
            Some(self.go_to(record))
        });
        entered.push(Entered { key, token, epoch, service, previous });
        true
    }

    /// Takes the last entry out that is meant, if there is one.
    fn remove_where(&self, is_it: impl Fn(&Entered) -> bool) -> bool {
        let place = self.entered.borrow().iter().rposition(is_it);
        place.is_some_and(|place| self.remove(place))
    }

    /// `false` if there is none.
    fn remove_last(&self) -> bool {
        let last = self.entered.borrow_mut().pop();
        last.map(|last| self.leave(last)).is_some()
    }

    fn remove(&self, place: usize) -> bool {
        let entered = &mut *self.entered.borrow_mut();
        if place >= entered.len() {
            return false;
        }
        let entry = entered.remove(place);
        match entry.previous.zip(entered[place..].iter_mut().find_map(|above| above.previous.as_mut())) {
            Some((previous, above)) => thread::release(mem::replace(above, previous)),
            None => self.leave(entry),
        }
        true
    }

    /// Leaves a span above which there is none that would go back to another service.
    #[inline]
    fn leave(&self, entry: Entered) {
        match entry.previous {
            Some(previous) => self.go_back_to(previous),
            None => entry.stays_in().into_iter().for_each(thread::release),
        }
    }

    /// Leaves the spans that the thread is not in, as the subscriber says.
    ///
    /// A span that was entered before the one that is current there may have been left in
    /// between unnoticed: that is found out when this one is left.
    #[cold]
    fn look_after(&self, here: &impl Here) {
        let now = epoch();
        if self.epoch.get() == now || !self.decide() {
            return;
        }
        let entry = |place: usize| self.entered.borrow().get(place).copied();
        let first_of = |token| self.entered.borrow().iter().position(|entry| entry.token == token);
        let current = here.current();
        // Where the thread has entered the current one first. All that it has entered later, it
        // has left, or the current one would be another.
        let anchor = match current {
            Current::Span(span) => here.token(span).and_then(first_of),
            Current::Unknown | Current::None => None,
        };
        let is_anchor_old = anchor.and_then(entry).is_some_and(|anchor| anchor.epoch != now);
        let mut is_certain = true;
        // Nothing is borrowed while the subscriber is asked: that may close a span.
        let depth = self.entered.borrow().len();
        for place in (0..depth).rev() {
            let Some(old) = entry(place).filter(|entry| entry.epoch != now) else { continue };
            let is_here = here.token(old.key.span) == Some(old.token);
            let is_over = if is_here {
                match current {
                    Current::Unknown => false,
                    Current::None => true,
                    Current::Span(_) => anchor.is_some_and(|anchor| first_of(old.token) > Some(anchor)),
                }
            } else {
                !old.key.layer.is_there()
            };
            if is_over {
                self.remove_where_at(place, old.token);
            } else if is_here && is_anchor_old {
                if let Some(entry) = self.entered.borrow_mut().get_mut(place) {
                    entry.epoch = now;
                }
            } else {
                is_certain = false;
            }
        }
        if is_certain {
            self.epoch.set(now);
        }
    }

    /// Whether the thread is where the spans have taken it, and not in a scope that was entered by
    /// hand since: that would take it back to what it has been in.
    fn decide(&self) -> bool {
        let current = self.apart_from.get().unwrap_or_else(thread::current_record);
        let innermost = self.entered.borrow().iter().rfind(|entry| entry.previous.is_some()).copied();
        innermost.and_then(|entry| entry.service).is_none_or(|(record, _)| ptr::eq(record, current))
    }

    fn remove_where_at(&self, place: usize, token: Token) {
        let is_it = self.entered.borrow().get(place).is_some_and(|entry| entry.token == token);
        if is_it {
            self.remove(place);
        }
    }

    #[inline]
    fn go_to(&self, record: &'static Record) -> &'static Record {
        match self.apart_from.get() {
            Some(former) => {
                thread::retain(record);
                self.apart_from.set(Some(record));
                former
            }
            None => thread::enter(record),
        }
    }

    #[inline]
    fn go_back_to(&self, former: &'static Record) {
        match self.apart_from.get() {
            Some(left) => {
                self.apart_from.set(Some(former));
                thread::release(left);
            }
            None => thread::leave_for(former),
        }
    }

    /// `false` at the thread's end, and where there is no memory: then the span changes nothing.
    #[cold]
    fn reserve(&self, entered: &mut Vec<Entered>) -> bool {
        if self.is_closed.get() {
            return false;
        }
        let _apart = self.apart_from.get().is_none().then(|| Scope::enter(&UNATTRIBUTED));
        if entered.capacity() == 0 {
            // Has the thread's end clean up; if that has begun, there is none.
            let _ = AT_THREAD_EXIT.try_with(|_| ());
        }
        let is_reserved = entered.try_reserve(8).is_ok();
        if !is_reserved {
            anomalies::UNENTERED.add(0);
        }
        is_reserved
    }
}

struct Close;

impl Drop for Close {
    fn drop(&mut self) {
        SPANS.with(|spans| {
            spans.is_closed.set(true);
            while spans.remove_last() {}
            drop(mem::take(&mut **spans.entered.borrow_mut()));
        });
    }
}

//! A thread's record of spans: the stack of those that it is in, and a memory of those that it entered
//! lately.

use super::kept::Kept;
use super::layer_id::{LayerId, epoch};
use super::token::{Origin, Token, generation_of, is_same, spread};
use crate::ledger::anomalies;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::ledger::thread;
use crate::service::Scope;
use std::cell::{Cell, RefCell};
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

/// What a thread remembers of a span, so that it need not look it up. Nothing holds the service:
/// see [`recall`](crate::ledger::recall).
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) layer: u64,
    pub(super) span: u64,
    pub(super) epoch: u64,
    pub(super) generation: u64,
    pub(super) token: Token,
    pub(super) service: Origin,
    pub(super) is_hidden: bool,
}

impl Memory {
    // No layer has the number 0.
    const NONE: Self = Self {
        layer: 0,
        span: 0,
        epoch: 0,
        generation: 0,
        token: Token::NONE,
        service: None,
        is_hidden: false,
    };

    #[inline]
    pub(super) fn is_of(&self, key: Key, generation: u64) -> bool {
        (self.layer, self.span, self.generation, self.epoch)
            == (key.layer.number(), key.span, generation, epoch())
    }
}

/// What a thread remembers of a hidden span that is kept: it is so as long as the token is the one that the
/// span has.
#[derive(Clone, Copy)]
pub(super) struct KeptMemory {
    pub(super) layer: u64,
    pub(super) token: Token,
    pub(super) span: &'static Kept,
    pub(super) service: &'static Record,
}

/// Spans that a thread remembers, in places that others may take.
const MEMORIES: usize = 32;

#[derive(Clone, Copy)]
pub(super) struct Entered {
    pub(super) key: Key,
    pub(super) token: Token,
    /// When it was certain last that the thread is in it.
    pub(super) epoch: u64,
    /// Held, as a scope, where there is nothing that the thread goes back to; otherwise no more
    /// than a name for where it was taken.
    pub(super) service: Origin,
    /// What the thread was in before, if this took it elsewhere; counted as a scope.
    pub(super) previous: Option<&'static Record>,
    pub(super) is_hidden: bool,
}

impl Entered {
    /// Whether this runs in a service because that span does.
    pub(super) fn inherits(&self, token: Token, service: Origin) -> bool {
        self.token != token && is_same(self.service, service)
    }

    /// The service that it holds since it did not take the thread elsewhere.
    pub(super) fn stays_in(&self) -> Option<&'static Record> {
        if self.previous.is_some() {
            return None;
        }
        self.service.map(|(record, _)| record)
    }
}

pub(super) struct Spans {
    pub(super) memories: [Cell<Memory>; MEMORIES],
    pub(super) kept: [Cell<Option<KeptMemory>>; MEMORIES],
    pub(super) entered: RefCell<ManuallyDrop<Vec<Entered>>>,
    /// When it was certain last that the thread is in all of these.
    pub(super) epoch: Cell<u64>,
    /// A span, and the service that its layer is to give it; the sender holds it.
    pub(super) letter: Cell<Option<(u64, &'static Record)>>,
    /// While the thread is apart: how it goes back, and to which service.
    pub(super) apart_from: Cell<Option<(thread::Entered, &'static Record)>>,
    /// Set when the thread's end has begun.
    pub(super) is_closed: Cell<bool>,
}

thread_local! {
    // Without a destructor, so that it can be used until the very end.
    pub(super) static SPANS: Spans = const {
        Spans {
            memories: [const { Cell::new(Memory::NONE) }; MEMORIES],
            kept: [const { Cell::new(None) }; MEMORIES],
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
    pub(super) fn memory(&self, span: u64) -> &Cell<Memory> {
        &self.memories[spread(span) % MEMORIES]
    }

    /// Returns what the thread remembers of that span, if it is kept.
    #[inline]
    pub(super) fn kept(&self, key: Key) -> Option<KeptMemory> {
        let memory = self.kept[spread(key.span) % MEMORIES].get()?;
        let is_it = memory.layer == key.layer.number()
            && memory.token.span() == key.span
            && memory.span.is(memory.token);
        is_it.then_some(memory)
    }

    /// Returns whether a span is hidden, if the thread remembers it.
    #[inline]
    pub(super) fn is_hidden(&self, key: Key) -> Option<bool> {
        let memory = self.memory(key.span).get();
        memory.is_of(key, generation_of(key.span).get()).then_some(memory.is_hidden)
    }

    /// Remembers a span that is kept.
    #[inline]
    pub(super) fn remember_kept(&self, memory: KeptMemory) {
        self.kept[spread(memory.token.span()) % MEMORIES].set(Some(memory));
    }

    /// Returns a number that few threads share.
    #[inline]
    pub(super) fn thread(&self) -> usize {
        ptr::from_ref(self).addr().wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize) >> (usize::BITS - 8)
    }

    /// Whether layers were exchanged since it was certain that the thread is in all of these spans.
    #[inline]
    pub(super) fn is_uncertain(&self) -> bool {
        self.epoch.get() != epoch() && !self.entered.borrow().is_empty()
    }

    /// Whether it is noted that the thread has entered the span.
    #[inline]
    pub(super) fn enter(&self, key: Key, token: Token, service: Origin, is_hidden: bool) -> bool {
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
        entered.push(Entered { key, token, epoch, service, previous, is_hidden });
        true
    }

    /// Takes the last entry out that is meant, if there is one.
    pub(super) fn remove_where(&self, is_it: impl Fn(&Entered) -> bool) -> bool {
        let place = self.entered.borrow().iter().rposition(is_it);
        place.is_some_and(|place| self.remove(place))
    }

    /// `false` if there is none.
    pub(super) fn remove_last(&self) -> bool {
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
    pub(super) fn leave(&self, entry: Entered) {
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
    pub(super) fn look_after(&self, here: &impl Here) {
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
    pub(super) fn decide(&self) -> bool {
        let current = self.apart_from.get().map_or_else(thread::current_record, |(_, former)| former);
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
    pub(super) fn go_to(&self, record: &'static Record) -> &'static Record {
        match self.apart_from.get() {
            Some((mut apart, former)) => {
                thread::retain(record);
                apart.set_former(record);
                self.apart_from.set(Some((apart, record)));
                former
            }
            None => thread::go_to(record),
        }
    }

    #[inline]
    fn go_back_to(&self, former: &'static Record) {
        match self.apart_from.get() {
            Some((mut apart, left)) => {
                apart.set_former(former);
                self.apart_from.set(Some((apart, former)));
                // A service that the thread went to by memory may have ended just then: its cell does not
                // say any more whose it was.
                thread::release(left);
            }
            None => thread::leave_remembered_for(former),
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

//! The spans that the calling thread is in, and the services it goes back to when
//! it leaves them.
//!
//! Spans may be left in another order than they were entered. So each entry that
//! took the thread to a service knows what the thread was in before, and one that
//! is taken out from between two others hands that on to the one above it.
//!
//! While tracing is at work for itself the thread is *apart*, in the unattributed
//! service; spans that are entered or left meanwhile change where it goes back to.

use crate::ledger::mishap;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::ledger::thread;
use crate::service::Scope;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::ptr;

/// A span, by its number in its subscriber and the layer that sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) layer: u32,
    pub(super) span: u64,
}

/// The service that a span runs in, and the span that this comes from: itself or an
/// ancestor.
pub(super) type Origin = Option<(&'static Record, u64)>;

/// The calling thread has entered a span, which runs in that service. Where the
/// thread is in it already by way of the span that it comes from, it stays where it
/// is, which may be a scope that was entered by hand since. By whoever holds the
/// service.
pub(super) fn enter(key: Key, service: Origin) {
    SPANS.with(|spans| spans.enter(key, service));
}

/// The same, if the calling thread remembers the service for that version of the span.
#[inline]
pub(super) fn enter_remembered(key: Key, version: u64) -> bool {
    SPANS.with(|spans| {
        let memory = spans.memory(key).get();
        let is_it = (memory.key, memory.version) == (key, version);
        if is_it {
            spans.enter(key, memory.service);
        }
        is_it
    })
}

/// What the calling thread remembers of that version of a span, if it does.
pub(super) fn remembered(key: Key, version: u64) -> Option<Origin> {
    let memory = SPANS.with(|spans| spans.memory(key).get());
    ((memory.key, memory.version) == (key, version)).then_some(memory.service)
}

/// Has the calling thread remember the service of a span, for that version of it. The
/// span has to hold the service as long as it can be entered.
pub(super) fn remember(key: Key, version: u64, service: Origin) {
    SPANS.with(|spans| spans.memory(key).set(Memory { key, version, service }));
}

/// The calling thread has left a span; which it may never have entered, as far as
/// is known here.
#[inline]
pub(super) fn exit(key: Key) {
    SPANS.with(|spans| {
        let entered = &mut *spans.entered.borrow_mut();
        match entered.pop_if(|last| last.key == key) {
            Some(Entered { previous: Some(previous), .. }) => spans.go_back_to(previous),
            Some(_) => {}
            None => spans.exit_below(entered, key),
        }
    });
}

/// A span has got another service while the calling thread may be in it. By
/// whoever holds the service.
pub(super) fn change(key: Key, record: &'static Record) {
    SPANS.with(|spans| {
        let entered = &mut *spans.entered.borrow_mut();
        for place in 0..entered.len() {
            let (to_here, above) = entered.split_at_mut(place + 1);
            let entry = &mut to_here[place];
            if entry.key != key {
                continue;
            }
            let former = entry.service.replace((record, key.span));
            // What stood in for it: the service that the first one above goes back to, or
            // the current one. A child that has stayed there for it, stays there.
            let mut above = above.iter_mut();
            let replaced = match above.find(|above| above.previous.is_some() || above.inherits(key, former)) {
                Some(above) => {
                    thread::hold(record);
                    above.previous.replace(record)
                }
                None => Some(spans.go_to(record)),
            };
            match (entry.previous, replaced) {
                (Some(_), Some(replaced)) => thread::let_go(replaced),
                (None, Some(replaced)) => entry.previous = Some(replaced),
                // The child has taken over what stood in for it.
                (Some(_), None) => {}
                (None, None) => {
                    entry.previous = former.map(|(record, _)| record).inspect(|former| thread::hold(former));
                }
            }
        }
    });
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

/// What a thread remembers of a span, so that it need not look it up.
#[derive(Clone, Copy)]
struct Memory {
    key: Key,
    version: u64,
    service: Origin,
}

/// Spans that a thread remembers, in places that others may take.
const MEMORIES: usize = 32;

struct Entered {
    key: Key,
    service: Origin,
    /// What the thread was in before, if this took it elsewhere; counted as a scope.
    previous: Option<&'static Record>,
}

impl Entered {
    fn runs_in(&self, record: &'static Record, origin: u64) -> bool {
        self.service.is_some_and(|own| ptr::eq(own.0, record) && own.1 == origin)
    }

    /// Whether this runs in a service because that span does.
    fn inherits(&self, key: Key, service: Origin) -> bool {
        self.key.layer == key.layer
            && self.key != key
            && service.is_some_and(|(record, origin)| self.runs_in(record, origin))
    }
}

struct Spans {
    memories: [Cell<Memory>; MEMORIES],
    entered: RefCell<ManuallyDrop<Vec<Entered>>>,
    /// While the thread is apart: where it goes back to.
    apart_from: Cell<Option<&'static Record>>,
    /// Set when the thread's end has begun.
    is_closed: Cell<bool>,
}

thread_local! {
    // Without a destructor, so that it can be used until the very end.
    static SPANS: Spans = const {
        Spans {
            // No span has the number 0.
            memories: [const { Cell::new(Memory { key: Key { layer: 0, span: 0 }, version: 0, service: None }) }; MEMORIES],
            entered: RefCell::new(ManuallyDrop::new(Vec::new())),
            apart_from: Cell::new(None),
            is_closed: Cell::new(false),
        }
    };
    static AT_THREAD_EXIT: Close = const { Close };
}

impl Spans {
    fn memory(&self, key: Key) -> &Cell<Memory> {
        &self.memories[key.span as usize % MEMORIES]
    }

    #[inline]
    fn enter(&self, key: Key, service: Origin) {
        let entered = &mut *self.entered.borrow_mut();
        if entered.len() == entered.capacity() && !self.make_room(entered) {
            return;
        }
        let previous = service.and_then(|(record, origin)| {
            // Where the span runs in what the thread is in by way of the same span.
            let is_there = origin != key.span
                && (entered.iter().rev().find(|entry| entry.previous.is_some())).is_some_and(|innermost| {
                    innermost.key.layer == key.layer && innermost.runs_in(record, origin)
                });
            if is_there { None } else { Some(self.go_to(record)) }
        });
        entered.push(Entered { key, service, previous });
    }

    /// Leaves a span that is not the last one.
    #[cold]
    fn exit_below(&self, entered: &mut Vec<Entered>, key: Key) {
        let Some(place) = entered.iter().rposition(|entry| entry.key == key) else { return };
        let Some(previous) = entered.remove(place).previous else { return };
        match entered[place..].iter_mut().find_map(|above| above.previous.as_mut()) {
            Some(above) => thread::let_go(mem::replace(above, previous)),
            None => self.go_back_to(previous),
        }
    }

    #[inline]
    fn go_to(&self, record: &'static Record) -> &'static Record {
        match self.apart_from.get() {
            Some(former) => {
                thread::hold(record);
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
                thread::let_go(left);
            }
            None => thread::leave_for(former),
        }
    }

    /// `false` at the thread's end, and where there is no memory: then the span changes nothing.
    #[cold]
    fn make_room(&self, entered: &mut Vec<Entered>) -> bool {
        if self.is_closed.get() {
            return false;
        }
        let _apart = self.apart_from.get().is_none().then(|| Scope::enter(&UNATTRIBUTED));
        if entered.capacity() == 0 {
            // Has the thread's end clean up; if that has begun, there is none.
            let _ = AT_THREAD_EXIT.try_with(|_| ());
        }
        let has_room = entered.try_reserve(8).is_ok();
        if !has_room {
            mishap::UNENTERED.add(0);
        }
        has_room
    }
}

struct Close;

impl Drop for Close {
    fn drop(&mut self) {
        SPANS.with(|spans| {
            spans.is_closed.set(true);
            let mut entered = spans.entered.borrow_mut();
            let entered = mem::take(&mut **entered);
            for entry in entered.iter().rev() {
                entry.previous.into_iter().for_each(|previous| spans.go_back_to(previous));
            }
        });
    }
}

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

use super::kept::{Kept, OfCallsite};
use super::layer_id::{LayerId, epoch, is_any_layer};
use super::span_stack::{Here, KeptMemory, Key, Memory, SPANS};
use super::token::{Origin, Token};
use crate::ledger::recall::Generation;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::ledger::thread;
use crate::service::Service;
use std::marker::PhantomData;

/// Enters a span, which runs in that service. The caller holds the service. Where the calling
/// thread is in it already by way of the span that it comes from, it stays where it
/// is, which may be a scope that was entered by hand since.
pub(super) fn enter(key: Key, token: Token, service: Origin, is_hidden: bool) {
    SPANS.with(|spans| _ = spans.enter(key, token, service, is_hidden));
}

/// What became of a span that a thread is to enter or leave.
pub(super) enum Begun {
    /// All is done.
    Done,
    /// Nothing yet. Whether the span is hidden, if the calling thread remembers it.
    NotYet { is_hidden: Option<bool> },
}

/// Enters a hidden span that is kept, if the calling thread remembers it.
pub(super) fn enter_kept(key: Key) -> Begun {
    SPANS.with(|spans| {
        let Some(kept) = spans.kept(key).filter(|_| !spans.is_uncertain()) else {
            return Begun::NotYet { is_hidden: spans.is_hidden(key) };
        };
        // The layer that calls holds the service.
        spans.enter(key, kept.token, Some((kept.service, kept.token)), true);
        Begun::Done
    })
}

/// Returns a hidden span that is kept, if the calling thread remembers it.
pub(super) fn kept(key: Key) -> Option<&'static Kept> {
    SPANS.with(|spans| spans.kept(key).map(|kept| kept.span))
}

/// Takes a hidden span that is kept and closed, for the calling thread to remember it.
pub(super) fn take_kept(of: &OfCallsite, layer: LayerId) -> Option<u64> {
    SPANS.with(|spans| {
        if spans.is_uncertain() {
            return None;
        }
        let (span, token) = of.take(spans.thread())?;
        let service = of.service().record();
        spans.remember_kept(KeptMemory { layer: layer.number(), token, span, service });
        Some(token.span())
    })
}

/// Puts a hidden span back that is kept and closed. `false` if there are enough of them.
pub(super) fn put_kept(of: &OfCallsite, kept: &'static Kept) -> bool {
    SPANS.with(|spans| of.put(spans.thread(), kept)) || of.put_another(kept)
}

/// Notes for the calling thread what a hidden span is that is kept.
pub(super) fn remember_kept(layer: LayerId, token: Token, span: &'static Kept, of: &OfCallsite) {
    let service = of.service().record();
    SPANS.with(|spans| spans.remember_kept(KeptMemory { layer: layer.number(), token, span, service }));
}

/// Leaves the span that the calling thread has entered last, if it is that one, and hidden.
pub(super) fn exit_hidden(key: Key) -> Begun {
    SPANS.with(|spans| {
        if spans.epoch.get() == epoch() {
            let last = spans.entered.borrow_mut().pop_if(|last| last.is_hidden && last.key == key);
            if let Some(last) = last {
                spans.leave(last);
                return Begun::Done;
            }
        }
        let is_kept = spans.kept(key).is_some();
        Begun::NotYet { is_hidden: if is_kept { Some(true) } else { spans.is_hidden(key) } }
    })
}

/// Enters a span if the calling thread remembers its service for that generation, which the span's
/// place has.
pub(super) fn enter_remembered(key: Key, place: &Generation, generation: u64) -> bool {
    SPANS.with(|spans| {
        let memory = spans.memory(key.span).get();
        if !memory.is_of(key, generation) {
            return false;
        }
        let is_entered = spans.enter(key, memory.token, memory.service, memory.is_hidden);
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

/// Returns whether a span is hidden, if the calling thread remembers it.
pub(super) fn is_hidden(key: Key) -> Option<bool> {
    SPANS.with(|spans| spans.is_hidden(key))
}

/// Notes for the calling thread what a span is, for that generation of its place.
pub(super) fn remember(key: Key, generation: u64, token: Token, service: Origin, is_hidden: bool) {
    let (layer, span) = (key.layer.number(), key.span);
    let memory = Memory { layer, span, epoch: epoch(), generation, token, service, is_hidden };
    SPANS.with(|spans| spans.memory(span).set(memory));
}

/// Leaves a span; the calling thread may never have entered it, as far as
/// is known here. `false` if the layer and the span's number cannot decide that, since layers
/// have been exchanged.
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

/// Returns the number of the last span of that layer that the calling thread has entered and not left.
pub(super) fn innermost(layer: LayerId) -> Option<u64> {
    SPANS.with(|spans| {
        let entered = spans.entered.borrow();
        entered.iter().rfind(|entry| entry.key.layer == layer).map(|entry| entry.key.span)
    })
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

/// Takes the calling thread out of a hidden span that is closed, to be kept.
pub(super) fn close_kept(key: Key) {
    SPANS.with(|spans| while spans.remove_where(|entry| entry.key == key) {});
}

/// Leaves all spans if no layer is left that would be called when they are left.
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

/// Whether a service was sent to a span's layer, which has not received it yet.
pub(super) fn is_sent(span: u64) -> bool {
    SPANS.with(|spans| spans.letter.get().is_some_and(|(to, _)| to == span))
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
    pub(super) fn enter() -> Self {
        let is_outermost = SPANS.with(|spans| {
            let is_outermost = spans.apart_from.get().is_none();
            if is_outermost {
                let apart = thread::enter(&UNATTRIBUTED);
                spans.apart_from.set(Some((apart, apart.former())));
            }
            is_outermost
        });
        Self { is_outermost, _not_send: PhantomData }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if self.is_outermost {
            SPANS.with(|spans| {
                spans.apart_from.take().into_iter().for_each(|(apart, _)| thread::leave(apart))
            });
        }
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use crate::ledger::thread::tests::{all_scopes, end};

    /// By memory, while tracing is at work: the count goes where it came from.
    #[test]
    fn who_went_apart_to_a_service_that_ended_just_then_leaves_no_count() {
        std::thread::spawn(|| {
            let service = Service::register("ends at that moment, apart").unwrap();
            let record = service.record();
            service.run(|| drop(std::hint::black_box(Box::new(1))));
            let before = all_scopes(record);
            let token = Token::of(7, 1);
            {
                let _apart = Apart::enter();
                enter(Key { layer: LayerId::begin(), span: 7 }, token, Some((record, token)), false);
                end(record);
                assert!(SPANS.with(|spans| spans.remove_last()));
            }
            assert_eq!(all_scopes(record), before);
            assert!(!thread::is_in_scope());
            // It has ended.
            std::mem::forget(service);
        })
        .join()
        .unwrap();
    }
}

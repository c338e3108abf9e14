//! What is kept with a span, in the subscriber's own storage; and which layers there are.
//!
//! The storage drops it when the span is closed, whoever is told of that and whatever has become
//! of the layer meanwhile. So that is where threads are told that what they remember of the
//! span is not true any more.

use super::spans;
use crate::ledger::recall::Generation;
use crate::ledger::slots::Record;
use crate::service::{Service, gate};
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};
use std::ptr;
use std::sync::PoisonError;

/// A span, as no other one of this process is named, in whichever subscriber: by its number, and
/// the generation that the number's place had when this was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    span: u64,
    generation: u64,
}

impl Token {
    pub(super) const NONE: Self = Self { span: 0, generation: 0 };

    /// The generation with which a span's service may be remembered that has just got this.
    pub(super) fn generation(self) -> u64 {
        self.generation
    }
}

/// The service that a span runs in, and the span that this comes from: itself or an
/// ancestor.
pub(super) type Origin = Option<(&'static Record, Token)>;

/// What is kept with a span.
pub(super) struct Attribution {
    pub(super) token: Token,
    service: Option<Service>,
    /// The span that this comes from, itself or an ancestor.
    origin: Token,
    /// Who has chosen it, if it is the span's own.
    layer: Option<LayerId>,
}

impl Attribution {
    /// Of a new span, or one that is not known yet: with what it has from its parent.
    pub(super) fn new(span: u64, inherited: Option<(Service, Token)>) -> Self {
        let token = Token { span, generation: generation_of(span).change() };
        let (service, origin) = inherited.unzip();
        Self { token, service, origin: origin.unwrap_or(token), layer: None }
    }

    /// Of a new span, for which its layer has chosen a service.
    pub(super) fn chosen(span: u64, service: Service, layer: LayerId) -> Self {
        Self { service: Some(service), layer: Some(layer), ..Self::new(span, None) }
    }

    /// What threads may remember, or enter while the span is locked: until then it is held.
    pub(super) fn origin(&self) -> Origin {
        Some((self.service.as_ref()?.record(), self.origin))
    }

    /// What a child gets.
    pub(super) fn inherit(&self) -> Option<(Service, Token)> {
        Some((self.service.clone()?, self.origin))
    }

    /// Whether another layer, which is still there, has chosen its service.
    pub(super) fn is_anothers(&self, layer: LayerId) -> bool {
        self.layer.is_some_and(|other| other != layer && other.is_there())
    }

    /// Chooses the span's service. Returns the former one, to be dropped when the span is not
    /// locked any more.
    pub(super) fn choose(&mut self, service: Service, layer: LayerId) -> Option<Service> {
        (self.origin, self.layer) = (self.token, Some(layer));
        let former = self.service.replace(service);
        generation_of(self.token.span).change();
        former
    }
}

impl Drop for Attribution {
    /// The span is closed.
    fn drop(&mut self) {
        generation_of(self.token.span).change();
        spans::close(self.token);
    }
}

/// Changes with all that becomes of the service of a span that has a place here.
pub(super) fn generation_of(span: u64) -> &'static Generation {
    const VERSIONS: usize = 1024;
    static PLACES: [Generation; VERSIONS] = [const { Generation::new() }; VERSIONS];

    &PLACES[span as usize % VERSIONS]
}

/// A [`ServiceLayer`](super::ServiceLayer), which may be gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerId {
    /// Never given again.
    number: u64,
    /// Has that number as long as the layer is there.
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

    /// By the layer.
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

/// Whether there is a layer in this process.
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

/// By a layer that is told something which it is also told after such an exchange.
pub(super) fn begin_epoch() {
    EPOCH.fetch_add(1, Ordering::AcqRel);
}

static EPOCH: AtomicU64 = AtomicU64::new(1);

/// Whether these are the same service of the same span.
pub(super) fn is_same(one: Origin, other: Origin) -> bool {
    one.zip(other).is_some_and(|(one, other)| ptr::eq(one.0, other.0) && one.1 == other.1)
}

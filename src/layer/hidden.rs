//! Hidden spans: those that a program's own filter leaves out, and that change its threads' services all
//! the same.
//!
//! A hidden span stands in the program's registry, so that its number is nobody else's, and whoever looks
//! it up finds a span that no layer has put anything into. But no layer is told of it, it is nobody's
//! parent, and the registry does not know that it is entered.

use std::any::TypeId;
use std::ptr::{self, NonNull};
use tracing::callsite::Callsite;
use tracing::field::FieldSet;
use tracing::metadata::Kind;
use tracing::span::{Attributes, Id, Record as Values};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Identity, Layer};
use tracing_subscriber::registry::{LookupSpan, Registry, SpanData};

/// What hidden spans have as their metadata in the registry.
static HIDDEN: Metadata<'static> = Metadata::new(
    "hidden",
    "dogtag",
    Level::TRACE,
    None,
    None,
    None,
    FieldSet::new(&[], tracing::callsite::Identifier(&HiddenCallsite)),
    Kind::SPAN,
);

struct HiddenCallsite;

impl Callsite for HiddenCallsite {
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        &HIDDEN
    }
}

/// Makes a hidden span.
pub(super) fn make(registry: &Registry) -> Id {
    registry.new_span(&Attributes::new_root(&HIDDEN, &HIDDEN.fields().value_set(&[])))
}

/// Whether there is a hidden span with that number.
#[inline]
pub(super) fn is_hidden(registry: &Registry, id: &Id) -> bool {
    registry.span_data(id).is_some_and(|span| ptr::eq(span.metadata(), &HIDDEN))
}

/// Closes a span by way of that subscriber, which may be the registry alone: as a layer would that is
/// around them, or the registry does not forget the span.
pub(super) fn try_close(registry: &Registry, subscriber: &dyn Subscriber, id: Id) -> bool {
    let closing = Closing { registry: NonNull::from(registry), subscriber: NonNull::from(subscriber) };
    Identity::new().with_subscriber(closing).try_close(id)
}

/// What closes a span and has that registry.
struct Closing {
    registry: NonNull<Registry>,
    subscriber: NonNull<dyn Subscriber>,
}

impl Subscriber for Closing {
    fn try_close(&self, id: Id) -> bool {
        // SAFETY: `try_close` (above) has both references until this value is dropped.
        unsafe { self.subscriber.as_ref() }.try_close(id)
    }

    unsafe fn downcast_raw(&self, id: TypeId) -> Option<*const ()> {
        (id == TypeId::of::<Registry>()).then(|| self.registry.as_ptr().cast_const().cast())
    }

    // It does nothing else.
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(u64::MAX)
    }

    fn record(&self, _: &Id, _: &Values<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

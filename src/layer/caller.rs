//! The subscriber that calls a layer, as the layer sees it.

use super::attribution::Attribution;
use super::layer_id::LayerId;
use super::span_stack::{Current, Here};
use super::spans;
use super::token::Token;
use tracing::Subscriber;
use tracing::span::{Attributes, Id};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

/// Where a layer finds spans.
pub(super) trait Caller {
    type Spans: for<'span> LookupSpan<'span>;

    fn span(&self, id: &Id) -> Option<SpanRef<'_, Self::Spans>>;

    /// Returns the number of a new span's parent.
    fn parent(&self, attributes: &Attributes<'_>) -> Option<Id>;

    /// Returns the parent with that number of a new span.
    fn parent_of<'a>(
        &'a self,
        child: &SpanRef<'a, Self::Spans>,
        parent: &Id,
    ) -> Option<SpanRef<'a, Self::Spans>>;

    /// Returns the span that the calling thread is in.
    fn current(&self) -> Current;
}

impl<S> Caller for Context<'_, S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    type Spans = S;

    fn span(&self, id: &Id) -> Option<SpanRef<'_, S>> {
        Context::span(self, id)
    }

    fn parent(&self, attributes: &Attributes<'_>) -> Option<Id> {
        if attributes.is_contextual() {
            self.current_span().id().cloned()
        } else {
            attributes.parent().cloned()
        }
    }

    // The nearest ancestor that the layer's own filter does not hide.
    fn parent_of<'a>(&'a self, child: &SpanRef<'a, S>, _: &Id) -> Option<SpanRef<'a, S>> {
        child.parent()
    }

    fn current(&self) -> Current {
        let current = self.current_span();
        match current.id() {
            Some(id) => Current::Span(id.into_u64()),
            None if current.is_known() => Current::None,
            None => Current::Unknown,
        }
    }
}

/// The registry below a subscriber that has hidden spans, which only the layer knows to be entered.
pub(super) struct Store<'a> {
    pub(super) subscriber: &'a dyn Subscriber,
    pub(super) layer: LayerId,
}

impl<'a> Store<'a> {
    pub(super) fn registry(&self) -> Option<&'a Registry> {
        self.subscriber.downcast_ref()
    }
}

impl Caller for Store<'_> {
    type Spans = Registry;

    fn span(&self, id: &Id) -> Option<SpanRef<'_, Registry>> {
        self.registry()?.span(id)
    }

    fn parent(&self, attributes: &Attributes<'_>) -> Option<Id> {
        if attributes.is_contextual() {
            spans::innermost(self.layer).map(Id::from_u64)
        } else {
            attributes.parent().cloned()
        }
    }

    // The registry does not know it, where one of the two is hidden.
    fn parent_of<'a>(&'a self, _: &SpanRef<'a, Registry>, parent: &Id) -> Option<SpanRef<'a, Registry>> {
        self.registry()?.span(parent)
    }

    fn current(&self) -> Current {
        spans::innermost(self.layer).map_or(Current::None, Current::Span)
    }
}

/// A caller, as the thread's stack of spans sees it.
pub(super) struct Called<'a, C> {
    pub(super) caller: &'a C,
    /// Whether the span that is current is the one that the thread has been in.
    pub(super) has_current: bool,
}

impl<C: Caller> Here for Called<'_, C> {
    fn token(&self, span: u64) -> Option<Token> {
        let span = self.caller.span(&Id::from_u64(span))?;
        span.extensions().get::<Attribution>().map(|attribution| attribution.token)
    }

    fn current(&self) -> Current {
        if self.has_current { self.caller.current() } else { Current::Unknown }
    }
}

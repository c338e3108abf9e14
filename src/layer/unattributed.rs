//! A subscriber whose own allocations belong to the unattributed service.

use super::spans::{self, Apart};
use std::any::TypeId;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record as Values};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_core::span::Current;
use tracing_subscriber::filter::FilterId;
use tracing_subscriber::registry::LookupSpan;

/// Keeps a subscriber's own allocations out of services; implemented for every [`Subscriber`].
pub trait UnattributedExt: Subscriber + Sized {
    /// Charges all that this subscriber and its layers allocate (storage for spans, formatted fields,
    /// lines of a log) to the unattributed service, and not to the one that makes a span or an event.
    ///
    /// It costs two changes of service for each call of the subscriber. Spans are entered and left as
    /// before. It goes on the outside, after the last layer:
    ///
    /// ```
    /// use dogtag::{ServiceLayer, UnattributedExt};
    /// use tracing_subscriber::{fmt, prelude::*};
    ///
    /// tracing_subscriber::registry()
    ///     .with(fmt::layer())
    ///     .with(ServiceLayer::new())
    ///     .unattributed()
    ///     .init();
    /// ```
    fn unattributed(self) -> Unattributed<Self> {
        Unattributed { subscriber: self }
    }
}

impl<S: Subscriber> UnattributedExt for S {}

/// Wraps a subscriber whose own allocations belong to the unattributed service:
/// [`unattributed`](UnattributedExt::unattributed).
#[derive(Clone, Debug)]
#[must_use = "a subscriber does nothing before it is installed"]
pub struct Unattributed<S> {
    subscriber: S,
}

impl<S: Subscriber> Subscriber for Unattributed<S> {
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        let _apart = Apart::enter();
        self.subscriber.on_register_dispatch(dispatch);
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let _apart = Apart::enter();
        self.subscriber.register_callsite(metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let _apart = Apart::enter();
        self.subscriber.enabled(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.subscriber.max_level_hint()
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let _apart = Apart::enter();
        self.subscriber.new_span(attributes)
    }

    fn record(&self, span: &Id, values: &Values<'_>) {
        let _apart = Apart::enter();
        self.subscriber.record(span, values);
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        let _apart = Apart::enter();
        self.subscriber.record_follows_from(span, follows);
    }

    fn event_enabled(&self, event: &Event<'_>) -> bool {
        let _apart = Apart::enter();
        self.subscriber.event_enabled(event)
    }

    fn event(&self, event: &Event<'_>) {
        let _apart = Apart::enter();
        self.subscriber.event(event);
    }

    fn enter(&self, span: &Id) {
        let _apart = Apart::enter();
        spans::leave_if_nobody_tells();
        self.subscriber.enter(span);
    }

    fn exit(&self, span: &Id) {
        let _apart = Apart::enter();
        self.subscriber.exit(span);
        spans::leave_if_nobody_tells();
    }

    fn clone_span(&self, id: &Id) -> Id {
        let _apart = Apart::enter();
        self.subscriber.clone_span(id)
    }

    // Which is what everybody calls instead by now.
    fn drop_span(&self, id: Id) {
        self.try_close(id);
    }

    fn try_close(&self, id: Id) -> bool {
        let _apart = Apart::enter();
        self.subscriber.try_close(id)
    }

    fn current_span(&self) -> Current {
        self.subscriber.current_span()
    }

    unsafe fn downcast_raw(&self, id: TypeId) -> Option<*const ()> {
        if id == TypeId::of::<Self>() {
            return Some(std::ptr::from_ref(self).cast());
        }
        // SAFETY: the caller uses what this returns as the type that it asked for, and while `self`
        // lives, which the inner subscriber does as well.
        unsafe { self.subscriber.downcast_raw(id) }
    }
}

impl<'span, S: LookupSpan<'span>> LookupSpan<'span> for Unattributed<S> {
    type Data = S::Data;

    fn span_data(&'span self, id: &Id) -> Option<Self::Data> {
        self.subscriber.span_data(id)
    }

    fn register_filter(&mut self) -> FilterId {
        self.subscriber.register_filter()
    }
}

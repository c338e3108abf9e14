//! Attaching a service to one span.

use super::spans;
use crate::service::Service;
use tracing::span::{Id, Record as Values};
use tracing::{Dispatch, Span};

impl Service {
    /// Runs a span in this service from now on, wherever it is entered, also
    /// if the calling thread has entered it already. Children that it has
    /// already keep their services, and a [`Scope`](crate::Scope) that was entered by hand within the
    /// span goes back to the one that the span had then. (If the span's layer is exchanged before the
    /// span is left, the thread stays in that one until it ends.)
    ///
    /// Returns `false` if the span is disabled, or if its subscriber
    /// has no [`ServiceLayer`](crate::ServiceLayer), or one whose own filter hides the span. The layer may be
    /// behind anything that passes [`on_record`](tracing_subscriber::Layer::on_record) on, such as
    /// `reload`; that carries the request, and other layers get a record without values.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::RegisterError> {
    /// use dogtag::{Service, ServiceLayer};
    /// use tracing_subscriber::prelude::*;
    ///
    /// tracing_subscriber::registry().with(ServiceLayer::new()).init();
    ///
    /// let auth = Service::register("auth")?;
    /// let span = tracing::info_span!("login");
    /// assert!(auth.attach(&span));
    /// let tokens = span.in_scope(|| vec![0_u8; 1000]);
    /// assert_eq!(auth.usage().bytes(), 1000);
    /// # drop(tokens);
    /// # Ok(())
    /// # }
    /// ```
    pub fn attach(&self, span: &Span) -> bool {
        let Some(metadata) = span.metadata() else { return false };
        // To the span's layer, wherever in the subscriber it is, goes by way of all that have to do
        // with the span: as values that were recorded, of which there are none.
        let values = metadata.fields().value_set(&[]);
        let send = |(id, dispatch): (&Id, &Dispatch)| {
            spans::send(id.into_u64(), self.record(), || dispatch.record(id, &Values::new(&values)))
        };
        span.with_subscriber(send).unwrap_or(false)
    }
}

//! Bodies that run in a service, wherever they are polled.

use dogtag::{Scope, Service};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll};

pin_project! {
    /// Polls a body, and drops it, in a service.
    ///
    /// The layer puts the bodies of responses into it. A request's body that is handed to another task needs it
    /// by hand:
    ///
    /// ```
    /// use dogtag::{InServiceExt, Service};
    /// use dogtag_tower::AttributedBody;
    /// use http::Request;
    /// use http_body_util::{BodyExt, Full};
    ///
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    /// let request = Request::new(Full::<bytes::Bytes>::from("a body"));
    /// let service = Service::current();
    /// let body = AttributedBody::new(request.into_body(), Some(service.clone()));
    /// let task = async { body.collect().await.map(|all| all.to_bytes()) };
    /// let read = runtime.block_on(runtime.spawn(task.in_service(&service)))??;
    /// assert_eq!(read, "a body");
    /// # Ok(())
    /// # }
    /// ```
    #[derive(Debug)]
    pub struct AttributedBody<B> {
        // Empty only while it is being dropped.
        #[pin]
        body: Option<B>,
        service: Option<Service>,
    }

    impl<B> PinnedDrop for AttributedBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _scope = enter(this.service);
            this.body.set(None);
        }
    }
}

impl<B> AttributedBody<B> {
    /// Makes a body that runs in the service; without one, it runs where the thread that polls it is.
    pub fn new(body: B, service: Option<Service>) -> Self {
        Self { body: Some(body), service }
    }

    /// Returns the service that the body runs in.
    pub fn service(&self) -> Option<&Service> {
        self.service.as_ref()
    }
}

impl<B: Default> Default for AttributedBody<B> {
    fn default() -> Self {
        Self::new(B::default(), None)
    }
}

impl<B: Body> Body for AttributedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let _scope = enter(this.service);
        match this.body.as_pin_mut() {
            Some(body) => body.poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        let _scope = enter(&self.service);
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let _scope = enter(&self.service);
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

fn enter(service: &Option<Service>) -> Option<Scope<'_>> {
    service.as_ref().map(Service::enter)
}

//! Requests that end when their services are cancelled.

use crate::AttributedBody;
use dogtag::__private::service::unattributed;
use dogtag::guard::{Cancelled, OrCancelled, UntilCancelled};
use dogtag::{InServiceExt, Service};
use http::header::{HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The errors of tower's stacks.
type BoxError = Box<dyn Error + Send + Sync>;

/// Ends requests whose service is [cancelled](dogtag::Service::cancel) (feature `guard`).
///
/// It goes by the service that is current when the request comes, so it stands below an
/// [`AttributionLayer`](crate::AttributionLayer). Once that service is cancelled, by whomever and
/// wherever the request waits, the inner future is dropped, with all that it holds, and the request ends:
///
/// | | it ends with |
/// | --- | --- |
/// | [`CancelLayer::new`] | an error, which holds a [`Cancelled`] |
/// | [`CancelLayer::unavailable`] | a response 503, for axum's routers and others that take no errors |
/// | in the middle of its response's body | in either case an error of the body: who reads it knows that it is not whole |
///
/// A request whose service was cancelled before does not reach the inner service.
///
/// ```
/// use axum::{Router, body::Body, routing::get};
/// use dogtag::Service;
/// use dogtag_tower::{AttributionLayer, CancelLayer};
/// use http::{Request, StatusCode, header::RETRY_AFTER};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// #[global_allocator]
/// static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let endless = async || {
///     let rows = vec![0_u8; 5000];
///     std::future::pending::<()>().await;
///     rows
/// };
/// // A service for each query, with a budget.
/// let by_query = AttributionLayer::by(|request: &Request<_>| {
///     Service::builder(request.uri().path()).cancel_at(1 << 30).register().ok()
/// });
/// let layers = ServiceBuilder::new().layer(by_query).layer(CancelLayer::unavailable());
/// let routes: Router = Router::new().route("/query/{id}", get(endless)).layer(layers);
/// # let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
/// # runtime.block_on(async {
/// let request = tokio::spawn(routes.oneshot(Request::get("/query/17").body(Body::empty())?));
/// # while Service::by_name("/query/17").is_none_or(|query| query.usage().bytes() < 5000) {
/// #     tokio::task::yield_now().await;
/// # }
/// let query = Service::by_name("/query/17").expect("it runs");
/// query.cancel("the operator has enough of it");
///
/// let response = request.await??;
/// assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
/// assert_eq!(response.headers()[RETRY_AFTER], "1");
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct CancelLayer<E = Fail> {
    end: E,
}

/// Ends a cancelled request with an error: [`CancelLayer::new`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Fail {
    _private: (),
}

/// Ends a cancelled request with a response 503: [`CancelLayer::unavailable`].
#[derive(Clone, Copy, Debug)]
pub struct Unavailable {
    /// In seconds.
    retry_after: Option<u32>,
}

impl CancelLayer {
    /// Makes a layer that ends cancelled requests with an error, as tower's own layers do: a boxed one that
    /// is a [`Cancelled`], so `error.downcast_ref::<Cancelled>()` tells it from the others.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl CancelLayer<Unavailable> {
    /// Makes a layer that ends cancelled requests with a response: 503 (Service Unavailable) without a
    /// body, and `Retry-After: 1`. The [`Cancelled`] is among its
    /// [extensions](http::Response::extensions), for layers above that log it or add a body.
    #[must_use]
    pub fn unavailable() -> Self {
        Self { end: Unavailable { retry_after: Some(1) } }
    }

    /// Sets the seconds in `Retry-After`. Without them the header is left out.
    #[must_use]
    pub fn retry_after(mut self, seconds: Option<u32>) -> Self {
        self.end.retry_after = seconds;
        self
    }
}

impl<S, E: Clone> tower_layer::Layer<S> for CancelLayer<E> {
    type Service = Cancel<S, E>;

    fn layer(&self, inner: S) -> Cancel<S, E> {
        Cancel { inner, end: self.end.clone() }
    }
}

/// Ends the requests of an inner service when their services of dogtag's are cancelled: what
/// [`CancelLayer`] makes.
#[derive(Clone, Copy, Debug)]
pub struct Cancel<S, E = Fail> {
    inner: S,
    end: E,
}

has_inner!(Cancel<S, E>);

impl<S, A, B, E> tower_service::Service<Request<A>> for Cancel<S, E>
where
    S: tower_service::Service<Request<A>, Response = Response<B>>,
    E: End<S::Error> + Clone,
{
    type Response = Response<CancelBody<B>>;
    type Error = E::Error;
    type Future = CancelFuture<S::Future, E>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(|error| self.end.error(error))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let service = Service::current();
        let future = if service.is_cancelled() {
            Where::Late { cancelled: service.cancelled() }
        } else {
            Where::Inner { future: self.inner.call(request).in_service(&service).or_cancelled() }
        };
        CancelFuture { future, end: self.end.clone() }
    }
}

pin_project! {
    /// Polls the future of a request until its service is cancelled: what [`Cancel`] returns.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct CancelFuture<F, E> {
        #[pin]
        future: Where<F>,
        end: E,
    }
}

pin_project! {
    #[project = WhereProjected]
    #[derive(Debug)]
    enum Where<F> {
        Inner { #[pin] future: OrCancelled<F> },
        Late { cancelled: UntilCancelled },
    }
}

impl<F, B, S, E> Future for CancelFuture<F, E>
where
    F: Future<Output = Result<Response<B>, S>>,
    E: End<S>,
{
    type Output = Result<Response<CancelBody<B>>, E::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let cancelled = match this.future.project() {
            WhereProjected::Inner { mut future } => match ready!(future.as_mut().poll(context)) {
                Ok(Ok(response)) => {
                    let service = future.service();
                    return Poll::Ready(Ok(response.map(|body| CancelBody::new(body, service))));
                }
                Ok(Err(error)) => return Poll::Ready(Err(this.end.error(error))),
                Err(cancelled) => cancelled,
            },
            WhereProjected::Late { cancelled } => ready!(Pin::new(cancelled).poll(context)),
        };
        Poll::Ready(this.end.end(cancelled))
    }
}

/// The error, which is not the cancelled service's: that has let go of everything.
fn boxed(cancelled: Cancelled) -> BoxError {
    unattributed(|| cancelled.into())
}

/// How a cancelled request ends: as [`Fail`] or as [`Unavailable`]. Not for other types.
pub trait End<S>: sealed::Sealed {
    /// The errors of the service.
    type Error;

    /// An error of the inner service.
    #[doc(hidden)]
    fn error(&self, error: S) -> Self::Error;

    /// The end of a cancelled request.
    #[doc(hidden)]
    fn end<B>(&self, cancelled: Cancelled) -> Result<Response<CancelBody<B>>, Self::Error>;
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for super::Fail {}

    impl Sealed for super::Unavailable {}
}

impl<S: Into<BoxError>> End<S> for Fail {
    type Error = BoxError;

    fn error(&self, error: S) -> BoxError {
        error.into()
    }

    fn end<B>(&self, cancelled: Cancelled) -> Result<Response<CancelBody<B>>, BoxError> {
        Err(boxed(cancelled))
    }
}

impl<S> End<S> for Unavailable {
    type Error = S;

    fn error(&self, error: S) -> S {
        error
    }

    fn end<B>(&self, cancelled: Cancelled) -> Result<Response<CancelBody<B>>, S> {
        let mut response = Response::new(CancelBody { body: None, cancelled: None });
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        if let Some(seconds) = self.retry_after {
            unattributed(|| response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds)));
        }
        unattributed(|| response.extensions_mut().insert(cancelled));
        Ok(response)
    }
}

pin_project! {
    /// A response's body that ends with an error once its request's service is cancelled: its error is a
    /// [`Cancelled`] then. What is left of the body is dropped.
    #[derive(Debug)]
    pub struct CancelBody<B> {
        // Empty once it is given up.
        #[pin]
        body: Option<AttributedBody<B>>,
        // None when nobody has to wait for that any more.
        cancelled: Option<UntilCancelled>,
    }
}

impl<B> CancelBody<B> {
    fn new(body: B, service: &Service) -> Self {
        Self {
            body: Some(AttributedBody::new(body, Some(service.clone()))),
            cancelled: Some(service.cancelled()),
        }
    }
}

impl<B: Default> Default for CancelBody<B> {
    fn default() -> Self {
        Self { body: Some(AttributedBody::default()), cancelled: None }
    }
}

impl<B> Body for CancelBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        if let Some(cancelled) = this.cancelled
            && let Poll::Ready(cancelled) = Pin::new(cancelled).poll(context)
        {
            this.body.set(None);
            *this.cancelled = None;
            return Poll::Ready(Some(Err(boxed(cancelled))));
        }
        let Some(body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let frame = ready!(body.poll_frame(context));
        if frame.is_none() {
            *this.cancelled = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

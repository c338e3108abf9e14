//! The layer, and the service that it makes of another one.

#[cfg(feature = "axum")]
use crate::Route;
use crate::{AttributedBody, Names, ResponseFuture};
use crate::{Choose, Named, PathSegment};
use dogtag::__private::{call, discard, service::unattributed};
use dogtag::Service;
use http::{Request, Response};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Runs each request in a service: a [`Layer`](tower_layer::Layer) for stacks of tower, and for axum's
/// routers.
///
/// ```
/// use dogtag_tower::AttributionLayer;
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// type Body = Full<bytes::Bytes>;
///
/// let stack = ServiceBuilder::new()
///     .layer(AttributionLayer::by_path_segment(0))
///     .service(service_fn(async |_: Request<Body>| Ok::<_, std::convert::Infallible>(Response::new(Body::from(vec![7; 5000])))));
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let response = stack.oneshot(Request::get("/orders/17").body(Body::default())?).await?;
/// let orders = dogtag::Service::by_name("orders").expect("the request has registered it");
/// assert!(orders.usage().bytes() >= 5000);
/// # drop(response);
/// # Ok(())
/// # })
/// # }
/// ```
///
/// A closure that panics chooses no service, and the request goes on: the panic ends in the layer, after
/// the panic hook has reported it. What the closure itself allocates belongs to the service `unattributed`.
///
/// A request for which no service is chosen runs in that of the caller, if the caller is in one.
pub struct AttributionLayer<C> {
    choose: Arc<C>,
}

impl<F> AttributionLayer<F> {
    /// Makes a layer that runs each request in the service that `choose` returns, if any.
    ///
    /// For a service of each tenant, keep the services that are in use, and let those end that are not:
    ///
    /// ```
    /// use dogtag::Service;
    /// use dogtag_tower::AttributionLayer;
    /// use http::Request;
    ///
    /// let layer = AttributionLayer::by(|request: &Request<String>| {
    ///     let tenant = request.headers().get("x-tenant")?.to_str().ok()?;
    ///     Service::by_name(tenant)                // One that was registered when the tenant was made known.
    /// });
    /// # drop(layer);
    /// ```
    #[must_use]
    pub fn by<B>(choose: F) -> Self
    where
        F: Fn(&Request<B>) -> Option<Service>,
    {
        Self::of(choose)
    }
}

impl<F> AttributionLayer<Named<F>> {
    /// Makes a layer that runs each request in the service with the name that `name` returns, which it registers
    /// when it sees the name first, and keeps. An empty name is none.
    ///
    /// ```
    /// use dogtag_tower::AttributionLayer;
    /// use http::Request;
    ///
    /// let layer = AttributionLayer::by_name(|request: &Request<String>| {
    ///     Some(request.uri().host()?.into())
    /// });
    /// # drop(layer);
    /// ```
    #[must_use]
    pub fn by_name<B>(name: F) -> Self
    where
        F: for<'a> Fn(&'a Request<B>) -> Option<Cow<'a, str>>,
    {
        Self::of(Named::new(name))
    }
}

impl AttributionLayer<Named<PathSegment>> {
    /// Makes a layer that runs each request in the service named as one segment of its path: 0 is the first one,
    /// `orders` of `/orders/17`. A path that has no such segment chooses none.
    ///
    /// Anybody can ask for any path, so the first names may be a stranger's. Where a router knows its routes,
    /// go by these.
    #[must_use]
    pub fn by_path_segment(number: usize) -> Self {
        Self::of(Named::new(PathSegment { number }))
    }
}

#[cfg(feature = "axum")]
impl AttributionLayer<Named<Route>> {
    /// Makes a layer that runs each request in the service named as its method and the route that axum's router
    /// has found for it, such as `GET /orders/{id}`. For `Router::layer`, below which the route is
    /// known. A request without a route chooses none.
    ///
    /// ```
    /// use axum::{Router, body::Body, routing::get};
    /// use dogtag_tower::AttributionLayer;
    /// use http::Request;
    /// use tower::ServiceExt;
    ///
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let routes: Router =
    ///     Router::new().route("/orders/{id}", get(async || vec![7; 5000])).layer(AttributionLayer::by_route());
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let response = routes.oneshot(Request::get("/orders/17").body(Body::empty())?).await?;
    /// let orders = dogtag::Service::by_name("GET /orders/{id}").expect("the request has registered it");
    /// assert!(orders.usage().bytes() >= 5000);
    /// # drop(response);
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    #[must_use]
    pub fn by_route() -> Self {
        Self::of(Named::new(Route::NEW))
    }
}

impl<N> AttributionLayer<Named<N>> {
    /// Sets which names become services: before the layer is used, since it begins anew.
    #[must_use]
    pub fn names(self, names: Names) -> Self {
        Self::of(self.choose.with(names))
    }
}

impl<C> AttributionLayer<C> {
    fn of(choose: C) -> Self {
        Self { choose: Arc::new(choose) }
    }
}

impl<C> Clone for AttributionLayer<C> {
    fn clone(&self) -> Self {
        Self { choose: Arc::clone(&self.choose) }
    }
}

impl<C> fmt::Debug for AttributionLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttributionLayer").finish_non_exhaustive()
    }
}

impl<S, C> tower_layer::Layer<S> for AttributionLayer<C> {
    type Service = Attribution<S, C>;

    fn layer(&self, inner: S) -> Attribution<S, C> {
        Attribution { inner, choose: Arc::clone(&self.choose) }
    }
}

/// Runs the requests of an inner service in services of dogtag's: what [`AttributionLayer`] makes.
pub struct Attribution<S, C> {
    inner: S,
    choose: Arc<C>,
}

has_inner!(Attribution<S, C>);

impl<S: Clone, C> Clone for Attribution<S, C> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), choose: Arc::clone(&self.choose) }
    }
}

impl<S: fmt::Debug, C> fmt::Debug for Attribution<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attribution").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, C, A, B> tower_service::Service<Request<A>> for Attribution<S, C>
where
    S: tower_service::Service<Request<A>, Response = Response<B>>,
    C: Choose<A>,
{
    type Response = Response<AttributedBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let chosen = unattributed(|| {
            call(|| self.choose.choose(&request)).unwrap_or_else(|payload| {
                discard(payload);
                None
            })
        });
        let future = match &chosen {
            Some(service) => service.run(|| self.inner.call(request)),
            None => self.inner.call(request),
        };
        ResponseFuture::new(future, chosen.as_ref())
    }
}

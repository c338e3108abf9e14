//! The ways in which a request's service is chosen.

use crate::Names;
use crate::names::Known;
use dogtag::Service;
#[cfg(feature = "axum")]
use http::Method;
use http::Request;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Chooses the service that a request runs in; implemented for closures.
pub trait Choose<B> {
    /// Returns the request's service, or `None` to leave it where its caller is.
    fn choose(&self, request: &Request<B>) -> Option<Service>;
}

impl<B, F: Fn(&Request<B>) -> Option<Service>> Choose<B> for F {
    fn choose(&self, request: &Request<B>) -> Option<Service> {
        self(request)
    }
}

/// Chooses the name of the service that a request runs in; implemented for closures.
pub trait ChooseName<B> {
    /// Returns the name of the request's service, or `None` to leave it where its caller is.
    fn choose_name<'a>(&self, request: &'a Request<B>) -> Option<Cow<'a, str>>;
}

impl<B, F: for<'a> Fn(&'a Request<B>) -> Option<Cow<'a, str>>> ChooseName<B> for F {
    fn choose_name<'a>(&self, request: &'a Request<B>) -> Option<Cow<'a, str>> {
        self(request)
    }
}

/// Chooses services by their names, a bounded number of them ([`Names`]).
pub struct Named<N> {
    by: Arc<N>,
    known: Known,
}

impl<N> Named<N> {
    pub(crate) fn new(by: N) -> Self {
        Self { by: Arc::new(by), known: Known::new(Names::new()) }
    }

    pub(crate) fn with(&self, names: Names) -> Self {
        Self { by: Arc::clone(&self.by), known: Known::new(names) }
    }
}

impl<B, N: ChooseName<B>> Choose<B> for Named<N> {
    fn choose(&self, request: &Request<B>) -> Option<Service> {
        self.known.service(&self.by.choose_name(request)?)
    }
}

impl<N> fmt::Debug for Named<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Named").field("known", &self.known).finish_non_exhaustive()
    }
}

/// Names services as a segment of the path.
#[derive(Clone, Copy, Debug)]
pub struct PathSegment {
    pub(crate) number: usize,
}

impl<B> ChooseName<B> for PathSegment {
    fn choose_name<'a>(&self, request: &'a Request<B>) -> Option<Cow<'a, str>> {
        let path = request.uri().path();
        Some(path.strip_prefix('/').unwrap_or(path).split('/').nth(self.number)?.into())
    }
}

/// Names services as the method and the route that axum has found.
#[cfg(feature = "axum")]
#[derive(Clone, Copy, Debug)]
pub struct Route {
    _private: (),
}

#[cfg(feature = "axum")]
impl Route {
    pub(crate) const NEW: Self = Self { _private: () };
}

#[cfg(feature = "axum")]
impl<B> ChooseName<B> for Route {
    fn choose_name<'a>(&self, request: &'a Request<B>) -> Option<Cow<'a, str>> {
        let route = request.extensions().get::<axum::extract::MatchedPath>()?;
        Some(format!("{} {}", method(request.method()), route.as_str()).into())
    }
}

/// The method, if HTTP knows it. Strangers may send any other word.
#[cfg(feature = "axum")]
fn method(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::CONNECT,
        Method::PATCH,
        Method::TRACE,
    ];
    if known.contains(method) { method.as_str() } else { "(other)" }
}

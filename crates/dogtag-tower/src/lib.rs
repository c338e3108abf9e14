//! Runs each HTTP request of a [`tower`](https://docs.rs/tower) stack in a service of
//! [dogtag](https://docs.rs/dogtag), an allocator that knows which service owns every byte. For axum, tonic, hyper and whatever
//! else speaks tower and `http` 1.
//!
//! ```
//! use axum::{Router, body::Body, routing::get};
//! use dogtag::Service;
//! use dogtag_tower::AttributionLayer;
//! use http::Request;
//! use tower::ServiceExt;
//!
//! #[global_allocator]
//! static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let search = Service::register("search")?;
//! let chosen = search.clone();
//! let routes: Router = Router::new()
//!     .route("/search", get(async || vec![b'x'; 5000]))
//!     .layer(AttributionLayer::by(move |request: &Request<_>| {
//!         (request.uri().path() == "/search").then(|| chosen.clone())
//!     }));
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let response = routes.oneshot(Request::get("/search").body(Body::empty())?).await?;
//! assert!(search.usage().bytes() >= 5000);
//! # drop(response);
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! # How a service is chosen
//!
//! | | the service |
//! | --- | --- |
//! | [`AttributionLayer::by`] | the one that a closure returns: of a route, a method, a tenant |
//! | [`by_name`](AttributionLayer::by_name) | the one with the name that a closure returns |
//! | [`by_path_segment`](AttributionLayer::by_path_segment) | named as a segment of the path |
#![cfg_attr(
    feature = "axum",
    doc = "| [`by_route`](AttributionLayer::by_route) | named as the method and the route of axum |"
)]
#![cfg_attr(
    not(feature = "axum"),
    doc = "| `by_route` (feature `axum`) | named as the method and the route of axum |"
)]
//!
//! Names come from strangers, so their number is bounded: [`Names`] says how.
//!
//! # What runs in it
//!
//! The inner service's `call`; each poll of its future, and its drop, so a request that is cancelled,
//! too; and the response's body, a streamed one too, at each poll and when it is dropped. The request's body
//! belongs to the inner service, and is read in these calls. A body that goes to another task goes there in an
//! [`AttributedBody`], and a task that a handler spawns in
//! [`in_service`](dogtag::InServiceExt::in_service).
//!
//! # Requests that take too much
//!
//! With the feature `guard`, `CancelLayer` ends the request whose service is cancelled, and no other one: by the
//! program, by a budget ([`ServiceBuilder::cancel_at`](dogtag::ServiceBuilder)), or by the guard at the process's
//! ceiling. It ends with an error, or with a response 503; a body that is on its way, with an error of the body.
//!
//! # What does not
//!
//! What the HTTP library itself allocates for a connection (its buffers, the headers) is not the request's: it is there before
//! the request is, and stays for the next one. `poll_ready` is asked before there is a request, and changes no
//! service.

#![deny(missing_docs, missing_debug_implementations)]

#[macro_use]
mod inner;

mod body;
#[cfg(feature = "guard")]
mod cancel;
mod choose;
mod future;
mod layer;
mod names;

pub use body::AttributedBody;
#[cfg(feature = "guard")]
pub use cancel::{Cancel, CancelBody, CancelFuture, CancelLayer, End, Fail, Unavailable};
#[cfg(feature = "axum")]
pub use choose::Route;
pub use choose::{Choose, ChooseName, Named, PathSegment};
pub use future::ResponseFuture;
pub use layer::{Attribution, AttributionLayer};
pub use names::Names;

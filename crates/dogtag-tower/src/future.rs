//! The future of a request.

use crate::AttributedBody;
use dogtag::{InService, InServiceExt, Service};
use http::Response;
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

pin_project! {
    /// Polls the future of a request, and drops it, in the request's service, and puts the body of its response
    /// into that: what [`Attribution`](crate::Attribution) returns.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        future: Where<F>,
    }
}

pin_project! {
    #[project = WhereProjected]
    #[derive(Debug)]
    enum Where<F> {
        InService { #[pin] future: InService<F> },
        Anywhere { #[pin] future: F },
    }
}

impl<F: Future> ResponseFuture<F> {
    pub(crate) fn new(future: F, service: Option<&Service>) -> Self {
        Self {
            future: match service {
                Some(service) => Where::InService { future: future.in_service(service) },
                None => Where::Anywhere { future },
            },
        }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<AttributedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, service) = match self.project().future.project() {
            WhereProjected::InService { mut future } => {
                let response = ready!(future.as_mut().poll(context));
                (response, Some(future.service().clone()))
            }
            WhereProjected::Anywhere { future } => (ready!(future.poll(context)), None),
        };
        Poll::Ready(response.map(|response| response.map(|body| AttributedBody::new(body, service))))
    }
}

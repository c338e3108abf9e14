//! Futures that learn of it when a service is cancelled.

use super::cancel::Cancelled;
use super::cancellations;
use super::future::InService;
use super::handle::Service;
use super::waiters::Waiter;
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

impl Service {
    /// Returns a future that is ready once this service is cancelled, and says why: for `select!`, and
    /// for whatever else waits on behalf of a service and is no future in it.
    ///
    /// It keeps the service from ending, as a clone does.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let query = Service::register("query-24")?;
    /// let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    /// let task = runtime.spawn(query.cancelled());
    /// query.cancel("the client is gone");
    /// assert_eq!(runtime.block_on(task)?.reason.to_string(), "the client is gone");
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancelled(&self) -> UntilCancelled {
        UntilCancelled { waiter: None, service: self.clone() }
    }
}

/// A future that is ready once a service is cancelled: [`Service::cancelled`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct UntilCancelled {
    // Dropped before the service.
    waiter: Option<Waiter>,
    service: Service,
}

impl UntilCancelled {
    /// Returns the service that may be cancelled.
    pub fn service(&self) -> &Service {
        &self.service
    }
}

impl Future for UntilCancelled {
    type Output = Cancelled;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Cancelled> {
        let Self { waiter, service } = &mut *self;
        if !service.is_cancelled() {
            waiter.get_or_insert_with(|| Waiter::new(service)).register(context.waker());
        }
        // Again: it may have been cancelled before there was somebody to wake.
        match service.check() {
            Ok(()) => Poll::Pending,
            Err(cancelled) => {
                *waiter = None;
                Poll::Ready(cancelled)
            }
        }
    }
}

impl<F: Future> InService<F> {
    /// Gives the future up once its service is cancelled: it is dropped, and [`Cancelled`] returned.
    ///
    /// The task is woken wherever it waits, on any executor. What the future holds is freed within the
    /// poll that returns the error. A future that is ready in the same poll still returns its result.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// use dogtag::{InServiceExt, Service};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let query = Service::register("query-22")?;
    /// let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    /// let endless = async {
    ///     let rows = vec![0_u8; 5000];
    ///     std::future::pending::<()>().await;
    ///     rows
    /// };
    /// let task = runtime.spawn(endless.in_service(&query).or_cancelled());
    /// query.cancel("the client is gone");
    /// let cancelled = runtime.block_on(task)?.unwrap_err();
    /// assert_eq!(cancelled.service, "query-22");
    /// assert_eq!(query.usage().bytes(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn or_cancelled(self) -> OrCancelled<F> {
        let cancelled = self.service().cancelled();
        OrCancelled { inner: Some(self), cancelled }
    }
}

pin_project! {
    /// A future that is given up once its service is cancelled: [`or_cancelled`](InService::or_cancelled).
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct OrCancelled<F> {
        // Empty once it is ready or given up.
        #[pin]
        inner: Option<InService<F>>,
        cancelled: UntilCancelled,
    }
}

impl<F> OrCancelled<F> {
    /// Returns the service that the future runs in.
    pub fn service(&self) -> &Service {
        self.cancelled.service()
    }
}

impl<F: Future> Future for OrCancelled<F> {
    type Output = Result<F::Output, Cancelled>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(cancelled) = Pin::new(&mut *this.cancelled).poll(context) {
            this.inner.set(None);
            cancellations::look_at(this.cancelled.service().record());
            return Poll::Ready(Err(cancelled));
        }
        let Some(inner) = this.inner.as_mut().as_pin_mut() else { return Poll::Pending };
        let ready = ready!(inner.poll(context));
        this.inner.set(None);
        this.cancelled.waiter = None;
        Poll::Ready(Ok(ready))
    }
}

//! Futures and streams that run in a service, wherever they are polled.

use super::handle::Service;
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

pin_project! {
    /// Polls a future or a stream, and drops it, in a service: [`in_service`](InServiceExt::in_service).
    ///
    /// It is a [`Future`] of what is one, and, with the feature `stream`, a `Stream` of what is one.
    #[derive(Debug)]
    #[must_use = "futures and streams do nothing unless polled"]
    pub struct InService<F> {
        // Empty only while it is being dropped.
        #[pin]
        inner: Option<F>,
        service: Service,
    }

    impl<F> PinnedDrop for InService<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _scope = this.service.enter();
            this.inner.set(None);
        }
    }
}

/// Puts futures and streams into services; implemented for every type, as `tracing`'s `Instrument` is.
///
/// (For closures there are [`Service::run`] and [`Service::wrap`].)
pub trait InServiceExt: Sized {
    /// Runs every poll of this future or stream, on whichever thread, and its drop in the service.
    /// Between polls the thread is in the service that it was in before.
    ///
    /// Futures nest: the innermost service owns what is allocated in it.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// use dogtag::{InServiceExt, Service};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let search = Service::register("search")?;
    /// let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    /// let task = async {
    ///     tokio::task::yield_now().await;
    ///     vec![0_u8; 5000]
    /// };
    /// let results = runtime.block_on(runtime.spawn(task.in_service(&search)))?;
    /// assert!(search.usage().bytes() >= 5000);
    /// # drop(results);
    /// # Ok(())
    /// # }
    /// ```
    fn in_service(self, service: &Service) -> InService<Self> {
        InService { inner: Some(self), service: service.clone() }
    }

    /// Runs every poll of this future or stream, on whichever thread, and its drop in the service that
    /// is current now. So code that spawns a task hands its service on to it, without knowing which one
    /// that is.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// use dogtag::{InServiceExt, Service};
    ///
    /// /// Of a library that knows of no services.
    /// async fn load() -> Vec<u8> {
    ///     let rows = async { vec![0_u8; 5000] };
    ///     tokio::spawn(rows.in_current_service()).await.unwrap()
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let search = Service::register("search")?;
    /// let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    /// let rows = runtime.block_on(load().in_service(&search));
    /// assert!(search.usage().bytes() >= 5000);
    /// # drop(rows);
    /// # Ok(())
    /// # }
    /// ```
    fn in_current_service(self) -> InService<Self> {
        InService { inner: Some(self), service: Service::current() }
    }
}

impl<F> InServiceExt for F {}

impl<F> InService<F> {
    /// Returns the service that the future or stream runs in.
    pub fn service(&self) -> &Service {
        &self.service
    }
}

impl<F: Future> Future for InService<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _scope = this.service.enter();
        match this.inner.as_pin_mut() {
            Some(future) => future.poll(context),
            None => Poll::Pending,
        }
    }
}

/// Polls the stream in the service.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// use dogtag::{InServiceExt, Service};
/// use futures_core::Stream;
/// use std::pin::{Pin, pin};
/// use std::task::{Context, Poll, Waker};
///
/// /// A stream of rows, as a database's driver has it.
/// struct Rows(usize);
///
/// impl Stream for Rows {
///     type Item = Vec<u8>;
///
///     fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
///         self.0 += 1;
///         Poll::Ready((self.0 <= 3).then(|| vec![0; 1000]))
///     }
/// }
///
/// # fn main() -> Result<(), dogtag::RegisterError> {
/// let query = Service::register("query")?;
/// let mut rows = pin!(Rows(0).in_service(&query));
/// let mut context = Context::from_waker(Waker::noop());
/// while let Poll::Ready(Some(row)) = rows.as_mut().poll_next(&mut context) {
///     assert_eq!(query.usage().bytes(), 1000);
///     drop(row);
/// }
/// assert_eq!(query.usage().allocated_bytes, 3000);
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "stream")]
impl<S: futures_core::Stream> futures_core::Stream for InService<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let _scope = this.service.enter();
        match this.inner.as_pin_mut() {
            Some(stream) => stream.poll_next(context),
            None => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.as_ref().map_or((0, Some(0)), futures_core::Stream::size_hint)
    }
}

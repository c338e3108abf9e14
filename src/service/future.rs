//! Futures that run in a service, wherever they are polled.

use super::handle::Service;
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

pin_project! {
    /// Polls a future, and drops it, in a service: [`in_service`](InServiceExt::in_service).
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct InService<F> {
        // Empty only while it is being dropped.
        #[pin]
        future: Option<F>,
        service: Service,
    }

    impl<F> PinnedDrop for InService<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _scope = this.service.enter();
            this.future.set(None);
        }
    }
}

/// Puts futures into services; implemented for every [`Future`].
pub trait InServiceExt: Future + Sized {
    /// Runs every poll of this future, on whichever thread, and its drop in the service. Between polls
    /// the thread is in the service that it was in before.
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
        InService { future: Some(self), service: service.clone() }
    }
}

impl<F: Future> InServiceExt for F {}

impl<F> InService<F> {
    /// Returns the service that the future runs in.
    pub fn service(&self) -> &Service {
        &self.service
    }
}

impl<F: Future> Future for InService<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _scope = this.service.enter();
        match this.future.as_pin_mut() {
            Some(future) => future.poll(context),
            None => Poll::Pending,
        }
    }
}

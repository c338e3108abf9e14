//! Closures that run in a service, wherever they are called.

use super::handle::Service;

impl Service {
    /// Wraps a closure, for somebody else to call: a pool's thread, say. It runs in this service, on
    /// whichever thread, and is dropped in it, called or not.
    ///
    /// `Service::current().wrap(job)` hands on the service of the code that gives the job away. For a
    /// closure that takes arguments or is called more than once, [`run`](Self::run) its body instead:
    /// `move |item| service.run(|| ...)`.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// use dogtag::Service;
    /// use std::sync::mpsc::sync_channel;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // Anybody's pool of threads: jobs go through a channel.
    /// let (give, jobs) = sync_channel::<Box<dyn FnOnce() + Send>>(8);
    /// let worker = std::thread::spawn(move || jobs.into_iter().for_each(|job| job()));
    ///
    /// let index = Service::register("index")?;
    /// let (send, tables) = sync_channel(1);
    /// index.run(|| {
    ///     let job = move || send.send(vec![0_u8; 5000]).expect("somebody waits for it");
    ///     give.send(Box::new(Service::current().wrap(job))).expect("the worker is there");
    /// });
    /// let table = tables.recv()?;
    /// assert!(index.usage().bytes() >= 5000);
    /// # drop((give, table));
    /// # worker.join().unwrap();
    /// # Ok(())
    /// # }
    /// ```
    pub fn wrap<F, R>(&self, work: F) -> impl FnOnce() -> R + use<F, R>
    where
        F: FnOnce() -> R,
    {
        let wrapped = Wrapped { work: Some(work), service: self.clone() };
        move || wrapped.run()
    }
}

struct Wrapped<F> {
    /// There until it is called.
    work: Option<F>,
    service: Service,
}

impl<F> Wrapped<F> {
    fn run<R>(mut self) -> R
    where
        F: FnOnce() -> R,
    {
        let Some(work) = self.work.take() else { unreachable!("a closure that can be called once was") };
        self.service.run(work)
    }
}

impl<F> Drop for Wrapped<F> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.service.run(|| drop(work));
        }
    }
}

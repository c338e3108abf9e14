//! Threads that work for the service of the code that begins them, or for services named after them.
//!
//! The functions and types here are as those of [`std::thread`], and return its types. But a new
//! thread does not begin in no service: it is in the one that the caller's scope is of. The service
//! also owns what the standard library keeps of the thread (its name, the place for its result), and
//! what destructors of thread-locals allocate when it ends. Where the caller is in no scope, the thread
//! is one of the standard library's.
//!
//! [`services_by_name`] makes all other threads work for services named after them, outside of scopes.
//!
//! ```
//! # #[global_allocator]
//! # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//! use dogtag::{Service, thread};
//!
//! # fn main() -> Result<(), dogtag::RegisterError> {
//! let index = Service::register("index")?;
//! let builder = index.run(|| thread::spawn(|| vec![0_u8; 1 << 20]));
//! let table = builder.join().expect("it does not panic");
//! assert!(index.usage().bytes() >= 1 << 20);
//! # drop(table);
//! # Ok(())
//! # }
//! ```

use crate::ledger::thread as own;
use crate::service::Service;
use std::io;
use std::ptr;
use std::thread::{self, JoinHandle, ScopedJoinHandle};

pub use crate::service::services_by_name;

/// Spawns a thread that works for the service of the caller's scope. Otherwise it is
/// [`std::thread::spawn`].
///
/// # Panics
///
/// If the system has no thread to give; [`Builder::spawn`] returns an error instead.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// use dogtag::{Service, thread};
///
/// # fn main() -> Result<(), dogtag::RegisterError> {
/// let index = Service::register("index")?;
/// let thread = index.run(|| thread::spawn(Service::current));
/// assert_eq!(thread.join().unwrap(), index);
/// # Ok(())
/// # }
/// ```
pub fn spawn<F, T>(work: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    thread::spawn(handed_on(work))
}

/// Configures a thread that works for the service of the scope in which it is spawned. Otherwise it is
/// [`std::thread::Builder`].
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// use dogtag::{Service, thread::Builder};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let index = Service::register("index")?;
/// let builder = Builder::new().name("indexer".to_owned()).stack_size(256 << 10);
/// let thread = index.run(|| builder.spawn(Service::current))?;
/// assert_eq!(thread.thread().name(), Some("indexer"));
/// assert_eq!(thread.join().unwrap(), index);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "no thread is there before `spawn`"]
pub struct Builder(thread::Builder);

impl Builder {
    /// Begins to configure a thread: without a name, and with a stack of the default size.
    #[allow(clippy::new_without_default, reason = "as in the standard library")]
    pub fn new() -> Self {
        Self(thread::Builder::new())
    }

    /// Names the thread: [`std::thread::Builder::name`].
    pub fn name(self, name: String) -> Self {
        Self(self.0.name(name))
    }

    /// Sets the size of the thread's stack, in bytes: [`std::thread::Builder::stack_size`].
    pub fn stack_size(self, size: usize) -> Self {
        Self(self.0.stack_size(size))
    }

    /// Spawns the thread: [`std::thread::Builder::spawn`].
    ///
    /// # Errors
    ///
    /// The system's, if it has no thread to give.
    pub fn spawn<F, T>(self, work: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.0.spawn(handed_on(work))
    }

    /// Spawns the thread in a [`scope`], which waits for it: [`std::thread::Builder::spawn_scoped`].
    ///
    /// # Errors
    ///
    /// The system's, if it has no thread to give.
    pub fn spawn_scoped<'scope, F, T>(
        self,
        scope: &'scope Scope<'scope, '_>,
        work: F,
    ) -> io::Result<ScopedJoinHandle<'scope, T>>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        self.0.spawn_scoped(&scope.0, handed_on(work))
    }
}

/// Spawns threads that may borrow, and waits for them. Each works for the service of the scope in which
/// it is spawned. Otherwise it is [`std::thread::scope`].
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// use dogtag::{Service, thread};
///
/// # fn main() -> Result<(), dogtag::RegisterError> {
/// let index = Service::register("index")?;
/// let words = ["one", "two", "three"];
/// let lines = index.run(|| {
///     thread::scope(|threads| {
///         let lines = threads.spawn(|| words.join("\n").into_boxed_str());
///         lines.join().unwrap()
///     })
/// });
/// let live = index.usage().bytes();
/// drop(lines);
/// assert_eq!(live - index.usage().bytes(), 13);
/// # Ok(())
/// # }
/// ```
pub fn scope<'env, F, T>(work: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    thread::scope(|scope| work(Scope::of(scope)))
}

/// Spawns threads that may borrow: the argument of [`scope`].
#[derive(Debug)]
#[repr(transparent)]
pub struct Scope<'scope, 'env: 'scope>(thread::Scope<'scope, 'env>);

impl<'scope, 'env> Scope<'scope, 'env> {
    fn of(scope: &'scope thread::Scope<'scope, 'env>) -> &'scope Self {
        // SAFETY: a `Scope` is a `std::thread::Scope` and nothing else (`repr(transparent)`), with the
        // same lifetimes.
        unsafe { &*ptr::from_ref(scope).cast::<Self>() }
    }

    /// Spawns a thread: [`std::thread::Scope::spawn`].
    ///
    /// # Panics
    ///
    /// If the system has no thread to give; [`Builder::spawn_scoped`] returns an error instead.
    pub fn spawn<F, T>(&'scope self, work: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        self.0.spawn(handed_on(work))
    }
}

/// What a new thread runs: `work`, in the service of the caller's scope.
fn handed_on<F, T>(work: F) -> impl FnOnce() -> T + use<F, T>
where
    F: FnOnce() -> T,
{
    let service = own::is_in_scope().then(Service::current);
    move || match service {
        Some(service) => {
            // For destructors of thread-locals, which run after the scope.
            own::give(service.record());
            service.run(work)
        }
        None => work(),
    }
}

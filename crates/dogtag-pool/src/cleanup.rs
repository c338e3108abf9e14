//! Cleanups: closures that run when a pool is cleared.

use crate::error::PoolError;
use crate::failure::or_panic;
use crate::node::Node;
use crate::pool::Pool;
use crate::records::{Act, Record, Records, Task};
use std::fmt;
use std::ptr::NonNull;

/// A registered cleanup, made by [`Pool::cleanup`] and [`Pool::pre_cleanup`].
///
/// It can be [cancelled](Self::cancel), or [run](Self::run) now. Otherwise it runs when the pool is
/// cleared or destroyed; dropping this handle does not change that.
///
/// A cleanup that is cancelled or run returns its memory to the pool if nothing was allocated since.
#[must_use = "to drop it does not cancel the cleanup; say so with `let _ =`"]
pub struct Cleanup<'pool> {
    node: &'pool Node,
    list: &'pool Records,
    record: NonNull<Record>,
}

impl Cleanup<'_> {
    /// Takes the cleanup out of the pool, and drops it without running it (APR:
    /// `apr_pool_cleanup_kill`, which takes it from both lists). Takes constant time.
    ///
    /// # Panics
    ///
    /// If dropping what the closure has captured panics.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let pool = Pool::new();
    /// let delete = pool.cleanup(|| unreachable!("the file is to stay"));
    /// delete.cancel();
    /// ```
    pub fn cancel(self) {
        self.act(Act::Forget);
    }

    /// Takes the cleanup out of the pool, and runs it (APR: `apr_pool_cleanup_run`). Takes constant
    /// time, but for what the closure does.
    ///
    /// # Panics
    ///
    /// If the closure panics.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    ///
    /// static RUNS: AtomicU32 = AtomicU32::new(0);
    /// let pool = Pool::new();
    /// let count = pool.cleanup(|| _ = RUNS.fetch_add(1, Ordering::Relaxed));
    /// count.run();
    /// drop(pool);
    /// assert_eq!(RUNS.load(Ordering::Relaxed), 1);
    /// ```
    pub fn run(self) {
        self.act(Act::Run);
    }

    fn act(self, act: Act) {
        // SAFETY: the record is in the list: this handle borrows the pool, so that it cannot have
        // been cleared, and nobody else takes a record out. What the closure uses outlives the
        // pool. Afterwards nobody uses the record's memory, which is the pool's.
        unsafe {
            let layout = self.list.take_out(self.record, act);
            self.node.give_back(self.record.cast(), layout);
        }
    }
}

impl fmt::Debug for Cleanup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cleanup").finish_non_exhaustive()
    }
}

impl<'env> Pool<'env> {
    /// Registers a closure that runs when the pool is cleared or destroyed. Cleanups, and drops of
    /// the pool's values, run in the reverse order of their registration.
    ///
    /// # Panics
    ///
    /// If there is no memory; then the closure is dropped, and not run.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let path = std::env::temp_dir().join(format!("dogtag-{}", std::process::id()));
    /// let pool = Pool::new();
    /// std::fs::write(&path, "for now")?;
    /// let _ = pool.cleanup(|| std::fs::remove_file(&path).expect("it can be removed"));
    /// drop(pool);
    /// assert!(!path.exists());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn cleanup<F: FnOnce() + Send + 'env>(&self, work: F) -> Cleanup<'_> {
        or_panic(self.try_cleanup(work))
    }

    /// Fallible variant of [`cleanup`](Self::cleanup): returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`]. The closure is dropped, and not run.
    pub fn try_cleanup<F: FnOnce() + Send + 'env>(&self, work: F) -> Result<Cleanup<'_>, PoolError> {
        // SAFETY: the list is this pool's; what the closure uses outlives the pool, by its bound.
        unsafe { self.register(&self.node().cleanups, work) }
    }

    /// Registers a closure that runs when the pool is cleared or destroyed, before the pools below it
    /// end.
    ///
    /// # Panics
    ///
    /// If there is no memory; then the closure is dropped, and not run.
    pub fn pre_cleanup<F: FnOnce() + Send + 'env>(&self, work: F) -> Cleanup<'_> {
        or_panic(self.try_pre_cleanup(work))
    }

    /// Fallible variant of [`pre_cleanup`](Self::pre_cleanup): returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`]. The closure is dropped, and not run.
    pub fn try_pre_cleanup<F: FnOnce() + Send + 'env>(&self, work: F) -> Result<Cleanup<'_>, PoolError> {
        // SAFETY: the list is this pool's; what the closure uses outlives the pool, by its bound.
        unsafe { self.register(&self.node().pre_cleanups, work) }
    }

    /// Adds a closure to a list.
    ///
    /// # Safety
    ///
    /// The list must be this pool's, and what the closure uses must live until that is cleared.
    unsafe fn register<'pool, F: FnOnce()>(
        &'pool self,
        list: &'pool Records,
        work: F,
    ) -> Result<Cleanup<'pool>, PoolError> {
        let task = self.try_memory_for::<Task<F>>()?;
        // SAFETY: the memory was allocated for a task, and is the pool's until it is cleared, when
        // the record is taken out.
        unsafe {
            task.write(Task::new(work));
            list.push(task.cast());
        }
        Ok(Cleanup { node: self.node(), list, record: task.cast() })
    }
}

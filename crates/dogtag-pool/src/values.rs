//! Values in a pool.

use crate::error::PoolError;
use crate::memory::{OnFailure, Panics, Returns};
use crate::pool::Pool;
use crate::records::Droppable;
use std::mem;
use std::ptr::NonNull;

#[allow(clippy::mut_from_ref, reason = "each is of its own memory")]
impl<'env> Pool<'env> {
    /// Moves a value into the pool. It is dropped when the pool is cleared, which bumpalo's `alloc`
    /// never does.
    ///
    /// This takes a few instructions for a value that needs no drop. For others there is a record (40
    /// bytes) behind it.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let pool = Pool::new();
    /// let words = pool.alloc(vec!["freed", "with", "the"]);
    /// words.push("pool");
    /// assert_eq!(words.join(" "), "freed with the pool");
    /// ```
    #[inline(always)]
    pub fn alloc<T: Send + 'env>(&self, value: T) -> &mut T {
        self.alloc_with(|| value)
    }

    /// Fallible variant of [`alloc`](Self::alloc): returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`]. The value is dropped;
    /// [`try_alloc_with`](Self::try_alloc_with) makes it only if there is memory for it.
    #[inline(always)]
    pub fn try_alloc<T: Send + 'env>(&self, value: T) -> Result<&mut T, PoolError> {
        self.try_alloc_with(|| value)
    }

    /// Makes a value in place. It is dropped when the pool is cleared, which bumpalo's `alloc_with`
    /// never does.
    ///
    /// # Panics
    ///
    /// If there is no memory, or the closure panics.
    #[inline(always)]
    pub fn alloc_with<T: Send + 'env>(&self, make: impl FnOnce() -> T) -> &mut T {
        // SAFETY: what dropping the value uses outlives the pool, by its bound.
        let Ok(value) = unsafe { self.put::<Panics, _>(make) };
        value
    }

    /// Fallible variant of [`alloc_with`](Self::alloc_with): returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`]; then the closure is not called.
    #[inline(always)]
    pub fn try_alloc_with<T: Send + 'env>(&self, make: impl FnOnce() -> T) -> Result<&mut T, PoolError> {
        // SAFETY: what dropping the value uses outlives the pool, by its bound.
        unsafe { self.put::<Returns, _>(make) }
    }

    /// Moves a value into the pool that needs no drop, so that it may refer to anything, the pool
    /// itself included. A type that needs a drop does not compile.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// struct Node<'pool> {
    ///     value: u32,
    ///     next: Option<&'pool Node<'pool>>,
    /// }
    ///
    /// let pool = Pool::new();
    /// let last = pool.alloc_plain(Node { value: 2, next: None });
    /// let first = pool.alloc_plain(Node { value: 1, next: Some(last) });
    /// assert_eq!(first.value + first.next.map_or(0, |next| next.value), 3);
    /// ```
    #[inline(always)]
    pub fn alloc_plain<T>(&self, value: T) -> &mut T {
        const { assert_no_drop::<T>() };
        // SAFETY: the value is not dropped.
        let Ok(value) = unsafe { self.put::<Panics, _>(|| value) };
        value
    }

    /// Fallible variant of [`alloc_plain`](Self::alloc_plain): returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    #[inline(always)]
    pub fn try_alloc_plain<T>(&self, value: T) -> Result<&mut T, PoolError> {
        const { assert_no_drop::<T>() };
        // SAFETY: the value is not dropped.
        unsafe { self.put::<Returns, _>(|| value) }
    }

    /// Makes a value in the pool, to be dropped when that is cleared if it needs to be.
    ///
    /// # Safety
    ///
    /// All that dropping the value uses must outlive the pool.
    #[inline(always)]
    unsafe fn put<F: OnFailure, T>(&self, make: impl FnOnce() -> T) -> Result<&mut T, F::Error> {
        let value = self.memory_for::<F, T>()?;
        let droppable = if mem::needs_drop::<T>() { Some(self.memory_for::<F, _>()?) } else { None };
        // SAFETY: both were allocated for what is written there, are nobody else's, and are valid
        // until the pool is cleared, when the value is dropped.
        unsafe {
            value.write(make());
            if let Some(droppable) = droppable {
                self.drop_later(droppable, value, 1);
            }
            Ok(&mut *value.as_ptr())
        }
    }

    /// Has values dropped when the pool is cleared.
    ///
    /// # Safety
    ///
    /// `droppable` must be valid for writes, and `len` values must live at `values`, until the pool
    /// is cleared. All that dropping them uses must outlive the pool.
    pub(crate) unsafe fn drop_later<T>(
        &self,
        droppable: NonNull<Droppable<T>>,
        values: NonNull<T>,
        len: usize,
    ) {
        // SAFETY: the record is valid until it is taken out, when the pool is cleared.
        unsafe {
            droppable.write(Droppable::new(values, len));
            self.node().cleanups.push(droppable.cast());
        }
    }
}

const fn assert_no_drop<T>() {
    assert!(!mem::needs_drop::<T>(), "this type needs a drop: `alloc` sees to it");
}

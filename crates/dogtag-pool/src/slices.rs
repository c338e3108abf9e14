//! Slices in a pool.

use crate::error::PoolError;
use crate::failure::or_panic;
use crate::memory::{OnFailure, Panics, Returns};
use crate::pool::Pool;
use std::alloc::Layout;
use std::mem;
use std::ptr::{self, NonNull};
use std::slice;

#[allow(clippy::mut_from_ref, reason = "each is of its own memory")]
impl<'env> Pool<'env> {
    /// Copies a slice into the pool (APR: `apr_pmemdup`).
    ///
    /// # Panics
    ///
    /// If there is no memory.
    ///
    /// ```
    /// let pool = dogtag_pool::Pool::new();
    /// let numbers = pool.alloc_slice_copy(&[3, 1, 2]);
    /// numbers.sort_unstable();
    /// assert_eq!(numbers, [1, 2, 3]);
    /// ```
    #[inline]
    pub fn alloc_slice_copy<T: Copy>(&self, values: &[T]) -> &mut [T] {
        let Ok(copy) = self.copy::<Panics, _>(values);
        copy
    }

    /// Fallible variant of [`alloc_slice_copy`](Self::alloc_slice_copy): returns an error instead of
    /// panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    #[inline]
    pub fn try_alloc_slice_copy<T: Copy>(&self, values: &[T]) -> Result<&mut [T], PoolError> {
        self.copy::<Returns, _>(values)
    }

    /// Clones a slice into the pool. The clones are dropped when the pool is cleared, which bumpalo's
    /// `alloc_slice_clone` never does.
    ///
    /// # Panics
    ///
    /// If there is no memory, or cloning panics; then the clones that were made are dropped.
    pub fn alloc_slice_clone<T: Clone + Send + 'env>(&self, values: &[T]) -> &mut [T] {
        or_panic(self.try_alloc_slice_clone(values))
    }

    /// Fallible variant of [`alloc_slice_clone`](Self::alloc_slice_clone): returns an error instead of
    /// panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`]; then nothing is cloned.
    pub fn try_alloc_slice_clone<T: Clone + Send + 'env>(&self, values: &[T]) -> Result<&mut [T], PoolError> {
        self.try_alloc_slice_fill_with(values.len(), |i| values[i].clone())
    }

    /// Makes a slice of `len` values, each from its index. They are dropped when the pool is cleared,
    /// which bumpalo's `alloc_slice_fill_with` never does.
    ///
    /// # Panics
    ///
    /// If there is no memory, or the closure panics; then the values that were made are dropped.
    ///
    /// ```
    /// let pool = dogtag_pool::Pool::new();
    /// let names = pool.alloc_slice_fill_with(3, |i| format!("worker {i}"));
    /// assert_eq!(names[2], "worker 2");
    /// ```
    pub fn alloc_slice_fill_with<T: Send + 'env>(
        &self,
        len: usize,
        make: impl FnMut(usize) -> T,
    ) -> &mut [T] {
        or_panic(self.try_alloc_slice_fill_with(len, make))
    }

    /// Fallible variant of [`alloc_slice_fill_with`](Self::alloc_slice_fill_with): returns an error
    /// instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`] and [`PoolError::TooLarge`]; then nothing is made.
    pub fn try_alloc_slice_fill_with<T: Send + 'env>(
        &self,
        len: usize,
        make: impl FnMut(usize) -> T,
    ) -> Result<&mut [T], PoolError> {
        // SAFETY: what dropping the values uses outlives the pool, by their bound.
        unsafe { self.fill(len, make) }
    }

    /// Makes a slice of `len` copies of a value.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    ///
    /// ```
    /// let pool = dogtag_pool::Pool::new();
    /// assert_eq!(pool.alloc_slice_fill_copy(3, "same"), ["same"; 3]);
    /// ```
    pub fn alloc_slice_fill_copy<T: Copy>(&self, len: usize, value: T) -> &mut [T] {
        or_panic(self.try_alloc_slice_fill_copy(len, value))
    }

    /// Fallible variant of [`alloc_slice_fill_copy`](Self::alloc_slice_fill_copy): returns an error
    /// instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`] and [`PoolError::TooLarge`].
    pub fn try_alloc_slice_fill_copy<T: Copy>(&self, len: usize, value: T) -> Result<&mut [T], PoolError> {
        // SAFETY: what is `Copy` needs no drop.
        unsafe { self.fill(len, |_| value) }
    }

    /// Makes a slice of `len` clones of a value. They are dropped when the pool is cleared, which
    /// bumpalo's `alloc_slice_fill_clone` never does.
    ///
    /// # Panics
    ///
    /// If there is no memory, or cloning panics; then the clones that were made are dropped.
    pub fn alloc_slice_fill_clone<T: Clone + Send + 'env>(&self, len: usize, value: &T) -> &mut [T] {
        self.alloc_slice_fill_with(len, |_| value.clone())
    }

    /// Fallible variant of [`alloc_slice_fill_clone`](Self::alloc_slice_fill_clone): returns an error
    /// instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`] and [`PoolError::TooLarge`]; then nothing is
    /// cloned.
    pub fn try_alloc_slice_fill_clone<T: Clone + Send + 'env>(
        &self,
        len: usize,
        value: &T,
    ) -> Result<&mut [T], PoolError> {
        self.try_alloc_slice_fill_with(len, |_| value.clone())
    }

    /// Makes a slice of `len` default values. They are dropped when the pool is cleared, which
    /// bumpalo's `alloc_slice_fill_default` never does.
    ///
    /// # Panics
    ///
    /// If there is no memory, or making one panics; then the values that were made are dropped.
    pub fn alloc_slice_fill_default<T: Default + Send + 'env>(&self, len: usize) -> &mut [T] {
        self.alloc_slice_fill_with(len, |_| T::default())
    }

    /// Fallible variant of [`alloc_slice_fill_default`](Self::alloc_slice_fill_default): returns an
    /// error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`] and [`PoolError::TooLarge`]; then nothing is made.
    pub fn try_alloc_slice_fill_default<T: Default + Send + 'env>(
        &self,
        len: usize,
    ) -> Result<&mut [T], PoolError> {
        self.try_alloc_slice_fill_with(len, |_| T::default())
    }

    #[inline(always)]
    fn copy<F: OnFailure, T: Copy>(&self, values: &[T]) -> Result<&mut [T], F::Error> {
        let copy = self.memory::<F>(Layout::for_value(values))?.cast::<T>();
        // SAFETY: the memory was allocated with the layout of the slice, is nobody else's, and is
        // valid until the pool is cleared.
        unsafe {
            copy.copy_from_nonoverlapping(NonNull::from(values).cast(), values.len());
            Ok(slice::from_raw_parts_mut(copy.as_ptr(), values.len()))
        }
    }

    /// Makes a slice in the pool, to be dropped when that is cleared if it needs to be.
    ///
    /// # Safety
    ///
    /// All that dropping the values uses must outlive the pool.
    unsafe fn fill<T>(&self, len: usize, mut make: impl FnMut(usize) -> T) -> Result<&mut [T], PoolError> {
        let size = size_of::<T>();
        let layout = Layout::array::<T>(len).map_err(|_| PoolError::TooLarge { count: len, size })?;
        let values = self.try_alloc_layout(layout)?.cast::<T>();
        let droppable = if mem::needs_drop::<T>() { Some(self.try_memory_for()?) } else { None };
        let mut made = Made { values, len: 0 };
        for i in 0..len {
            // SAFETY: the memory was allocated for `len` values, and `i` is less.
            unsafe { values.add(i).write(make(i)) };
            made.len += 1;
        }
        mem::forget(made);
        // SAFETY: all values are made, and live, in memory that is nobody else's, until the pool is
        // cleared; what dropping them uses outlives that, as this function demands, too.
        unsafe {
            if let Some(droppable) = droppable {
                self.drop_later(droppable, values, len);
            }
            Ok(slice::from_raw_parts_mut(values.as_ptr(), len))
        }
    }
}

/// The values that have been made so far. Dropping it, when making one panics, drops them.
struct Made<T> {
    values: NonNull<T>,
    len: usize,
}

impl<T> Drop for Made<T> {
    fn drop(&mut self) {
        // SAFETY: so many values have been made, and nobody else has them.
        unsafe { ptr::slice_from_raw_parts_mut(self.values.as_ptr(), self.len).drop_in_place() };
    }
}

//! Values that users keep with a pool, one for each type.

use crate::error::PoolError;
use crate::failure::or_panic;
use crate::pool::Pool;
use std::ptr::NonNull;

impl Pool<'_> {
    /// Keeps a value with the pool, to be found by its type, until the pool is cleared. It takes the
    /// place of an earlier value of the same type, which is dropped when the pool is cleared, too.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// struct Peer(&'static str);
    ///
    /// let pool = Pool::new();
    /// pool.set_data(Peer("192.0.2.1"));
    /// assert_eq!(pool.data::<Peer>().map(|peer| peer.0), Some("192.0.2.1"));
    /// ```
    pub fn set_data<T: Send + 'static>(&self, value: T) -> &T {
        or_panic(self.try_set_data(value))
    }

    /// Fallible variant of [`set_data`](Self::set_data): returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`]. The value is dropped.
    pub fn try_set_data<T: Send + 'static>(&self, value: T) -> Result<&T, PoolError> {
        let entry = self.try_memory_for()?;
        let value: &T = self.try_alloc(value)?;
        // SAFETY: both are in the pool's memory until it is cleared, which empties the map first.
        unsafe { self.node().data.insert(entry, NonNull::from(value)) };
        Ok(value)
    }

    /// Returns the value of a type that was [kept](Self::set_data) last, in this pool itself. Takes
    /// time in proportion to the number of values.
    #[must_use]
    pub fn data<T: 'static>(&self) -> Option<&T> {
        // SAFETY: the value lives until the pool is cleared, and is only ever shared.
        self.node().data.get::<T>().map(|value| unsafe { value.as_ref() })
    }
}

//! Text in a pool.

use crate::error::PoolError;
use crate::failure::or_panic;
use crate::node::Refusal;
use crate::pool::Pool;
use std::alloc::Layout;
use std::fmt::{self, Write};
use std::mem;
use std::ptr::NonNull;
use std::{slice, str};

#[allow(clippy::mut_from_ref, reason = "each is of its own memory")]
impl Pool<'_> {
    /// Copies text into the pool (APR: `apr_pstrdup`).
    ///
    /// # Panics
    ///
    /// If there is no memory.
    #[inline]
    pub fn alloc_str(&self, text: &str) -> &mut str {
        let bytes = self.alloc_slice_copy(text.as_bytes());
        // SAFETY: the bytes are a copy of UTF-8.
        unsafe { str::from_utf8_unchecked_mut(bytes) }
    }

    /// Fallible variant of [`alloc_str`](Self::alloc_str): returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    #[inline]
    pub fn try_alloc_str(&self, text: &str) -> Result<&mut str, PoolError> {
        let bytes = self.try_alloc_slice_copy(text.as_bytes())?;
        // SAFETY: the bytes are a copy of UTF-8.
        Ok(unsafe { str::from_utf8_unchecked_mut(bytes) })
    }

    /// Formats text in place (APR: `apr_psprintf`).
    ///
    /// # Panics
    ///
    /// If there is no memory, or, as [`format!`] does, if an implementation of a formatting trait
    /// returns an error.
    ///
    /// ```
    /// let pool = dogtag_pool::Pool::new();
    /// let greeting = pool.alloc_fmt(format_args!("{}, {}!", "hello", "pool"));
    /// assert_eq!(greeting, "hello, pool!");
    /// ```
    pub fn alloc_fmt(&self, text: fmt::Arguments<'_>) -> &mut str {
        or_panic(self.try_alloc_fmt(text))
    }

    /// Fallible variant of [`alloc_fmt`](Self::alloc_fmt): returns an error instead of panicking when
    /// there is no memory.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    ///
    /// # Panics
    ///
    /// As [`format!`] does, if an implementation of a formatting trait returns an error.
    pub fn try_alloc_fmt(&self, text: fmt::Arguments<'_>) -> Result<&mut str, PoolError> {
        if let Some(text) = text.as_str() {
            return self.try_alloc_str(text);
        }
        let mut writer = Writer { pool: self, text: NonNull::dangling(), len: 0, capacity: 0, refusal: None };
        let outcome = writer.write_fmt(text);
        if let Some((refusal, bytes)) = writer.refusal {
            return Err(self.node().refused(refusal, bytes));
        }
        outcome.expect("a formatting trait implementation returns no error of its own");
        Ok(writer.finish())
    }
}

/// Text that grows in the pool. Dropping it, before it is finished, gives its memory back.
struct Writer<'pool, 'env> {
    pool: &'pool Pool<'env>,
    /// Memory of the pool's, of `capacity` bytes, of which `len` are UTF-8. Dangling if the capacity
    /// is 0.
    text: NonNull<u8>,
    len: usize,
    capacity: usize,
    refusal: Option<(Refusal, usize)>,
}

impl<'pool> Writer<'pool, '_> {
    fn finish(self) -> &'pool mut str {
        let text = self.resize(self.len).unwrap_or(self.text);
        let len = self.len;
        mem::forget(self);
        // SAFETY: `len` bytes of UTF-8 were written, in memory that is nobody else's and valid until
        // the pool is cleared.
        unsafe { str::from_utf8_unchecked_mut(slice::from_raw_parts_mut(text.as_ptr(), len)) }
    }

    fn resize(&self, capacity: usize) -> Result<NonNull<u8>, Refusal> {
        let layout = |bytes| Layout::array::<u8>(bytes).map_err(|_| Refusal::NoMemory);
        match self.capacity {
            0 => self.pool.node().reserve(layout(capacity)?),
            // SAFETY: the text is the pool's, allocated with the old capacity.
            old => unsafe { self.pool.node().resize(self.text, layout(old)?, layout(capacity)?) },
        }
    }
}

impl Drop for Writer<'_, '_> {
    fn drop(&mut self) {
        if let (1.., Ok(layout)) = (self.capacity, Layout::array::<u8>(self.capacity)) {
            // SAFETY: the text is the pool's, allocated with this capacity, and nobody has it.
            unsafe { self.pool.node().give_back(self.text, layout) };
        }
    }
}

impl Write for Writer<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let needed = self.len.saturating_add(text.len());
        if needed > self.capacity {
            let capacity = needed.max(2 * self.capacity).max(64);
            // If there is no memory for more to come, then for this.
            match self
                .resize(capacity)
                .map(|text| (text, capacity))
                .or_else(|_| Ok((self.resize(needed)?, needed)))
            {
                Ok(grown) => (self.text, self.capacity) = grown,
                Err(refusal) => {
                    self.refusal = Some((refusal, needed));
                    return Err(fmt::Error);
                }
            }
        }
        debug_assert!(needed <= self.capacity);
        // SAFETY: the capacity is at least `len` and the text's length together, and the memory is
        // nobody else's.
        unsafe { self.text.add(self.len).copy_from_nonoverlapping(NonNull::from(text).cast(), text.len()) };
        self.len = needed;
        Ok(())
    }
}

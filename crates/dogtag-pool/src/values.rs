//! What users put into a pool: values, slices, text, bytes.

use crate::cleanup::Droppable;
use crate::node::Refusal;
use crate::{Pool, PoolError, or_panic};
use std::alloc::Layout;
use std::convert::Infallible;
use std::fmt::{self, Write};
use std::mem::{self, MaybeUninit};
use std::ptr::{self, NonNull};
use std::{slice, str};

#[allow(clippy::mut_from_ref, reason = "each is of its own memory")]
impl<'env> Pool<'env> {
    /// Moves a value into the pool; it is dropped when the pool is cleared, if it needs to be.
    ///
    /// A few instructions, if it needs no drop; otherwise what is to be dropped is noted
    /// behind it (40 bytes).
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

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`]. The value is dropped;
    /// [`try_alloc_with`](Self::try_alloc_with) makes it only if there is room.
    #[inline(always)]
    pub fn try_alloc<T: Send + 'env>(&self, value: T) -> Result<&mut T, PoolError> {
        self.try_alloc_with(|| value)
    }

    /// A value that is made where it is to be.
    ///
    /// # Panics
    ///
    /// If there is no memory, or the closure panics.
    #[inline(always)]
    pub fn alloc_with<T: Send + 'env>(&self, make: impl FnOnce() -> T) -> &mut T {
        let Ok(value) = self.put::<Panics, _>(make);
        value
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`]; then the closure is not called.
    #[inline(always)]
    pub fn try_alloc_with<T: Send + 'env>(&self, make: impl FnOnce() -> T) -> Result<&mut T, PoolError> {
        self.put::<Returns, _>(make)
    }

    /// Moves a value into the pool that needs no drop, which is checked when the program is
    /// compiled; so it may refer to whatever it likes, the pool itself among it.
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
        let Ok(value) = self.put::<Panics, _>(|| value);
        value
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    #[inline(always)]
    pub fn try_alloc_plain<T>(&self, value: T) -> Result<&mut T, PoolError> {
        const { assert_no_drop::<T>() };
        self.put::<Returns, _>(|| value)
    }

    /// A copy of a slice (APR: `apr_pmemdup`).
    ///
    /// # Panics
    ///
    /// If there is no memory.
    ///
    /// ```
    /// let pool = dogtag_pool::Pool::new();
    /// let numbers = pool.alloc_slice(&[3, 1, 2]);
    /// numbers.sort_unstable();
    /// assert_eq!(numbers, [1, 2, 3]);
    /// ```
    #[inline]
    pub fn alloc_slice<T: Copy>(&self, values: &[T]) -> &mut [T] {
        let Ok(copy) = self.copy::<Panics, _>(values);
        copy
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    #[inline]
    pub fn try_alloc_slice<T: Copy>(&self, values: &[T]) -> Result<&mut [T], PoolError> {
        self.copy::<Returns, _>(values)
    }

    /// Clones of a slice's values, which are dropped when the pool is cleared.
    ///
    /// # Panics
    ///
    /// If there is no memory, or cloning panics.
    pub fn alloc_slice_clone<T: Clone + Send + 'env>(&self, values: &[T]) -> &mut [T] {
        or_panic(self.try_alloc_slice_clone(values))
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`]; then nothing is cloned.
    pub fn try_alloc_slice_clone<T: Clone + Send + 'env>(&self, values: &[T]) -> Result<&mut [T], PoolError> {
        self.try_alloc_slice_with(values.len(), |i| values[i].clone())
    }

    /// So many values, each made from its index, which are dropped when the pool is cleared.
    ///
    /// # Panics
    ///
    /// If there is no memory, or the closure panics; then those that were made are dropped.
    ///
    /// ```
    /// let pool = dogtag_pool::Pool::new();
    /// let names = pool.alloc_slice_with(3, |i| format!("worker {i}"));
    /// assert_eq!(names[2], "worker 2");
    /// ```
    pub fn alloc_slice_with<T: Send + 'env>(&self, len: usize, make: impl FnMut(usize) -> T) -> &mut [T] {
        or_panic(self.try_alloc_slice_with(len, make))
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`], and [`PoolError::TooLarge`] for more
    /// than there are addresses for; then nothing is made.
    pub fn try_alloc_slice_with<T: Send + 'env>(
        &self,
        len: usize,
        mut make: impl FnMut(usize) -> T,
    ) -> Result<&mut [T], PoolError> {
        let size = size_of::<T>();
        let layout = Layout::array::<T>(len).map_err(|_| PoolError::TooLarge { count: len, size })?;
        let room = self.try_alloc_layout(layout)?.cast::<T>();
        let droppable = if mem::needs_drop::<T>() { Some(self.try_room()?) } else { None };
        let mut made = Made { values: room, len: 0 };
        for i in 0..len {
            // SAFETY: there is room for so many.
            unsafe { room.add(i).write(make(i)) };
            made.len += 1;
        }
        mem::forget(made);
        // SAFETY: all have been made; what they need to be dropped outlives the pool, as
        // their type says.
        unsafe {
            if let Some(droppable) = droppable {
                self.drop_later(droppable, room, len);
            }
            Ok(slice::from_raw_parts_mut(room.as_ptr(), len))
        }
    }

    /// A copy of text (APR: `apr_pstrdup`).
    ///
    /// # Panics
    ///
    /// If there is no memory.
    #[inline]
    pub fn alloc_str(&self, text: &str) -> &mut str {
        let bytes = self.alloc_slice(text.as_bytes());
        // SAFETY: it is a copy of text.
        unsafe { str::from_utf8_unchecked_mut(bytes) }
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    #[inline]
    pub fn try_alloc_str(&self, text: &str) -> Result<&mut str, PoolError> {
        let bytes = self.try_alloc_slice(text.as_bytes())?;
        // SAFETY: it is a copy of text.
        Ok(unsafe { str::from_utf8_unchecked_mut(bytes) })
    }

    /// Text that is formatted where it is to be (APR: `apr_psprintf`).
    ///
    /// # Panics
    ///
    /// If there is no memory, or, as [`format!`] does, if something says that it cannot
    /// be formatted.
    ///
    /// ```
    /// let pool = dogtag_pool::Pool::new();
    /// let greeting = pool.alloc_fmt(format_args!("{}, {}!", "hello", "pool"));
    /// assert_eq!(greeting, "hello, pool!");
    /// ```
    pub fn alloc_fmt(&self, text: fmt::Arguments<'_>) -> &mut str {
        or_panic(self.try_alloc_fmt(text))
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    ///
    /// # Panics
    ///
    /// As [`format!`] does, if something says that it cannot be formatted.
    pub fn try_alloc_fmt(&self, text: fmt::Arguments<'_>) -> Result<&mut str, PoolError> {
        if let Some(text) = text.as_str() {
            return self.try_alloc_str(text);
        }
        let mut writer = Writer { pool: self, text: NonNull::dangling(), len: 0, capacity: 0, refusal: None };
        let outcome = writer.write_fmt(text);
        if let Some((refusal, bytes)) = writer.refusal {
            return Err(self.refused(refusal, bytes));
        }
        outcome.expect("a formatting trait implementation returns no error of its own");
        Ok(writer.finish())
    }

    /// So many bytes, aligned as the C library aligns them, to 16 (nginx: `ngx_palloc` aligns
    /// to 8). [`alloc_layout`](Self::alloc_layout) is for what has a layout.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    pub fn alloc_bytes(&self, len: usize) -> &mut [MaybeUninit<u8>] {
        or_panic(self.try_alloc_bytes(len))
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`] and [`PoolError::TooLarge`].
    pub fn try_alloc_bytes(&self, len: usize) -> Result<&mut [MaybeUninit<u8>], PoolError> {
        self.try_alloc_aligned(len, crate::GRAIN)
    }

    /// So many bytes, next to what was allocated before (nginx: `ngx_pnalloc`).
    ///
    /// # Panics
    ///
    /// If there is no memory.
    pub fn alloc_unaligned(&self, len: usize) -> &mut [MaybeUninit<u8>] {
        or_panic(self.try_alloc_unaligned(len))
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`] and [`PoolError::TooLarge`].
    pub fn try_alloc_unaligned(&self, len: usize) -> Result<&mut [MaybeUninit<u8>], PoolError> {
        self.try_alloc_aligned(len, 1)
    }

    /// So many bytes, aligned to a power of two (nginx: `ngx_pmemalign`). [`free`](Self::free) frees
    /// them only if they are large, which nginx's always are.
    ///
    /// # Panics
    ///
    /// If there is no memory, or the alignment is not a power of two.
    ///
    /// ```
    /// let pool = dogtag_pool::Pool::new();
    /// assert!(pool.alloc_aligned(100, 4096).as_ptr().addr().is_multiple_of(4096));
    /// ```
    pub fn alloc_aligned(&self, len: usize, align: usize) -> &mut [MaybeUninit<u8>] {
        or_panic(self.try_alloc_aligned(len, align))
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`], [`PoolError::TooLarge`] and
    /// [`PoolError::Alignment`].
    pub fn try_alloc_aligned(&self, len: usize, align: usize) -> Result<&mut [MaybeUninit<u8>], PoolError> {
        let room = self.try_alloc_layout(bytes(len, align)?)?;
        // SAFETY: it is as large, and nobody else's.
        Ok(unsafe { slice::from_raw_parts_mut(room.cast().as_ptr(), len) })
    }

    /// So many bytes that are zero, aligned to 16 (APR: `apr_pcalloc`, nginx: `ngx_pcalloc`).
    ///
    /// # Panics
    ///
    /// If there is no memory.
    pub fn alloc_zeroed(&self, len: usize) -> &mut [u8] {
        or_panic(self.try_alloc_zeroed(len))
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`] and [`PoolError::TooLarge`].
    pub fn try_alloc_zeroed(&self, len: usize) -> Result<&mut [u8], PoolError> {
        let room = self.node().reserve_zeroed(bytes(len, crate::GRAIN)?);
        let room = room.map_err(|refusal| self.refused(refusal, len))?;
        // SAFETY: it is as large, zeroed, and nobody else's.
        Ok(unsafe { slice::from_raw_parts_mut(room.as_ptr(), len) })
    }

    /// Memory of a layout, which lasts until the pool is cleared. Uninitialised.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    #[inline(always)]
    pub fn alloc_layout(&self, layout: Layout) -> NonNull<u8> {
        let Ok(memory) = self.memory::<Panics>(layout);
        memory
    }

    /// The same, for those who can do without.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    #[inline(always)]
    pub fn try_alloc_layout(&self, layout: Layout) -> Result<NonNull<u8>, PoolError> {
        self.memory::<Returns>(layout)
    }

    /// Frees a large allocation before the pool is cleared, and returns whether it was one
    /// (nginx: `ngx_pfree`). The last small one is handed out again. As many steps as there
    /// are large ones between it and the youngest or the oldest, whichever is nearer.
    ///
    /// Collections in the pool do so by themselves.
    ///
    /// # Safety
    ///
    /// The memory must be this pool's, allocated with that layout since the pool was last
    /// cleared, and nobody use it any more.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    /// use std::alloc::Layout;
    ///
    /// let pool = Pool::new();
    /// let (small, large) = (Layout::new::<u64>(), Layout::new::<[u64; 10_000]>());
    /// let (one, other) = (pool.alloc_layout(small), pool.alloc_layout(large));
    /// // SAFETY: nobody uses them.
    /// unsafe {
    ///     assert!(!pool.free(one, small));
    ///     assert!(pool.free(other, large));
    /// }
    /// assert_eq!(pool.stats().large, 0);
    /// ```
    pub unsafe fn free(&self, memory: NonNull<u8>, layout: Layout) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.node().give_back(memory, layout) }
    }

    /// Room for a value.
    #[inline(always)]
    pub(crate) fn try_room<T>(&self) -> Result<NonNull<T>, PoolError> {
        self.room::<Returns, T>()
    }

    #[inline(always)]
    fn room<F: OnFailure, T>(&self) -> Result<NonNull<T>, F::Error> {
        self.memory::<F>(Layout::new::<T>()).map(NonNull::cast)
    }

    #[inline(always)]
    pub(crate) fn memory<F: OnFailure>(&self, layout: Layout) -> Result<NonNull<u8>, F::Error> {
        self.node().reserve_or(layout, || F::reserve_slowly(self, layout))
    }

    #[inline(always)]
    fn put<F: OnFailure, T>(&self, make: impl FnOnce() -> T) -> Result<&mut T, F::Error> {
        let value = self.room::<F, T>()?;
        let droppable = if mem::needs_drop::<T>() { Some(self.room::<F, _>()?) } else { None };
        // SAFETY: there is room for it, until the pool is cleared; what it needs to be dropped
        // outlives the pool, as whoever calls this has asked of its type.
        unsafe {
            value.write(make());
            if let Some(droppable) = droppable {
                self.drop_later(droppable, value, 1);
            }
            Ok(&mut *value.as_ptr())
        }
    }

    #[inline(always)]
    fn copy<F: OnFailure, T: Copy>(&self, values: &[T]) -> Result<&mut [T], F::Error> {
        let room = self.memory::<F>(Layout::for_value(values))?.cast::<T>();
        // SAFETY: it is as large, and nobody else's.
        unsafe {
            room.copy_from_nonoverlapping(NonNull::from(values).cast(), values.len());
            Ok(slice::from_raw_parts_mut(room.as_ptr(), values.len()))
        }
    }

    /// Has values dropped when the pool is cleared.
    ///
    /// # Safety
    ///
    /// There must be room, and the values live until then, with all that their drop needs.
    unsafe fn drop_later<T>(&self, room: NonNull<Droppable<T>>, values: NonNull<T>, len: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            room.write(Droppable::new(values, len));
            self.node().cleanups.push(room.cast());
        }
    }
}

/// What becomes of a failure. The common way does not look at it: each kind has a slow way of
/// its own.
pub(crate) trait OnFailure {
    type Error;
    fn reserve_slowly(pool: &Pool<'_>, layout: Layout) -> Result<NonNull<u8>, Self::Error>;
}

/// As the twins with `try_` do.
struct Returns;

/// As those without it do.
struct Panics;

impl OnFailure for Returns {
    type Error = PoolError;

    #[cold]
    #[inline(never)]
    fn reserve_slowly(pool: &Pool<'_>, layout: Layout) -> Result<NonNull<u8>, PoolError> {
        pool.node().reserve_slowly(layout).map_err(|refusal| pool.refused(refusal, layout.size()))
    }
}

impl OnFailure for Panics {
    type Error = Infallible;

    #[cold]
    #[inline(never)]
    fn reserve_slowly(pool: &Pool<'_>, layout: Layout) -> Result<NonNull<u8>, Infallible> {
        Ok(or_panic(Returns::reserve_slowly(pool, layout)))
    }
}

const fn assert_no_drop<T>() {
    assert!(!mem::needs_drop::<T>(), "this type needs a drop: `alloc` sees to it");
}

fn bytes(len: usize, align: usize) -> Result<Layout, PoolError> {
    Layout::from_size_align(len, align).map_err(|_| match align.is_power_of_two() {
        true => PoolError::TooLarge { count: len, size: 1 },
        false => PoolError::Alignment { align },
    })
}

/// Values that have been made so far: dropped if the next one panics.
struct Made<T> {
    values: NonNull<T>,
    len: usize,
}

impl<T> Drop for Made<T> {
    fn drop(&mut self) {
        // SAFETY: so many have been made.
        unsafe { ptr::slice_from_raw_parts_mut(self.values.as_ptr(), self.len).drop_in_place() };
    }
}

/// Text that grows at the end of the pool.
struct Writer<'pool, 'env> {
    pool: &'pool Pool<'env>,
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
        // SAFETY: so much was written, as text.
        unsafe { str::from_utf8_unchecked_mut(slice::from_raw_parts_mut(text.as_ptr(), len)) }
    }

    fn resize(&self, capacity: usize) -> Result<NonNull<u8>, Refusal> {
        let layout = |bytes| Layout::array::<u8>(bytes).map_err(|_| Refusal::NoMemory);
        match self.capacity {
            0 => self.pool.node().reserve(layout(capacity)?),
            // SAFETY: it is the pool's, and as large.
            old => unsafe { self.pool.node().resize(self.text, layout(old)?, layout(capacity)?) },
        }
    }
}

/// Text that is not finished is nobody's.
impl Drop for Writer<'_, '_> {
    fn drop(&mut self) {
        if let (1.., Ok(layout)) = (self.capacity, Layout::array::<u8>(self.capacity)) {
            // SAFETY: it is the pool's, and as large.
            unsafe { self.pool.node().give_back(self.text, layout) };
        }
    }
}

impl Write for Writer<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let needed = self.len.saturating_add(text.len());
        if needed > self.capacity {
            let capacity = needed.max(2 * self.capacity).max(64);
            // If there is no room for more to come, then for this.
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
        // SAFETY: there is room for it.
        unsafe { self.text.add(self.len).copy_from_nonoverlapping(NonNull::from(text).cast(), text.len()) };
        self.len = needed;
        Ok(())
    }
}

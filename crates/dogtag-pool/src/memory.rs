//! Memory without a type: by a layout, or as bytes.

use crate::block::GRAIN;
use crate::error::PoolError;
use crate::failure::or_panic;
use crate::pool::Pool;
use std::alloc::Layout;
use std::convert::Infallible;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::slice;

#[allow(clippy::mut_from_ref, reason = "each is of its own memory")]
impl Pool<'_> {
    /// Allocates memory with a layout, which is valid until the pool is cleared. It is not
    /// initialized.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    #[inline(always)]
    pub fn alloc_layout(&self, layout: Layout) -> NonNull<u8> {
        let Ok(memory) = self.memory::<Panics>(layout);
        memory
    }

    /// Fallible variant of [`alloc_layout`](Self::alloc_layout): returns an error instead of
    /// panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`] and [`PoolError::Limit`].
    #[inline(always)]
    pub fn try_alloc_layout(&self, layout: Layout) -> Result<NonNull<u8>, PoolError> {
        self.memory::<Returns>(layout)
    }

    /// Allocates `len` bytes, aligned to 16, as the C library's `malloc` aligns them (nginx's
    /// `ngx_palloc` aligns to 8). They are not initialized.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    pub fn alloc_bytes(&self, len: usize) -> &mut [MaybeUninit<u8>] {
        or_panic(self.try_alloc_bytes(len))
    }

    /// Fallible variant of [`alloc_bytes`](Self::alloc_bytes): returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`] and [`PoolError::TooLarge`].
    pub fn try_alloc_bytes(&self, len: usize) -> Result<&mut [MaybeUninit<u8>], PoolError> {
        self.try_alloc_aligned(len, GRAIN)
    }

    /// Allocates `len` bytes next to the last allocation (nginx: `ngx_pnalloc`). They are not
    /// initialized.
    ///
    /// # Panics
    ///
    /// If there is no memory.
    pub fn alloc_unaligned(&self, len: usize) -> &mut [MaybeUninit<u8>] {
        or_panic(self.try_alloc_unaligned(len))
    }

    /// Fallible variant of [`alloc_unaligned`](Self::alloc_unaligned): returns an error instead of
    /// panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`] and [`PoolError::TooLarge`].
    pub fn try_alloc_unaligned(&self, len: usize) -> Result<&mut [MaybeUninit<u8>], PoolError> {
        self.try_alloc_aligned(len, 1)
    }

    /// Allocates `len` bytes, aligned to a power of two (nginx: `ngx_pmemalign`). They are not
    /// initialized. [`free`](Self::free) frees them only if they are large, which nginx's always are.
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

    /// Fallible variant of [`alloc_aligned`](Self::alloc_aligned): returns an error instead of
    /// panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`], [`PoolError::TooLarge`] and
    /// [`PoolError::Alignment`].
    pub fn try_alloc_aligned(&self, len: usize, align: usize) -> Result<&mut [MaybeUninit<u8>], PoolError> {
        let memory = self.try_alloc_layout(bytes(len, align)?)?;
        // SAFETY: the memory was allocated with this size, is nobody else's, and is valid until the
        // pool is cleared; uninitialized bytes are valid as such.
        Ok(unsafe { slice::from_raw_parts_mut(memory.cast().as_ptr(), len) })
    }

    /// Allocates `len` bytes that are zero, aligned to 16 (APR: `apr_pcalloc`, nginx:
    /// `ngx_pcalloc`).
    ///
    /// # Panics
    ///
    /// If there is no memory.
    pub fn alloc_zeroed(&self, len: usize) -> &mut [u8] {
        or_panic(self.try_alloc_zeroed(len))
    }

    /// Fallible variant of [`alloc_zeroed`](Self::alloc_zeroed): returns an error instead of
    /// panicking.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoMemory`], [`PoolError::Limit`] and [`PoolError::TooLarge`].
    pub fn try_alloc_zeroed(&self, len: usize) -> Result<&mut [u8], PoolError> {
        let memory = self.node().reserve_zeroed(bytes(len, GRAIN)?);
        let memory = memory.map_err(|refusal| self.node().refused(refusal, len))?;
        // SAFETY: the memory was allocated with this size, is zeroed and nobody else's, and is valid
        // until the pool is cleared.
        Ok(unsafe { slice::from_raw_parts_mut(memory.as_ptr(), len) })
    }

    /// Frees a large allocation before the pool is cleared, and returns whether it was large (nginx:
    /// `ngx_pfree`). If it is the last small one its memory is handed out again. Takes time in
    /// proportion to the number of large allocations between it and the youngest or the oldest,
    /// whichever is nearer.
    ///
    /// Collections in the pool free their memory by themselves.
    ///
    /// # Safety
    ///
    /// The memory must be this pool's, allocated with this layout since the pool was last cleared,
    /// and nobody may use it any more.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    /// use std::alloc::Layout;
    ///
    /// let pool = Pool::new();
    /// let (small, large) = (Layout::new::<u64>(), Layout::new::<[u64; 10_000]>());
    /// let (one, other) = (pool.alloc_layout(small), pool.alloc_layout(large));
    /// // SAFETY: both were allocated with these layouts, and are not used again.
    /// unsafe {
    ///     assert!(!pool.free(one, small));
    ///     assert!(pool.free(other, large));
    /// }
    /// assert_eq!(pool.stats().large, 0);
    /// ```
    pub unsafe fn free(&self, memory: NonNull<u8>, layout: Layout) -> bool {
        // SAFETY: the memory is this pool's, with this layout, as this function demands, too.
        unsafe { self.node().give_back(memory, layout) }
    }

    /// Allocates memory for a value.
    #[inline(always)]
    pub(crate) fn try_memory_for<T>(&self) -> Result<NonNull<T>, PoolError> {
        self.memory_for::<Returns, T>()
    }

    #[inline(always)]
    pub(crate) fn memory_for<F: OnFailure, T>(&self) -> Result<NonNull<T>, F::Error> {
        self.memory::<F>(Layout::new::<T>()).map(NonNull::cast)
    }

    #[inline(always)]
    pub(crate) fn memory<F: OnFailure>(&self, layout: Layout) -> Result<NonNull<u8>, F::Error> {
        self.node().reserve_or(layout, || F::reserve_slow(self, layout))
    }
}

/// What becomes of a failure. Each kind has a slow path of its own, so that the fast path has no
/// error to look at.
pub(crate) trait OnFailure {
    type Error;
    fn reserve_slow(pool: &Pool<'_>, layout: Layout) -> Result<NonNull<u8>, Self::Error>;
}

/// A failure is returned, as by functions with `try_`.
pub(crate) struct Returns;

/// A failure is a panic.
pub(crate) struct Panics;

impl OnFailure for Returns {
    type Error = PoolError;

    #[cold]
    #[inline(never)]
    fn reserve_slow(pool: &Pool<'_>, layout: Layout) -> Result<NonNull<u8>, PoolError> {
        pool.node().reserve_slow(layout).map_err(|refusal| pool.node().refused(refusal, layout.size()))
    }
}

impl OnFailure for Panics {
    type Error = Infallible;

    #[cold]
    #[inline(never)]
    fn reserve_slow(pool: &Pool<'_>, layout: Layout) -> Result<NonNull<u8>, Infallible> {
        Ok(or_panic(Returns::reserve_slow(pool, layout)))
    }
}

/// Returns the layout of so many bytes.
fn bytes(len: usize, align: usize) -> Result<Layout, PoolError> {
    Layout::from_size_align(len, align).map_err(|_| match align.is_power_of_two() {
        true => PoolError::TooLarge { count: len, size: 1 },
        false => PoolError::Alignment { align },
    })
}

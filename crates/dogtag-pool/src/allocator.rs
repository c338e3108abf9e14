//! A pool as the allocator of collections, by the trait of `allocator-api2`, which stands in for the
//! standard library's until that is stable.

use crate::memory::OnFailure;
use crate::node::Refusal;
use crate::pool::Pool;
use allocator_api2::alloc::{AllocError, Allocator};
use std::alloc::Layout;
use std::ptr::NonNull;

/// Lets collections have their memory in a pool: those of `allocator-api2` and of `hashbrown`, and all
/// that take an allocator of that trait. They cannot outlive the next [`clear`](Pool::clear).
///
/// The last allocation can grow in place, and its memory is handed out again when it is freed. Large
/// allocations are freed at once, as [`Pool::free`] does it. The memory of all others is free when the
/// pool is cleared.
///
/// ```
/// use allocator_api2::vec::Vec;
/// use dogtag_pool::Pool;
///
/// let pool = Pool::new();
/// let mut primes = Vec::new_in(&pool);
/// primes.extend([2, 3, 5, 7]);
/// assert!(pool.stats().used >= 4 * size_of::<i32>());
/// ```
// SAFETY: memory is valid until the pool is cleared or dropped, which the borrow prevents. Copies of
// the reference are the same pool. What moves is copied whole.
unsafe impl Allocator for &Pool<'_> {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let memory = self.memory::<Tells>(layout)?;
        Ok(NonNull::slice_from_raw_parts(memory, layout.size()))
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let memory = self.node().reserve_zeroed(layout).map_err(|refusal| self.told(refusal, layout))?;
        Ok(NonNull::slice_from_raw_parts(memory, layout.size()))
    }

    #[inline]
    unsafe fn deallocate(&self, memory: NonNull<u8>, layout: Layout) {
        // SAFETY: the memory was allocated by this pool with a layout that fits, so with this one,
        // and is not used any more.
        unsafe { self.node().give_back(memory, layout) };
    }

    unsafe fn grow(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the memory was allocated by this pool with the old layout.
        unsafe { self.resize(memory, old, new) }
    }

    unsafe fn grow_zeroed(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the memory was allocated by this pool with the old layout, whose size is no larger
        // than the new one's.
        unsafe {
            let grown = self.resize(memory, old, new)?;
            grown.cast::<u8>().add(old.size()).write_bytes(0, new.size() - old.size());
            Ok(grown)
        }
    }

    unsafe fn shrink(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the memory was allocated by this pool with the old layout.
        unsafe { self.resize(memory, old, new) }
    }
}

/// A failure is an [`AllocError`]. The pool's handler is called with the error that says more.
struct Tells;

impl OnFailure for Tells {
    type Error = AllocError;

    #[cold]
    #[inline(never)]
    fn reserve_slow(pool: &Pool<'_>, layout: Layout) -> Result<NonNull<u8>, AllocError> {
        pool.node().reserve_slow(layout).map_err(|refusal| pool.told(refusal, layout))
    }
}

impl Pool<'_> {
    fn told(&self, refusal: Refusal, layout: Layout) -> AllocError {
        self.node().refused(refusal, layout.size());
        AllocError
    }

    /// Makes an allocation larger or smaller.
    ///
    /// # Safety
    ///
    /// The memory must have been allocated by this pool with the old layout. Once this succeeds,
    /// nobody may use the old memory any more.
    unsafe fn resize(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the memory is this pool's, with the old layout, as this function demands, too.
        let moved = unsafe { self.node().resize(memory, old, new) };
        let moved = moved.map_err(|refusal| self.told(refusal, new))?;
        Ok(NonNull::slice_from_raw_parts(moved, new.size()))
    }
}

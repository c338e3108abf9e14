//! A pool as the allocator of collections, by the interface that stands in for the standard
//! library's until that is stable.

use crate::Pool;
use crate::node::Refusal;
use crate::values::OnFailure;
use allocator_api2::alloc::{AllocError, Allocator};
use std::alloc::Layout;
use std::ptr::NonNull;

/// Collections whose memory is a pool's: of the crate `allocator-api2`, of `hashbrown`, and
/// of all that take one of its allocators. They cannot outlive what clears the pool.
///
/// The last allocation can grow where it is, and is handed out again when it is freed; large
/// ones are freed at once, as [`Pool::free`] does it; of all others the memory is free when
/// the pool is cleared.
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
// SAFETY: memory lasts until the pool is cleared or dropped, which the borrow does not let
// happen; what moves is copied whole.
unsafe impl Allocator for &Pool<'_> {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let memory = self.memory::<Tells>(layout)?;
        Ok(NonNull::slice_from_raw_parts(memory, layout.size()))
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let memory = self.node().reserve_zeroed(layout);
        let memory =
            memory.map_err(|refusal| _ = self.refused(refusal, layout.size())).map_err(|()| AllocError)?;
        Ok(NonNull::slice_from_raw_parts(memory, layout.size()))
    }

    #[inline]
    unsafe fn deallocate(&self, memory: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.node().give_back(memory, layout) };
    }

    unsafe fn grow(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        unsafe { self.resize(memory, old, new) }
    }

    unsafe fn grow_zeroed(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise; what is new is as large.
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
        // SAFETY: the caller's promise.
        unsafe { self.resize(memory, old, new) }
    }
}

/// As an allocator does: the pool's handler has heard what the error does not say.
struct Tells;

impl OnFailure for Tells {
    type Error = AllocError;

    #[cold]
    #[inline(never)]
    fn reserve_slowly(pool: &Pool<'_>, layout: Layout) -> Result<NonNull<u8>, AllocError> {
        pool.node().reserve_slowly(layout).map_err(|refusal| pool.told(refusal, layout))
    }
}

impl Pool<'_> {
    fn told(&self, refusal: Refusal, layout: Layout) -> AllocError {
        self.refused(refusal, layout.size());
        AllocError
    }

    /// # Safety
    ///
    /// As for [`Node::resize`](crate::node::Node::resize).
    unsafe fn resize(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        let moved = unsafe { self.node().resize(memory, old, new) };
        let moved = moved.map_err(|refusal| self.told(refusal, new))?;
        Ok(NonNull::slice_from_raw_parts(moved, new.size()))
    }
}

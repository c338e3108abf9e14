//! An instance as the allocator of collections, by the interface that stands in for the
//! standard library's until that is stable.

use super::Dogtag;
use crate::owner::OwnerPlace;
use allocator_api2::alloc::{AllocError, Allocator};
use std::alloc::{GlobalAlloc, Layout};
use std::num::NonZero;
use std::ptr::NonNull;

/// Collections whose memory an instance other than the global allocator has: of the crate
/// `allocator-api2`, of `hashbrown`, and of all that take one of its allocators (feature
/// `allocator-api2`). Blocks are charged to services like any others.
///
/// ```
/// use dogtag::{Dogtag, Service};
/// use std::alloc::System;
///
/// let service = Service::register("archive")?;
/// let other = Dogtag::with_backend(System);
/// let mut numbers = allocator_api2::vec::Vec::new_in(&other);
/// service.run(|| numbers.extend(0_u64..100));
/// assert_eq!(service.usage().bytes(), 8 * numbers.capacity() as u64);
/// # Ok::<(), dogtag::RegisterError>(())
/// ```
// SAFETY: blocks stay where they are until they are freed, and the borrow keeps the instance.
unsafe impl<B: GlobalAlloc, P: OwnerPlace> Allocator for &Dogtag<B, P> {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(empty(layout));
        }
        // SAFETY: the layout is not empty.
        slice(unsafe { self.alloc(layout) }, layout.size())
    }

    #[inline]
    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(empty(layout));
        }
        // SAFETY: the layout is not empty.
        slice(unsafe { self.alloc_zeroed(layout) }, layout.size())
    }

    #[inline]
    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() > 0 {
            // SAFETY: the block is live, was requested here with that layout, and is not empty.
            unsafe { self.dealloc(block.as_ptr(), layout) };
        }
    }

    unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the block is live and was requested here with the old layout.
        unsafe { self.reallocate(block, old, new) }
    }

    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the block is live, and the new one is at least as large as the old one.
        unsafe {
            let grown = self.reallocate(block, old, new)?;
            grown.cast::<u8>().add(old.size()).write_bytes(0, new.size() - old.size());
            Ok(grown)
        }
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the block is live and was requested here with the old layout.
        unsafe { self.reallocate(block, old, new) }
    }
}

impl<B: GlobalAlloc, P: OwnerPlace> Dogtag<B, P> {
    /// # Safety
    ///
    /// As for [`Allocator::grow`] and [`Allocator::shrink`].
    unsafe fn reallocate(
        self: &&Self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the block is live with the old layout, and both blocks are as large as is copied.
        unsafe {
            if old.size() > 0 && new.size() > 0 {
                let moved = if old.align() == new.align() {
                    self.realloc(block.as_ptr(), old, new.size())
                } else {
                    self.relayout(block.as_ptr(), old, new)
                };
                return slice(moved, new.size());
            }
            let moved = self.allocate(new)?;
            moved.cast::<u8>().copy_from_nonoverlapping(block, old.size().min(new.size()));
            self.deallocate(block, old);
            Ok(moved)
        }
    }
}

fn slice(block: *mut u8, len: usize) -> Result<NonNull<[u8]>, AllocError> {
    NonNull::new(block).map(|block| NonNull::slice_from_raw_parts(block, len)).ok_or(AllocError)
}

fn empty(layout: Layout) -> NonNull<[u8]> {
    let align = NonZero::new(layout.align()).unwrap_or(NonZero::<usize>::MIN);
    NonNull::slice_from_raw_parts(NonNull::without_provenance(align), 0)
}

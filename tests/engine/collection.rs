//! Memory as collections ask for it.

use super::memory::{Memory, Refusal};
use allocator_api2::alloc::{AllocError, Allocator};
use std::alloc::Layout;
use std::ptr::{NonNull, null_mut};

/// An allocator of collections, and what it may refuse.
#[derive(Clone, Copy, Debug)]
pub struct Collection<A>(pub A, pub Refusal);

impl<A: Allocator> Memory for Collection<A> {
    unsafe fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        address(if is_zeroed { self.0.allocate_zeroed(layout) } else { self.0.allocate(layout) })
    }

    unsafe fn reallocate(&self, block: *mut u8, old: Layout, new: Layout, is_zeroed: bool) -> *mut u8 {
        let block = NonNull::new(block).expect("a block");
        // SAFETY: the block is live, from there, and of the old layout.
        address(unsafe {
            match (new.size() >= old.size(), is_zeroed) {
                (true, true) => self.0.grow_zeroed(block, old, new),
                (true, false) => self.0.grow(block, old, new),
                (false, _) => self.0.shrink(block, old, new),
            }
        })
    }

    unsafe fn free(&self, block: *mut u8, layout: Layout) {
        let block = NonNull::new(block).expect("a block");
        // SAFETY: the block is live, from there, and of that layout.
        unsafe { self.0.deallocate(block, layout) };
    }

    fn may_refuse(&self) -> Refusal {
        self.1
    }
}

fn address(block: Result<NonNull<[u8]>, AllocError>) -> *mut u8 {
    block.map_or(null_mut(), |block| block.as_ptr().cast())
}

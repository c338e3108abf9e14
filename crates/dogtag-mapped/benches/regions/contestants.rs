//! What is compared: engines, alone or locked, each with a window of its own; regions; jemalloc.

use crate::WINDOW;
use crate::engines::Engine;
use dogtag::Jemalloc;
use dogtag_mapped::MappedRegion;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

/// An allocator that is compared.
pub trait Contestant: GlobalAlloc + Sized + 'static {
    /// Makes one over a window of its own, which no one has touched.
    fn fresh() -> Self;

    /// Makes one over a window of its own, all of which was written to.
    fn touched() -> Self;
}

/// An engine with the window that it places blocks in, and what gives access to it.
pub struct Over<Access> {
    engine: Access,
    _window: MappedRegion,
}

/// An engine without a lock, for one thread.
pub type Alone<E> = Over<UnsafeCell<E>>;
/// An engine behind a lock.
pub type Locked<E> = Over<Mutex<E>>;

/// Access to an engine.
pub trait Access: From<Self::Engine> + 'static {
    type Engine: Engine;

    /// Calls a function with the engine.
    ///
    /// # Safety
    ///
    /// The function must not call this for the same engine.
    unsafe fn with<R>(&self, work: impl FnOnce(&mut Self::Engine) -> R) -> R;
}

impl<E: Engine> Access for UnsafeCell<E> {
    type Engine = E;

    #[inline(always)]
    unsafe fn with<R>(&self, work: impl FnOnce(&mut E) -> R) -> R {
        // SAFETY: an `UnsafeCell` is not `Sync`, so no other thread has access; and the function that is
        // called does not come back here, so there is no other reference.
        work(unsafe { &mut *self.get() })
    }
}

impl<E: Engine> Access for Mutex<E> {
    type Engine = E;

    #[inline(always)]
    unsafe fn with<R>(&self, work: impl FnOnce(&mut E) -> R) -> R {
        work(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// SAFETY: the engines' blocks do not overlap, and stay in the window, which is kept with the engine,
// until they are freed.
unsafe impl<A: Access> GlobalAlloc for Over<A> {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: no engine calls this allocator.
        let block = unsafe { self.engine.with(|engine| engine.take(layout)) };
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: no engine calls this allocator. The caller passes a block of it, so not null, and its
        // layout, and uses it no more.
        unsafe { self.engine.with(|engine| engine.give(NonNull::new_unchecked(block), layout)) };
    }

    #[inline(always)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: no engine calls this allocator. The caller passes a block of it, so not null, its layout,
        // and a size that is valid with that alignment, and uses it no more unless this fails.
        let block = unsafe {
            let new = Layout::from_size_align_unchecked(new_size, layout.align());
            self.engine.with(|engine| engine.resize(NonNull::new_unchecked(block), layout, new))
        };
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}

impl<A: Access> Contestant for Over<A> {
    fn fresh() -> Self {
        let window = MappedRegion::fresh();
        // SAFETY: the region is kept with the engine and allocates nothing, so its window is the engine's
        // alone.
        let engine = unsafe { A::Engine::over(window.start().unwrap()) };
        Self { engine: engine.into(), _window: window }
    }

    fn touched() -> Self {
        let window = MappedRegion::touched();
        // SAFETY: the region is kept with the engine and allocates nothing, so its window is the engine's
        // alone.
        let engine = unsafe { A::Engine::over(window.start().unwrap()) };
        Self { engine: engine.into(), _window: window }
    }
}

impl Contestant for MappedRegion {
    fn fresh() -> Self {
        Self::anonymous(WINDOW).unwrap()
    }

    fn touched() -> Self {
        let (this, layout) = (Self::fresh(), layout(WINDOW));
        // SAFETY: the block is the whole window, and freed with its layout.
        unsafe {
            let all = this.alloc(layout);
            all.write_bytes(1, WINDOW);
            this.dealloc(all, layout);
        }
        this
    }
}

/// jemalloc, whose memory is not limited to a window.
impl Contestant for Jemalloc {
    fn fresh() -> Self {
        Self
    }

    fn touched() -> Self {
        Self
    }
}

pub fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

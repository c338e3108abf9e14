//! Child pools with an owner.

use crate::node::Node;
use crate::pool::Pool;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;

/// A pool below another one that ends when it is dropped, made by [`Pool::child`].
///
/// It dereferences to a [`Pool`]. Unlike a pool without a parent it cannot be sent to another thread,
/// since it takes memory from its parent.
pub struct Child<'parent> {
    pool: ManuallyDrop<Pool<'parent>>,
    _not_send: PhantomData<*const ()>,
}

impl Child<'_> {
    /// Makes a child of a node, which it owns from then on.
    pub(crate) fn of(node: NonNull<Node>) -> Self {
        Self { pool: ManuallyDrop::new(Pool::of(node)), _not_send: PhantomData }
    }

    /// Ends the pools below, runs the cleanups, drops the values, and makes all memory free again, as
    /// [`Pool::clear`] does.
    ///
    /// # Panics
    ///
    /// As for [`Pool::clear`].
    pub fn clear(&mut self) {
        self.pool.clear();
    }

    /// Clears the pool, and keeps all blocks for reuse, as [`Pool::reset`] does.
    ///
    /// # Panics
    ///
    /// As for [`Pool::clear`].
    pub fn reset(&mut self) {
        self.pool.reset();
    }

    /// Ends the pool, as dropping it does.
    ///
    /// # Panics
    ///
    /// As for [`Pool::clear`].
    pub fn destroy(self) {
        drop(self);
    }
}

// Not `DerefMut`, by which a child could be swapped with a pool that can be sent away.
impl<'parent> Deref for Child<'parent> {
    type Target = Pool<'parent>;

    #[inline(always)]
    fn deref(&self) -> &Pool<'parent> {
        &self.pool
    }
}

impl Drop for Child<'_> {
    fn drop(&mut self) {
        // SAFETY: the field is dropped here alone, once, and not used again.
        unsafe { ManuallyDrop::drop(&mut self.pool) };
    }
}

impl fmt::Debug for Child<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Child").field(&*self.pool).finish()
    }
}

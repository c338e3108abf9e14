//! A child as its user has it: a pool that cannot be sent away from its parent.

use crate::Pool;
use crate::node::Node;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;

/// A pool below another one, which ends when it is dropped: [`Pool::child`].
///
/// It is a [`Pool`] in all but that it cannot be sent to another thread.
pub struct Child<'parent> {
    pool: ManuallyDrop<Pool<'parent>>,
    _not_send: PhantomData<*const ()>,
}

impl<'parent> Child<'parent> {
    pub(crate) fn of(node: NonNull<Node>) -> Self {
        Self { pool: ManuallyDrop::new(Pool::of(node)), _not_send: PhantomData }
    }

    /// [`Pool::clear`].
    ///
    /// # Panics
    ///
    /// As that does.
    pub fn clear(&mut self) {
        self.pool.clear();
    }

    /// [`Pool::reset`].
    ///
    /// # Panics
    ///
    /// As that does.
    pub fn reset(&mut self) {
        self.pool.reset();
    }

    /// [`Pool::destroy`].
    ///
    /// # Panics
    ///
    /// As that does.
    pub fn destroy(self) {
        drop(self);
    }
}

// Not `DerefMut`, by which a child could be swapped with a pool that may be sent away.
impl<'parent> Deref for Child<'parent> {
    type Target = Pool<'parent>;

    #[inline(always)]
    fn deref(&self) -> &Pool<'parent> {
        &self.pool
    }
}

impl Drop for Child<'_> {
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        unsafe { ManuallyDrop::drop(&mut self.pool) };
    }
}

impl fmt::Debug for Child<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Child").field(&*self.pool).finish()
    }
}

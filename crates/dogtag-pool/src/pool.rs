//! The pool itself: what it is, and how it is cleared.

use crate::node::{Node, resume};
use crate::tree::InTree;
use dogtag::Service;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// A region of memory that is freed in one go.
///
/// [`alloc`](Self::alloc) and its siblings allocate from it. [`clear`](Self::clear) ends the pools
/// below it, runs its [cleanups](Self::cleanup), drops its values, and makes its memory free for
/// the next round; dropping it returns the memory, too. The [crate's documentation](crate) compares
/// it with the pools of APR and nginx and with bumpalo's arena.
///
/// What is dropped or run when the pool is cleared must outlive `'env`.
#[repr(transparent)]
pub struct Pool<'env> {
    node: NonNull<Node>,
    /// Invariant: values that were put in by one lifetime are dropped by the same.
    _env: PhantomData<fn(&'env ()) -> &'env ()>,
}

// SAFETY: all that a pool drops, runs or calls is `Send`, by the bounds of the functions that put it
// in. What borrows from the pool or from a pool below it keeps it from being moved.
unsafe impl Send for Pool<'_> {}

impl<'env> Pool<'env> {
    /// Ends the pools below, runs the cleanups, drops the values, and makes all memory free again.
    /// Up to [`max_free`](crate::PoolBuilder::max_free) bytes of it are kept for reuse.
    ///
    /// Pre-cleanups run first; then the pools below end, the youngest first, in the same way; then
    /// cleanups and drops run, the youngest first. This takes time in proportion to the number of
    /// cleanups, drops and large allocations, here and below, and for each pool below to the number of
    /// pools above it. The memory itself is not touched.
    ///
    /// # Panics
    ///
    /// With the first panic of a cleanup or drop, after all others have run and the memory is free.
    pub fn clear(&mut self) {
        let max_free = self.node().store().max_free();
        self.clear_but_keep(max_free);
    }

    /// Clears the pool, and keeps all blocks for reuse, whatever
    /// [`max_free`](crate::PoolBuilder::max_free) says: for loops that need as much again.
    ///
    /// As [`clear`](Self::clear), it runs cleanups and drops values, which bumpalo's `reset` and nginx's
    /// `ngx_reset_pool` do not (bumpalo's keeps one chunk). When none of the kept blocks suits a later
    /// allocation, as many bytes of them are returned as that takes.
    ///
    /// # Panics
    ///
    /// As for [`clear`](Self::clear).
    pub fn reset(&mut self) {
        self.clear_but_keep(usize::MAX);
    }

    fn clear_but_keep(&mut self, max_free: usize) {
        // SAFETY: the pool is borrowed exclusively, so nobody has its memory or a pool below it.
        // What cleanups use outlives 'env, or, in a child that lasts, is checked in the same way.
        let first_panic = unsafe {
            let first_panic = Node::run_down(self.node);
            self.node().release_blocks(max_free);
            first_panic
        };
        resume(first_panic);
    }

    /// Ends the pools below, runs the cleanups, drops the values, and returns the memory, as dropping
    /// the pool does.
    ///
    /// # Panics
    ///
    /// As for [`clear`](Self::clear).
    pub fn destroy(self) {
        drop(self);
    }

    /// Returns the service to which the pool's memory is charged.
    pub fn service(&self) -> &Service {
        &self.node().store().service
    }

    /// Returns the [name](crate::PoolBuilder::name) that the pool was built with.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.node().name.as_deref()
    }

    /// Returns whether `other` is this pool, or below it (APR: `apr_pool_is_ancestor`). Takes time in
    /// proportion to the number of pools above `other`.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let connection = Pool::new();
    /// let request = connection.child();
    /// let part = request.child();
    /// assert!(connection.is_ancestor(&part) && part.is_ancestor(&part));
    /// assert!(!part.is_ancestor(&connection));
    /// ```
    #[must_use]
    pub fn is_ancestor(&self, other: &Pool<'_>) -> bool {
        other.node().ancestors().any(|node| ptr::eq(node, self.node()))
    }

    /// Makes a pool of a node, which it owns from then on.
    pub(crate) fn of(node: NonNull<Node>) -> Self {
        Self { node, _env: PhantomData }
    }

    /// Lends a node as a pool.
    ///
    /// # Safety
    ///
    /// The node must not end before the borrow does, and all that it drops must outlive `'env`.
    pub(crate) unsafe fn of_lasting<'parent>(node: NonNull<Node>) -> &'parent Self {
        // SAFETY: a pool is `repr(transparent)` over such a pointer, and the node, which contains
        // the pointer, is valid as long as the borrow.
        unsafe { NonNull::from(&node.as_ref().this).cast::<Self>().as_ref() }
    }

    #[inline(always)]
    pub(crate) fn node(&self) -> &Node {
        // SAFETY: the node is valid until the pool is dropped.
        unsafe { self.node.as_ref() }
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from the pool any more, so nobody has its memory or a pool below
        // it, and the node is not used again.
        let first_panic = unsafe {
            let mut first_panic = Node::run_down(self.node);
            Node::end(self.node, &mut first_panic);
            first_panic
        };
        resume(first_panic);
    }
}

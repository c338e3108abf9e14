//! What a pool says of itself.

use crate::node::Node;
use crate::pool::Pool;
use crate::tree::InTree;
use std::fmt;

/// The figures of a pool, returned by [`Pool::stats`] and [`Pool::stats_with_children`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// The number of bytes that were handed out since the pool was cleared, including what alignment
    /// took and the records of cleanups, drops and large allocations (some 40 bytes each).
    pub used: usize,
    /// The number of bytes in blocks and large allocations.
    pub held: usize,
    /// The number of blocks.
    pub blocks: usize,
    /// The number of large allocations.
    pub large: usize,
    /// The number of pools that these figures are of.
    pub pools: usize,
    /// The number of bytes that are kept for reuse, by the pool that was asked and by those of the
    /// tree that [share](crate::PoolBuilder::max_free) them with it.
    pub spare: usize,
}

impl Pool<'_> {
    /// Returns the figures of this pool, without those of the pools below it. Takes time in proportion
    /// to the number of blocks and large allocations.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let pool = Pool::new();
    /// pool.alloc_slice_copy(&[0_u64; 10]);
    /// assert_eq!(pool.stats().used, 80);
    /// pool.alloc_zeroed(100_000);
    /// let stats = pool.stats();
    /// assert!(stats.used >= 100_080 && stats.held > stats.used);
    /// assert_eq!((stats.blocks, stats.large), (1, 1));
    /// ```
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        PoolStats::of(self.node(), std::iter::once(self.node()))
    }

    /// Returns the figures of this pool and of all pools below it. Takes time in proportion to the
    /// number of pools, blocks and large allocations.
    #[must_use]
    pub fn stats_with_children(&self) -> PoolStats {
        PoolStats::of(self.node(), self.node().descendants())
    }
}

impl PoolStats {
    fn of<'a>(asked: &Node, nodes: impl Iterator<Item = &'a Node>) -> Self {
        let mut stats = Self { spare: asked.store().spare_bytes(), ..Self::default() };
        for node in nodes {
            let (blocks, large) = node.count();
            stats.used += node.used();
            stats.held += node.branch().held();
            stats.blocks += blocks;
            stats.large += large;
            stats.pools += 1;
        }
        stats
    }
}

impl fmt::Debug for Pool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name())
            .field("service", &self.service().name())
            .field("stats", &self.stats())
            .finish()
    }
}

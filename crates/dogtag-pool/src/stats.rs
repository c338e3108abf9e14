//! What a pool says of itself.

use crate::node::Node;
#[cfg(doc)]
use crate::{Pool, PoolBuilder};

/// What a pool has: [`Pool::stats`]. All figures are of this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Bytes that were handed out since the pool was cleared, with what alignment took, and
    /// notes of cleanups, drops and large allocations (some 40 bytes each).
    pub used: usize,
    /// Bytes of the blocks and large allocations.
    pub held: usize,
    /// Blocks.
    pub blocks: usize,
    /// Large allocations.
    pub large: usize,
    /// Pools that are looked at here.
    pub pools: usize,
    /// Bytes that are kept for reuse: by the pool that was asked, together with those of the
    /// tree with which it [shares](PoolBuilder::max_free) them.
    pub spare: usize,
}

impl PoolStats {
    pub(crate) fn add(&mut self, node: &Node) {
        let (blocks, large) = node.count();
        self.used += node.used();
        self.held += node.branch.held();
        self.blocks += blocks;
        self.large += large;
        self.pools += 1;
    }
}

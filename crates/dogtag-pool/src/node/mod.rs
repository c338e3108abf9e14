//! A pool's inside: its blocks, its place in the tree, and what is to run at its end.
//!
//! A node is at the beginning of its pool's first block, as in APR and nginx, so that a pool of a
//! few small allocations is one block. Its blocks are:
//!
//! - the *active* block, whose position and end the node itself has, so that the common allocation
//!   reads nothing else;
//! - *open* blocks, in which something did not fit, but smaller allocations may: they are tried
//!   before a new block is taken, and passed over for good after five failures (nginx: after six);
//! - *full* blocks, which wait until the pool is cleared.

mod end;
mod reserve;
mod resize;

pub(crate) use end::resume;

use crate::block::{Block, GRAIN, List, Queue};
use crate::error::PoolError;
use crate::large::Larges;
use crate::records::Records;
use crate::store::Store;
use crate::tree::{Branch, InTree};
use crate::type_map::TypeMap;
use std::borrow::Cow;
use std::cell::Cell;
use std::ptr::NonNull;

pub(crate) struct Node {
    /// The first free byte of the active block.
    position: Cell<NonNull<u8>>,
    /// The end of the active block.
    end: Cell<NonNull<u8>>,
    active: Cell<NonNull<Block>>,
    open: List,
    /// Full blocks, but for the first one, which is never in a list.
    full: Queue,
    is_first_full: Cell<bool>,
    first: NonNull<Block>,
    /// The node's own address. A [`Pool`](crate::Pool) is such a pointer, so that this field is
    /// lent as the pool of a lasting child.
    pub(crate) this: NonNull<Node>,
    /// The size of the next block.
    next_size: Cell<usize>,
    pub(crate) block_size: usize,
    /// The size of the largest allocation that is made in a block.
    pub(crate) max_small: usize,
    larges: Larges,
    source: Source,
    pub(crate) cleanups: Records,
    pub(crate) pre_cleanups: Records,
    pub(crate) data: TypeMap,
    branch: Branch<Node>,
    /// Whether the parent ends it. Otherwise it has an owner, who may forget it.
    is_lasting: bool,
    /// Whether nothing of it may run any more, since what that refers to may be gone.
    is_forgotten: Cell<bool>,
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) on_failure: Option<Handler>,
}

/// Where a pool's memory comes from.
pub(crate) enum Source {
    Own(Store),
    /// The store of a pool above it.
    Shared(NonNull<Store>),
}

pub(crate) type Handler = Box<dyn Fn(&PoolError) + Send>;

/// The reason why there is no memory.
#[derive(Clone, Copy)]
pub(crate) enum Refusal {
    NoMemory,
    /// The limit of this node, which is the pool or one above it.
    Limit(NonNull<Node>),
}

/// The settings of a node.
pub(crate) struct Plan {
    pub(crate) block_size: usize,
    pub(crate) max_small: usize,
    pub(crate) limit: Option<usize>,
    pub(crate) source: Source,
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) on_failure: Option<Handler>,
    pub(crate) is_lasting: bool,
}

/// The smallest block: a smaller one would be little more than its headers.
pub(crate) const LEAST_BLOCK: usize = 1024;
/// The size up to which blocks grow, each twice as large as the one before.
const MOST_BLOCK: usize = 128 << 10;
/// The least that `max_small` can be.
pub(crate) const ALWAYS_SMALL: usize = 256;

/// The offset of the first byte that is handed out in a pool's first block.
const START: usize = (Block::HEADER + size_of::<Node>()).next_multiple_of(GRAIN);

// SAFETY: a node has one branch, and stays in its block until `end` unlinks and frees it; a pool
// outlives its children, which `run_down` ends before it.
unsafe impl InTree for Node {
    #[inline(always)]
    fn branch(&self) -> &Branch<Self> {
        &self.branch
    }
}

impl Node {
    /// Makes a node in a block of its own, as the child of another one or of none.
    #[allow(clippy::result_large_err, reason = "a plan that is refused goes back as a whole")]
    pub(crate) fn new(plan: Plan, parent: Option<&Self>) -> Result<NonNull<Self>, (Plan, Refusal)> {
        const { assert!(align_of::<Self>() <= GRAIN && START + ALWAYS_SMALL <= LEAST_BLOCK) };
        let own = (plan.limit.unwrap_or(usize::MAX), None);
        let (most, limiting) = match parent.map(Self::headroom) {
            Some(above) if above.0 < own.0 => above,
            _ => own,
        };
        let most = most & !(GRAIN - 1);
        let block = match limiting {
            Some(limiting) if most < LEAST_BLOCK => Err(Refusal::Limit(limiting)),
            // Its own limit is too low.
            None if most < LEAST_BLOCK => Err(Refusal::NoMemory),
            _ => plan.source.store().take(LEAST_BLOCK, plan.block_size, most).ok_or(Refusal::NoMemory),
        };
        let block = match block {
            Ok(block) => block,
            Err(refusal) => return Err((plan, refusal)),
        };
        // SAFETY: the block has at least `LEAST_BLOCK` bytes, which is more than `START`, and is
        // aligned for a node. The node is written before anybody looks at its parent, and stays
        // there until `end`.
        unsafe {
            let size = Block::size(block);
            let memory = block.cast::<u8>();
            let this = memory.add(Block::HEADER).cast::<Self>();
            this.write(Self {
                position: Cell::new(memory.add(START)),
                end: Cell::new(block.as_ref().end),
                active: Cell::new(block),
                open: List::default(),
                full: Queue::default(),
                is_first_full: Cell::new(false),
                first: block,
                this,
                next_size: Cell::new(grown(plan.block_size, plan.block_size)),
                block_size: plan.block_size,
                max_small: plan.max_small,
                larges: Larges::default(),
                source: plan.source,
                cleanups: Records::default(),
                pre_cleanups: Records::default(),
                data: TypeMap::default(),
                branch: Branch::new(this, parent, plan.limit),
                is_lasting: plan.is_lasting,
                is_forgotten: Cell::new(false),
                name: plan.name,
                on_failure: plan.on_failure,
            });
            this.as_ref().grow_held(size);
            Ok(this)
        }
    }

    pub(crate) fn store(&self) -> &Store {
        self.source.store()
    }

    /// Returns the number of bytes that are handed out, what alignment and records take included.
    pub(crate) fn used(&self) -> usize {
        let of = |block: NonNull<Block>, position: NonNull<u8>| {
            let header = if block == self.first { START } else { Block::HEADER };
            position.addr().get() - block.addr().get() - header
        };
        // SAFETY: blocks of a pool are freed only when it is cleared or ends.
        let aside = |block: NonNull<Block>| of(block, unsafe { block.as_ref() }.position.get());
        let first = if self.is_first_full.get() { aside(self.first) } else { 0 };
        // SAFETY: as above; nothing is allocated meanwhile, so that blocks stay in their lists.
        let in_lists: usize = unsafe { self.open.iter().chain(self.full.iter()).map(aside).sum() };
        of(self.active.get(), self.position.get()) + first + in_lists + self.larges.count().1
    }

    /// Returns the number of blocks, and that of large allocations.
    pub(crate) fn count(&self) -> (usize, usize) {
        // SAFETY: blocks of a pool stay in their lists while nothing is allocated.
        let in_lists = unsafe { self.open.iter().chain(self.full.iter()).count() };
        let blocks = 1 + usize::from(self.is_first_full.get()) + in_lists;
        (blocks, self.larges.count().0)
    }
}

impl Source {
    fn store(&self) -> &Store {
        match self {
            Self::Own(store) => store,
            // SAFETY: a store is part of a node above this one, which lives longer.
            Self::Shared(store) => unsafe { store.as_ref() },
        }
    }
}

/// Returns the size of the block after one of `size` bytes.
fn grown(size: usize, block_size: usize) -> usize {
    size.saturating_mul(2).min(MOST_BLOCK.max(block_size))
}

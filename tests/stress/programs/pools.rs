//! Pools with children. What an operation takes from the allocator and gives back is the pool's own
//! affair; but it is its service's, and what the pool says it has.

use super::program::Act;
use super::worker::Worker;
use super::world::World;
use crate::engine::account::{Held, NONE};
use crate::engine::piece::{Piece, WHOLE, are_all};
use crate::engine::{aside, ensure};
use dogtag_pool::{Child, Pool, PoolError};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;

/// A pool without children, which may go to another thread.
pub struct Tree {
    /// Where it stays, since children borrow it.
    pool: Box<Pool<'static>>,
    pieces: Vec<Piece>,
    held: Held,
    /// What its service holds for it.
    bytes: u64,
}

/// A pool with its children, which go first.
pub struct Grown {
    children: Vec<(Child<'static>, Vec<Piece>)>,
    tree: Tree,
}

// SAFETY: what is in the pool is the tree's.
unsafe impl Send for Tree {}

const MOST_CHILDREN: usize = 4;

/// Denials that one operation can run into.
const MOST_DENIALS: u64 = 8;

/// Does something to a pool of that service, which holds so many bytes for it. Returns what it
/// holds now. No allocation of the harness's may be among it.
fn change<R>(world: &World, held: &Held, bytes: u64, work: impl FnOnce() -> R) -> (R, u64) {
    let known = &held.account;
    let denied = held.service.usage().denied;
    // What was read is a peak, too.
    _ = known.peaks();
    known.expect_less(bytes);
    let (result, usage) = dogtag::measure(work);
    known.charge(usage.allocated_bytes, usage.allocated_blocks);
    known.refund(usage.freed_bytes, usage.freed_blocks);
    let bytes = bytes + usage.allocated_bytes - usage.freed_bytes;
    known.find_more(bytes);
    if world.in_turn {
        known.denied.fetch_add(held.service.usage().denied - denied, SeqCst);
        _ = known.peaks();
    } else {
        known.doubtful.fetch_add(MOST_DENIALS, SeqCst);
    }
    (result, bytes)
}

/// Why there was no memory: only a limit can be the reason.
fn expect_denial(world: &World, held: &Held, error: &PoolError) {
    aside(|| {
        let is_limited = held.account.chain().any(|known| known.hard.load(SeqCst) != NONE);
        ensure!(!world.in_turn || is_limited, "nothing denies it: {error}");
        ensure!(held.account.was_limited(), "never limited: {error}");
    });
}

impl Grown {
    pub fn new(world: &World, held: Held, block_size: usize) -> Option<Self> {
        let build = || Pool::builder().service(&held.service).block_size(block_size).build();
        let (pool, bytes) = change(world, &held, 0, build);
        match pool {
            Ok(pool) => {
                let tree = aside(|| Tree { pool: Box::new(pool), pieces: Vec::new(), held, bytes });
                Some(Self::of(tree).checked())
            }
            Err(error) => {
                expect_denial(world, &held, &error);
                None
            }
        }
    }

    pub fn of(tree: Tree) -> Self {
        Self { children: Vec::new(), tree }
    }

    fn checked(self) -> Self {
        self.check();
        self
    }

    /// The service holds what the pool says that it has.
    fn check(&self) {
        let stats = self.tree.pool.stats_with_children();
        ensure!((stats.held + stats.spare) as u64 == self.tree.bytes, "{stats:?}, not {}", self.tree.bytes);
        ensure!(stats.pools == 1 + self.children.len(), "{stats:?}");
        ensure!(stats.used <= stats.held);
    }

    fn change<R>(&mut self, world: &World, work: impl FnOnce(&mut Self) -> R) -> R {
        let (held, bytes) = aside(|| (self.tree.held.clone(), self.tree.bytes));
        let (result, bytes) = change(world, &held, bytes, || work(self));
        self.tree.bytes = bytes;
        self.check();
        result
    }

    /// From the pool itself or one of its children.
    pub fn allocate(&mut self, world: &World, child: usize, layout: Layout, is_zeroed: bool) {
        let child = child % (1 + self.children.len());
        aside(|| self.pieces(child).reserve(1));
        let piece = self.change(world, |this| {
            let pool: &Pool<'static> = match child {
                0 => &this.tree.pool,
                child => &this.children[child - 1].0,
            };
            if is_zeroed {
                pool.try_alloc_zeroed(layout.size()).map(|bytes| NonNull::from(bytes).cast())
            } else {
                pool.try_alloc_layout(layout)
            }
        });
        match piece {
            Ok(memory) => {
                // SAFETY: it is new, and that long.
                let piece = unsafe {
                    ensure!(!is_zeroed || are_all(memory, layout.size(), 0), "not zeroed");
                    Piece::fill(memory, layout, WHOLE)
                };
                self.pieces(child).push(piece);
            }
            Err(error) => expect_denial(world, &self.tree.held, &error),
        }
    }

    fn pieces(&mut self, child: usize) -> &mut Vec<Piece> {
        match child {
            0 => &mut self.tree.pieces,
            child => &mut self.children[child - 1].1,
        }
    }

    /// Gives the last allocation back that the pool itself has, if that is still there.
    pub fn free_last(&mut self, world: &World) {
        if let Some(piece) = self.tree.pieces.pop() {
            check(&[piece]);
            self.change(world, |this| {
                // SAFETY: it was allocated there with that layout, and nobody uses it any more.
                unsafe { this.tree.pool.free(piece.start, piece.layout) };
            });
        }
    }

    pub fn add_child(&mut self, world: &World) {
        if self.children.len() == MOST_CHILDREN {
            return;
        }
        aside(|| self.children.reserve(1));
        // SAFETY: children go first, and the pool stays where it is.
        let pool: &'static Pool<'static> = unsafe { &*std::ptr::from_ref(&*self.tree.pool) };
        let held = aside(|| self.tree.held.clone());
        let (child, bytes) = change(world, &held, self.tree.bytes, || pool.try_child());
        self.tree.bytes = bytes;
        match child {
            Ok(child) => self.children.push((child, Vec::new())),
            Err(error) => expect_denial(world, &held, &error),
        }
        self.check();
    }

    pub fn drop_child(&mut self, world: &World) {
        if let Some((child, pieces)) = self.children.pop() {
            check(&pieces);
            self.change(world, |_| drop(child));
        }
    }

    pub fn clear(&mut self, world: &World, keeps_all: bool) {
        self.drop_children(world);
        check(&self.tree.pieces);
        self.tree.pieces.clear();
        self.change(world, |this| if keeps_all { this.tree.pool.reset() } else { this.tree.pool.clear() });
        let stats = self.tree.pool.stats();
        ensure!((stats.used, stats.large) == (0, 0), "{stats:?}");
    }

    fn drop_children(&mut self, world: &World) {
        while !self.children.is_empty() {
            self.drop_child(world);
        }
    }

    pub fn into_tree(mut self, world: &World) -> Tree {
        self.drop_children(world);
        let Self { tree, .. } = self;
        tree
    }

    pub fn destroy(self, world: &World) {
        let Tree { pool, pieces, held, bytes } = self.into_tree(world);
        check(&pieces);
        let pool = aside(|| *pool);
        let ((), left) = change(world, &held, bytes, || drop(pool));
        ensure!(left == 0, "a pool has left {left} bytes behind");
    }
}

/// Nobody else has written to them.
fn check(pieces: &[Piece]) {
    // SAFETY: the pool has not been cleared, and nothing of it was given back.
    pieces.iter().for_each(|piece| unsafe { piece.check() });
}

impl Worker<'_> {
    /// `false` if it has nothing to do with pools.
    pub fn step_of_pools(&mut self, act: &Act) -> bool {
        let world = self.world;
        match *act {
            Act::MakePool { service, block_size } => {
                if let Some(held) = aside(|| world.service(service))
                    && let Some(pool) = Grown::new(world, held, block_size)
                {
                    aside(|| self.pools.push(pool));
                }
            }
            Act::PoolAllocate { pool, child, size, is_zeroed } => {
                let layout = Layout::from_size_align(size, 8).unwrap();
                if let Some(pool) = self.pool(pool) {
                    pool.allocate(world, child, layout, is_zeroed);
                }
            }
            Act::PoolFreeLarge { pool } => {
                if let Some(pool) = self.pool(pool) {
                    pool.free_last(world);
                }
            }
            Act::PoolChild { pool } => {
                if let Some(pool) = self.pool(pool) {
                    pool.add_child(world);
                }
            }
            Act::PoolDropChild { pool } => {
                if let Some(pool) = self.pool(pool) {
                    pool.drop_child(world);
                }
            }
            Act::PoolClear { pool, keeps_all } => {
                if let Some(pool) = self.pool(pool) {
                    pool.clear(world, keeps_all);
                }
            }
            Act::GivePool { pool, to } => {
                if let Some(pool) = self.take_pool(pool) {
                    let tree = pool.into_tree(world);
                    aside(|| world.pool_mail[to].lock().unwrap().push(tree));
                }
            }
            Act::DropPool { pool } => {
                if let Some(pool) = self.take_pool(pool) {
                    pool.destroy(world);
                }
            }
            _ => return false,
        }
        true
    }

    pub fn collect_pools(&mut self) {
        let mut mail = self.world.pool_mail[self.line].lock().unwrap();
        aside(|| self.pools.extend(mail.drain(..).map(Grown::of)));
    }

    fn pool(&mut self, pool: usize) -> Option<&mut Grown> {
        self.collect_pools();
        let index = pool.checked_rem(self.pools.len())?;
        Some(&mut self.pools[index])
    }

    fn take_pool(&mut self, pool: usize) -> Option<Grown> {
        self.collect_pools();
        let index = pool.checked_rem(self.pools.len())?;
        Some(self.pools.swap_remove(index))
    }
}

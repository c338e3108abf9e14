//! Trees of pools, and the model of them: what is in their memory, who has which, and what runs at their
//! end, in which order.
#![allow(dead_code, reason = "each test uses the part that it needs")]

use crate::engine::account::Account;
use crate::engine::addresses::Addresses;
use crate::engine::block::Block;
use crate::engine::collection::Collection;
use crate::engine::piece::{Piece, WHOLE, are_all};
use dogtag_pool::{Child, Pool};
use std::alloc::Layout;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// What has run, by number.
type Log = Arc<Mutex<Vec<usize>>>;

/// Notes in its drop that it is dropped. Two words.
pub struct Noisy(Log, usize);

impl Drop for Noisy {
    fn drop(&mut self) {
        note(&self.0, self.1);
    }
}

fn note(log: &Log, number: usize) {
    log.lock().expect("nobody panics with it").push(number);
}

/// A pool, whose borrows the model sees to: what is below goes first.
pub enum Handle {
    Root(Pool<'static>),
    Own(Child<'static>),
    Lasting(&'static Pool<'static>),
}

impl Handle {
    pub fn pool(&self) -> &Pool<'static> {
        match self {
            Self::Root(pool) => pool,
            Self::Own(child) => child,
            Self::Lasting(pool) => pool,
        }
    }
}

/// A block of a collection in a pool.
pub type Collected = Block<Collection<&'static Pool<'static>>, Arc<Account>>;

/// A pool of the model, with what else a test knows of it.
pub struct Node<T> {
    pub handle: Handle,
    parent: Option<usize>,
    /// The eldest first.
    children: Vec<usize>,
    pre_cleanups: Vec<usize>,
    cleanups: Vec<usize>,
    /// What lasts until the pool is cleared, and what a collection has.
    pub kept: Vec<Piece>,
    pub blocks: Vec<Collected>,
    pub own: T,
}

pub struct Tree<T> {
    /// By number, which is not used again.
    nodes: Vec<Option<Box<Node<T>>>>,
    pub addresses: Addresses,
    log: Log,
    expected: Vec<usize>,
    runs: usize,
}

/// What becomes of a cleanup.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Runs,
    Panics,
    IsCancelled,
    RunsAtOnce,
}

impl<T> Tree<T> {
    pub fn new(root: Pool<'static>, own: T) -> Self {
        let (nodes, log, expected) = (Vec::new(), Log::default(), Vec::new());
        let mut tree = Self { nodes, addresses: Addresses::default(), log, expected, runs: 0 };
        tree.add(Handle::Root(root), None, own);
        tree
    }

    fn add(&mut self, handle: Handle, parent: Option<usize>, own: T) {
        let number = self.nodes.len();
        if let Some(parent) = parent {
            self.node(parent).children.push(number);
        }
        let (children, pre_cleanups, cleanups) = Default::default();
        let (kept, blocks) = Default::default();
        let node = Node { handle, parent, children, pre_cleanups, cleanups, kept, blocks, own };
        self.nodes.push(Some(Box::new(node)));
    }

    /// Adds a child, if it can be had.
    pub fn child(
        &mut self,
        parent: usize,
        make: impl FnOnce(&'static Pool<'static>) -> Option<Handle>,
        own: T,
    ) {
        let pool = self.pool(parent);
        if let Some(handle) = make(pool) {
            assert!(pool.is_ancestor(handle.pool()) && !handle.pool().is_ancestor(pool));
            self.add(handle, Some(parent), own);
        }
    }

    pub fn node(&mut self, number: usize) -> &mut Node<T> {
        self.nodes[number].as_mut().expect("a pool that is there")
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node<T>> {
        self.nodes.iter().flatten().map(|node| &**node)
    }

    pub fn pool(&self, number: usize) -> &'static Pool<'static> {
        let node = self.nodes[number].as_ref().expect("a pool that is there");
        // SAFETY: the model ends what borrows it before it, and it does not move.
        unsafe { &*std::ptr::from_ref(node.handle.pool()) }
    }

    /// One of those that are there; the root always is.
    pub fn pick(&self, among: usize) -> usize {
        let there: Vec<_> = (0..self.nodes.len()).filter(|number| self.nodes[*number].is_some()).collect();
        there[among % there.len()]
    }

    /// One of the blocks of all pools.
    pub fn pick_block(&self, among: usize) -> Option<(usize, usize)> {
        let len = |node: &Option<Box<Node<T>>>| node.as_ref().map_or(0, |node| node.blocks.len());
        let mut place = among.checked_rem(self.nodes.iter().map(len).sum())?;
        let number = self.nodes.iter().position(|node| match place.checked_sub(len(node)) {
            Some(rest) => {
                place = rest;
                false
            }
            None => true,
        })?;
        Some((number, place))
    }

    pub fn next_run(&mut self) -> usize {
        self.runs += 1;
        self.runs
    }

    /// Memory of a pool that has that value, and has it until the pool is cleared.
    pub fn keep(&mut self, number: usize, start: NonNull<u8>, layout: Layout, value: u8) {
        // SAFETY: it is live until the pool is cleared, and was written to by who allocated it.
        let piece = unsafe {
            assert!(are_all(start, layout.size(), value), "it was not copied, or not zeroed");
            Piece::fill(start, layout, WHOLE)
        };
        self.addresses.take(start, layout.size());
        self.node(number).kept.push(piece);
    }

    /// A value in a pool that is dropped with it; `false` if it was not had.
    pub fn value(&mut self, number: usize) -> bool {
        let (run, log) = (self.next_run(), self.log.clone());
        let is_had = self.pool(number).try_alloc(Noisy(log, run)).is_ok();
        if is_had {
            self.node(number).cleanups.push(run);
        } else {
            // It is dropped at once.
            self.expected.push(run);
        }
        is_had
    }

    /// Registers a cleanup; returns how large it is.
    pub fn cleanup(&mut self, number: usize, is_pre: bool, end: End) -> usize {
        let (run, log) = (self.next_run(), self.log.clone());
        let work = move || {
            note(&log, run);
            if end == End::Panics {
                resume_unwind(Box::new("said so"));
            }
        };
        let (size, pool) = (size_of_val(&work), self.pool(number));
        let cleanup = if is_pre { pool.try_pre_cleanup(work) } else { pool.try_cleanup(work) };
        if let Ok(cleanup) = cleanup {
            match end {
                End::IsCancelled => cleanup.cancel(),
                End::RunsAtOnce => {
                    cleanup.run();
                    self.expected.push(run);
                }
                End::Runs | End::Panics if is_pre => self.node(number).pre_cleanups.push(run),
                End::Runs | End::Panics => self.node(number).cleanups.push(run),
            }
        }
        size
    }

    /// Clears a pool, or resets it; `false` if that is its parent's affair.
    pub fn clear(&mut self, number: usize, keeps_all: bool) -> bool {
        if matches!(self.node(number).handle, Handle::Lasting(_)) {
            return false;
        }
        self.drop_own_below(number);
        self.expect_end_of(number);
        let handle = &mut self.node(number).handle;
        let _ = catch_unwind(AssertUnwindSafe(|| match (handle, keeps_all) {
            (Handle::Root(pool), false) => pool.clear(),
            (Handle::Root(pool), true) => pool.reset(),
            (Handle::Own(pool), false) => pool.clear(),
            (Handle::Own(pool), true) => pool.reset(),
            (Handle::Lasting(_), _) => unreachable!("it is cleared with its parent"),
        }));
        self.forget_below(number);
        assert_eq!(self.pool(number).stats().used, 0);
        let node = self.node(number);
        node.pre_cleanups.clear();
        node.cleanups.clear();
        true
    }

    /// What the compiler would ask for: those below that somebody has go first.
    fn drop_own_below(&mut self, number: usize) {
        for child in self.node(number).children.clone() {
            self.drop_own_below(child);
            if matches!(self.node(child).handle, Handle::Own(_)) {
                self.drop_one(child);
            }
        }
    }

    /// Drops a child that somebody has.
    pub fn destroy(&mut self, number: usize) {
        if matches!(self.node(number).handle, Handle::Own(_)) {
            self.drop_one(number);
        }
    }

    fn drop_one(&mut self, number: usize) {
        self.drop_own_below(number);
        self.expect_end_of(number);
        self.forget_below(number);
        if let Some(parent) = self.node(number).parent {
            self.node(parent).children.retain(|child| *child != number);
        }
        let node = self.nodes[number].take().expect("a pool that is there");
        let _ = catch_unwind(AssertUnwindSafe(|| drop(node.handle)));
    }

    /// In which order what is below and it itself run. Their memory is nobody's then.
    fn expect_end_of(&mut self, number: usize) {
        let node = self.node(number);
        let blocks = node.blocks.drain(..).map(|block| block.piece);
        let pieces: Vec<Piece> = node.kept.drain(..).chain(blocks).collect();
        for piece in pieces {
            // SAFETY: the pool has not been cleared.
            unsafe { piece.check() };
            self.addresses.give_back(piece.start, piece.layout.size());
        }
        let node = self.node(number);
        let (pre, children) = (node.pre_cleanups.clone(), node.children.clone());
        let cleanups = node.cleanups.clone();
        self.expected.extend(pre.iter().rev());
        children.iter().rev().for_each(|child| self.expect_end_of(*child));
        self.expected.extend(cleanups.iter().rev());
    }

    fn forget_below(&mut self, number: usize) {
        for child in std::mem::take(&mut self.node(number).children) {
            self.forget_below(child);
            self.nodes[child] = None;
        }
    }

    pub fn check_log(&self) {
        let log = self.log.lock().expect("nobody panics with it");
        assert_eq!(*log, self.expected, "what ran, and in which order");
    }

    /// Ends all.
    pub fn end(mut self) {
        self.drop_one(0);
        self.check_log();
    }
}

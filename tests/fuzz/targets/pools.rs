//! Trees of pools: what is in their memory, who has which, what runs at their end and in which
//! order, and what the ledger and limits say, against a model.

#![no_main]

#[path = "pools/program.rs"]
mod program;
#[path = "../../../crates/dogtag-pool/tests/tree/mod.rs"]
mod tree;

use allocator_api2::alloc::Allocator;
use dogtag::{Dogtag, Service};
use dogtag_fuzz::engine::account::Account;
use dogtag_fuzz::engine::block::Block;
use dogtag_fuzz::engine::collection::Collection;
use dogtag_fuzz::engine::memory::Refusal;
use dogtag_fuzz::engine::{self, Mode};
use dogtag_fuzz::layout;
use dogtag_pool::{Pool, PoolBuilder};
use libfuzzer_sys::fuzz_target;
use program::{Operation, Program, Settings};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock};
use tree::{Collected, End, Handle, Tree};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

static SERVICE: LazyLock<Service> = LazyLock::new(|| Service::register("pools").expect("a service"));

/// Pools of one program, at most.
const MOST_POOLS: usize = 24;

/// What else is known of a pool.
struct Known {
    limit: Option<usize>,
    /// Whether what it keeps for reuse is its own, and not shared with its parent.
    has_store: bool,
}

struct Machine {
    tree: Tree<Known>,
    /// Of what collections have, which no ledger knows.
    collected: Arc<Account>,
    hard: Option<u64>,
}

impl Machine {
    fn new(settings: Settings) -> Option<Self> {
        SERVICE.set_hard_limit(None);
        let root = builder(settings).service(&SERVICE).build().ok()?;
        let tree = Tree::new(root, Known { limit: settings.limit.map(limit), has_store: true });
        let collected = Arc::new(Account::new("collected".to_owned(), 0, None, None));
        Some(Self { tree, collected, hard: None })
    }

    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::Child { parent, is_lasting, settings } => self.child(parent, is_lasting, settings),
            Operation::Keep { pool, size, align, is_zeroed } => {
                self.keep(pool, layout(size, align), is_zeroed)
            }
            Operation::Text { pool, len } => {
                let number = self.tree.pick(pool.into());
                let value = self.tree.next_run() as u8 % 128;
                let text = char::from(value).to_string().repeat(len.into());
                let Ok(copy) = self.tree.pool(number).try_alloc_str(&text) else { return };
                let (start, layout) = (NonNull::from(&mut *copy).cast(), Layout::for_value(copy));
                self.tree.keep(number, start, layout, value);
            }
            Operation::Value { pool } => {
                let number = self.tree.pick(pool.into());
                _ = self.tree.value(number);
            }
            Operation::Cleanup { pool, is_pre, end } => {
                let end = match end {
                    program::End::Runs => End::Runs,
                    program::End::Panics => End::Panics,
                    program::End::IsCancelled => End::IsCancelled,
                    program::End::RunsAtOnce => End::RunsAtOnce,
                };
                let number = self.tree.pick(pool.into());
                _ = self.tree.cleanup(number, is_pre, end);
            }
            Operation::Clear { pool, keeps_all } => {
                let number = self.tree.pick(pool.into());
                _ = self.tree.clear(number, keeps_all);
            }
            Operation::Destroy { pool } => {
                let number = self.tree.pick(pool.into());
                self.tree.destroy(number);
            }
            Operation::Allocate { pool, size, align, is_zeroed } => {
                let number = self.tree.pick(pool.into());
                self.allocate(number, layout(size, align), is_zeroed);
            }
            Operation::Resize { block, size, align, is_zeroed } => {
                if let Some((number, place)) = self.tree.pick_block(block.into()) {
                    self.resize(number, place, layout(size, align), is_zeroed);
                }
            }
            Operation::Free { block } => {
                let Some((number, place)) = self.tree.pick_block(block.into()) else { return };
                let block = self.tree.node(number).blocks.swap_remove(place);
                self.tree.addresses.give_back(block.piece.start, block.size());
                block.free(Mode::Among);
            }
            Operation::Fill { pool, distance } => {
                let number = self.tree.pick(pool.into());
                let space = space(self.tree.pool(number));
                let layout = Layout::array::<u8>(space.saturating_add_signed(distance.into()));
                self.allocate(number, layout.expect("a small layout"), false);
            }
            Operation::GrowToFill { block, distance } => {
                let Some((number, place)) = self.tree.pick_block(block.into()) else { return };
                let old = self.tree.node(number).blocks[place].piece.layout;
                let space = space(self.tree.pool(number));
                let bytes = (old.size() + space).saturating_add_signed(distance.into());
                let new = Layout::from_size_align(bytes, old.align()).expect("a small layout");
                self.resize(number, place, new, false);
            }
            Operation::Impossible { pool, less, is_zeroed } => {
                let pool = self.tree.pool(self.tree.pick(pool.into()));
                let bytes = isize::MAX as usize - usize::from(less);
                if let Ok(layout) = Layout::from_size_align(bytes, 1) {
                    let memory = if is_zeroed { pool.allocate_zeroed(layout) } else { pool.allocate(layout) };
                    assert!(memory.is_err());
                }
            }
            Operation::HardLimit { bytes } => {
                self.hard = bytes.map(|bytes| limit(bytes) as u64);
                SERVICE.set_hard_limit(self.hard);
            }
        }
    }

    fn child(&mut self, parent: u8, is_lasting: bool, settings: Settings) {
        if self.tree.nodes().count() == MOST_POOLS {
            return;
        }
        let make = |pool| {
            if is_lasting {
                builder(settings).lasting_child_of(pool).map(Handle::Lasting).ok()
            } else {
                builder(settings).child_of(pool).map(Handle::Own).ok()
            }
        };
        let known = Known { limit: settings.limit.map(limit), has_store: settings.max_free.is_some() };
        let parent = self.tree.pick(parent.into());
        self.tree.child(parent, make, known);
    }

    fn keep(&mut self, pool: u8, layout: Layout, is_zeroed: bool) {
        let number = self.tree.pick(pool.into());
        let pool = self.tree.pool(number);
        let memory: Option<NonNull<u8>> = if is_zeroed {
            pool.allocate_zeroed(layout).ok().map(NonNull::cast)
        } else {
            pool.try_alloc_layout(layout).ok()
        };
        let Some(start) = memory else { return };
        if !is_zeroed {
            // SAFETY: it is that long, and live until the pool is cleared.
            unsafe { start.write_bytes(0, layout.size()) };
        }
        self.tree.keep(number, start, layout, 0);
    }

    fn allocate(&mut self, number: usize, layout: Layout, is_zeroed: bool) {
        // What it has may be all that a limit allows for, or more than there is space for.
        let memory = Collection(self.tree.pool(number), Refusal::Anything);
        let owner = Arc::clone(&self.collected);
        let block: Option<Collected> = Block::allocate(memory, owner, layout, is_zeroed, Mode::Among);
        if let Some(block) = block {
            self.tree.addresses.take(block.piece.start, block.size());
            self.tree.node(number).blocks.push(block);
        }
    }

    fn resize(&mut self, number: usize, place: usize, new: Layout, is_zeroed: bool) {
        let block = &mut self.tree.node(number).blocks[place];
        let (start, old) = (block.piece.start, block.size());
        let owner = Arc::clone(&block.owner);
        if block.resize(&owner, new, is_zeroed, Mode::Among) {
            let moved = block.piece.start;
            self.tree.addresses.give_back(start, old);
            self.tree.addresses.take(moved, new.size());
        }
    }

    /// `live`: what the service held before.
    fn check(&self, live: u64) {
        self.tree.check_log();
        let (mut held, mut used, mut spare, mut pools) = (0, 0, 0, 0);
        for node in self.tree.nodes() {
            let (pool, stats, limit) = (node.handle.pool(), node.handle.pool().stats(), node.own.limit);
            let pieces = node.kept.iter().chain(node.blocks.iter().map(|block| &block.piece));
            let bytes: usize = pieces.map(|piece| piece.layout.size()).sum();
            assert!(stats.used >= bytes, "{stats:?}, {bytes}");
            assert!(stats.used + *BEGINNING <= stats.held, "{stats:?} is more than there is");
            let together = pool.stats_with_children().held;
            assert!(limit.is_none_or(|limit| together <= limit), "{together} of {limit:?}");
            (held, used, pools) = (held + stats.held, used + stats.used, pools + 1);
            if node.own.has_store {
                spare += stats.spare;
            }
        }
        let all = self.tree.pool(0).stats_with_children();
        assert_eq!((all.held, all.used, all.pools), (held, used, pools));
        let ledger = SERVICE.usage().bytes();
        assert_eq!(ledger, (held + spare) as u64, "the ledger has what the pools have");
        assert!(self.hard.is_none_or(|hard| ledger <= hard.max(live)), "past the limit");
    }
}

/// What stands at the beginning of a pool's first block: what is left of it when nothing more
/// fits.
static BEGINNING: LazyLock<usize> = LazyLock::new(|| {
    let pool = Pool::builder().block_size(1024).build().expect("a pool");
    let layout = Layout::new::<u8>();
    let mut left = 0;
    while pool.stats().blocks == 1 {
        left = pool.stats().held - pool.stats().used;
        pool.alloc_layout(layout);
    }
    left
});

/// Bytes that fit into a pool's first block, if it has no other one.
fn space(pool: &Pool<'_>) -> usize {
    let stats = pool.stats();
    stats.held.saturating_sub(stats.used + *BEGINNING)
}

fn builder(settings: Settings) -> PoolBuilder {
    let mut builder = Pool::builder();
    if let Some(bytes) = settings.block_size {
        builder = builder.block_size(bytes.into());
    }
    if let Some(bytes) = settings.max_small {
        builder = builder.max_small(bytes.into());
    }
    if let Some(bytes) = settings.max_free {
        builder = builder.max_free(bytes.into());
    }
    if let Some(bytes) = settings.limit {
        builder = builder.limit(limit(bytes));
    }
    builder
}

/// Small enough to be reached.
fn limit(bytes: u32) -> usize {
    bytes as usize % (1 << 20)
}

fuzz_target!(|program: Program| {
    let Some(mut machine) = Machine::new(program.root) else { return };
    for operation in &program.operations {
        let live = SERVICE.usage().bytes();
        machine.step(operation);
        machine.check(live);
    }
    machine.tree.end();
    assert_eq!((SERVICE.usage().bytes(), SERVICE.usage().blocks()), (0, 0));
});

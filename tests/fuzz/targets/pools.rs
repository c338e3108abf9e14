//! Trees of pools: what is in their memory, who has which, what runs at their end and in which
//! order, and what the ledger and limits say, against a model.

#![no_main]

#[path = "pools/program.rs"]
mod program;

use allocator_api2::alloc::Allocator;
use dogtag::{Dogtag, Service};
use dogtag_fuzz::engine::piece::{Piece as Block, WHOLE, are_all};
use dogtag_fuzz::{Addresses, layout, pick};
use dogtag_pool::{Child, Pool, PoolBuilder};
use libfuzzer_sys::fuzz_target;
use program::{End, Operation, Program, Settings};
use std::alloc::Layout;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock, Mutex};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

static SERVICE: LazyLock<Service> = LazyLock::new(|| Service::register("pools").expect("a service"));

/// Pools of one program, at most.
const MOST_POOLS: usize = 24;

/// What has run, by number.
type Log = Arc<Mutex<Vec<usize>>>;

/// Notes in its drop that it is dropped.
struct Noisy(Log, usize);

impl Drop for Noisy {
    fn drop(&mut self) {
        note(&self.0, self.1);
    }
}

fn note(log: &Log, number: usize) {
    log.lock().expect("nobody panics with it").push(number);
}

/// A pool, whose borrows the model sees to: what is below goes first.
enum Handle {
    Root(Pool<'static>),
    Own(Child<'static>),
    Lasting(&'static Pool<'static>),
}

impl Handle {
    fn pool(&self) -> &Pool<'static> {
        match self {
            Self::Root(pool) => pool,
            Self::Own(child) => child,
            Self::Lasting(pool) => pool,
        }
    }
}

struct Model {
    handle: Handle,
    parent: Option<usize>,
    /// The eldest first.
    children: Vec<usize>,
    pre_cleanups: Vec<usize>,
    cleanups: Vec<usize>,
    /// What lasts until the pool is cleared, and what a collection has.
    kept: Vec<Block>,
    blocks: Vec<Block>,
    limit: Option<usize>,
    /// Whether what it keeps for reuse is its own, and not shared with its parent.
    has_store: bool,
}

struct Machine {
    /// By number, which is not used again.
    pools: Vec<Option<Box<Model>>>,
    addresses: Addresses,
    log: Log,
    expected: Vec<usize>,
    runs: usize,
    hard: Option<u64>,
}

impl Machine {
    fn new(settings: Settings) -> Option<Self> {
        SERVICE.set_hard_limit(None);
        let root = builder(settings).service(&SERVICE).build().ok()?;
        let mut machine = Self {
            pools: Vec::new(),
            addresses: Addresses::default(),
            log: Log::default(),
            expected: Vec::new(),
            runs: 0,
            hard: None,
        };
        machine.add(Handle::Root(root), None, settings);
        Some(machine)
    }

    fn add(&mut self, handle: Handle, parent: Option<usize>, settings: Settings) {
        let number = self.pools.len();
        if let Some(parent) = parent {
            self.model(parent).children.push(number);
        }
        let model = Model {
            handle,
            parent,
            children: Vec::new(),
            pre_cleanups: Vec::new(),
            cleanups: Vec::new(),
            kept: Vec::new(),
            blocks: Vec::new(),
            limit: settings.limit.map(limit),
            has_store: parent.is_none() || settings.max_free.is_some(),
        };
        self.pools.push(Some(Box::new(model)));
    }

    fn model(&mut self, number: usize) -> &mut Model {
        self.pools[number].as_mut().expect("a pool that is there")
    }

    /// One of those that are there; the root always is.
    fn pick(&self, among: u8) -> usize {
        let there: Vec<_> = (0..self.pools.len()).filter(|i| self.pools[*i].is_some()).collect();
        there[usize::from(among) % there.len()]
    }

    fn next_run(&mut self) -> usize {
        self.runs += 1;
        self.runs
    }

    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::Child { parent, is_lasting, settings } => self.child(parent, is_lasting, settings),
            Operation::Keep { pool, size, align, is_zeroed } => {
                self.keep(pool, layout(size, align), is_zeroed)
            }
            Operation::Text { pool, len } => {
                let number = self.pick(pool);
                let value = self.next_run() as u8 % 128;
                let text = char::from(value).to_string().repeat(len.into());
                let Ok(copy) = self.model(number).handle.pool().try_alloc_str(&text) else { return };
                assert_eq!(*copy, *text);
                let start = NonNull::from(copy).cast();
                self.add_kept(number, start, Layout::array::<u8>(len.into()).expect("a short text"), value);
            }
            Operation::Value { pool } => {
                let (number, run, log) = (self.pick(pool), self.next_run(), self.log.clone());
                let model = self.model(number);
                match model.handle.pool().try_alloc(Noisy(log, run)) {
                    Ok(_) => model.cleanups.push(run),
                    // It is dropped at once.
                    Err(_) => self.expected.push(run),
                }
            }
            Operation::Cleanup { pool, is_pre, end } => self.cleanup(pool, is_pre, end),
            Operation::Clear { pool, keeps_all } => self.clear(pool, keeps_all),
            Operation::Destroy { pool } => {
                let number = self.pick(pool);
                if matches!(self.model(number).handle, Handle::Own(_)) {
                    self.destroy(number);
                }
            }
            Operation::Allocate { pool, size, align, is_zeroed } => {
                self.allocate(pool, layout(size, align), is_zeroed);
            }
            Operation::Resize { block, size, align, is_zeroed } => {
                self.resize(block, layout(size, align), is_zeroed);
            }
            Operation::Free { block } => {
                let Some((number, place)) = self.pick_block(block) else { return };
                let block = self.model(number).blocks.swap_remove(place);
                self.addresses.give_back(block.start, block.layout.size());
                // SAFETY: the model knows that it is live, and of which layout.
                unsafe {
                    block.check();
                    self.model(number).handle.pool().deallocate(block.start, block.layout);
                }
            }
            Operation::Fill { pool, distance } => {
                let number = self.pick(pool);
                let space = space(self.model(number).handle.pool());
                let layout = Layout::array::<u8>(space.saturating_add_signed(distance.into()));
                self.allocate(pool, layout.expect("a small layout"), false);
            }
            Operation::GrowToFill { block, distance } => {
                let Some((number, place)) = self.pick_block(block) else { return };
                let model = self.model(number);
                let (old, space) = (model.blocks[place].layout, space(model.handle.pool()));
                let bytes = (old.size() + space).saturating_add_signed(distance.into());
                let new = Layout::from_size_align(bytes, old.align()).expect("a small layout");
                self.resize(block, new, false);
            }
            Operation::Impossible { pool, less, is_zeroed } => {
                let number = self.pick(pool);
                let bytes = isize::MAX as usize - usize::from(less);
                let pool = self.model(number).handle.pool();
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
        if self.pools.iter().flatten().count() == MOST_POOLS {
            return;
        }
        let parent = self.pick(parent);
        // SAFETY: the model ends it before its parent, which does not move.
        let pool: &'static Pool<'static> = unsafe { &*std::ptr::from_ref(self.model(parent).handle.pool()) };
        let handle = if is_lasting {
            builder(settings).lasting_child_of(pool).map(Handle::Lasting)
        } else {
            builder(settings).child_of(pool).map(Handle::Own)
        };
        if let Ok(handle) = handle {
            assert!(pool.is_ancestor(handle.pool()) && !handle.pool().is_ancestor(pool));
            self.add(handle, Some(parent), settings);
        }
    }

    fn keep(&mut self, pool: u8, layout: Layout, is_zeroed: bool) {
        let number = self.pick(pool);
        let value = self.next_run() as u8;
        let pool = self.model(number).handle.pool();
        let memory = if is_zeroed {
            pool.allocate_zeroed(layout).ok().map(NonNull::cast)
        } else {
            pool.try_alloc_layout(layout).ok()
        };
        let Some(start) = memory else { return };
        // SAFETY: it is that long, and was written to by who zeroed it.
        assert!(!is_zeroed || unsafe { are_all(start, layout.size(), 0) }, "not zeroed");
        self.add_kept(number, start, layout, value);
    }

    fn add_kept(&mut self, number: usize, start: NonNull<u8>, layout: Layout, value: u8) {
        self.addresses.take(start, layout.size());
        // SAFETY: it is live until the pool is cleared.
        let block = unsafe { Block::fill_with(start, layout, value, WHOLE) };
        self.model(number).kept.push(block);
    }

    fn cleanup(&mut self, pool: u8, is_pre: bool, end: End) {
        let (number, run, log) = (self.pick(pool), self.next_run(), self.log.clone());
        let model = self.pools[number].as_mut().expect("a pool that is there");
        let work = move || {
            note(&log, run);
            if end == End::Panics {
                resume_unwind(Box::new("said so"));
            }
        };
        let pool = model.handle.pool();
        let cleanup = if is_pre { pool.try_pre_cleanup(work) } else { pool.try_cleanup(work) };
        let Ok(cleanup) = cleanup else { return };
        match end {
            End::IsCancelled => cleanup.cancel(),
            End::RunsAtOnce => {
                cleanup.run();
                self.expected.push(run);
            }
            End::Runs | End::Panics if is_pre => model.pre_cleanups.push(run),
            End::Runs | End::Panics => model.cleanups.push(run),
        }
    }

    fn clear(&mut self, pool: u8, keeps_all: bool) {
        let number = self.pick(pool);
        if matches!(self.model(number).handle, Handle::Lasting(_)) {
            return;
        }
        self.drop_own_below(number);
        self.expect_end_of(number);
        let handle = &mut self.model(number).handle;
        let _ = catch_unwind(AssertUnwindSafe(|| match (handle, keeps_all) {
            (Handle::Root(pool), false) => pool.clear(),
            (Handle::Root(pool), true) => pool.reset(),
            (Handle::Own(pool), false) => pool.clear(),
            (Handle::Own(pool), true) => pool.reset(),
            (Handle::Lasting(_), _) => unreachable!("it is cleared with its parent"),
        }));
        self.forget_below(number);
        assert_eq!(self.model(number).handle.pool().stats().used, 0);
        let model = self.model(number);
        model.pre_cleanups.clear();
        model.cleanups.clear();
    }

    /// What the compiler would ask for: those below that somebody has go first.
    fn drop_own_below(&mut self, number: usize) {
        for child in self.model(number).children.clone() {
            self.drop_own_below(child);
            if matches!(self.model(child).handle, Handle::Own(_)) {
                self.destroy(child);
            }
        }
    }

    fn destroy(&mut self, number: usize) {
        self.drop_own_below(number);
        self.expect_end_of(number);
        self.forget_below(number);
        if let Some(parent) = self.model(number).parent {
            self.model(parent).children.retain(|child| *child != number);
        }
        let model = self.pools[number].take().expect("a pool that is there");
        let _ = catch_unwind(AssertUnwindSafe(|| drop(model.handle)));
    }

    /// In which order what is below and it itself run. Their memory is nobody's then.
    fn expect_end_of(&mut self, number: usize) {
        let model = self.model(number);
        let blocks: Vec<Block> = model.kept.drain(..).chain(model.blocks.drain(..)).collect();
        for block in blocks {
            // SAFETY: the pool has not been cleared.
            unsafe { block.check() };
            self.addresses.give_back(block.start, block.layout.size());
        }
        let model = self.model(number);
        let (pre, children) = (model.pre_cleanups.clone(), model.children.clone());
        let cleanups = model.cleanups.clone();
        self.expected.extend(pre.iter().rev());
        children.iter().rev().for_each(|child| self.expect_end_of(*child));
        self.expected.extend(cleanups.iter().rev());
    }

    fn forget_below(&mut self, number: usize) {
        for child in std::mem::take(&mut self.model(number).children) {
            self.forget_below(child);
            self.pools[child] = None;
        }
    }

    fn allocate(&mut self, pool: u8, layout: Layout, is_zeroed: bool) {
        let number = self.pick(pool);
        let value = self.next_run() as u8;
        let pool = self.model(number).handle.pool();
        let memory = if is_zeroed { pool.allocate_zeroed(layout) } else { pool.allocate(layout) };
        let Ok(memory) = memory else { return };
        let start = memory.cast::<u8>();
        // SAFETY: it is that long, and was written to by who zeroed it.
        assert!(!is_zeroed || unsafe { are_all(start, layout.size(), 0) }, "not zeroed");
        self.addresses.take(start, layout.size());
        // SAFETY: it is live, and of that layout.
        let block = unsafe { Block::fill_with(start, layout, value, WHOLE) };
        self.model(number).blocks.push(block);
    }

    /// One of the blocks of all pools.
    fn pick_block(&self, among: u8) -> Option<(usize, usize)> {
        let len = |pool: &Option<Box<Model>>| pool.as_ref().map_or(0, |model| model.blocks.len());
        let mut place = pick(among, self.pools.iter().map(len).sum())?;
        let number = self.pools.iter().position(|pool| match place.checked_sub(len(pool)) {
            Some(rest) => {
                place = rest;
                false
            }
            None => true,
        })?;
        Some((number, place))
    }

    fn resize(&mut self, block: u8, new: Layout, is_zeroed: bool) {
        let Some((number, place)) = self.pick_block(block) else { return };
        let value = self.next_run() as u8;
        let (block, pool) = (self.model(number).blocks[place], self.model(number).handle.pool());
        let old = block.layout;
        // SAFETY: the model knows that it is live, and of which layout.
        let moved = unsafe {
            block.check();
            match (new.size() >= old.size(), is_zeroed) {
                (true, true) => pool.grow_zeroed(block.start, old, new),
                (true, false) => pool.grow(block.start, old, new),
                (false, _) => pool.shrink(block.start, old, new),
            }
        };
        let Ok(moved) = moved else { return };
        let (start, kept) = (moved.cast::<u8>(), old.size().min(new.size()));
        // SAFETY: both are as long.
        unsafe {
            block.check_moved(start, new.size());
            let is_fresh = is_zeroed && new.size() > old.size();
            assert!(!is_fresh || are_all(start.add(kept), new.size() - kept, 0), "not zeroed");
        }
        self.addresses.give_back(block.start, old.size());
        self.addresses.take(start, new.size());
        // SAFETY: it is live, and of that layout.
        self.model(number).blocks[place] = unsafe { Block::fill_with(start, new, value, WHOLE) };
    }

    /// `live`: what the service held before.
    fn check(&self, live: u64) {
        assert_eq!(
            *self.log.lock().expect("nobody panics with it"),
            self.expected,
            "what ran, and in which order"
        );
        let (mut held, mut used, mut spare, mut pools) = (0, 0, 0, 0);
        for model in self.pools.iter().flatten() {
            let (pool, stats) = (model.handle.pool(), model.handle.pool().stats());
            let blocks = model.kept.iter().chain(&model.blocks);
            let bytes: usize = blocks.map(|block| block.layout.size()).sum();
            assert!(stats.used >= bytes, "{stats:?}, {bytes}");
            assert!(stats.used + *BEGINNING <= stats.held, "{stats:?} is more than there is");
            let together = pool.stats_with_children().held;
            assert!(model.limit.is_none_or(|limit| together <= limit), "{together} of {:?}", model.limit);
            (held, used, pools) = (held + stats.held, used + stats.used, pools + 1);
            if model.has_store {
                spare += stats.spare;
            }
        }
        let all = self.pools[0].as_ref().expect("the root").handle.pool().stats_with_children();
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
    machine.destroy(0);
    let log = std::mem::take(&mut *machine.log.lock().expect("nobody panics with it"));
    assert_eq!(log, machine.expected, "what ran, and in which order");
    assert_eq!((SERVICE.usage().bytes(), SERVICE.usage().blocks()), (0, 0));
});

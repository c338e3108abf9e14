//! Random trees of pools against a model, and a loop of a million iterations.

use allocator_api2::alloc::Allocator;
use dogtag::{Dogtag, Service};
use dogtag_pool::{Child, Pool};
use proptest::prelude::*;
use std::alloc::Layout;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const MAX_SMALL: usize = 2000;

#[derive(Clone, Debug)]
enum Operation {
    Child { parent: usize, is_lasting: bool },
    Allocate { pool: usize, words: usize },
    AllocateAndDrop { pool: usize },
    Cleanup { pool: usize, is_pre: bool, panics: bool },
    Clear { pool: usize, keeps_all: bool },
    Destroy { pool: usize },
}

fn operation() -> impl Strategy<Value = Operation> {
    let pool = any::<usize>;
    let words = prop_oneof![8 => 0_usize..40, 2 => 0_usize..600, 1 => 0_usize..5000];
    prop_oneof![
        3 => (pool(), any::<bool>()).prop_map(|(parent, is_lasting)| Operation::Child { parent, is_lasting }),
        8 => (pool(), words).prop_map(|(pool, words)| Operation::Allocate { pool, words }),
        2 => pool().prop_map(|pool| Operation::AllocateAndDrop { pool }),
        3 => (pool(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(pool, is_pre, panics)| Operation::Cleanup { pool, is_pre, panics }),
        1 => (pool(), any::<bool>()).prop_map(|(pool, keeps_all)| Operation::Clear { pool, keeps_all }),
        1 => pool().prop_map(|pool| Operation::Destroy { pool }),
    ]
}

/// What has run, by number.
type Log = Arc<Mutex<Vec<usize>>>;

/// Notes in its drop that it is dropped. Two words.
struct Noisy(Log, usize);

impl Drop for Noisy {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(self.1);
    }
}

/// A pool, whose borrows the test sees to: what is below goes first.
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

/// A pool of the model.
struct Model {
    handle: Handle,
    parent: Option<usize>,
    /// The eldest first.
    children: Vec<usize>,
    pre_cleanups: Vec<usize>,
    cleanups: Vec<usize>,
    /// Addresses, words, and what is in them.
    allocations: Vec<(*mut u64, usize, u64)>,
    used: usize,
}

struct Machine {
    /// By number, which is not used again.
    pools: Vec<Option<Box<Model>>>,
    log: Log,
    expected: Vec<usize>,
    runs: usize,
    service: Service,
}

impl Machine {
    fn new() -> Self {
        let service = Service::register("pool model").unwrap();
        let root = Pool::builder().service(&service).block_size(1024).max_small(MAX_SMALL).max_free(20_000);
        let handle = Handle::Root(root.build().unwrap());
        let mut machine =
            Self { pools: Vec::new(), log: Log::default(), expected: Vec::new(), runs: 0, service };
        machine.add(handle, None);
        machine
    }

    fn add(&mut self, handle: Handle, parent: Option<usize>) {
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
            allocations: Vec::new(),
            used: 0,
        };
        self.pools.push(Some(Box::new(model)));
    }

    fn model(&mut self, number: usize) -> &mut Model {
        self.pools[number].as_mut().unwrap()
    }

    /// One of those that are there; the root always is.
    fn pick(&self, among: usize) -> usize {
        let there: Vec<_> = (0..self.pools.len()).filter(|&i| self.pools[i].is_some()).collect();
        there[among % there.len()]
    }

    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::Child { parent, is_lasting } => {
                let parent = self.pick(parent);
                // SAFETY: the model ends it before its parent, which does not move.
                let pool: &'static Pool<'static> =
                    unsafe { &*std::ptr::from_ref(self.model(parent).handle.pool()) };
                let handle = if is_lasting {
                    Handle::Lasting(pool.lasting_child())
                } else {
                    Handle::Own(pool.child())
                };
                self.add(handle, Some(parent));
            }
            Operation::Allocate { pool, words } => {
                let number = self.pick(pool);
                let value = self.runs as u64 ^ 0x5555;
                self.runs += 1;
                let model = self.model(number);
                let memory = model.handle.pool().alloc_slice_copy(&vec![value; words]);
                model.allocations.push((memory.as_mut_ptr(), words, value));
                // A large one is noted in five words.
                model.used += words * 8 + if words * 8 > MAX_SMALL { 5 * 8 } else { 0 };
            }
            Operation::AllocateAndDrop { pool } => {
                let (number, run, log) = (self.pick(pool), self.runs, self.log.clone());
                self.runs += 1;
                let model = self.model(number);
                model.handle.pool().alloc(Noisy(log, run));
                model.cleanups.push(run);
                // What notes it is five words.
                model.used += size_of::<Noisy>() + 5 * 8;
            }
            Operation::Cleanup { pool, is_pre, panics } => {
                let (number, run, log) = (self.pick(pool), self.runs, self.log.clone());
                self.runs += 1;
                let model = self.model(number);
                let payload = (run, panics);
                let work = move || {
                    let (run, panics) = payload;
                    log.lock().unwrap().push(run);
                    if panics {
                        std::panic::resume_unwind(Box::new("said so"));
                    }
                };
                // What notes it is three words.
                model.used += size_of_val(&work) + 3 * 8;
                if is_pre {
                    _ = model.handle.pool().pre_cleanup(work);
                    model.pre_cleanups.push(run);
                } else {
                    _ = model.handle.pool().cleanup(work);
                    model.cleanups.push(run);
                }
            }
            Operation::Clear { pool, keeps_all } => {
                let number = self.pick(pool);
                if matches!(self.model(number).handle, Handle::Lasting(_)) {
                    return;
                }
                self.drop_own_below(number);
                self.expect_end_of(number);
                let clear = |handle: &mut Handle| match (handle, keeps_all) {
                    (Handle::Root(pool), false) => pool.clear(),
                    (Handle::Root(pool), true) => pool.reset(),
                    (Handle::Own(pool), false) => pool.clear(),
                    (Handle::Own(pool), true) => pool.reset(),
                    (Handle::Lasting(_), _) => unreachable!(),
                };
                let handle = &mut self.pools[number].as_mut().unwrap().handle;
                let _ = catch_unwind(AssertUnwindSafe(|| clear(handle)));
                self.forget_below(number);
                let model = self.model(number);
                (model.used, model.pre_cleanups, model.cleanups) = (0, Vec::new(), Vec::new());
                model.allocations.clear();
            }
            Operation::Destroy { pool } => {
                let number = self.pick(pool);
                if matches!(self.model(number).handle, Handle::Own(_)) {
                    self.destroy(number);
                }
            }
        }
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
        let model = self.pools[number].take().unwrap();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(model.handle)));
    }

    /// In which order what is below and it itself run.
    fn expect_end_of(&mut self, number: usize) {
        self.check_memory(number);
        let model = self.pools[number].as_ref().unwrap();
        let (pre, children, cleanups) =
            (model.pre_cleanups.clone(), model.children.clone(), model.cleanups.clone());
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

    /// Nobody else has written to what was allocated.
    fn check_memory(&mut self, number: usize) {
        for &(memory, words, value) in &self.model(number).allocations {
            // SAFETY: the pool has not been cleared.
            let words = unsafe { std::slice::from_raw_parts(memory, words) };
            assert!(words.iter().all(|word| *word == value), "memory was written to by somebody else");
        }
    }

    fn check(&self) {
        assert_eq!(*self.log.lock().unwrap(), self.expected, "what ran, and in which order");
        let mut used = 0;
        for model in self.pools.iter().flatten() {
            assert_eq!(model.handle.pool().stats().used, model.used, "bytes of a pool");
            used += model.used;
        }
        let root = self.pools[0].as_ref().unwrap().handle.pool();
        let all = root.stats_with_children();
        assert_eq!((all.used, all.pools), (used, self.pools.iter().flatten().count()));
        let ledger = self.service.usage().bytes();
        assert_eq!(ledger, (all.held + all.spare) as u64, "the ledger has what the pools have");
    }
}

/// Through the interface for collections: what to do to the block of that number.
#[derive(Clone, Debug)]
enum Call {
    Allocate { size: usize, align: u32, is_zeroed: bool },
    Resize { block: usize, size: usize, align: u32, is_zeroed: bool },
    Free { block: usize },
}

fn call() -> impl Strategy<Value = Call> {
    let size =
        || prop_oneof![1 => Just(0_usize), 6 => 1_usize..300, 3 => 1900_usize..2100, 1 => 0_usize..20_000];
    let align = || prop_oneof![6 => 0_u32..5, 1 => 5_u32..14];
    prop_oneof![
        3 => (size(), align(), any::<bool>())
            .prop_map(|(size, align, is_zeroed)| Call::Allocate { size, align, is_zeroed }),
        3 => (any::<usize>(), size(), align(), any::<bool>())
            .prop_map(|(block, size, align, is_zeroed)| Call::Resize { block, size, align, is_zeroed }),
        2 => any::<usize>().prop_map(|block| Call::Free { block }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_of_collections_keep_what_is_in_them(calls in prop::collection::vec(call(), 1..200)) {
        let service = Service::register("pool of collections").unwrap();
        let pool = Pool::builder().service(&service).block_size(1024).max_small(MAX_SMALL).build().unwrap();
        let pool = &pool;
        let mut blocks: Vec<(NonNull<u8>, Layout, u8)> = Vec::new();
        // SAFETY: the model knows what is allocated, and how large it is.
        let read = |block: NonNull<u8>, len| unsafe { std::slice::from_raw_parts(block.as_ptr(), len) };
        for (number, call) in calls.iter().enumerate() {
            let value = number as u8 | 1;
            match *call {
                Call::Allocate { size, align, is_zeroed } => {
                    let layout = Layout::from_size_align(size, 1 << align).unwrap();
                    let block = if is_zeroed { pool.allocate_zeroed(layout) } else { pool.allocate(layout) };
                    let block = block.unwrap().cast::<u8>();
                    prop_assert!(block.addr().get().is_multiple_of(1 << align));
                    prop_assert!(!is_zeroed || read(block, size).iter().all(|byte| *byte == 0));
                    // SAFETY: as above.
                    unsafe { block.write_bytes(value, size) };
                    blocks.push((block, layout, value));
                }
                Call::Resize { block, size, align, is_zeroed } if !blocks.is_empty() => {
                    let place = block % blocks.len();
                    let (block, old, former) = blocks[place];
                    let new = Layout::from_size_align(size, 1 << align).unwrap();
                    // SAFETY: as above.
                    let moved = unsafe {
                        match (size >= old.size(), is_zeroed) {
                            (true, true) => pool.grow_zeroed(block, old, new),
                            (true, false) => pool.grow(block, old, new),
                            (false, _) => pool.shrink(block, old, new),
                        }
                    };
                    let moved = moved.unwrap().cast::<u8>();
                    prop_assert!(moved.addr().get().is_multiple_of(1 << align));
                    let (kept, fresh) = read(moved, size).split_at(size.min(old.size()));
                    prop_assert!(kept.iter().all(|byte| *byte == former));
                    prop_assert!(!is_zeroed || fresh.iter().all(|byte| *byte == 0));
                    // SAFETY: as above.
                    unsafe { moved.write_bytes(value, size) };
                    blocks[place] = (moved, new, value);
                }
                Call::Free { block } if !blocks.is_empty() => {
                    let (block, layout, value) = blocks.swap_remove(block % blocks.len());
                    prop_assert!(read(block, layout.size()).iter().all(|byte| *byte == value));
                    // SAFETY: as above.
                    unsafe { pool.deallocate(block, layout) };
                }
                _ => {}
            }
            let stats = pool.stats();
            let is_large = |layout: &Layout| {
                layout.size() > 0 && layout.size() + layout.align().saturating_sub(16) > MAX_SMALL
            };
            prop_assert_eq!(stats.large, blocks.iter().filter(|(_, layout, _)| is_large(layout)).count());
            prop_assert!(stats.used >= blocks.iter().map(|(_, layout, _)| layout.size()).sum());
            prop_assert_eq!(service.usage().bytes(), (stats.held + stats.spare) as u64);
        }
        for (block, layout, value) in blocks {
            prop_assert!(read(block, layout.size()).iter().all(|byte| *byte == value));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trees_are_as_the_model_says(operations in prop::collection::vec(operation(), 1..200)) {
        let mut machine = Machine::new();
        for operation in &operations {
            machine.step(operation);
            machine.check();
        }
        machine.drop_own_below(0);
        machine.destroy(0);
        prop_assert_eq!(&*machine.log.lock().unwrap(), &machine.expected);
        prop_assert_eq!((machine.service.usage().bytes(), machine.service.usage().blocks()), (0, 0));
    }
}

#[test]
fn a_million_iterations_take_no_more_memory() {
    let service = Service::register("loop").unwrap();
    let parent = Pool::builder().service(&service).max_small(4000).build().unwrap();
    let mut random = 1_u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut iteration = parent.child();
    let mut most = 0;
    for i in 0..1_000_000_u32 {
        iteration.clear();
        let mut used = 0;
        for _ in 0..next(20) {
            let words = if next(50) == 0 { next(2000) } else { next(30) } as usize;
            iteration.alloc_slice_copy(&[u64::from(i); 2000][..words]);
            used += words * 8 + if words * 8 > 4000 { 5 * 8 } else { 0 };
        }
        if i % 1000 == 0 || i < 1000 {
            let stats = iteration.stats();
            assert_eq!(stats.used, used);
            let held = parent.stats_with_children().held + stats.spare;
            assert_eq!(service.usage().bytes(), held as u64, "the ledger has what the pools have");
            // What is kept grows to what one iteration takes at most, and no further.
            let kept = held - stats.held;
            assert!(i < 100_000 || kept <= most, "{kept} at {i}, {most} before");
            most = most.max(kept);
        }
    }
    assert!(most < 400_000, "{most}");
    drop(iteration);
    drop(parent);
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0));
}

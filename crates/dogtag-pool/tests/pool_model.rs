//! Random trees of pools against a model, and a loop of a million iterations.

#[path = "../../../tests/engine/mod.rs"]
mod engine;
#[path = "../../../tests/random/mod.rs"]
mod random;
mod tree;

use dogtag::{Dogtag, Service};
use dogtag_pool::Pool;
use engine::Mode;
use engine::account::Account;
use engine::block::Block;
use engine::collection::Collection;
use engine::memory::Refusal;
use engine::thread::Thread;
use proptest::prelude::*;
use random::{Random, times};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;
use tree::{End, Handle, Noisy, Tree};

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

struct Machine {
    /// With the bytes that each pool uses.
    tree: Tree<usize>,
    service: Service,
}

impl Machine {
    fn new() -> Self {
        let service = Service::register("pool model").unwrap();
        let root = Pool::builder().service(&service).block_size(1024).max_small(MAX_SMALL).max_free(20_000);
        Self { tree: Tree::new(root.build().unwrap(), 0), service }
    }

    fn step(&mut self, operation: &Operation) {
        let tree = &mut self.tree;
        match *operation {
            Operation::Child { parent, is_lasting } => {
                let make = |pool: &'static Pool<'static>| {
                    Some(if is_lasting {
                        Handle::Lasting(pool.lasting_child())
                    } else {
                        Handle::Own(pool.child())
                    })
                };
                tree.child(tree.pick(parent), make, 0);
            }
            Operation::Allocate { pool, words } => {
                let number = tree.pick(pool);
                let value = tree.next_run() as u8;
                let memory = tree.pool(number).alloc_slice_copy(&vec![u64::from_ne_bytes([value; 8]); words]);
                let layout = Layout::for_value(memory);
                tree.keep(number, NonNull::from(memory).cast(), layout, value);
                // A large one is noted in five words.
                tree.node(number).own += words * 8 + if words * 8 > MAX_SMALL { 5 * 8 } else { 0 };
            }
            Operation::AllocateAndDrop { pool } => {
                let number = tree.pick(pool);
                assert!(tree.value(number));
                // What notes it is five words.
                tree.node(number).own += size_of::<Noisy>() + 5 * 8;
            }
            Operation::Cleanup { pool, is_pre, panics } => {
                let number = tree.pick(pool);
                let size = tree.cleanup(number, is_pre, if panics { End::Panics } else { End::Runs });
                // What notes it is three words.
                tree.node(number).own += size + 3 * 8;
            }
            Operation::Clear { pool, keeps_all } => {
                let number = tree.pick(pool);
                if tree.clear(number, keeps_all) {
                    tree.node(number).own = 0;
                }
            }
            Operation::Destroy { pool } => tree.destroy(tree.pick(pool)),
        }
    }

    fn check(&self) {
        self.tree.check_log();
        let mut used = 0;
        for node in self.tree.nodes() {
            assert_eq!(node.handle.pool().stats().used, node.own, "bytes of a pool");
            used += node.own;
        }
        let all = self.tree.pool(0).stats_with_children();
        assert_eq!((all.used, all.pools), (used, self.tree.nodes().count()));
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
    #![proptest_config(ProptestConfig { cases: times(500) as u32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_of_collections_keep_what_is_in_them(calls in prop::collection::vec(call(), 1..200)) {
        let service = Service::register("pool of collections").unwrap();
        let pool = Pool::builder().service(&service).block_size(1024).max_small(MAX_SMALL).build().unwrap();
        let memory = Collection(&pool, Refusal::Nothing);
        // Of what is in the pool, which no ledger knows.
        let mut thread = Thread::new(Mode::Among, Arc::new(Account::new("blocks".to_owned(), 0, None, None)));
        for call in &calls {
            let layout = |size, align: u32| Layout::from_size_align(size, 1 << align).unwrap();
            match *call {
                Call::Allocate { size, align, is_zeroed } => {
                    prop_assert!(thread.allocate(memory, layout(size, align), is_zeroed));
                }
                Call::Resize { block, size, align, is_zeroed } if !thread.blocks.is_empty() => {
                    let place = block % thread.blocks.len();
                    let block: &mut Block<_, _> = &mut thread.blocks[place];
                    prop_assert!(block.resize(&thread.current, layout(size, align), is_zeroed, Mode::Among));
                }
                Call::Free { block } => {
                    let block = thread.take(block);
                    block.into_iter().for_each(|block| block.free(Mode::Among));
                }
                Call::Resize { .. } => {}
            }
            let stats = pool.stats();
            let layouts = || thread.blocks.iter().map(|block| block.piece.layout);
            let is_large = |layout: &Layout| {
                layout.size() > 0 && layout.size() + layout.align().saturating_sub(16) > MAX_SMALL
            };
            prop_assert_eq!(stats.large, layouts().filter(is_large).count());
            prop_assert!(stats.used >= layouts().map(|layout| layout.size()).sum());
            prop_assert_eq!(service.usage().bytes(), (stats.held + stats.spare) as u64);
        }
        thread.blocks.iter().for_each(Block::check);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: times(300) as u32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trees_are_as_the_model_says(operations in prop::collection::vec(operation(), 1..200)) {
        let mut machine = Machine::new();
        for operation in &operations {
            machine.step(operation);
            machine.check();
        }
        machine.tree.end();
        prop_assert_eq!((machine.service.usage().bytes(), machine.service.usage().blocks()), (0, 0));
    }
}

#[test]
fn a_million_iterations_take_no_more_memory() {
    let service = Service::register("loop").unwrap();
    let parent = Pool::builder().service(&service).max_small(4000).build().unwrap();
    let mut random = Random::new(1);
    let mut iteration = parent.child();
    let mut most = 0;
    for i in 0..1_000_000_u32 {
        iteration.clear();
        let mut used = 0;
        for _ in 0..random.below(20) {
            let words = if random.once_in(50) { random.below(2000) } else { random.below(30) };
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

//! Random programs against a model of a few lines, with shrinking.

use crate::common::{ZeroSized, around_zero_sized, quarantined};
use crate::random::times;
use dogtag::{Dogtag, Scope, Service, Usage};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::LazyLock;

/// Not the global allocator, so that only the programs are counted.
static ALLOC: Dogtag<ZeroSized> = Dogtag::with_backend(ZeroSized);

static SERVICES: LazyLock<Vec<Service>> =
    LazyLock::new(|| (0..5).map(|i| Service::register(format!("model {i}")).unwrap()).collect());

#[derive(Clone, Debug)]
enum Operation {
    Allocate { size: usize, align: usize, zeroed: bool },
    Reallocate { block: usize, size: usize },
    Free { block: usize },
    FreeOnAnotherThread { block: usize },
    Enter { service: usize },
    Leave,
    Refuse { size: usize },
}

fn operation() -> impl Strategy<Value = Operation> {
    let size = prop_oneof![8 => 1_usize..300, 2 => 1_usize..20_000, 1 => 4_000_usize..4_200];
    let align = (0_u32..13).prop_map(|shift| 1_usize << shift);
    prop_oneof![
        8 => (size.clone(), align, any::<bool>())
            .prop_map(|(size, align, zeroed)| Operation::Allocate { size, align, zeroed }),
        4 => (any::<usize>(), size.clone()).prop_map(|(block, size)| Operation::Reallocate { block, size }),
        4 => any::<usize>().prop_map(|block| Operation::Free { block }),
        1 => any::<usize>().prop_map(|block| Operation::FreeOnAnotherThread { block }),
        3 => (0_usize..5).prop_map(|service| Operation::Enter { service }),
        2 => Just(Operation::Leave),
        1 => size.prop_map(|size| Operation::Refuse { size }),
    ]
}

struct Block {
    address: usize,
    layout: Layout,
    owner: usize,
}

/// Runs a program and keeps the model beside it.
struct Machine {
    blocks: Vec<Block>,
    scopes: Vec<(usize, Scope<'static>)>,
    model: [Usage; 5],
    before: Vec<Usage>,
}

impl Machine {
    fn new() -> Self {
        let before = SERVICES.iter().map(Service::usage).collect();
        // The programs run in a service from the start: what is unattributed is
        // also everybody else's.
        let scopes = vec![(0, SERVICES[0].enter())];
        Self { blocks: Vec::new(), scopes, model: [Usage::default(); 5], before }
    }

    fn current(&self) -> usize {
        self.scopes.last().unwrap().0
    }

    fn allocated(&mut self, address: *mut u8, layout: Layout) {
        assert!(!address.is_null() && (address as usize).is_multiple_of(layout.align()));
        let owner = self.current();
        // SAFETY: the block is new and that long.
        unsafe { address.write_bytes(owner as u8 + 1, layout.size()) };
        self.model[owner].allocated_bytes += layout.size() as u64;
        self.model[owner].allocated_blocks += 1;
        self.blocks.push(Block { address: address as usize, layout, owner });
    }

    fn take(&mut self, block: usize) -> Option<Block> {
        let index = block.checked_rem(self.blocks.len())?;
        let block = self.blocks.swap_remove(index);
        // SAFETY: the block is live, and was filled when it was new.
        let bytes = unsafe { std::slice::from_raw_parts(block.address as *const u8, block.layout.size()) };
        assert!(bytes.iter().all(|&byte| byte == block.owner as u8 + 1), "overwritten");
        self.model[block.owner].freed_bytes += block.layout.size() as u64;
        self.model[block.owner].freed_blocks += 1;
        Some(block)
    }

    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::Allocate { size, align, zeroed } => {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: sizes begin at 1, and the block is that long.
                let address = unsafe {
                    if zeroed {
                        let address = ALLOC.alloc_zeroed(layout);
                        assert!(std::slice::from_raw_parts(address, size).iter().all(|&byte| byte == 0));
                        address
                    } else {
                        ALLOC.alloc(layout)
                    }
                };
                self.allocated(address, layout);
            }
            Operation::Reallocate { block, size } => {
                let Some(block) = self.take(block) else { return };
                // SAFETY: the block is live and has that layout.
                let address = unsafe { ALLOC.realloc(block.address as *mut u8, block.layout, size) };
                // SAFETY: as much of the old contents as fits has moved along.
                let kept = unsafe { std::slice::from_raw_parts(address, size.min(block.layout.size())) };
                assert!(kept.iter().all(|&byte| byte == block.owner as u8 + 1), "not moved along");
                self.allocated(address, Layout::from_size_align(size, block.layout.align()).unwrap());
            }
            Operation::Free { block } => {
                let Some(block) = self.take(block) else { return };
                // SAFETY: the block is live and has that layout.
                unsafe { ALLOC.dealloc(block.address as *mut u8, block.layout) };
            }
            Operation::FreeOnAnotherThread { block } => {
                let Some(block) = self.take(block) else { return };
                std::thread::spawn(move || {
                    // SAFETY: the block is live and has that layout.
                    unsafe { ALLOC.dealloc(block.address as *mut u8, block.layout) };
                })
                .join()
                .unwrap();
            }
            Operation::Enter { service } => self.scopes.push((service, SERVICES[service].enter())),
            Operation::Leave => {
                if self.scopes.len() > 1 {
                    self.scopes.pop();
                }
            }
            Operation::Refuse { size } => {
                let refuses = &ALLOC.backend().refuses;
                refuses.store(true, std::sync::atomic::Ordering::SeqCst);
                // SAFETY: sizes begin at 1.
                assert!(unsafe { ALLOC.alloc(Layout::from_size_align(size, 1).unwrap()) }.is_null());
                refuses.store(false, std::sync::atomic::Ordering::SeqCst);
            }
        }
        assert_eq!(Service::current(), SERVICES[self.current()]);
    }

    fn check(&self) {
        for ((service, before), model) in SERVICES.iter().zip(&self.before).zip(&self.model) {
            let mut since = service.usage().since(before);
            since.peak_bytes = 0;
            assert_eq!(since, *model, "{service:?}");
        }
        let size = |block: &Block| block.layout.size() as u64 + around_zero_sized(block.layout);
        let live: u64 = self.blocks.iter().map(size).sum();
        let (bytes, blocks) = quarantined();
        assert_eq!(ALLOC.backend().live_bytes(), live + bytes);
        assert_eq!(ALLOC.backend().live_blocks(), self.blocks.len() as u64 + blocks);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for block in self.blocks.drain(..) {
            // SAFETY: the blocks that are left are live.
            unsafe { ALLOC.dealloc(block.address as *mut u8, block.layout) };
        }
        while self.scopes.pop().is_some() {}
    }
}

#[test]
fn the_ledger_follows_the_model() {
    alone!();
    random_programs();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: times(500) as u32, failure_persistence: None, ..ProptestConfig::default() })]

    fn random_programs(program in proptest::collection::vec(operation(), 1..200)) {
        let mut machine = Machine::new();
        for operation in &program {
            machine.step(operation);
            machine.check();
        }
    }
}

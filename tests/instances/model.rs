//! Random programs on an allocator that is not the global one, with shrinking: each step is looked at.

use crate::common::CHECKED;
use crate::common::{Books, Unpadded, ZeroSized, around, around_zero_sized, quarantined};
use crate::engine::Mode;
use crate::engine::account::{Account, expect};
use crate::engine::block::Block;
use crate::engine::memory::{Memory, Refusal};
use crate::engine::thread::{Operation, Thread};
use crate::random::times;
use dogtag::{Dogtag, OwnerTable, Service};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, LazyLock};

/// An allocator, not the global one, so that only the programs are counted.
trait Model: GlobalAlloc + Sync + 'static {
    fn books(&self) -> &Books;

    /// Bytes of the backend's memory around a block.
    fn around(layout: Layout) -> u64;
}

static COOKIES: Dogtag<ZeroSized> = Dogtag::with_backend(ZeroSized);
static TABLE: Dogtag<Unpadded, OwnerTable> = Dogtag::with_backend_and_owner_table(Unpadded);

impl Model for Dogtag<ZeroSized> {
    fn books(&self) -> &Books {
        self.backend()
    }

    fn around(layout: Layout) -> u64 {
        around_zero_sized(layout)
    }
}

impl Model for Dogtag<Unpadded, OwnerTable> {
    fn books(&self) -> &Books {
        self.backend()
    }

    fn around(layout: Layout) -> u64 {
        if CHECKED { around(layout) } else { 0 }
    }
}

static SERVICES: LazyLock<Vec<Service>> =
    LazyLock::new(|| (0..5).map(|i| Service::register(format!("model {i}")).unwrap()).collect());

#[derive(Clone, Copy, Debug)]
enum Step {
    Usual(Operation),
    Refuse { size: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![8 => 1_usize..300, 2 => 1_usize..20_000, 1 => 4_000_usize..4_200];
    let layout = (size.clone(), 0_u32..13)
        .prop_map(|(size, shift)| Layout::from_size_align(size, 1 << shift).unwrap());
    let block = any::<usize>;
    prop_oneof![
        24 => prop_oneof![
            8 => (layout, any::<bool>()).prop_map(|(layout, is_zeroed)| Operation::Allocate { layout, is_zeroed }),
            4 => (block(), size.clone()).prop_map(|(block, size)| Operation::Resize { block, size }),
            4 => block().prop_map(|block| Operation::Free { block }),
            1 => block().prop_map(|block| Operation::FreeElsewhere { block }),
            3 => (0_usize..5).prop_map(|service| Operation::Enter { service }),
            2 => Just(Operation::Leave { scope: 0 }),
        ].prop_map(Step::Usual),
        1 => size.prop_map(|size| Step::Refuse { size }),
    ]
}

/// A backend with nothing left.
struct Refusing<A: 'static>(&'static A);

impl<A: Model> Memory for Refusing<A> {
    unsafe fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        let refuses = &self.0.books().refuses;
        refuses.store(true, SeqCst);
        // SAFETY: the layout is not empty.
        let block = unsafe { self.0.allocate(layout, is_zeroed) };
        refuses.store(false, SeqCst);
        block
    }

    unsafe fn reallocate(&self, _: *mut u8, _: Layout, _: Layout, _: bool) -> *mut u8 {
        unreachable!("there is no block")
    }

    unsafe fn free(&self, _: *mut u8, _: Layout) {
        unreachable!("there is no block")
    }

    fn may_refuse(&self) -> Refusal {
        Refusal::More
    }
}

/// Runs a program, with the model beside it.
struct Machine<A: Model> {
    memory: &'static A,
    services: Vec<(Service, Arc<Account>)>,
    thread: Thread<&'static A, Arc<Account>>,
}

impl<A: Model> Machine<A> {
    fn new(memory: &'static A) -> Self {
        // They go on with what former programs have left.
        let services: Vec<_> =
            SERVICES.iter().map(|service| (service.clone(), Arc::new(Account::of(service)))).collect();
        let mut thread = Thread::new(Mode::Alone, Arc::clone(&services[0].1));
        // The programs run in a service from the start: what is unattributed is
        // also everybody else's.
        thread.enter(&services[0].0, Arc::clone(&services[0].1));
        Self { memory, services, thread }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Usual(Operation::Leave { .. }) if self.thread.depth() == 1 => {}
            Step::Usual(operation) => self.thread.step(operation, self.memory, &self.services),
            Step::Refuse { size } => {
                let layout = Layout::from_size_align(size, 1).unwrap();
                let owner = Arc::clone(&self.thread.current);
                assert!(Block::allocate(Refusing(self.memory), owner, layout, false, Mode::Alone).is_none());
            }
        }
        self.thread.check_current();
    }

    fn check(&self) {
        for (service, account) in &self.services {
            expect(service.name(), service.usage(), [&**account]).unwrap();
        }
        let size = |block: &Block<_, _>| block.size() as u64 + A::around(block.piece.layout);
        let live: u64 = self.thread.blocks.iter().map(size).sum();
        let (bytes, blocks) = quarantined();
        assert_eq!(self.memory.books().live_bytes(), live + bytes);
        assert_eq!(self.memory.books().live_blocks(), self.thread.blocks.len() as u64 + blocks);
    }
}

impl<A: Model> Drop for Machine<A> {
    fn drop(&mut self) {
        for Block { piece, memory, .. } in self.thread.blocks.drain(..) {
            // SAFETY: the blocks that are left are live. After a failure, nothing else is known of them.
            unsafe { memory.free(piece.start.as_ptr(), piece.layout) };
        }
        self.thread.leave_all();
    }
}

#[test]
fn the_ledger_follows_the_model() {
    alone!();
    random_programs_with_cookies();
}

#[test]
fn the_ledger_follows_the_model_with_an_owner_table() {
    alone!();
    random_programs_with_a_table();
}

fn run(memory: &'static impl Model, program: &[Step]) {
    let mut machine = Machine::new(memory);
    for step in program {
        machine.step(*step);
        machine.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: times(500) as u32, failure_persistence: None, ..ProptestConfig::default() })]

    fn random_programs_with_cookies(program in proptest::collection::vec(step(), 1..200)) {
        run(&COOKIES, &program);
    }

    fn random_programs_with_a_table(program in proptest::collection::vec(step(), 1..200)) {
        run(&TABLE, &program);
    }
}

//! Random programs on a backend that refuses now and then: a null is the backend's doing, and what is
//! refused is as it was.

use crate::backend::{self, BOOKS, Books, Faulty, FaultyWithoutFields, Plan};
use crate::engine::Mode;
use crate::engine::account::{Account, expect};
use crate::engine::block::Block;
use crate::engine::memory::{Memory, Refusal};
use crate::engine::thread::Thread;
use crate::random::{Random, seed, times};
use dogtag::{Dogtag, Service};
use std::alloc::{GlobalAlloc, Layout};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const THREADS: u64 = 4;
const SERVICES: usize = 6;

const CHECKED: bool = cfg!(feature = "memory-check");

/// So many services, and the model of each.
pub fn services(name: &str, count: usize) -> Vec<(Service, Account)> {
    let register = |i| Service::register(format!("{name} {i}")).unwrap();
    (0..count).map(register).map(|service| (service.clone(), Account::of(&service))).collect()
}

/// The ledger has what the model has.
pub fn check(services: &[(Service, Account)]) {
    for (service, account) in services {
        expect(service.name(), service.usage(), [account]).unwrap();
    }
}

/// Memory of an allocator, by a plan of what its backend refuses.
pub struct Planned<'a, A> {
    allocator: &'a A,
    plan: Plan,
    /// Whether nobody but the backend refuses anything.
    is_planned: bool,
}

impl<A> Planned<'_, A> {
    /// Null means that the backend has refused. With memory-check it was asked again, if something
    /// could be given back to it before.
    fn judge(&self, is_null: bool, refused: u32) {
        let was_refused = refused > 0;
        let is_just = if CHECKED { was_refused || !is_null } else { was_refused == is_null };
        assert!(is_just || !self.is_planned, "null: {is_null}, and refused {refused} times");
    }
}

impl<A: GlobalAlloc> Memory for Planned<'_, A> {
    unsafe fn allocate(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: the layout is not empty.
        let (block, refused) =
            backend::with(self.plan, || unsafe { self.allocator.allocate(layout, is_zeroed) });
        self.judge(block.is_null(), refused);
        block
    }

    unsafe fn reallocate(&self, block: *mut u8, old: Layout, new: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: the block is live and of that layout, and the new size is not 0.
        let (moved, refused) =
            backend::with(self.plan, || unsafe { self.allocator.reallocate(block, old, new, is_zeroed) });
        if new.size() != old.size() {
            self.judge(moved.is_null(), refused);
        }
        // Memory-check moves it, or shrinks it where it is if there is no other memory.
        let stays = CHECKED && moved == block;
        assert!(!stays || (refused > 0 || !self.is_planned) && new.size() <= old.size());
        moved
    }

    unsafe fn free(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is live and of that layout.
        backend::with(self.plan, || unsafe { self.allocator.free(block, layout) });
    }

    fn may_refuse(&self) -> Refusal {
        if CHECKED { Refusal::More } else { Refusal::Anything }
    }
}

/// Blocks of an allocator's, and whose they are.
pub type Blocks<'a, A> = Vec<Block<Planned<'a, A>, &'a Account>>;

/// A thread's program.
pub struct Program<'a, A> {
    allocator: &'a A,
    services: &'a [(Service, Account)],
    /// Blocks on their way from one thread to another.
    post: &'a Mutex<Blocks<'a, A>>,
    random: Random,
    is_planned: bool,
    thread: Thread<Planned<'a, A>, &'a Account>,
    pub nulls: u64,
}

impl<'a, A: GlobalAlloc> Program<'a, A> {
    pub fn new(
        allocator: &'a A,
        services: &'a [(Service, Account)],
        post: &'a Mutex<Blocks<'a, A>>,
        random: Random,
        is_planned: bool,
    ) -> Self {
        let mut thread = Thread::new(Mode::Among, &services[0].1);
        // There may be no memory later.
        thread.blocks.reserve(100_000);
        Self { allocator, services, post, random, is_planned, thread, nulls: 0 }
    }

    pub fn step(&mut self, plan: Plan) {
        match self.random.below(10) {
            0..4 => {
                let (size, shift) = (self.size(), self.random.below(8));
                let layout = Layout::from_size_align(size, 1 << shift).unwrap();
                let memory = Planned { allocator: self.allocator, plan, is_planned: self.is_planned };
                let is_zeroed = self.random.below(3) == 0;
                self.run(|thread| thread.allocate(memory, layout, is_zeroed));
            }
            4..6 if !self.thread.blocks.is_empty() => {
                let (block, size) = (self.random.below(self.thread.blocks.len()), self.size());
                self.thread.blocks[block].memory.plan = plan;
                self.run(|thread| thread.resize(block, size));
            }
            6 if !self.thread.blocks.is_empty() => {
                let block = self.thread.take(self.random.below(100_000));
                self.post.lock().unwrap().extend(block);
            }
            7 => {
                let block = self.post.lock().unwrap().pop();
                block.into_iter().for_each(|block| free(block, plan));
            }
            _ => {
                let block = self.thread.take(self.random.below(100_000));
                block.into_iter().for_each(|block| free(block, plan));
            }
        }
    }

    /// For any service.
    fn run(&mut self, work: impl FnOnce(&mut Thread<Planned<'a, A>, &'a Account>) -> bool) {
        let (service, account) = &self.services[self.random.below(self.services.len())];
        self.nulls += u64::from(!self.thread.run_in(service, account, work));
    }

    /// Mostly small, now and then past what has its owner beside the heap.
    fn size(&mut self) -> usize {
        let most = [16, 200, 3000, 20_000][self.random.below(4)];
        1 + self.random.below(most)
    }

    /// Leaves its blocks to the next.
    pub fn end(mut self) {
        self.post.lock().unwrap().append(&mut self.thread.blocks);
    }
}

pub fn free<A: GlobalAlloc>(mut block: Block<Planned<'_, A>, &Account>, plan: Plan) {
    block.memory.plan = plan;
    block.free(Mode::Among);
}

/// Random programs by each plan in turn; at last, for good, there is no more memory at all.
/// With the allocator goes what its quarantine holds.
fn run(name: &str, allocator: impl GlobalAlloc + Sync) {
    let allocator = &allocator;
    let seed = seed();
    let steps = times(15_000).max(1_000) as usize;
    let plans = [Plan::None, Plan::Every(2), Plan::Every(7), Plan::OneIn(3), Plan::OneIn(100), Plan::All];
    let services = services(name, SERVICES);
    let post = Mutex::new(Vec::new());
    let nulls = AtomicU64::new(0);
    // Threads come and go, and leave their blocks to the next.
    for (round, plan) in (0..).zip(plans) {
        std::thread::scope(|threads| {
            for thread in 0..THREADS {
                let (services, post, nulls) = (&services, &post, &nulls);
                threads.spawn(move || {
                    let random = Random::nth(seed, round * THREADS + thread);
                    let mut program = Program::new(allocator, services, post, random, true);
                    for _ in 0..steps {
                        program.step(plan);
                    }
                    nulls.fetch_add(program.nulls, SeqCst);
                    program.end();
                });
            }
        });
        check(&services);
    }
    println!("{name}: {} steps, {} refused", THREADS as usize * steps * plans.len(), nulls.load(SeqCst));
    assert!(nulls.load(SeqCst) > 1000);
    post.lock().unwrap().drain(..).for_each(|block| free(block, Plan::All));
    check(&services);
    assert!(services.iter().all(|(service, _)| service.usage().blocks() == 0));
}

#[test]
fn refused_blocks_are_null_and_leave_no_trace() {
    alone!();
    let books = Books::new();
    run("cookies behind all", Dogtag::with_backend(Faulty::new(&books)));
    assert_eq!(books.live(), (0, 0), "bytes and blocks that the backend did not get back");
}

#[test]
fn refused_blocks_are_null_and_leave_no_trace_beside_the_heap_either() {
    alone!();
    run("owners beside the heap", Dogtag::with_backend(FaultyWithoutFields));
    assert_eq!(BOOKS.live(), (0, 0), "bytes and blocks that the backend did not get back");
}

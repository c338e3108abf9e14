//! Random programs on a backend that refuses now and then, held against books of their own.

use crate::backend::{self, BOOKS, Books, Faulty, FaultyWithoutFields, Plan};
use crate::random::{Random, seed, times};
use dogtag::{Dogtag, Service, Usage};
use std::alloc::{GlobalAlloc, Layout};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const THREADS: u64 = 4;
const SERVICES: usize = 6;

/// What the program has allocated and freed for one service.
#[derive(Default)]
pub struct Account {
    allocated_bytes: AtomicU64,
    allocated_blocks: AtomicU64,
    freed_bytes: AtomicU64,
    freed_blocks: AtomicU64,
}

impl Account {
    fn charge(&self, size: usize) {
        self.allocated_bytes.fetch_add(size as u64, SeqCst);
        self.allocated_blocks.fetch_add(1, SeqCst);
    }

    fn refund(&self, size: usize) {
        self.freed_bytes.fetch_add(size as u64, SeqCst);
        self.freed_blocks.fetch_add(1, SeqCst);
    }

    #[track_caller]
    pub fn assert_is(&self, usage: Usage) {
        let own = [&self.allocated_bytes, &self.allocated_blocks, &self.freed_bytes, &self.freed_blocks]
            .map(|count| count.load(SeqCst));
        let ledger = [usage.allocated_bytes, usage.allocated_blocks, usage.freed_bytes, usage.freed_blocks];
        assert_eq!(ledger, own, "bytes and blocks that were allocated, and freed");
    }
}

pub struct Block {
    address: *mut u8,
    layout: Layout,
    owner: usize,
    fill: u8,
}

// SAFETY: whoever has it has the memory.
unsafe impl Send for Block {}

impl Block {
    fn bytes(&self) -> &[u8] {
        // SAFETY: a live block of that layout.
        unsafe { std::slice::from_raw_parts(self.address, self.layout.size()) }
    }

    fn fill(&mut self, fill: u8) {
        self.fill = fill;
        // SAFETY: a live block of that layout, which `self` has alone.
        unsafe { self.address.write_bytes(fill, self.layout.size()) };
    }

    fn is_whole(&self) -> bool {
        self.bytes().iter().all(|byte| *byte == self.fill)
    }
}

/// A thread's program.
pub struct Program<'a, A> {
    allocator: &'a A,
    services: &'a [(Service, Account)],
    /// Blocks on their way from one thread to another.
    post: &'a Mutex<Vec<Block>>,
    random: Random,
    /// Whether nobody but the backend refuses anything.
    is_planned: bool,
    pub blocks: Vec<Block>,
    pub nulls: u64,
}

impl<'a, A> Program<'a, A> {
    pub fn new(
        allocator: &'a A,
        services: &'a [(Service, Account)],
        post: &'a Mutex<Vec<Block>>,
        random: Random,
        is_planned: bool,
    ) -> Self {
        // There may be no memory later.
        let blocks = Vec::with_capacity(100_000);
        Self { allocator, services, post, random, is_planned, blocks, nulls: 0 }
    }
}

impl<A: GlobalAlloc> Program<'_, A> {
    pub fn step(&mut self, plan: Plan) {
        match self.random.below(10) {
            0..4 => self.allocate(plan),
            4..6 => self.resize(plan),
            6 if !self.blocks.is_empty() => {
                let block = self.blocks.swap_remove(self.random.below(self.blocks.len()));
                self.post.lock().unwrap().push(block);
            }
            7 => {
                let block = self.post.lock().unwrap().pop();
                block.into_iter().for_each(|block| self.free(block, plan));
            }
            _ if !self.blocks.is_empty() => {
                let block = self.blocks.swap_remove(self.random.below(self.blocks.len()));
                self.free(block, plan);
            }
            _ => {}
        }
    }

    /// Mostly small, now and then past what has its owner beside the heap.
    fn size(&mut self) -> usize {
        let most = [16, 200, 3000, 20_000][self.random.below(4)];
        1 + self.random.below(most)
    }

    fn allocate(&mut self, plan: Plan) {
        let (size, shift) = (self.size(), self.random.below(8));
        let layout = Layout::from_size_align(size, 1 << shift).unwrap();
        let (owner, zeroed) = (self.random.below(self.services.len()), self.random.below(3) == 0);
        let (service, account) = &self.services[owner];
        // SAFETY: the layout is not empty.
        let (address, refused) = backend::with(plan, || unsafe {
            service.run(|| {
                if zeroed { self.allocator.alloc_zeroed(layout) } else { self.allocator.alloc(layout) }
            })
        });
        self.judge(address, refused);
        if address.is_null() {
            self.nulls += 1;
            return;
        }
        account.charge(size);
        assert!(address.addr().is_multiple_of(layout.align()));
        let mut block = Block { address, layout, owner, fill: 0 };
        assert!(!zeroed || block.is_whole(), "it is not zeroed");
        block.fill(self.random.next() as u8);
        self.blocks.push(block);
    }

    /// Null means that the backend has refused. With memory-check it was asked again, if something
    /// could be given back to it before.
    fn judge(&self, address: *mut u8, refused: u32) {
        let (is_null, was_refused) = (address.is_null(), refused > 0);
        let is_just =
            if cfg!(feature = "memory-check") { was_refused || !is_null } else { was_refused == is_null };
        assert!(is_just || !self.is_planned, "null: {is_null}, and refused {refused} times");
    }

    fn resize(&mut self, plan: Plan) {
        if self.blocks.is_empty() {
            return;
        }
        let mut block = self.blocks.swap_remove(self.random.below(self.blocks.len()));
        let (size, owner) = (self.size(), self.random.below(self.services.len()));
        // SAFETY: the block is live, and the size is not 0.
        let (address, refused) = backend::with(plan, || unsafe {
            self.services[owner].0.run(|| self.allocator.realloc(block.address, block.layout, size))
        });
        if size != block.layout.size() {
            self.judge(address, refused);
        }
        if address.is_null() {
            assert!(!cfg!(feature = "memory-check") || size > block.layout.size(), "it does not grow");
            // It is what it was, and whose it was.
            self.nulls += 1;
            assert!(block.is_whole());
            return self.blocks.push(block);
        }
        // Memory-check moves it, or shrinks it where it is if there is no other memory.
        let stays = cfg!(feature = "memory-check") && address == block.address;
        assert!(!stays || (refused > 0 || !self.is_planned) && size <= block.layout.size());
        self.services[block.owner].1.refund(block.layout.size());
        self.services[owner].1.charge(size);
        let kept = size.min(block.layout.size());
        block.address = address;
        block.owner = owner;
        block.layout = Layout::from_size_align(size, block.layout.align()).unwrap();
        assert!(block.bytes()[..kept].iter().all(|byte| *byte == block.fill), "it is not what it was");
        block.fill(self.random.next() as u8);
        self.blocks.push(block);
    }

    pub fn free(&self, block: Block, plan: Plan) {
        assert!(block.is_whole());
        self.services[block.owner].1.refund(block.layout.size());
        // SAFETY: a live block of that layout.
        backend::with(plan, || unsafe { self.allocator.dealloc(block.address, block.layout) });
    }
}

/// Random programs by each plan in turn; at last, for good, there is no more memory at all.
/// With the allocator goes what its quarantine holds.
fn run(name: &str, allocator: impl GlobalAlloc + Sync) {
    let allocator = &allocator;
    let seed = seed();
    let steps = times(15_000).max(1_000) as usize;
    let plans = [Plan::None, Plan::Every(2), Plan::Every(7), Plan::OneIn(3), Plan::OneIn(100), Plan::All];
    let services: Vec<(Service, Account)> = (0..SERVICES)
        .map(|i| (Service::register(format!("{name} {i}")).unwrap(), Account::default()))
        .collect();
    let post = Mutex::new(Vec::new());
    let check = || services.iter().for_each(|(service, account)| account.assert_is(service.usage()));
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
                    post.lock().unwrap().append(&mut program.blocks);
                });
            }
        });
        check();
    }
    println!("{name}: {} steps, {} refused", THREADS as usize * steps * plans.len(), nulls.load(SeqCst));
    assert!(nulls.load(SeqCst) > 1000);
    let mut program = Program::new(allocator, &services, &post, Random::nth(seed, u64::MAX), true);
    program.blocks.append(&mut post.lock().unwrap());
    while let Some(block) = program.blocks.pop() {
        program.free(block, Plan::All);
    }
    check();
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

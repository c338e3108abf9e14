//! The ledger against the truth, to the byte, while everything happens at once.

use crate::common::{CHECKED, LARGE};
use crate::random::{self, Random, times};
use dogtag::{Scope, Service, Usage};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const THREADS: usize = 8;
const SERVICES: usize = 20;
const DEPTH: usize = 8;
const LIVE: usize = 500;
const SHORT_LIVED: usize = 10_000;

#[test]
fn the_ledger_equals_the_truth() {
    alone!();
    let operations = times(if CHECKED { 1_000_000 } else { 10_000_000 }) as usize;
    let seed = random::seed();
    let services: &'static [Service] =
        (0..SERVICES).map(|i| Service::register(format!("service {i}")).unwrap()).collect::<Vec<_>>().leak();
    let mailboxes: &'static Mailboxes = Box::leak(Box::new(std::array::from_fn(|_| Mutex::default())));
    let truth = Mutex::new(vec![Usage::default(); SERVICES]);

    std::thread::scope(|scope| {
        let truth = &truth;
        let spawn = |number: usize, operations: usize, late: bool| {
            scope.spawn(move || {
                let mut worker = Worker::new(Random::nth(seed, number as u64), services, mailboxes);
                worker.work(operations);
                if late {
                    // Freed by a thread-local destructor, when the thread ends.
                    LATE.with(|late| late.borrow_mut().0 = worker.take_any());
                }
                worker.finish(truth);
            })
        };
        let workers: Vec<_> = (0..THREADS).map(|number| spawn(number, operations / THREADS, false)).collect();
        // Meanwhile threads come and go, and no figure is ever negative.
        for batch in 0..SHORT_LIVED / 10 {
            let short_lived: Vec<_> = (0..10).map(|i| spawn(1000 + batch * 10 + i, 50, true)).collect();
            // Joined one by one: the end of a scope does not wait for destructors.
            short_lived.into_iter().for_each(|thread| thread.join().unwrap());
            if batch % 100 == 0 {
                for row in dogtag::snapshot().rows {
                    assert!(row.usage.freed_bytes <= row.usage.allocated_bytes, "{row:?}");
                    assert!(row.usage.freed_blocks <= row.usage.allocated_blocks, "{row:?}");
                }
            }
        }
        workers.into_iter().for_each(|thread| thread.join().unwrap());
    });

    // What nobody came to collect.
    let mut truth = truth.into_inner().unwrap();
    for mailbox in mailboxes {
        for block in mailbox.lock().unwrap().drain(..) {
            block.free(&mut truth);
        }
    }
    LATE_TRUTH.with_lock(|late| truth.iter_mut().zip(late.iter()).for_each(|(truth, late)| *truth += *late));

    let counted: Usage = truth.iter().copied().sum();
    println!("{counted:?}");
    assert!(counted.allocated_blocks > operations as u64 / 4, "too little happened");
    for (service, truth) in services.iter().zip(&truth) {
        assert_eq!(without_peak(service.usage()), *truth, "{service:?}");
        assert_eq!((truth.bytes(), truth.blocks()), (0, 0), "the test itself leaks");
    }

    // The backend's books, which know nothing of services, nor of freed blocks
    // that are kept back: each block is larger there by its cookie.
    let snapshot = dogtag::snapshot();
    let (totals, backend) = (dogtag::totals(), crate::ALLOC.backend());
    let kept_back = snapshot.quarantine.map_or(0, |quarantine| quarantine.blocks);
    assert_eq!(totals.allocated_blocks, backend.allocated_blocks.load(SeqCst));
    assert_eq!(totals.freed_blocks, backend.freed_blocks.load(SeqCst) + kept_back);
    if !CHECKED {
        let bytes = |counter: &AtomicU64| counter.load(SeqCst);
        let cookies = (bytes(&backend.allocated_cookies), bytes(&backend.freed_cookies));
        assert_eq!(totals.allocated_bytes + cookies.0, bytes(&backend.allocated_bytes));
        assert_eq!(totals.freed_bytes + cookies.1, bytes(&backend.freed_bytes));
    }
    let rows: Usage = snapshot.rows.iter().map(|row| row.usage).sum();
    assert_eq!(without_peak(rows), without_peak(snapshot.totals));
    assert_eq!(snapshot.lost, dogtag::Lost::default());
}

/// Services have their peaks when they will.
fn without_peak(mut usage: Usage) -> Usage {
    usage.peak_bytes = 0;
    usage
}

type Mailboxes = [Mutex<Vec<Block>>; THREADS];

/// A block, and who should own it.
struct Block {
    address: usize,
    layout: Layout,
    owner: usize,
}

impl Block {
    fn fill(&self) {
        let ptr = self.address as *mut u8;
        // SAFETY: the block is live and at least one byte long.
        unsafe {
            ptr.write(self.owner as u8);
            ptr.add(self.layout.size() - 1).write(self.owner as u8);
        }
    }

    fn check(&self) {
        assert_eq!(self.byte(0), self.owner as u8, "the block was overwritten");
        assert_eq!(self.byte(self.layout.size() - 1), self.owner as u8, "its end was overwritten");
    }

    fn byte(&self, offset: usize) -> u8 {
        assert!(offset < self.layout.size());
        // SAFETY: the block is live and longer than that.
        unsafe { (self.address as *const u8).add(offset).read() }
    }

    fn free(self, truth: &mut [Usage]) {
        self.check();
        truth[self.owner].freed_bytes += self.layout.size() as u64;
        truth[self.owner].freed_blocks += 1;
        // SAFETY: the block is live, and `self` is its only name.
        unsafe { dealloc(self.address as *mut u8, self.layout) };
    }
}

struct Worker {
    random: Random,
    services: &'static [Service],
    mailboxes: &'static Mailboxes,
    truth: Vec<Usage>,
    blocks: Vec<Block>,
    scopes: Vec<(usize, Scope<'static>)>,
    _outermost: Scope<'static>,
}

impl Worker {
    fn new(random: Random, services: &'static [Service], mailboxes: &'static Mailboxes) -> Self {
        Self {
            random,
            services,
            mailboxes,
            // All that the worker itself needs is there before it enters a service.
            truth: vec![Usage::default(); SERVICES],
            blocks: Vec::with_capacity(LIVE),
            scopes: Vec::with_capacity(DEPTH),
            _outermost: services[0].enter(),
        }
    }

    fn current(&self) -> usize {
        self.scopes.last().map_or(0, |(service, _)| *service)
    }

    fn size(&mut self) -> usize {
        match self.random.below(100) {
            0 => LARGE + self.random.below(100_000),
            // Up to what the backend's books cannot tell from large ones.
            1..10 => 1 + self.random.below(LARGE - 3),
            _ => 1 + self.random.below(300),
        }
    }

    fn work(&mut self, operations: usize) {
        for _ in 0..operations {
            match self.random.below(100) {
                0..40 => self.allocate(),
                40..55 => self.reallocate(),
                55..85 => {
                    if let Some(block) = self.take_any() {
                        block.free(&mut self.truth);
                    }
                }
                85..88 => self.hand_over(),
                88..94 if self.scopes.len() < DEPTH => {
                    let service = self.random.below(SERVICES);
                    self.scopes.push((service, self.services[service].enter()));
                }
                _ => drop(self.scopes.pop()),
            }
        }
    }

    fn allocate(&mut self) {
        if self.blocks.len() == LIVE {
            let block = self.take_any().unwrap();
            return block.free(&mut self.truth);
        }
        let align =
            if self.random.below(50) == 0 { 1 << self.random.below(13) } else { 1 << self.random.below(5) };
        let layout = Layout::from_size_align(self.size(), align).unwrap();
        let zeroed = self.random.below(4) == 0;
        // SAFETY: sizes begin at 1.
        let ptr = unsafe { if zeroed { alloc_zeroed(layout) } else { alloc(layout) } };
        assert!(!ptr.is_null() && (ptr as usize).is_multiple_of(align));
        if zeroed {
            // SAFETY: the block is that long.
            let bytes = unsafe { std::slice::from_raw_parts(ptr, layout.size()) };
            assert!(bytes.iter().all(|&byte| byte == 0), "not zeroed");
        }
        let block = Block { address: ptr as usize, layout, owner: self.current() };
        block.fill();
        self.truth[block.owner].allocated_bytes += layout.size() as u64;
        self.truth[block.owner].allocated_blocks += 1;
        self.blocks.push(block);
    }

    fn reallocate(&mut self) {
        let Some(mut block) = self.take_any() else { return };
        let (old, size) = (block.layout.size(), self.size());
        block.check();
        // SAFETY: the block is live and the size is not 0.
        block.address = unsafe { realloc(block.address as *mut u8, block.layout, size) } as usize;
        assert!(block.address != 0 && block.address.is_multiple_of(block.layout.align()));
        block.layout = Layout::from_size_align(size, block.layout.align()).unwrap();
        assert_eq!(block.byte(0), block.owner as u8, "the first byte did not move along");
        if size >= old {
            assert_eq!(block.byte(old - 1), block.owner as u8, "the last byte did not move along");
        }
        self.truth[block.owner].freed_bytes += old as u64;
        self.truth[block.owner].freed_blocks += 1;
        // Whoever grows it owns it.
        block.owner = self.current();
        block.fill();
        self.truth[block.owner].allocated_bytes += size as u64;
        self.truth[block.owner].allocated_blocks += 1;
        self.blocks.push(block);
    }

    /// Gives a few blocks to somebody else, and frees what others gave.
    fn hand_over(&mut self) {
        let from = self.random.below(THREADS);
        let to = self.random.below(THREADS);
        let mine = (self.take_any(), self.take_any());
        // The mailboxes' own memory is nobody's.
        let nobody = Service::unattributed();
        let mail = {
            let _scope = nobody.enter();
            self.mailboxes[to].lock().unwrap().extend(mine.0.into_iter().chain(mine.1));
            let mut mailbox = self.mailboxes[from].lock().unwrap();
            (mailbox.pop(), mailbox.pop())
        };
        for block in mail.0.into_iter().chain(mail.1) {
            block.free(&mut self.truth);
        }
    }

    fn take_any(&mut self) -> Option<Block> {
        if self.blocks.is_empty() {
            return None;
        }
        let i = self.random.below(self.blocks.len());
        Some(self.blocks.swap_remove(i))
    }

    fn finish(mut self, truth: &Mutex<Vec<Usage>>) {
        while let Some(block) = self.take_any() {
            block.free(&mut self.truth);
        }
        // Innermost first.
        while self.scopes.pop().is_some() {}
        for (sum, mine) in truth.lock().unwrap().iter_mut().zip(&self.truth) {
            *sum += *mine;
        }
    }
}

/// A block that is freed while the thread is torn down.
#[derive(Default)]
struct Late(Option<Block>);

thread_local! {
    static LATE: RefCell<Late> = RefCell::default();
}

struct LateTruth(Mutex<[Usage; SERVICES]>);

static LATE_TRUTH: LateTruth = LateTruth(Mutex::new([Usage::NONE; SERVICES]));

impl LateTruth {
    fn with_lock(&self, body: impl FnOnce(&mut [Usage; SERVICES])) {
        body(&mut self.0.lock().unwrap());
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        if let Some(block) = self.0.take() {
            LATE_TRUTH.with_lock(|truth| block.free(truth));
        }
    }
}

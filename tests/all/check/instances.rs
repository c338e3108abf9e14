//! memory-check of allocators that come and go by the thousand, and of those that have
//! little memory; each test in a process of its own.

use crate::watch;
use dogtag::check::{self, Operation, Reaction, Violation, ViolationKind};
use dogtag::{Dogtag, Service};
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;

const LAYOUT: Layout = Layout::new::<[u64; 3]>();
const KIB: Layout = Layout::new::<[u64; 128]>();

/// What the handler was called for.
static MET: Mutex<Vec<(ViolationKind, Operation, usize)>> = Mutex::new(Vec::new());

fn note(violation: &Violation) -> Reaction {
    MET.lock().unwrap().push((violation.kind(), violation.operation(), violation.address()));
    Reaction::Leak
}

fn met() -> Vec<(ViolationKind, Operation, usize)> {
    std::mem::take(&mut *MET.lock().unwrap())
}

/// 56 pieces of memory, 70 KiB in all, each for one block.
struct Pieces {
    memory: *mut u8,
    taken: AtomicU64,
}

// SAFETY: each piece is one's who has taken it.
unsafe impl Sync for Pieces {}

const PIECES: usize = 56;
const PIECE: Layout = Layout::new::<[u128; 80]>();
const ALL: Layout = Layout::new::<[[u128; 80]; PIECES]>();

impl Pieces {
    fn new() -> Self {
        // SAFETY: the layout is not empty.
        Self { memory: unsafe { System.alloc(ALL) }, taken: AtomicU64::new(0) }
    }

    fn taken(&self) -> u32 {
        self.taken.load(SeqCst).count_ones()
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        // SAFETY: allocated above.
        unsafe { System.dealloc(self.memory, ALL) };
    }
}

// SAFETY: a piece is one's until it is freed.
unsafe impl GlobalAlloc for Pieces {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let take = |taken: u64| Some(taken | (taken + 1)).filter(|_| taken.trailing_ones() < PIECES as u32);
        match self.taken.fetch_update(SeqCst, SeqCst, take) {
            Ok(before) if layout.size() <= PIECE.size() => {
                // SAFETY: there are so many.
                unsafe { self.memory.add(before.trailing_ones() as usize * PIECE.size()) }
            }
            _ => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        let number = (block.addr() - self.memory.addr()) / PIECE.size();
        assert_ne!(self.taken.fetch_and(!(1 << number), SeqCst) >> number & 1, 0, "freed twice");
    }
}

/// That a second free is reported as such shows that the first one was noted and is in
/// quarantine.
fn has_quarantine(memory: &Dogtag<impl GlobalAlloc>) -> bool {
    // SAFETY: none, the second time.
    let block = unsafe {
        let block = memory.alloc(LAYOUT);
        memory.dealloc(block, LAYOUT);
        memory.dealloc(block, LAYOUT);
        block as usize
    };
    match *met() {
        [(ViolationKind::DoubleFree, Operation::Dealloc, address)] => address == block,
        [(ViolationKind::InvalidFree, Operation::Dealloc, address)] if address == block => false,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn two_hundred_thousand_instances_in_a_row() {
    survives!("quarantine-blocks=1024");
    check::set_handler(note);
    const INSTANCES: usize = 200_000;

    let mut mapped = 0;
    for instance in 0..INSTANCES {
        let memory = Dogtag::with_backend(Pieces::new());
        assert!(has_quarantine(&memory), "the {instance}th");
        // SAFETY: the blocks are freed as they were allocated, but for the violation.
        unsafe {
            let block = memory.alloc(LAYOUT);
            block.add(24).write(0);
            memory.dealloc(block, LAYOUT);
            assert_eq!(met(), [(ViolationKind::Overrun, Operation::Dealloc, block as usize)]);
            // Now and then as many as do not stay with the thread.
            for _ in 0..if instance % 1000 == 0 { 100 } else { 0 } {
                let block = memory.alloc(LAYOUT);
                memory.dealloc(block, LAYOUT);
            }
        }
        drop(memory);
        if instance == INSTANCES / 10 {
            mapped = watch::memory().mapped;
        }
    }
    assert_eq!(met(), []);
    assert!(watch::memory().mapped < mapped + (8 << 20), "{} bytes after {mapped}", watch::memory().mapped);
    assert_eq!(check::verify().violations, 0);
}

#[test]
fn more_instances_than_numbers() {
    survives!("quarantine-blocks=64");
    check::set_handler(note);
    /// How many are distinguished, with the global one.
    const NUMBERS: usize = 65_534;
    const MORE: usize = 2049;

    let memories: Vec<_> = (1..NUMBERS + MORE).map(|_| Dogtag::with_backend(System)).collect();
    let mapped;
    // SAFETY: the blocks are freed as they were allocated, but for the violation.
    unsafe {
        let blocks: Vec<_> = memories.iter().map(|memory| memory.alloc(LAYOUT)).collect();
        mapped = watch::memory().mapped;
        let (told_apart, others) = memories.split_at(NUMBERS - 1);
        assert!(has_quarantine(&told_apart[NUMBERS - 2]));
        for memory in others {
            assert!(!has_quarantine(memory), "there is no number left");
            let block = memory.alloc(LAYOUT);
            block.sub(1).write(0);
            memory.dealloc(block, LAYOUT);
            assert_eq!(met(), [(ViolationKind::Underrun, Operation::Dealloc, block as usize)]);
        }
        for (memory, block) in memories.iter().zip(blocks) {
            memory.dealloc(block, LAYOUT);
        }
    }
    drop(memories);
    assert_eq!(met(), []);
    // Rings for the others would be 8 MiB.
    assert!(watch::memory().mapped < mapped + (4 << 20), "{} bytes after {mapped}", watch::memory().mapped);
    assert!(has_quarantine(&Dogtag::with_backend(System)), "there are numbers again");
    assert!(has_quarantine(&ALLOC_BESIDE));
}

static ALLOC_BESIDE: Dogtag<System> = Dogtag::with_backend(System);

/// However many others there are, of which the thread keeps blocks.
#[test]
fn quarantine_of_the_first_instance() {
    survives!("quarantine-blocks=1024");
    check::set_handler(note);
    let others: Vec<_> = (0..9).map(|_| Dogtag::with_backend(System)).collect();
    // By turns, so that one of them is there when the first one's magazine is full.
    for _ in 0..33 {
        drop(black_box(vec![1_u8; 50]));
        for other in &others {
            // SAFETY: the block is freed as it was allocated.
            unsafe { other.dealloc(other.alloc(LAYOUT), LAYOUT) };
        }
    }
    let of_others = 33 * others.len() as u64;
    for _ in 0..3000 {
        drop(black_box(vec![1_u8; 50]));
    }
    let blocks = quarantined_blocks();
    assert!((1024..1024 + 64).contains(&(blocks - of_others)), "{blocks}");
    drop(others);
    assert!((1024..1024 + 64).contains(&quarantined_blocks()), "{} of {blocks}", quarantined_blocks());
}

fn quarantined_blocks() -> u64 {
    dogtag::snapshot().quarantine.expect("with memory-check").blocks
}

/// A backend that counts what it has given, near and far.
#[derive(Default)]
struct Counting(AtomicUsize);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for &Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(1, SeqCst);
        // SAFETY: the layout is not empty: `GlobalAlloc::alloc` requires it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.0.fetch_sub(1, SeqCst);
        // SAFETY: the block is the system's, live and of that layout: `GlobalAlloc::dealloc` requires it.
        unsafe { System.dealloc(block, layout) };
    }
}

#[test]
fn what_an_instance_leaves_behind() {
    survives!("quarantine=64M");
    check::set_handler(note);
    let counts = [Counting::default(), Counting::default()];
    let [ends, stays] = counts.each_ref().map(Dogtag::with_backend);
    let service = Service::register("left behind").unwrap();
    // The system maps large blocks, far from the small ones.
    let layouts = [24, 1000, 300_000].map(|size| Layout::from_size_align(size, 16).unwrap());
    let in_turn = || layouts.iter().cycle().take(300);
    // SAFETY: the blocks are freed as they were allocated, but for the violation.
    unsafe {
        let blocks = |memory: &Dogtag<&Counting>| {
            in_turn().map(|layout| (service.run(|| memory.alloc(*layout)), *layout)).collect::<Vec<_>>()
        };
        let (ended, staying, forgotten) = (blocks(&ends), blocks(&stays), blocks(&ends));
        for (block, layout) in ended {
            ends.dealloc(block, layout);
        }
        assert_eq!(counts[0].0.load(SeqCst), 600, "a half is in quarantine");
        drop(ends);
        assert_eq!(counts[0].0.load(SeqCst), 300, "what it had in quarantine is freed");
        // What it left is no block any more; what is the other's is.
        let live = check::live_blocks(&service).blocks;
        assert_eq!(live.len(), 300);
        assert!(live.iter().all(|live| staying.iter().any(|block| block.0 as usize == live.address)));
        for (block, layout) in staying {
            stays.dealloc(block, layout);
            stays.dealloc(block, layout);
            assert_eq!(met(), [(ViolationKind::DoubleFree, Operation::Dealloc, block as usize)]);
        }
        for (block, layout) in forgotten {
            stays.dealloc(block, layout);
            assert_eq!(met(), [(ViolationKind::InvalidFree, Operation::Dealloc, block as usize)]);
        }
    }
    assert_eq!(check::verify().violations, 0);
}

/// The program holds two blocks at most; all others are in quarantine.
#[test]
fn little_memory() {
    survives!("");
    check::set_handler(note);
    let memory = Dogtag::with_backend(Pieces::new());
    // SAFETY: the blocks are freed as they were allocated.
    unsafe {
        for round in 0..100_000 {
            let block = if round % 3 == 0 { memory.alloc_zeroed(KIB) } else { memory.alloc(KIB) };
            assert!(!block.is_null(), "in round {round}");
            let fresh = if round % 3 == 0 { 0 } else { 0xCD };
            assert!(block.read() == fresh && block.add(KIB.size() - 1).read() == fresh);
            let moved = memory.realloc(block, KIB, 100);
            assert!(!moved.is_null(), "in round {round}");
            memory.dealloc(moved, Layout::from_size_align(100, KIB.align()).unwrap());
        }
        // Each of these gets the last piece, which is in quarantine.
        let mut blocks: Vec<_> = (0..PIECES).map(|_| memory.alloc(KIB)).collect();
        assert!(blocks.iter().all(|block| !block.is_null()));
        let ways: [unsafe fn(&Dogtag<Pieces>, Layout) -> *mut u8; 2] =
            [GlobalAlloc::alloc, GlobalAlloc::alloc_zeroed];
        for get in ways {
            memory.dealloc(blocks.pop().unwrap(), KIB);
            blocks.push(get(&memory, KIB));
        }
        memory.dealloc(blocks.pop().unwrap(), KIB);
        let last = blocks.pop().unwrap();
        blocks.push(memory.realloc(last, KIB, KIB.size()));
        blocks.push(memory.alloc(KIB));
        assert!(blocks.iter().all(|block| !block.is_null()));
        // And null is null; but what does not grow stays where it is.
        let none =
            [memory.alloc(KIB), memory.alloc_zeroed(KIB), memory.realloc(blocks[0], KIB, 2 * KIB.size())];
        assert_eq!(none, [ptr::null_mut(); 3]);
        let first = blocks.swap_remove(0);
        assert_eq!(memory.realloc(first, KIB, 100), first);
        memory.dealloc(first, Layout::from_size_align(100, KIB.align()).unwrap());
        blocks.into_iter().for_each(|block| memory.dealloc(block, KIB));
    }
    assert_eq!(met(), []);
}

/// Threads that wait have not put what they freed where others can have it.
#[test]
fn little_memory_that_other_threads_keep() {
    survives!("");
    check::set_handler(note);
    let memory = Dogtag::with_backend(Pieces::new());
    let (memory, (done, is_done)) = (&memory, channel());
    std::thread::scope(|threads| {
        let mut others = Vec::new();
        for _ in 0..2 {
            let (go_on, may_go_on) = channel::<()>();
            others.push(go_on);
            let done = done.clone();
            threads.spawn(move || {
                // SAFETY: the blocks are freed as they were allocated.
                unsafe {
                    let blocks: Vec<_> = (0..20).map(|_| memory.alloc(KIB)).collect();
                    blocks.into_iter().for_each(|block| memory.dealloc(block, KIB));
                    done.send(()).unwrap();
                    // Until the other one has had the memory.
                    may_go_on.recv().unwrap();
                    memory.dealloc(memory.alloc(KIB), KIB);
                }
            });
        }
        others.iter().for_each(|_| is_done.recv().unwrap());
        assert_eq!(memory.backend().taken(), 40);
        // SAFETY: the blocks are freed as they were allocated.
        unsafe {
            let blocks: Vec<_> = (0..PIECES).map(|_| memory.alloc(KIB)).collect();
            assert!(blocks.iter().all(|block| !block.is_null()));
            blocks.into_iter().for_each(|block| memory.dealloc(block, KIB));
        }
        others.iter().for_each(|go_on| go_on.send(()).unwrap());
    });
    assert_eq!(met(), []);
}

#[test]
fn crime_in_little_memory() {
    survives!("");
    check::set_handler(note);
    let memory = Dogtag::with_backend(Pieces::new());
    // SAFETY: none; what is written to is freed.
    unsafe {
        let block = memory.alloc(KIB);
        memory.dealloc(block, KIB);
        block.add(1000).write(0);
        // No more than fits in, and is not there already.
        let blocks: Vec<_> = (0..PIECES).map(|_| memory.alloc(KIB)).collect();
        assert_eq!(met(), [(ViolationKind::WriteAfterFree, Operation::Reuse, block as usize)]);
        let (last, others) = blocks.split_last().unwrap();
        assert!(last.is_null() && !others.iter().any(|other| other.is_null() || *other == block));
        others.iter().for_each(|other| memory.dealloc(*other, KIB));
    }
    assert_eq!(met(), []);
}

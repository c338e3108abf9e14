//! Threads that come and go by the thousands, and what their thread-locals do at the end:
//! nothing is lost, whatever the order, and their number leaves no trace.

use dogtag::Service;
use std::alloc::{Layout, alloc, dealloc};
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Barrier, Mutex, OnceLock};
use std::thread;

/// A block, in its service's books.
struct Block {
    address: usize,
    layout: Layout,
    books: &'static Books,
}

/// What a service should have.
#[derive(Default)]
struct Books {
    service: OnceLock<Service>,
    blocks: AtomicI64,
    bytes: AtomicI64,
    ever: AtomicU64,
}

impl Books {
    const fn new() -> Self {
        Self {
            service: OnceLock::new(),
            blocks: AtomicI64::new(0),
            bytes: AtomicI64::new(0),
            ever: AtomicU64::new(0),
        }
    }

    fn service(&self) -> &Service {
        self.service.get().unwrap()
    }

    fn allocate(&'static self, size: usize) -> Block {
        let layout = Layout::from_size_align(size, 8).unwrap();
        // SAFETY: the layout is not empty, and the block that long.
        let address = self.service().run(|| unsafe {
            let block = black_box(alloc(layout));
            block.write_bytes(1, size);
            block as usize
        });
        self.blocks.fetch_add(1, SeqCst);
        self.bytes.fetch_add(size as i64, SeqCst);
        self.ever.fetch_add(1, SeqCst);
        Block { address, layout, books: self }
    }

    #[track_caller]
    fn compare(&self) {
        let usage = self.service().usage();
        let ledger = (usage.blocks() as i64, usage.bytes() as i64, usage.allocated_blocks);
        let books = (self.blocks.load(SeqCst), self.bytes.load(SeqCst), self.ever.load(SeqCst));
        assert_eq!(ledger, books, "{}", self.service().name());
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the block is live, and has that layout.
        unsafe { dealloc(self.address as *mut u8, self.layout) };
        self.books.blocks.fetch_sub(1, SeqCst);
        self.books.bytes.fetch_sub(self.layout.size() as i64, SeqCst);
    }
}

#[test]
fn ten_thousand_threads_leave_no_trace() {
    alone!();
    const AT_ONCE: usize = 250;
    const WAVES: usize = 40;

    static BOOKS: [Books; 3] = [const { Books::new() }; 3];

    thread_local! {
        static LATE: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
    }

    for (number, books) in BOOKS.iter().enumerate() {
        books.service.set(Service::register(format!("threads {number}")).unwrap()).unwrap();
    }
    let inboxes: Vec<Mutex<Vec<Block>>> = (0..AT_ONCE).map(|_| Mutex::default()).collect();
    let work = |wave: usize, number: usize, all_are_there: &Barrier| {
        let own = Service::register(format!("thread {wave}/{number}")).unwrap();
        let mine = own.run(|| black_box(vec![1_u8; number + 1]));
        let mut blocks: Vec<_> = (0..9).map(|i| BOOKS[i % 3].allocate(number * 40 + i + 1)).collect();
        all_are_there.wait();
        // Some are freed here, some by a thread of the next wave, some at the very end.
        blocks.truncate(6);
        inboxes[(number + wave) % AT_ONCE].lock().unwrap().extend(blocks.drain(..3));
        LATE.with(|late| *late.borrow_mut() = blocks);
        assert_eq!((own.usage().bytes(), own.usage().blocks()), (number as u64 + 1, 1));
        drop(own);
        drop(mine);
    };
    let mut ledger = Vec::new();
    for wave in 0..WAVES {
        let inherited: Vec<_> =
            inboxes.iter().map(|inbox| std::mem::take(&mut *inbox.lock().unwrap())).collect();
        let all_are_there = Barrier::new(AT_ONCE);
        thread::scope(|threads| {
            let begun: Vec<_> = inherited
                .into_iter()
                .enumerate()
                .map(|(number, inherited)| {
                    let (work, all_are_there) = (&work, &all_are_there);
                    let thread = thread::Builder::new().stack_size(256 << 10);
                    let body = move || {
                        work(wave, number, all_are_there);
                        drop(inherited);
                    };
                    thread.spawn_scoped(threads, body).unwrap()
                })
                .collect();
            // The end of a scope does not wait for destructors.
            begun.into_iter().for_each(|thread| thread.join().unwrap());
        });
        BOOKS.iter().for_each(Books::compare);
        ledger.push(dogtag::balance().ledger);
        // A shard for each of them would be more than 80 MB. Which of the shards that there
        // are a thread gets, and so which pages of them are touched, differs from wave to
        // wave; so do those of memory-check's tables, which are taken for the ledger's.
        let margin = if cfg!(feature = "memory-check") { 40 << 20 } else { 4 << 20 };
        assert!(ledger[wave] < ledger[wave.min(1)] + margin, "the ledger grows: {ledger:?}");
    }
    inboxes.iter().for_each(|inbox| inbox.lock().unwrap().clear());
    for books in &BOOKS {
        books.compare();
        assert_eq!((books.service().usage().bytes(), books.ever.load(SeqCst)), (0, 3 * 10_000));
    }
    let rows = dogtag::snapshot().rows;
    assert!(!rows.iter().any(|row| row.name.starts_with("thread ")), "they have all ended");
    println!("{} threads, {AT_ONCE} at once; the ledger after each wave: {ledger:?}", AT_ONCE * WAVES);
}

/// What a thread does before it ends, in every order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// It allocates: dogtag's own first use.
    Allocate,
    /// It uses a thread-local of Rust's, or another one, which have destructors.
    Local,
    OtherLocal,
    /// The same of C's: of a key from before dogtag's own, and of one that came later.
    EarlyKey,
    LateKey,
}

const STEPS: [Step; 5] = [Step::Allocate, Step::Local, Step::OtherLocal, Step::EarlyKey, Step::LateKey];

static LIVES: [Books; STEPS.len()] = [const { Books::new() }; STEPS.len()];
static DESTROYED: [AtomicU64; STEPS.len()] = [const { AtomicU64::new(0) }; STEPS.len()];
/// What destructors leave to those of other threads.
static LEFT: Mutex<Vec<Block>> = Mutex::new(Vec::new());

impl Step {
    fn index(self) -> usize {
        self as usize
    }

    /// Whatever a destructor may want to do.
    fn destroy(self) {
        let books = &LIVES[self.index()];
        let _scope = books.service().enter();
        let [freed, left] = [100, 5_000].map(|size| books.allocate(size + self.index()));
        drop(freed);
        // That of another thread, or of this one's destructor before.
        let before = LEFT.lock().unwrap().pop();
        drop(before);
        // It fits.
        LEFT.lock().unwrap().push(left);
        let other = &LIVES[(self.index() + 1) % STEPS.len()];
        other.service().run(|| assert_eq!(&Service::current(), other.service()));
        assert_eq!(&Service::current(), books.service());
        let number = DESTROYED[self.index()].fetch_add(1, SeqCst);
        if number.is_multiple_of(16) {
            // What that needs is nobody's.
            Service::unattributed().run(|| {
                let guest = Service::builder(format!("guest of {self:?} {number}"));
                let guest = guest.hard_limit(1 << 20).register().unwrap();
                let is_row = |row: &dogtag::Row| row.name == guest.name();
                assert!(dogtag::snapshot().rows.iter().any(is_row));
            });
        }
    }

    fn take(self) {
        match self {
            Self::Allocate => drop(LIVES[self.index()].allocate(77)),
            Self::Local => LOCAL.with(|_| ()),
            Self::OtherLocal => OTHER_LOCAL.with(|_| ()),
            Self::EarlyKey | Self::LateKey => {
                let key = if self == Self::EarlyKey { &EARLY_KEY } else { &LATE_KEY };
                // SAFETY: the key exists; the value is never read.
                assert_eq!(unsafe { libc::pthread_setspecific(key.load(SeqCst), ptr::dangling()) }, 0);
            }
        }
    }
}

struct Destroyed(Step);

impl Drop for Destroyed {
    fn drop(&mut self) {
        self.0.destroy();
    }
}

thread_local! {
    static LOCAL: Destroyed = const { Destroyed(Step::Local) };
    static OTHER_LOCAL: Destroyed = const { Destroyed(Step::OtherLocal) };
}

static EARLY_KEY: AtomicU32 = AtomicU32::new(0);
static LATE_KEY: AtomicU32 = AtomicU32::new(0);

/// Before anything has been allocated.
#[used]
#[unsafe(link_section = ".init_array.00100")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    unsafe extern "C" fn destroy(_: *mut c_void) {
        Step::EarlyKey.destroy();
    }
    make_key(&EARLY_KEY, destroy);
}

fn make_key(key: &AtomicU32, destroy: unsafe extern "C" fn(*mut c_void)) -> c_int {
    let mut new = 0;
    // SAFETY: the place is as large as a key.
    let error = unsafe { libc::pthread_key_create(&mut new, Some(destroy)) };
    key.store(new, SeqCst);
    error
}

/// All orders of some things.
fn orders(of: &[Step]) -> Vec<Vec<Step>> {
    if of.is_empty() {
        return vec![vec![]];
    }
    let with_first = |first: &Step| {
        let rest: Vec<_> = of.iter().copied().filter(|step| step != first).collect();
        orders(&rest).into_iter().map(|rest| [&[*first], &rest[..]].concat()).collect::<Vec<_>>()
    };
    of.iter().flat_map(with_first).collect()
}

#[test]
fn destructors_in_every_order() {
    alone!();
    unsafe extern "C" fn destroy_late(_: *mut c_void) {
        Step::LateKey.destroy();
    }

    /// A thread of the system's, for which nobody has allocated yet.
    extern "C" fn run(order: *mut c_void) -> *mut c_void {
        // SAFETY: the order lives as long as the thread.
        let order = unsafe { &*order.cast::<Vec<Step>>() };
        order.iter().for_each(|step| step.take());
        ptr::null_mut()
    }

    for (step, books) in STEPS.iter().zip(&LIVES) {
        books.service.set(Service::register(format!("{step:?}")).unwrap()).unwrap();
    }
    assert_eq!(make_key(&LATE_KEY, destroy_late), 0);
    let orders = orders(&STEPS);
    LEFT.lock().unwrap().reserve(STEPS.len() * orders.len() * ROUNDS);

    const ROUNDS: usize = 5;
    for _ in 0..ROUNDS {
        // Alone, and many at once.
        for at_once in [1, 40] {
            for orders in orders.chunks(at_once) {
                let start = |order: &Vec<Step>| {
                    let mut thread = 0;
                    // SAFETY: the function has the right signature.
                    unsafe {
                        let order = ptr::from_ref(order).cast_mut().cast();
                        assert_eq!(libc::pthread_create(&mut thread, ptr::null(), run, order), 0);
                    }
                    thread
                };
                for thread in orders.iter().map(start).collect::<Vec<_>>() {
                    // SAFETY: the thread is there, and joined once.
                    assert_eq!(unsafe { libc::pthread_join(thread, ptr::null_mut()) }, 0);
                }
                LIVES.iter().for_each(Books::compare);
            }
        }
    }
    let threads = (orders.len() * ROUNDS * 2) as u64;
    let destroyed = DESTROYED.each_ref().map(|count| count.load(SeqCst));
    assert_eq!(destroyed, [0, threads, threads, threads, threads]);
    LEFT.lock().unwrap().clear();
    for books in &LIVES {
        books.compare();
        assert_eq!(books.service().usage().bytes(), 0);
    }
    println!("{threads} threads, {} destructors", destroyed.iter().sum::<u64>());
}

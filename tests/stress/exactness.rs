//! The ledger against the truth, to the byte, while everything happens at once.

use crate::common::{CHECKED, LARGE};
use crate::engine::account::{Account, without_peak};
use crate::engine::block::{Block, Owned};
use crate::engine::memory::Heap;
use crate::engine::thread::{Operation, Thread};
use crate::engine::{Mode, aside};
use crate::random::{self, Random, times};
use dogtag::{Service, Usage};
use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const THREADS: usize = 8;
const SERVICES: usize = 20;
const DEPTH: usize = 8;
const LIVE: usize = 500;
const SHORT_LIVED: usize = 10_000;
const SHORT_LIVED_AT_ONCE: usize = 10;

#[test]
fn the_ledger_equals_the_truth() {
    alone!();
    let operations = times(if CHECKED { 1_000_000 } else { 10_000_000 }) as usize;
    let seed = random::seed();
    let services: Vec<_> =
        (0..SERVICES).map(|i| Service::register(format!("service {i}")).unwrap()).collect();
    // Each thread counts for itself, which keeps no other one waiting. Those that live one after the other
    // have the same books.
    let books = |_| {
        let account = |(number, service): (usize, &Service)| {
            let account: &'static Account = Box::leak(Box::new(Account::of_one_thread(number as u32)));
            (service.clone(), account)
        };
        services.iter().enumerate().map(account).collect::<Vec<_>>()
    };
    let books: Vec<Books> = (0..THREADS + SHORT_LIVED_AT_ONCE).map(books).collect();
    let mailboxes: Mailboxes = std::array::from_fn(|_| Mutex::default());

    std::thread::scope(|scope| {
        let (books, mailboxes) = (&books, &mailboxes);
        let spawn = |number: usize, part: usize, operations: usize, late: bool| {
            let books = &books[part];
            scope.spawn(move || {
                let random = Random::nth(seed, number as u64);
                let mut worker = Worker::new(random, books, mailboxes);
                worker.work(operations);
                if late {
                    // Freed by a thread-local destructor, when the thread ends.
                    LATE.with(|late| late.replace(worker.take_any().map(Owned::new)));
                }
                worker.thread.free_all();
                worker.thread.leave_all();
            })
        };
        let workers: Vec<_> =
            (0..THREADS).map(|number| spawn(number, number, operations / THREADS, false)).collect();
        // Meanwhile threads come and go, and no figure is ever negative.
        for batch in 0..SHORT_LIVED / SHORT_LIVED_AT_ONCE {
            let number = |i| 1000 + batch * SHORT_LIVED_AT_ONCE + i;
            let short_lived: Vec<_> =
                (0..SHORT_LIVED_AT_ONCE).map(|i| spawn(number(i), THREADS + i, 50, true)).collect();
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
    for mailbox in mailboxes {
        mailbox.into_inner().unwrap().into_iter().for_each(|block| block.free(Mode::Among));
    }

    let mut counted = Usage::default();
    for (number, service) in services.iter().enumerate() {
        let truth: Usage = books.iter().map(|books| books[number].1.usage()).sum();
        assert_eq!(without_peak(service.usage()), truth, "{service:?}");
        assert_eq!((truth.bytes(), truth.blocks()), (0, 0), "the test itself leaks");
        counted += truth;
    }
    println!("{counted:?}");
    assert!(counted.allocated_blocks > operations as u64 / 4, "too little happened");

    // The backend's books, which know nothing of services, nor of freed blocks
    // that are kept back: each block is larger there by its cookie.
    let snapshot = dogtag::snapshot();
    let (totals, backend) = (dogtag::totals(), crate::ALLOC.backend());
    let kept_back = snapshot.quarantine.map_or(0, |quarantine| quarantine.blocks);
    assert_eq!(totals.allocated_blocks, backend.allocated_blocks.load(SeqCst));
    assert_eq!(totals.freed_blocks, backend.freed_blocks.load(SeqCst) + kept_back);
    if crate::common::knows_cookies() {
        let bytes = |counter: &AtomicU64| counter.load(SeqCst);
        let cookies = (bytes(&backend.allocated_cookies), bytes(&backend.freed_cookies));
        assert_eq!(totals.allocated_bytes + cookies.0, bytes(&backend.allocated_bytes));
        assert_eq!(totals.freed_bytes + cookies.1, bytes(&backend.freed_bytes));
    }
    let rows: Usage = snapshot.rows.iter().map(|row| row.usage).sum();
    assert_eq!(without_peak(rows), without_peak(snapshot.totals));
    assert_eq!(snapshot.lost, dogtag::Lost::default());
}

type Books = Vec<(Service, &'static Account)>;
type Given = Block<Heap, &'static Account>;
type Mailboxes = [Mutex<Vec<Given>>; THREADS];

thread_local! {
    /// A block that is freed while the thread is torn down.
    static LATE: RefCell<Option<Owned<Heap, &'static Account>>> = const { RefCell::new(None) };
}

struct Worker<'a> {
    random: Random,
    books: &'a Books,
    mailboxes: &'a Mailboxes,
    thread: Thread<Heap, &'static Account>,
}

impl<'a> Worker<'a> {
    fn new(random: Random, books: &'a Books, mailboxes: &'a Mailboxes) -> Self {
        let (service, account) = &books[0];
        let mut thread = Thread::new(Mode::Among, *account);
        // All that the worker itself needs is there before it enters a service.
        thread.blocks.reserve(LIVE);
        thread.enter(service, account);
        Self { random, books, mailboxes, thread }
    }

    fn work(&mut self, operations: usize) {
        for _ in 0..operations {
            if self.random.below(100) < 3 {
                self.hand_over();
                continue;
            }
            let operation = match Operation::draw(&mut self.random, [40, 15, 30, 0, 6, 6], size) {
                Operation::Allocate { .. } if self.thread.blocks.len() == LIVE => {
                    Operation::Free { block: self.random.next() as usize }
                }
                Operation::Enter { .. } if self.thread.depth() > DEPTH => Operation::Leave { scope: 0 },
                // The outermost scope is left at the end.
                Operation::Leave { .. } if self.thread.depth() == 1 => continue,
                operation => operation,
            };
            self.thread.step(operation, Heap, self.books);
        }
    }

    /// Gives a few blocks to somebody else, and frees what others gave.
    fn hand_over(&mut self) {
        let from = self.random.below(THREADS);
        let to = self.random.below(THREADS);
        let mine = [self.take_any(), self.take_any()];
        let mail = aside(|| {
            self.mailboxes[to].lock().unwrap().extend(mine.into_iter().flatten());
            let mut mailbox = self.mailboxes[from].lock().unwrap();
            [mailbox.pop(), mailbox.pop()]
        });
        for mut block in mail.into_iter().flatten() {
            // It is freed here, so it is counted here.
            block.owner = self.books[block.owner.handle as usize].1;
            block.free(Mode::Among);
        }
    }

    fn take_any(&mut self) -> Option<Given> {
        self.thread.take(self.random.next() as usize)
    }
}

fn size(random: &mut Random) -> usize {
    match random.below(100) {
        0 => LARGE + random.below(100_000),
        // Up to what the backend's books cannot tell from large ones.
        1..10 => 1 + random.below(LARGE - 3),
        _ => 1 + random.below(300),
    }
}

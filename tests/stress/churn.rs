//! Services that come and go on several threads, with blocks that outlive them
//! and are freed by others, held against a model.

use crate::engine::Mode;
use crate::engine::account::{Account, expect};
use crate::engine::block::Block;
use crate::engine::memory::Heap;
use crate::random::{self, Random, times};
use crate::watch;
use dogtag::{Service, Usage};
use std::alloc::Layout;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Barrier, Mutex};

const THREADS: usize = 4;
const ROUNDS: usize = 10;
/// Blocks that each thread is left with, whose services are long gone.
const OUTLIVING: usize = 1000;

/// Blocks that outlive their services.
type Mailbox = Mutex<VecDeque<Block<Heap, Arc<Account>>>>;

#[test]
fn no_byte_is_ever_anothers() {
    alone!();
    let cycles = times(if cfg!(feature = "memory-check") { 40_000 } else { 400_000 }) as usize;
    let seed = random::seed();
    let mailboxes: [Mailbox; THREADS] = std::array::from_fn(|_| Mutex::default());
    let barrier = Barrier::new(THREADS);
    let memory = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            let (mailboxes, barrier, memory) = (&mailboxes, &barrier, &memory);
            threads.spawn(move || {
                let mut random = Random::nth(seed, thread as u64);
                for round in 0..ROUNDS {
                    for cycle in 0..cycles / THREADS / ROUNDS {
                        let number = ((round * cycles + cycle) * THREADS + thread) as u32;
                        come_and_go(number, &mut random, mailboxes);
                    }
                    // While nobody works, every row is what the model says.
                    if barrier.wait().is_leader() {
                        compare(mailboxes);
                        memory.lock().unwrap().push(watch::memory().resident);
                    }
                    barrier.wait();
                }
            });
        }
    });
    let rest = mailboxes.iter().flat_map(|mailbox| std::mem::take(&mut *mailbox.lock().unwrap()));
    rest.for_each(|block| block.free(Mode::Among));
    compare(&mailboxes);
    let memory = memory.into_inner().unwrap();
    let (early, late) = (memory[1], memory[ROUNDS - 1]);
    // A slot for each service would be over 150 MiB; what jemalloc keeps for its
    // threads comes and goes.
    let quarantine = if cfg!(feature = "memory-check") { 16 << 20 } else { 0 };
    assert!(late < early + (32 << 20) + quarantine, "grows from {early} to {late} bytes: {memory:?}");
    println!(
        "{cycles} services came and went; resident after each tenth, in KiB: {:?}",
        memory.iter().map(|bytes| bytes / 1024).collect::<Vec<_>>()
    );
}

fn come_and_go(number: u32, random: &mut Random, mailboxes: &[Mailbox]) {
    let service = Service::register(format!("service {number}")).unwrap();
    assert_eq!(service.usage(), Usage::default(), "begins with another's figures");
    let account = Arc::new(Account::of(&service));
    let check = || expect(service.name(), service.usage(), [&*account]).unwrap();
    let blocks = [(); 2].map(|()| {
        let layout = Layout::from_size_align(1 + random.below(200), 1).unwrap();
        let allocate = || Block::allocate(Heap, Arc::clone(&account), layout, false, Mode::Among);
        service.run(allocate).unwrap()
    });
    check();
    let [handed, freed] = blocks;
    freed.free(Mode::Among);
    check();
    // One in eight leaves nothing behind.
    if random.below(8) > 0 {
        let mut mailbox = mailboxes[random.below(mailboxes.len())].lock().unwrap();
        mailbox.push_back(handed);
        let old = if mailbox.len() > OUTLIVING { mailbox.pop_front() } else { None };
        drop(mailbox);
        old.into_iter().for_each(|block| block.free(Mode::Among));
        drop(service);
    } else {
        drop(service);
        handed.free(Mode::Among);
    }
}

fn compare(mailboxes: &[Mailbox]) {
    let mut model = HashMap::new();
    for mailbox in mailboxes {
        for block in mailbox.lock().unwrap().iter() {
            let account = Arc::clone(&block.owner);
            assert!(model.insert(account.name.clone(), account).is_none());
        }
    }
    let snapshot = dogtag::snapshot();
    for row in snapshot.rows {
        if row.name != "unattributed" && !row.name.starts_with("dogtag::") {
            assert!(row.is_retired, "{row:?}");
            let account = model.remove(&row.name).unwrap_or_else(|| panic!("nothing is left of {row:?}"));
            expect(&row.name, row.usage, [&*account]).unwrap();
        }
    }
    assert!(model.is_empty(), "no row shows {model:?}");
}

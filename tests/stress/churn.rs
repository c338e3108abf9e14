//! Services that come and go on several threads, with blocks that outlive them
//! and are freed by others, held against a model.

use crate::random::{self, Random, times};
use crate::watch;
use dogtag::{Service, Usage};
use std::collections::{HashMap, VecDeque};
use std::sync::{Barrier, Mutex};

const THREADS: usize = 4;
const ROUNDS: usize = 10;
/// Blocks that each thread is left with, whose services are long gone.
const OUTLIVING: usize = 1000;

/// A block that outlives its service.
struct Handed {
    service: u32,
    block: Vec<u8>,
}

#[test]
fn no_byte_is_ever_anothers() {
    alone!();
    let cycles = times(if cfg!(feature = "memory-check") { 40_000 } else { 400_000 }) as usize;
    let seed = random::seed();
    let mailboxes: [Mutex<VecDeque<Handed>>; THREADS] = std::array::from_fn(|_| Mutex::default());
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
    mailboxes.iter().for_each(|mailbox| mailbox.lock().unwrap().clear());
    compare(&mailboxes);
    let memory = memory.into_inner().unwrap();
    let (early, late) = (memory[1], memory[ROUNDS - 1]);
    // A slot for each service would be over 150 MiB; what jemalloc keeps for its
    // threads comes and goes.
    let quarantine = if cfg!(feature = "memory-check") { 64 << 20 } else { 0 };
    assert!(late < early + (32 << 20) + quarantine, "grows from {early} to {late} bytes: {memory:?}");
    println!(
        "{cycles} services came and went; resident after each tenth, in KiB: {:?}",
        memory.iter().map(|bytes| bytes / 1024).collect::<Vec<_>>()
    );
}

fn name(service: u32) -> String {
    format!("service {service}")
}

fn come_and_go(number: u32, random: &mut Random, mailboxes: &[Mutex<VecDeque<Handed>>]) {
    let service = Service::register(name(number)).unwrap();
    assert_eq!(service.usage(), Usage::default(), "begins with another's figures");
    let sizes = [(); 2].map(|()| 1 + random.below(200));
    let blocks = sizes.map(|size| service.run(|| vec![1_u8; size]));
    let usage = service.usage();
    assert_eq!((usage.bytes(), usage.blocks()), ((sizes[0] + sizes[1]) as u64, 2));
    let [handed, freed] = blocks;
    drop(freed);
    assert_eq!(service.usage().bytes(), sizes[0] as u64);
    // One in eight leaves nothing behind.
    if random.below(8) > 0 {
        let mut mailbox = mailboxes[random.below(mailboxes.len())].lock().unwrap();
        mailbox.push_back(Handed { service: number, block: handed });
        if mailbox.len() > OUTLIVING {
            let old = mailbox.pop_front();
            drop(mailbox);
            drop(old);
        }
    }
    drop(service);
}

fn compare(mailboxes: &[Mutex<VecDeque<Handed>>]) {
    let mut model = HashMap::new();
    for mailbox in mailboxes {
        for Handed { service, block } in mailbox.lock().unwrap().iter() {
            assert_eq!(model.insert(name(*service), block.len() as u64), None);
        }
    }
    let snapshot = dogtag::snapshot();
    for row in snapshot.rows {
        if row.name != "unattributed" {
            assert!(row.is_retired, "{row:?}");
            assert_eq!(
                (model.remove(&row.name), 1),
                (Some(row.usage.bytes()), row.usage.blocks()),
                "{row:?}"
            );
        }
    }
    assert_eq!(model, HashMap::new(), "no row shows them");
}

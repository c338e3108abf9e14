//! Heap profiles that are taken while threads allocate, and what is left of samples.

use crate::random::{self, Random, times};
use crate::watch;
use dogtag::__private::profile::tables;
use dogtag::Service;
use dogtag::profile::{self, Origin, Profile, Profiler};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};

/// Panics unless the rows of each service add up to the figures that the ledger had for it.
pub fn expect_exact_sums(profile: &Profile) {
    let mut sums: HashMap<(&str, u32), (i64, i64)> = HashMap::new();
    for row in &profile.rows {
        let sum = sums.entry((&row.service, row.handle)).or_default();
        *sum = (sum.0 + row.objects, sum.1 + row.bytes);
    }
    // Some have a name and a handle that one had before, of which blocks are left.
    let mut exact: HashMap<(&str, u32), (i64, i64)> = HashMap::new();
    for service in &profile.services {
        let figures = exact.entry((&service.name, service.handle)).or_default();
        *figures = (figures.0 + service.objects, figures.1 + service.bytes);
    }
    for (service, figures) in exact {
        assert_eq!(sums.remove(&service).unwrap_or_default(), figures, "{service:?}\n{profile}");
    }
    // A difference has no services in which there are other blocks, but no more.
    sums.retain(|_, sum| !profile.is_difference || *sum != (0, 0));
    assert!(sums.is_empty(), "rows of no service: {sums:?}");
}

/// Does something in a forked child, which must end well.
pub fn in_child(work: impl FnOnce()) {
    // SAFETY: the child allocates, asks dogtag, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let is_well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_ok();
        // SAFETY: ends the process, without what others may have locked.
        unsafe { libc::_exit(i32::from(!is_well)) };
    }
    let status = watch::ended(child);
    assert!(status.success(), "a forked child: {status}");
}

/// Whatever other threads are doing at that moment, which may be just that.
#[test]
fn forked_children_take_profiles() {
    alone!();
    Profiler::running().into_iter().for_each(Profiler::stop);
    let profiler = Profiler::builder().interval(1).start().unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| {
                while !is_over.load(SeqCst) {
                    expect_exact_sums(&profile::live());
                }
            });
        }
        for _ in 0..times(200) {
            in_child(|| expect_exact_sums(&profile::live()));
        }
        is_over.store(true, SeqCst);
    });
    profiler.stop();
}

/// Who changes the interval looks at all services, and a fork holds on to both.
#[test]
fn forks_and_changes_of_the_interval_do_not_wait_for_each_other() {
    alone!();
    let profiler = Profiler::running().unwrap_or_else(|| Profiler::builder().start().unwrap());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for interval in [1, 4 << 10] {
            let is_over = &is_over;
            threads.spawn(move || {
                while !is_over.load(SeqCst) {
                    profiler.set_interval(interval).unwrap();
                }
            });
        }
        for _ in 0..times(100) {
            in_child(|| profiler.set_interval(100).unwrap());
        }
        is_over.store(true, SeqCst);
    });
    profiler.stop();
}

const THREADS: usize = 8;
const SERVICES: usize = 12;
/// Blocks of a thread.
const BLOCKS: usize = 400;

#[test]
fn each_sum_is_exact_while_threads_allocate_at_interval_1() {
    alone!();
    sums_are_exact_while_threads_allocate(1, times(20));
}

#[test]
fn each_sum_is_exact_while_threads_allocate_at_a_usual_interval() {
    alone!();
    sums_are_exact_while_threads_allocate(64 << 10, times(60));
}

/// What somebody allocated, and how much of it by which service: none, if that one has ended.
struct Block {
    bytes: Vec<u8>,
    owner: Option<usize>,
}

struct Shared {
    services: Vec<Service>,
    /// What is live of each, by the threads' own books.
    live: Vec<[AtomicU64; 2]>,
    mailboxes: [Mutex<Vec<Block>>; THREADS],
    is_to_pause: AtomicBool,
    is_over: AtomicBool,
    barrier: Barrier,
}

fn sums_are_exact_while_threads_allocate(interval: u64, profiles: u64) {
    let seed = random::seed();
    crate::abort_after_a_panic();
    Profiler::running().into_iter().for_each(Profiler::stop);
    let services = (0..SERVICES).map(|i| Service::register(format!("sum {i}")).unwrap()).collect();
    let shared = Shared {
        services,
        live: (0..SERVICES).map(|_| Default::default()).collect(),
        mailboxes: Default::default(),
        is_to_pause: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
        barrier: Barrier::new(THREADS + 1),
    };
    let profiler = Profiler::builder().interval(interval).start().unwrap();
    std::thread::scope(|threads| {
        for number in 0..THREADS {
            let shared = &shared;
            threads.spawn(move || {
                let mut random = Random::nth(seed, number as u64);
                let mut blocks = Vec::new();
                while !shared.is_over.load(SeqCst) {
                    // The next one takes over what this one has left.
                    std::thread::scope(|threads| {
                        threads.spawn(|| work(&mut random, number, &mut blocks, shared));
                    });
                    if shared.is_to_pause.load(SeqCst) {
                        shared.barrier.wait();
                        shared.barrier.wait();
                    }
                }
                blocks.drain(..).for_each(|block| free(block, shared));
            });
        }
        for number in 0..profiles {
            take_profiles_while_all_go_on(&shared.services);
            if number % 10 == 9 {
                shared.is_to_pause.store(true, SeqCst);
                shared.barrier.wait();
                compare_while_nobody_works(&shared, interval);
                shared.is_to_pause.store(false, SeqCst);
                shared.barrier.wait();
            }
        }
        shared.is_over.store(true, SeqCst);
        // Some may be about to wait.
        shared.is_to_pause.store(false, SeqCst);
    });
    for mailbox in &shared.mailboxes {
        mailbox.lock().unwrap().drain(..).for_each(|block| free(block, &shared));
    }
    compare_while_nobody_works(&shared, interval);
    assert!(shared.services.iter().all(|service| service.usage().blocks() == 0), "the test itself leaks");
    profiler.stop();
    // The sample of a block that was freed is free itself.
    watch::eventually(|| {
        let (tables, live) = (tables(), profile::live());
        let left = live.rows.iter().filter(|row| row.service.starts_with("sum ") && row.samples != 0);
        match (left.count(), tables.orphaned) {
            (0, 0) if tables.live + tables.free == tables.used => Ok(()),
            (left, _) => Err(format!("{left} rows are left, {tables:?}")),
        }
    });
}

fn take_profiles_while_all_go_on(services: &[Service]) {
    let figures = || -> Vec<u64> { services.iter().map(|it| it.usage().allocated_bytes).collect() };
    let (at_first, first) = (figures(), profile::allocated());
    let before = figures();
    expect_exact_sums(&first);
    expect_exact_sums(&profile::live());
    let after = figures();
    let last = profile::allocated();
    let at_last = figures();
    expect_exact_sums(&last);
    let since = last.difference(&first);
    expect_exact_sums(&since);
    // And it is the ledger's: of some moment while it was taken.
    for (i, service) in services.iter().enumerate() {
        let sum: i64 =
            since.rows.iter().filter(|row| row.service == service.name()).map(|row| row.bytes).sum();
        let (least, most) = (after[i] - before[i], at_last[i] - at_first[i]);
        assert!((least..=most).contains(&(sum as u64)), "{sum} is not from {least} to {most}");
    }
}

fn compare_while_nobody_works(shared: &Shared, interval: u64) {
    let live = profile::live();
    expect_exact_sums(&live);
    for (service, figures) in shared.services.iter().zip(&shared.live) {
        let [bytes, blocks] = figures.each_ref().map(|figure| figure.load(SeqCst));
        let usage = service.usage();
        assert_eq!((usage.bytes(), usage.blocks()), (bytes, blocks), "{service:?}");
        let rows = || live.rows.iter().filter(|row| row.service == service.name());
        let sum = rows().fold((0, 0), |sum, row| (sum.0 + row.bytes as u64, sum.1 + row.objects as u64));
        assert_eq!(sum, (bytes, blocks), "{service:?}");
        if interval == 1 {
            let is_known =
                rows().all(|row| matches!(row.origin, Origin::Stack(_)) && row.objects as u64 == row.samples);
            assert!(is_known, "{service:?}\n{live}");
        }
    }
}

fn note(block: &Block, shared: &Shared, how: fn(&AtomicU64, u64) -> u64) {
    if let Some([bytes, blocks]) = block.owner.map(|owner| &shared.live[owner]) {
        how(bytes, block.bytes.capacity() as u64);
        how(blocks, 1);
    }
}

fn take_off(figure: &AtomicU64, by: u64) -> u64 {
    figure.fetch_sub(by, SeqCst)
}

fn add(figure: &AtomicU64, by: u64) -> u64 {
    figure.fetch_add(by, SeqCst)
}

fn free(block: Block, shared: &Shared) {
    note(&block, shared, take_off);
}

fn work(random: &mut Random, number: usize, blocks: &mut Vec<Block>, shared: &Shared) {
    // One that ends with its last block, which somebody else may have.
    let short_lived = Service::register(format!("short-lived {}", random.next())).unwrap();
    for _ in 0..200 {
        // One more is the short-lived one.
        let owner = random.below(SERVICES + 1);
        let service = shared.services.get(owner).unwrap_or(&short_lived);
        let owner = (owner < SERVICES).then_some(owner);
        match random.below(10) {
            0..4 if blocks.len() < BLOCKS => {
                let size = random.size();
                let block = Block { bytes: service.run(|| Vec::with_capacity(size)), owner };
                note(&block, shared, add);
                blocks.push(block);
            }
            4..6 if !blocks.is_empty() => {
                let i = random.below(blocks.len());
                let (block, size) = (&mut blocks[i], random.size());
                if block.bytes.capacity() == size {
                    continue;
                }
                note(block, shared, take_off);
                service.run(|| {
                    block.bytes.reserve_exact(size);
                    block.bytes.shrink_to(size);
                });
                block.owner = owner;
                note(block, shared, add);
            }
            6 if !blocks.is_empty() => {
                let block = blocks.swap_remove(random.below(blocks.len()));
                shared.mailboxes[random.below(THREADS)].lock().unwrap().push(block);
            }
            7 => {
                let received = std::mem::take(&mut *shared.mailboxes[number].lock().unwrap());
                blocks.extend(received);
                blocks.drain(BLOCKS.min(blocks.len())..).for_each(|block| free(block, shared));
            }
            _ if !blocks.is_empty() => free(blocks.swap_remove(random.below(blocks.len())), shared),
            _ => {}
        }
    }
}

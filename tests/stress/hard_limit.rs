//! A hard limit under fire, held against what is truly live: how far past it
//! threads get, whether a denial was ever wrong, and what is left in the end.

use crate::engine::account::{Account, GRANT, expect};
use crate::engine::memory::Heap;
use crate::engine::thread::Thread;
use crate::engine::{Mode, block};
use crate::random::{self, Random, times};
use dogtag::Service;
use std::alloc::Layout;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

const THREADS: usize = 8;
const LIMIT: i64 = 8 << 20;
/// What the documentation allows for.
const SLACK: i64 = THREADS as i64 * GRANT;

/// What is live, and no less: allocations count before they are tried. What is live, and no more, is in
/// the model.
static AT_MOST: AtomicI64 = AtomicI64::new(0);
/// For each thread, the most that others had live while it tried.
static SPIKES: [AtomicI64; THREADS] = [const { AtomicI64::new(0) }; THREADS];
static DENIED: AtomicU64 = AtomicU64::new(0);
static WRONGLY: AtomicU64 = AtomicU64::new(0);

#[test]
fn it_holds_and_denies_nothing_wrongly() {
    alone!();
    let bounded = Service::builder("bounded").hard_limit(LIMIT as u64).register().unwrap();
    hammer("one service", vec![bounded]);
    let tenant = Service::builder("tenant").hard_limit(LIMIT as u64).register().unwrap();
    let query = |i| Service::builder(format!("query {i}")).parent(&tenant).register().unwrap();
    hammer("a family", [tenant.clone()].into_iter().chain((0..20).map(query)).collect());
}

/// Each thread works for all services, the first of which is limited, and the others' parent.
fn hammer(what: &str, services: Vec<Service>) {
    let allocations = times(if cfg!(feature = "memory-check") { 100_000 } else { 200_000 }) as usize;
    let seed = random::seed();
    let account = |service: &Service, parent| {
        let (name, hard) = (service.name().to_owned(), service.hard_limit());
        Arc::new(Account::new(name, service.handle(), parent, hard))
    };
    let first = account(&services[0], None);
    let mut family = vec![(services[0].clone(), Arc::clone(&first))];
    let children = services[1..].iter();
    family.extend(children.map(|child| (child.clone(), account(child, Some(Arc::clone(&first))))));
    let (limited, services) = (&services[0], &family);
    DENIED.store(0, SeqCst);
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            threads.spawn(move || {
                let (random, nobody) =
                    (Random::nth(seed, thread as u64), Account::of(&Service::unattributed()));
                let at = Thread::new(Mode::Among, Arc::new(nobody));
                let mut worker = Worker { thread, services, random, at };
                (0..allocations / THREADS).for_each(|_| worker.work());
                worker.at.blocks.drain(..).for_each(free);
            });
        }
    });
    let (denied, wrongly) = (DENIED.load(SeqCst), WRONGLY.load(SeqCst));
    let excess = first.most() - LIMIT;
    let usage = limited.usage_with_children();
    println!(
        "{what}: {allocations} tried, {denied} denied, {wrongly} of them wrongly; \
         at most {excess} bytes past the limit, {} left in the end",
        usage.bytes(),
    );
    assert!(excess <= SLACK, "{excess} bytes past the limit");
    assert_eq!(wrongly, 0, "denied though it would have fitted");
    assert!(denied > 0 && excess > -SLACK, "the limit was never reached: {denied} denied, {excess}");
    assert_eq!(usage.denied, denied);
    expect(what, usage, family.iter().map(|(_, account)| &**account)).unwrap();
    assert_eq!((usage.bytes(), usage.blocks(), limited.headroom()), (0, 0, Some(LIMIT as u64)), "drift");
}

type Block = block::Block<Heap, Arc<Account>>;

struct Worker<'a> {
    thread: usize,
    services: &'a [(Service, Arc<Account>)],
    random: Random,
    at: Thread<Heap, Arc<Account>>,
}

impl Worker<'_> {
    fn work(&mut self) {
        let size = match self.random.below(100) {
            0 => 1 + self.random.below(1 << 20),
            1..5 => 1 + self.random.below(64 << 10),
            _ => 1 + self.random.below(4 << 10),
        };
        let layout = Layout::from_size_align(size, 8).unwrap();
        let size = size as i64;

        let before = AT_MOST.fetch_add(size, SeqCst);
        SPIKES[self.thread].store(before, SeqCst);
        SPIKES.iter().zip(0..).filter(|(_, thread)| *thread != self.thread).for_each(|(spike, _)| {
            spike.fetch_max(before + size, SeqCst);
        });
        let (service, account) = &self.services[self.random.below(self.services.len())];
        let is_had = self.at.run_in(service, Arc::clone(account), |at| at.allocate(Heap, layout, false));
        if !is_had {
            DENIED.fetch_add(1, SeqCst);
            if SPIKES[self.thread].load(SeqCst) + size <= LIMIT - SLACK {
                WRONGLY.fetch_add(1, SeqCst);
            }
            AT_MOST.fetch_sub(size, SeqCst);
        }
        if !self.at.blocks.is_empty() && self.random.below(10) == 0 {
            let index = self.random.below(self.at.blocks.len());
            self.shrink(index, service, account);
        }
        while !self.at.blocks.is_empty() && (!is_had || self.random.below(100) < 49) {
            self.at.take(self.random.next() as usize).into_iter().for_each(free);
            if !is_had && self.random.below(3) == 0 {
                break;
            }
        }
    }

    /// Never denied, whoever does it. Whose it is then nobody could say, but for the family.
    fn shrink(&mut self, index: usize, service: &Service, account: &Arc<Account>) {
        let block = &mut self.at.blocks[index];
        let less = self.random.below(block.size());
        let layout = Layout::from_size_align(block.size() - less, 8).unwrap();
        let is_had = service.run(|| block.resize(account, layout, false, Mode::Among));
        AT_MOST.fetch_sub(less as i64, SeqCst);
        assert!(is_had, "to shrink to {layout:?} was denied");
    }
}

fn free(block: Block) {
    let size = block.size() as i64;
    block.free(Mode::Among);
    AT_MOST.fetch_sub(size, SeqCst);
}

//! A hard limit under fire, held against what is truly live: how far past it
//! threads get, whether a denial was ever wrong, and what is left in the end.

use crate::random::{self, Random, times};
use dogtag::Service;
use std::alloc::{Layout, alloc, dealloc, realloc};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

const THREADS: usize = 8;
const LIMIT: i64 = 8 << 20;
/// What the documentation allows for.
const SLACK: i64 = THREADS as i64 * (64 << 10);

/// What is live, and no less: allocations count before they are tried.
static AT_MOST: AtomicI64 = AtomicI64::new(0);
/// What is live, and no more: allocations count when they are made.
static AT_LEAST: AtomicI64 = AtomicI64::new(0);
/// The most that was live at once.
static MOST: AtomicI64 = AtomicI64::new(0);
/// For each thread, the most that others had live while it tried.
static SPIKES: [AtomicI64; THREADS] = [const { AtomicI64::new(0) }; THREADS];
static DENIED: AtomicU64 = AtomicU64::new(0);
static WRONGLY: AtomicU64 = AtomicU64::new(0);

#[test]
fn it_holds_and_denies_nothing_wrongly() {
    alone!();
    let bounded = Service::builder("bounded").hard_limit(LIMIT as u64).register().unwrap();
    hammer("one service", &bounded, std::slice::from_ref(&bounded));
    let tenant = Service::builder("tenant").hard_limit(LIMIT as u64).register().unwrap();
    let query = |i| Service::builder(format!("query {i}")).parent(&tenant).register().unwrap();
    let family: Vec<Service> = [tenant.clone()].into_iter().chain((0..20).map(query)).collect();
    hammer("a family", &tenant, &family);
}

/// Each thread works for all services.
fn hammer(what: &str, limited: &Service, services: &[Service]) {
    let allocations = times(if cfg!(feature = "memory-check") { 100_000 } else { 200_000 }) as usize;
    let seed = random::seed();
    MOST.store(0, SeqCst);
    DENIED.store(0, SeqCst);
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            threads.spawn(move || {
                let mut worker =
                    Worker { thread, services, random: Random::nth(seed, thread as u64), blocks: Vec::new() };
                (0..allocations / THREADS).for_each(|_| worker.work());
                worker.blocks.drain(..).for_each(free);
            });
        }
    });
    let (denied, wrongly) = (DENIED.load(SeqCst), WRONGLY.load(SeqCst));
    let excess = MOST.load(SeqCst) - LIMIT;
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
    assert_eq!((usage.bytes(), usage.blocks(), limited.headroom()), (0, 0, Some(LIMIT as u64)), "drift");
}

struct Worker<'a> {
    thread: usize,
    services: &'a [Service],
    random: Random,
    blocks: Vec<(usize, Layout)>,
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
        let service = &self.services[self.random.below(self.services.len())];
        // SAFETY: the layout is not empty.
        let block = service.run(|| unsafe { alloc(layout) });
        if block.is_null() {
            DENIED.fetch_add(1, SeqCst);
            if SPIKES[self.thread].load(SeqCst) + size <= LIMIT - SLACK {
                WRONGLY.fetch_add(1, SeqCst);
            }
            AT_MOST.fetch_sub(size, SeqCst);
        } else {
            let live = AT_LEAST.fetch_add(size, SeqCst) + size;
            MOST.fetch_max(live, SeqCst);
            Service::unattributed().run(|| self.blocks.push((block.expose_provenance(), layout)));
        }
        if !self.blocks.is_empty() && self.random.below(10) == 0 {
            let index = self.random.below(self.blocks.len());
            self.shrink(index, service);
        }
        while !self.blocks.is_empty() && (block.is_null() || self.random.below(100) < 49) {
            let index = self.random.below(self.blocks.len());
            free(self.blocks.swap_remove(index));
            if block.is_null() && self.random.below(3) == 0 {
                break;
            }
        }
    }

    /// Never denied, whoever does it.
    fn shrink(&mut self, index: usize, service: &Service) {
        let (block, layout) = self.blocks[index];
        let smaller = layout.size() - self.random.below(layout.size());
        let less = (layout.size() - smaller) as i64;
        AT_LEAST.fetch_sub(less, SeqCst);
        let old = std::ptr::with_exposed_provenance_mut(block);
        // SAFETY: allocated with that layout, and nobody else has it.
        let new = service.run(|| unsafe { realloc(old, layout, smaller) });
        AT_MOST.fetch_sub(less, SeqCst);
        assert!(!new.is_null(), "shrinking from {} to {smaller} was denied", layout.size());
        self.blocks[index] = (new.expose_provenance(), Layout::from_size_align(smaller, 8).unwrap());
    }
}

fn free((block, layout): (usize, Layout)) {
    AT_LEAST.fetch_sub(layout.size() as i64, SeqCst);
    // SAFETY: allocated with that layout, and nobody else has it.
    unsafe { dealloc(std::ptr::with_exposed_provenance_mut(block), layout) };
    AT_MOST.fetch_sub(layout.size() as i64, SeqCst);
}

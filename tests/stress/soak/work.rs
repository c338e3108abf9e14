//! What a thread does: whatever there is to be done with an allocator.

use super::SEATS;
use super::books::{Block, Books, Source, allocate, resize};
use super::profiler;
use super::seat::Seats;
use crate::common::elsewhere;
use crate::engine::account::Held;
use crate::random::Random;
use dogtag::InServiceExt;
use std::alloc::Layout;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Waker};

/// Operations after which another thread takes over.
const SHIFT: usize = 2_000;
/// Blocks and tasks that a worker has at most, and services that all share.
const BLOCKS: usize = 2_000;
const TASKS: usize = 200;
const OWNERS: usize = 50;

pub struct Worker {
    random: Random,
    seat: usize,
    blocks: Vec<Block>,
    tasks: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
    pools: Vec<(dogtag_pool::Pool<'static>, Held)>,
}

thread_local! {
    /// What a thread frees when it ends.
    static LATE: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

impl Worker {
    pub fn new(random: Random, seat: usize) -> Self {
        Self { random, seat, blocks: Vec::new(), tasks: Vec::new(), pools: Vec::new() }
    }

    pub fn shift(&mut self, seats: &Seats, books: &Books) {
        // A new one is not held up by another seat's slow operation for long.
        for _ in 0..SHIFT {
            self.step(seats, books);
        }
        books.operations.fetch_add(SHIFT as u64, Relaxed);
        if self.random.once_in(3) {
            let late = self.blocks.drain(..self.blocks.len().min(20)).collect();
            LATE.with(|blocks| *blocks.borrow_mut() = late);
        }
    }

    fn step(&mut self, seats: &Seats, books: &Books) {
        match self.random.below(1000) {
            0..10 => self.come_and_go(seats, books),
            10..12 => {
                books.snapshots.fetch_add(1, Relaxed);
                self.look();
            }
            12..42 => self.send(seats),
            42..47 => self.receive(seats),
            47..49 => self.hand_to_a_thread(books),
            49..60 => self.begin_task(seats),
            60..120 => self.poll_task(),
            120..150 => self.pool(books),
            150..151 => self.region(seats),
            151..152 => profiler::turn(&mut self.random),
            152..153 if self.random.once_in(4) => profiler::fork(&mut self.random),
            153..250 => self.resize(seats),
            250..600 if self.blocks.len() < BLOCKS => self.allocate(seats),
            _ if !self.blocks.is_empty() => {
                let block = self.random.below(self.blocks.len());
                drop(self.blocks.swap_remove(block));
            }
            _ => self.allocate(seats),
        }
    }

    fn layout(&mut self) -> Layout {
        let align =
            if self.random.once_in(50) { 1 << self.random.below(13) } else { 1 << self.random.below(5) };
        // Of these the backend cannot tell what was asked for.
        let size = match self.random.size() {
            4094 | 4095 => 4096,
            size => size,
        };
        Layout::from_size_align(size, align).unwrap()
    }

    fn owner(&mut self, seats: &Seats) -> Option<Held> {
        self.random.pick(&seats.owners.lock().unwrap()).cloned()
    }

    fn source(&mut self, seats: &Seats) -> Source {
        let source = self.random.pick(&seats.sources.lock().unwrap()).cloned();
        if self.random.once_in(10) { source.unwrap_or(Source::Global) } else { Source::Global }
    }

    fn allocate(&mut self, seats: &Seats) {
        let (layout, is_zeroed) = (self.layout(), self.random.once_in(4));
        let source = self.source(seats);
        let Some(owner) = self.owner(seats) else { return };
        self.blocks.extend(owner.service.run(|| allocate(&owner, layout, source, is_zeroed)));
    }

    fn resize(&mut self, seats: &Seats) {
        let (Some(owner), size) = (self.owner(seats), self.layout().size()) else { return };
        if !self.blocks.is_empty() {
            let block = self.random.below(self.blocks.len());
            resize(&mut self.blocks[block], &owner, size);
        }
    }

    /// A service begins; where there are enough, another one ends, but for its blocks.
    fn come_and_go(&mut self, seats: &Seats, books: &Books) {
        let parent = if self.random.once_in(3) { self.owner(seats) } else { None };
        let limit = self.random.once_in(4).then(|| 1 << (12 + self.random.below(10)));
        let owner = books.register(parent.as_ref(), limit, false);
        let mut owners = seats.owners.lock().unwrap();
        owners.push(owner);
        let ends = (owners.len() > OWNERS).then(|| owners.swap_remove(self.random.below(OWNERS)));
        drop(owners);
        drop(ends);
    }

    /// No figure is negative, whatever others do.
    fn look(&mut self) {
        for row in dogtag::snapshot().rows {
            assert!(row.usage.freed_bytes <= row.usage.allocated_bytes, "{row:?}");
            assert!(row.usage.freed_blocks <= row.usage.allocated_blocks, "{row:?}");
        }
    }

    fn send(&mut self, seats: &Seats) {
        let to = self.random.below(SEATS);
        if let Some(block) = self.blocks.pop() {
            seats.mailboxes[to].lock().unwrap().push(block);
        }
    }

    fn receive(&mut self, seats: &Seats) {
        let mut received = std::mem::take(&mut *seats.mailboxes[self.seat].lock().unwrap());
        self.blocks.append(&mut received);
        // The others are freed now.
        self.blocks.truncate(BLOCKS);
    }

    /// A short thread, which frees some of what it gets when its thread-locals end.
    fn hand_to_a_thread(&mut self, books: &Books) {
        books.threads.fetch_add(1, Relaxed);
        let mut handed: Vec<_> = self.blocks.drain(self.blocks.len().saturating_sub(10)..).collect();
        std::thread::spawn(move || {
            let late = handed.split_off(handed.len() / 2);
            LATE.with(|blocks| *blocks.borrow_mut() = late);
        })
        .join()
        .unwrap();
    }

    fn begin_task(&mut self, seats: &Seats) {
        let Some(owner) = self.owner(seats) else { return };
        let layouts: Vec<_> = (0..self.random.below(8)).map(|_| self.layout()).collect();
        let service = owner.service.clone();
        let task = async move {
            let mut kept = None;
            for layout in layouts {
                let block = allocate(&owner, layout, Source::Global, false);
                elsewhere().await;
                // The one before is freed.
                kept = block;
                elsewhere().await;
            }
            drop(kept);
        };
        self.tasks.push(Box::pin(task.in_service(&service)));
        if self.tasks.len() > TASKS {
            drop(self.tasks.swap_remove(self.random.below(TASKS)));
        }
    }

    /// Some tasks come to an end, others are given up.
    fn poll_task(&mut self) {
        if self.tasks.is_empty() {
            return;
        }
        let task = self.random.below(self.tasks.len());
        let mut context = Context::from_waker(Waker::noop());
        if self.tasks[task].as_mut().poll(&mut context).is_ready() || self.random.once_in(50) {
            drop(self.tasks.swap_remove(task));
        }
    }

    fn pool(&mut self, books: &Books) {
        use dogtag_pool::Pool;

        const POOLS: usize = 5;

        let number = self.random.below(POOLS);
        let Some((pool, _)) = self.pools.get_mut(number) else {
            let owner = books.register(None, None, true);
            let max_free = self.random.below(100_000);
            let builder = Pool::builder().service(&owner.service).max_free(max_free);
            return self.pools.push((builder.build().unwrap(), owner));
        };
        match self.random.below(20) {
            0 => pool.clear(),
            1 => pool.reset(),
            2 => {
                let (pool, owner) = self.pools.swap_remove(number);
                drop(pool);
                owner.account.set_live(0);
            }
            3 => drop(pool.child().alloc_bytes(1 + self.random.below(5_000))),
            4 => {
                // Another service's block, which the pool frees when it is cleared.
                let block = self.blocks.pop();
                let _ = pool.cleanup(move || drop(block));
            }
            5 => {
                let child = pool.lasting_child();
                child.alloc_bytes(1 + self.random.below(50_000));
                child.alloc(self.blocks.pop());
            }
            _ => {
                pool.alloc_bytes(1 + self.random.below(2_000));
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn region(&mut self, _: &Seats) {}

    /// A window comes; where there are enough, another one goes, when its last block does.
    #[cfg(target_os = "linux")]
    fn region(&mut self, seats: &Seats) {
        use super::backend::Window;

        const WINDOWS: usize = 4;

        let Some(window) = Window::new(1 << (14 + self.random.below(8))) else { return };
        let mut sources = seats.sources.lock().unwrap();
        sources.push(Source::Window(std::sync::Arc::new(dogtag::Dogtag::with_backend(window))));
        let goes = (sources.len() > WINDOWS).then(|| sources.swap_remove(self.random.below(WINDOWS)));
        drop(sources);
        drop(goes);
    }

    /// Gives up everything.
    pub fn end(self) {
        for (pool, owner) in self.pools {
            drop(pool);
            owner.account.set_live(0);
        }
    }

    /// Tells what cannot be counted as it happens.
    pub fn report(&mut self) {
        for (pool, owner) in &self.pools {
            let stats = pool.stats_with_children();
            owner.account.set_live(stats.held + stats.spare);
        }
    }
}

//! A thread of a program: what it has, and how it does its steps.

use super::blocks::{Block, Home};
use super::futures::{self, Task};
use super::known::{Held, Known, NONE};
use super::pools::{Grown, Tree};
use super::program::Act;
#[cfg(target_os = "linux")]
use super::regions::Region;
use super::world::{World, aside, ensure};
use dogtag::{Scope, Service};
use std::alloc::Layout;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

pub struct Worker<'world> {
    pub world: &'world World,
    pub line: usize,
    /// The thread's own number.
    pub thread: u64,
    pub blocks: Vec<Block>,
    pub stashed: Vec<Block>,
    scopes: Vec<Entered>,
    /// The service that the thread is in.
    pub current: Arc<Known>,
    pub pools: Vec<Grown>,
}

/// What goes on to the thread that comes after.
pub struct Baggage {
    blocks: Vec<Block>,
    /// Freed by the end of the thread before.
    stashed: Vec<Block>,
    pools: Vec<Tree>,
}

/// The scope goes first.
struct Entered {
    _scope: Scope<'static>,
    /// The service that the scope goes back to.
    previous: Arc<Known>,
    _held: Box<Held>,
}

const MOST_BLOCKS: usize = 200;

impl Baggage {
    pub fn new() -> Self {
        Self { blocks: Vec::new(), stashed: Vec::new(), pools: Vec::new() }
    }

    /// After the end of the thread that had it.
    pub fn settle(&mut self) {
        for block in self.stashed.drain(..) {
            block.owner.expect_less(block.layout.size() as u64);
            block.owner.refund(block.layout.size() as u64, 1);
        }
    }
}

impl<'world> Worker<'world> {
    pub fn new(world: &'world World, line: usize, thread: u64, baggage: Baggage) -> Self {
        Self {
            world,
            line,
            thread,
            blocks: baggage.blocks,
            stashed: baggage.stashed,
            scopes: Vec::new(),
            current: Arc::clone(&world.nobody),
            pools: baggage.pools.into_iter().map(Grown::of).collect(),
        }
    }

    /// Before the thread ends.
    pub fn pack(mut self) -> Baggage {
        while !self.scopes.is_empty() {
            self.leave(self.scopes.len() - 1);
        }
        let (world, thread) = (self.world, self.thread);
        Baggage {
            blocks: self.blocks,
            stashed: self.stashed,
            pools: self.pools.into_iter().map(|pool| pool.into_tree(world, thread)).collect(),
        }
    }

    /// At the end of the program: gives back all that it has.
    pub fn give_back(&mut self) {
        while let Some(block) = self.take(0) {
            self.free(block);
        }
        {
            self.collect_pools();
            for pool in std::mem::take(&mut self.pools) {
                pool.destroy(self.world, self.thread);
            }
        }
    }

    pub fn step(&mut self, act: &Act) {
        let world = self.world;
        match *act {
            Act::Allocate { size, shift, is_zeroed, region } => {
                let layout = Layout::from_size_align(size, 1 << shift).unwrap();
                let home = aside(|| self.home(region));
                if let Some(block) = self.allocate(layout, is_zeroed, home) {
                    aside(|| self.keep(block));
                }
            }
            Act::Reallocate { block, size } => {
                if let Some(block) = self.take(block) {
                    let block = self.reallocate(block, size);
                    aside(|| self.keep(block));
                }
            }
            Act::Free { block } => {
                if let Some(block) = self.take(block) {
                    self.free(block);
                }
            }
            Act::Give { block, to } => {
                if let Some(block) = self.take(block) {
                    aside(|| world.mail[to].lock().unwrap().push(block));
                }
            }
            Act::Stash { block } => self.stash(block),
            Act::Burst { count, size } => {
                let layout = Layout::from_size_align(size, 1).unwrap();
                let mut blocks = aside(|| Vec::with_capacity(count));
                (0..count).for_each(|_| blocks.extend(self.allocate(layout, false, Home::Heap)));
                blocks.drain(..).for_each(|block| self.free(block));
            }
            Act::Errand { service, size, block } => aside(|| self.errand(service, size, block)),
            Act::Enter { service } => {
                if let Some(held) = aside(|| world.service(service)) {
                    self.enter(held);
                }
            }
            Act::Leave => {
                if let Some(inmost) = self.scopes.len().checked_sub(1) {
                    self.leave(inmost);
                }
            }
            // The outermost one goes last, or the thread would stay where it is for ever.
            Act::LeaveOuter { scope } if self.scopes.len() > 1 => {
                self.leave(1 + scope % (self.scopes.len() - 1));
            }
            Act::LeaveOuter { .. } => {}
            Act::RunIn { service, size } => self.run_in(service, size),
            Act::RegisterName { name, parent, hard } => self.register_name(name, parent, hard),
            Act::RegisterHandle { handle, parent, hard } => self.register_handle(handle, parent, hard),
            Act::Find { service } => aside(|| self.find(service)),
            Act::KeepCurrent => {
                let service = Service::current();
                let current = &self.current;
                ensure!(
                    (service.name(), service.handle()) == (&*current.name, current.handle),
                    "in {service:?}"
                );
                if !Arc::ptr_eq(current, &world.nobody) {
                    aside(|| world.board.lock().unwrap().push(Held::new(service, Arc::clone(current))));
                }
            }
            Act::LetGo { service } => {
                // In whatever service that happens.
                let mut board = world.board.lock().unwrap();
                let held = service.checked_rem(board.len()).map(|index| board.swap_remove(index));
                drop(board);
                drop(held);
            }
            Act::SetHard { service, bytes } => {
                if let Some(held) = aside(|| world.service(service)) {
                    held.known.will_be_limited();
                    // One at a time, so that the last one that is noted is the last one set.
                    let board = world.board.lock().unwrap();
                    held.known.set_hard(bytes);
                    held.service.set_hard_limit(bytes);
                    drop(board);
                }
            }
            Act::SetSoft { service, bytes } => {
                if let Some(held) = aside(|| world.service(service)) {
                    held.known.will_be_limited();
                    let board = world.board.lock().unwrap();
                    held.known.soft.store(bytes.unwrap_or(NONE), SeqCst);
                    held.service.set_soft_limit(bytes);
                    drop(board);
                }
            }
            Act::ResetPeak { service } => {
                if let Some(held) = aside(|| world.service(service)) {
                    held.service.reset_peak();
                    held.known.reset_peak();
                }
            }
            Act::Look { service } => aside(|| self.look(service)),
            Act::MakeFuture { service, outer, sizes } => aside(|| {
                if let Some(held) = world.service(service) {
                    let task = Task::new(held, outer.and_then(|outer| world.service(outer)), sizes);
                    world.tasks.lock().unwrap().push(task);
                }
            }),
            Act::Poll { future } => self.poll(future),
            Act::DropFuture { future } => {
                if let Some(task) = aside(|| self.task(future)) {
                    self.drop_task(task);
                }
            }
            Act::Restart => unreachable!("whoever runs the threads sees to that"),
            _ if self.step_of_pools(act) => {}
            #[cfg(target_os = "linux")]
            Act::MakeRegion { pages, falls_back } => aside(|| {
                let region = Region::new(pages, falls_back);
                world.regions.lock().unwrap().push(Arc::new(region));
            }),
            #[cfg(target_os = "linux")]
            Act::DropRegion { region } => aside(|| {
                let mut regions = world.regions.lock().unwrap();
                let region = region.checked_rem(regions.len()).map(|index| regions.swap_remove(index));
                drop(regions);
                drop(region);
            }),
            _ => unreachable!("it is done above"),
        }
    }

    fn home(&self, region: Option<usize>) -> Home {
        #[cfg(target_os = "linux")]
        if let Some(region) = region {
            let regions = self.world.regions.lock().unwrap();
            if let Some(index) = region.checked_rem(regions.len()) {
                return Home::Region(Arc::clone(&regions[index]));
            }
        }
        let _ = region;
        Home::Heap
    }

    pub fn keep(&mut self, block: Block) {
        self.blocks.push(block);
        if self.blocks.len() > MOST_BLOCKS {
            let eldest = self.blocks.remove(0);
            self.free(eldest);
        }
    }

    /// One of those that it has or that others have given it.
    pub fn take(&mut self, block: usize) -> Option<Block> {
        aside(|| {
            self.blocks.append(&mut self.world.mail[self.line].lock().unwrap());
            let index = block.checked_rem(self.blocks.len())?;
            let block = self.blocks.swap_remove(index);
            block.check();
            Some(block)
        })
    }

    pub fn enter(&mut self, held: Held) {
        let held = aside(|| Box::new(held));
        // SAFETY: the scope goes before the box, in which the service stays where it is.
        let service: &'static Service = unsafe { &*std::ptr::from_ref(&held.service) };
        aside(|| self.scopes.reserve(1));
        held.known.scopes.fetch_add(1, SeqCst);
        let previous = std::mem::replace(&mut self.current, Arc::clone(&held.known));
        self.scopes.push(Entered { _scope: service.enter(), previous, _held: held });
    }

    pub fn leave(&mut self, index: usize) {
        let Entered { _scope, previous, _held } = self.scopes.remove(index);
        drop(_scope);
        self.current.scopes.fetch_sub(1, SeqCst);
        self.current = previous;
        let current = Service::current();
        ensure!(
            (current.name(), current.handle()) == (&*self.current.name, self.current.handle),
            "in {current:?}"
        );
        drop(current);
    }

    /// In a closure, and out of it.
    fn run_in(&mut self, service: usize, size: usize) {
        let Some(held) = aside(|| self.world.service(service)) else { return };
        held.known.scopes.fetch_add(1, SeqCst);
        let before = std::mem::replace(&mut self.current, Arc::clone(&held.known));
        let block = held.service.run(|| self.allocate(futures::layout(size), false, Home::Heap));
        self.current = before;
        held.known.scopes.fetch_sub(1, SeqCst);
        aside(|| {
            drop(held);
            block.into_iter().for_each(|block| self.keep(block));
        });
    }
}

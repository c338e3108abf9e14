//! A thread of a program: what it has, and how it does its steps.

use super::futures::{self, Task};
use super::homes::{Block, Home};
use super::pools::{Grown, Tree};
use super::program::Act;
#[cfg(target_os = "linux")]
use super::regions::Region;
use super::world::World;
use crate::engine::account::{Account, Held, number_thread};
use crate::engine::thread::Thread;
use crate::engine::{Mode, aside};
use dogtag::Service;
use std::alloc::Layout;
use std::sync::Arc;

pub struct Worker<'world> {
    pub world: &'world World,
    pub line: usize,
    /// The thread's own number.
    pub thread: u64,
    /// Its blocks, and the services that it is in.
    pub at: Thread<Home, Arc<Account>>,
    pub stashed: Vec<Block>,
    pub pools: Vec<Grown>,
}

/// What goes on to the thread that comes after.
pub struct Baggage {
    blocks: Vec<Block>,
    /// Freed by the end of the thread before.
    stashed: Vec<Block>,
    pools: Vec<Tree>,
}

const MOST_BLOCKS: usize = 200;

impl Baggage {
    pub fn new() -> Self {
        Self { blocks: Vec::new(), stashed: Vec::new(), pools: Vec::new() }
    }

    /// After the end of the thread that had it.
    pub fn settle(&mut self) {
        for block in self.stashed.drain(..) {
            block.owner.gives(block.size(), || {});
        }
    }
}

impl<'world> Worker<'world> {
    pub fn new(world: &'world World, line: usize, thread: u64, baggage: Baggage) -> Self {
        number_thread(thread);
        let mut at = Thread::new(world.mode(), Arc::clone(&world.nobody));
        at.blocks = baggage.blocks;
        let pools = baggage.pools.into_iter().map(Grown::of).collect();
        Self { world, line, thread, at, stashed: baggage.stashed, pools }
    }

    pub fn mode(&self) -> Mode {
        self.at.mode
    }

    /// Before the thread ends.
    pub fn pack(mut self) -> Baggage {
        while let Some(inmost) = self.at.depth().checked_sub(1) {
            self.leave(inmost);
        }
        let world = self.world;
        Baggage {
            blocks: self.at.blocks,
            stashed: self.stashed,
            pools: self.pools.into_iter().map(|pool| pool.into_tree(world)).collect(),
        }
    }

    /// At the end of the program: gives back all that it has.
    pub fn give_back(&mut self) {
        while let Some(block) = self.take(0) {
            block.free(self.mode());
        }
        self.collect_pools();
        for pool in std::mem::take(&mut self.pools) {
            pool.destroy(self.world);
        }
    }

    pub fn step(&mut self, act: &Act) {
        let world = self.world;
        match *act {
            Act::Allocate { size, shift, is_zeroed, region } => {
                let layout = Layout::from_size_align(size, 1 << shift).unwrap();
                let home = aside(|| self.home(region));
                if self.at.allocate(home, layout, is_zeroed) {
                    aside(|| self.keep_few());
                }
            }
            Act::Reallocate { block, size } => {
                self.collect();
                if let Some(block) = block.checked_rem(self.at.blocks.len()) {
                    _ = self.at.resize(block, size);
                }
            }
            Act::Free { block } => {
                if let Some(block) = self.take(block) {
                    block.free(self.mode());
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
                let (owner, mode) = (&self.at.current, self.mode());
                let allocate = |_| Block::allocate(Home::Heap, Arc::clone(owner), layout, false, mode);
                blocks.extend((0..count).filter_map(allocate));
                blocks.drain(..).for_each(|block| block.free(mode));
            }
            Act::Errand { service, size, block } => aside(|| self.errand(service, size, block)),
            Act::Enter { service } => {
                if let Some(held) = aside(|| world.service(service)) {
                    self.enter(held);
                }
            }
            Act::Leave => {
                if let Some(inmost) = self.at.depth().checked_sub(1) {
                    self.leave(inmost);
                }
            }
            // The outermost one goes last, or the thread would stay where it is for ever.
            Act::LeaveOuter { scope } if self.at.depth() > 1 => {
                self.leave(1 + scope % (self.at.depth() - 1));
            }
            Act::LeaveOuter { .. } => {}
            Act::RunIn { service, size } => {
                let Some(held) = aside(|| world.service(service)) else { return };
                let allocate = |at: &mut Thread<_, _>| at.allocate(Home::Heap, futures::layout(size), false);
                self.at.run_in(&held.service, Arc::clone(&held.account), allocate);
                aside(|| {
                    drop(held);
                    self.keep_few();
                });
            }
            Act::RegisterName { name, parent, hard } => self.register_name(name, parent, hard),
            Act::RegisterHandle { handle, parent, hard } => self.register_handle(handle, parent, hard),
            Act::Find { service } => aside(|| self.find(service)),
            Act::KeepCurrent => {
                let service = Service::current();
                let current = &self.at.current;
                self.at.check_current();
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
                    held.account.will_be_limited();
                    // One at a time, so that the last one that is noted is the last one set.
                    let board = world.board.lock().unwrap();
                    held.account.set_hard(bytes);
                    held.service.set_hard_limit(bytes);
                    drop(board);
                }
            }
            Act::SetSoft { service, bytes } => {
                if let Some(held) = aside(|| world.service(service)) {
                    held.account.will_be_limited();
                    let board = world.board.lock().unwrap();
                    held.account.set_soft(bytes);
                    held.service.set_soft_limit(bytes);
                    drop(board);
                }
            }
            Act::ResetPeak { service } => {
                if let Some(held) = aside(|| world.service(service)) {
                    held.service.reset_peak();
                    held.account.reset_peak();
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
        self.at.keep(block);
        self.keep_few();
    }

    fn keep_few(&mut self) {
        if self.at.blocks.len() > MOST_BLOCKS {
            self.at.blocks.remove(0).free(self.at.mode);
        }
    }

    /// What others have given it.
    fn collect(&mut self) {
        aside(|| self.at.blocks.append(&mut self.world.mail[self.line].lock().unwrap()));
    }

    /// One of those that it has or that others have given it.
    pub fn take(&mut self, block: usize) -> Option<Block> {
        self.collect();
        self.at.take(block)
    }

    pub fn enter(&mut self, held: Held) {
        self.at.enter(&held.service, Arc::clone(&held.account));
        self.at.hold(held);
    }

    pub fn leave(&mut self, index: usize) {
        self.at.leave(index);
        self.at.check_current();
    }
}

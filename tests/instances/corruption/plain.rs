//! Cookies: what they say after something has written over them is foretold by a table of all
//! that are somebody's.

use super::field::{Backend, Field, Image, Returned, wild_write};
use crate::random::{Random, seed};
use dogtag::{Dogtag, Service};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::HashMap;

/// Services of a run: those that live, and those that have ended.
#[derive(Clone, Copy)]
pub struct Population {
    living: usize,
    ended: usize,
}

pub const FEW: Population = Population { living: 60, ended: 20 };
/// More than there are short cookies.
pub const MANY: Population = Population { living: 66_500, ended: 300 };

/// The first bytes of a long cookie, which go on with four more.
const ESCAPE: [u8; 2] = [0xE5, 0xCA];
const SHORT: usize = 2;
const LONG: usize = 6;

/// Blocks that are live at once; the field has some more plots.
const MOST: usize = 800;

/// Corruptions on one thread.
const EACH_THREAD: u64 = 4096;

struct Block {
    address: *mut u8,
    layout: Layout,
    owner: usize,
}

/// What should be counted for a service, as in `Usage`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    allocated_bytes: u64,
    allocated_blocks: u64,
    freed_bytes: u64,
    freed_blocks: u64,
}

struct World {
    allocator: Dogtag<Backend>,
    field: &'static Field,
    image: Image,
    services: Vec<Service>,
    figures: Vec<Figures>,
    /// Whose they are.
    cookies: HashMap<Vec<u8>, usize>,
    /// What blocks of somebody have, or had, who may have ended.
    known: Vec<Vec<u8>>,
    lost: Figures,
    blocks: Vec<Block>,
    random: Random,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    corruptions: u64,
    unharmed: u64,
    believed: u64,
    lost: u64,
}

// SAFETY: one thread at a time has it.
unsafe impl Send for World {}

pub fn run(population: Population, corruptions: u64) {
    if crate::child::is_every_block_sampled() {
        // Cookies do not say whose block it is.
        return;
    }
    let seed = seed();
    // By a thread whose part of the ledger goes to the next: it has cells of services that have ended.
    let first = || World::new(population, Random::nth(seed, population.living as u64));
    let mut world = std::thread::scope(|threads| threads.spawn(first).join().unwrap());
    world.assert_ledger();
    while world.tally.corruptions < corruptions {
        let until = (world.tally.corruptions + EACH_THREAD).min(corruptions);
        // Threads come and go.
        std::thread::scope(|threads| {
            let world = &mut world;
            threads.spawn(move || {
                while world.tally.corruptions < until {
                    world.step();
                }
            });
        });
        if population.living < 1000 {
            world.assert_ledger();
        }
    }
    while let Some(block) = world.blocks.pop() {
        world.free(block);
    }
    world.assert_ledger();
    world.image.assert_whole(0..super::field::PLOT * super::field::PLOTS);
    println!("{:?}", world.tally);
}

impl World {
    fn new(population: Population, mut random: Random) -> Self {
        let field = Field::new();
        let image = Image::new(field, &mut random);
        let allocator = Dogtag::with_backend(Backend(field));
        let mut world = Self {
            allocator,
            field,
            image,
            services: vec![Service::unattributed()],
            figures: Vec::new(),
            cookies: HashMap::new(),
            known: Vec::new(),
            lost: Figures::default(),
            blocks: Vec::new(),
            random,
            tally: Tally::default(),
        };
        let register = |i| Service::register(format!("service {i}")).unwrap();
        world.services.extend((0..population.living + population.ended).map(register));
        world.figures = vec![Figures::default(); world.services.len()];
        for owner in 0..world.services.len() {
            let block = world.allocate(owner, Layout::new::<[u8; 40]>()).unwrap();
            let cookie = world.cookie(&block);
            assert!(world.cookies.insert(cookie.clone(), owner).is_none(), "two have the same cookie");
            world.known.push(cookie);
            world.free(block);
        }
        // The last ones had the longest cookies, if any has.
        for ended in world.services.drain(population.living + 1..) {
            let figures = world.figures.pop().unwrap();
            assert_eq!((figures.allocated_blocks, figures.freed_blocks), (1, 1));
            drop(ended);
        }
        world.cookies.retain(|_, owner| *owner <= population.living);
        world
    }

    /// Whether there are, or were, long cookies.
    fn has_long_cookies(&self) -> bool {
        self.known.last().is_some_and(|cookie| cookie.len() == LONG)
    }

    /// What was written behind a block just now.
    fn cookie(&self, block: &Block) -> Vec<u8> {
        let end = self.field.offset_of(block.address.addr()) + block.layout.size();
        let length = self.field.asked(block.address.addr()).size() - block.layout.size();
        assert!(length == SHORT || length == LONG);
        self.field.bytes(end..end + length).to_vec()
    }

    /// Whose a block is, as the bytes behind it say now.
    fn believed(&self, block: &Block) -> Option<usize> {
        let end = self.field.offset_of(block.address.addr()) + block.layout.size();
        let is_long = self.has_long_cookies() && *self.field.bytes(end..end + SHORT) == ESCAPE;
        let length = if is_long { LONG } else { SHORT };
        self.cookies.get(self.field.bytes(end..end + length)).copied()
    }

    fn step(&mut self) {
        match self.random.below(8) {
            0..2 if self.blocks.len() < MOST => {
                let layout = self.layout();
                let owner = self.owner();
                let block = self.allocate(owner, layout);
                self.blocks.extend(block);
            }
            0..4 => self.corrupt(),
            4..6 => {
                if let Some(block) = self.any_block() {
                    self.free(block);
                }
            }
            _ => {
                if let Some(block) = self.any_block() {
                    self.resize(block);
                }
            }
        }
    }

    fn layout(&mut self) -> Layout {
        Layout::from_size_align(1 + self.random.below(200), 1 << self.random.below(7)).unwrap()
    }

    /// Among many, those with long cookies as often as the others.
    fn owner(&mut self) -> usize {
        let end = self.services.len();
        if end > 1000 && self.random.below(2) == 0 {
            end - 1 - self.random.below(900)
        } else {
            self.random.below(end)
        }
    }

    fn any_block(&mut self) -> Option<Block> {
        let many = self.blocks.len();
        (many > 0).then(|| self.blocks.swap_remove(self.random.below(many)))
    }

    /// A block; `None` if it does not fit into a plot, which changes nothing.
    fn allocate(&mut self, owner: usize, layout: Layout) -> Option<Block> {
        // SAFETY: the layout is not empty.
        let address = self.services[owner].run(|| unsafe { self.allocator.alloc(layout) });
        if address.is_null() {
            self.assert_figures(owner);
            return None;
        }
        self.charge(owner, layout.size());
        let block = Block { address, layout, owner };
        self.plant(&block);
        Some(block)
    }

    /// Fills a new block, behind which stands its cookie, and nothing else is new.
    fn plant(&mut self, block: &Block) {
        let start = self.field.offset_of(block.address.addr());
        let end = start + block.layout.size();
        let cookie = self.field.asked(block.address.addr()).size() - block.layout.size();
        self.image.learn(start..end + cookie);
        let fill = vec![self.random.next() as u8; block.layout.size()];
        self.image.write(start, &fill);
        self.image.assert_whole(self.image.around(block.address.addr()));
        assert!(self.known.len() < self.services.len() || self.believed(block) == Some(block.owner));
    }

    fn corrupt(&mut self) {
        if self.blocks.is_empty() {
            return;
        }
        let block = &self.blocks[self.random.below(self.blocks.len())];
        let (start, bytes) = wild_write(&mut self.random, block.layout.size(), &self.known);
        let start = self.field.offset_of(block.address.addr()) as isize + start;
        if let Ok(start) = usize::try_from(start)
            && start + bytes.len() <= super::field::PLOT * super::field::PLOTS - LONG
        {
            self.image.write(start, &bytes);
            self.tally.corruptions += 1;
        }
    }

    fn free(&mut self, block: Block) {
        let believed = self.believed(&block);
        // SAFETY: the block was allocated with that layout, and is freed once. Something has
        // written over it, perhaps.
        unsafe { self.allocator.dealloc(block.address, block.layout) };
        self.gone(&block, believed);
    }

    /// To another service; and often to another one than the block's.
    fn resize(&mut self, block: Block) {
        let believed = self.believed(&block);
        let (size, owner) = (1 + self.random.below(200), self.owner());
        let content = self.field.offset_of(block.address.addr());
        let content = self.field.bytes(content..content + block.layout.size().min(size)).to_vec();
        // SAFETY: the block was allocated with that layout, and is given back once. Something has
        // written over it, perhaps.
        let address =
            unsafe { self.services[owner].run(|| self.allocator.realloc(block.address, block.layout, size)) };
        if address.is_null() {
            self.assert_figures(owner);
            return self.blocks.push(block);
        }
        let start = self.field.offset_of(address.addr());
        assert_eq!(self.field.bytes(start..start + content.len()), content, "not what was in it");
        self.charge(owner, size);
        // What a backend copies for another layout than the block's is its own.
        self.image.learn(start..start + self.field.asked(address.addr()).size());
        self.gone(&block, believed);
        let block =
            Block { address, layout: Layout::from_size_align(size, block.layout.align()).unwrap(), owner };
        self.plant(&block);
        self.blocks.push(block);
    }

    /// A block was freed that was whose it said: its memory is given back if it can be known how
    /// long it is, and nothing was written to it.
    fn gone(&mut self, block: &Block, believed: Option<usize>) {
        self.refund(believed, block.layout.size());
        let cookie = match believed {
            Some(owner) => Some(self.known[owner].len()),
            None if self.has_long_cookies() => None,
            None => Some(SHORT),
        };
        let address = block.address.addr();
        let returned = cookie.map(|cookie| {
            let size = block.layout.size() + cookie;
            Returned { address, layout: Layout::from_size_align(size, block.layout.align()).unwrap() }
        });
        assert_eq!(self.field.returned(), returned.into_iter().collect::<Vec<_>>());
        self.image.assert_whole(self.image.around(address));
        self.field.take_back(address);
        self.assert_figures(block.owner);
        let count = match believed {
            Some(owner) if owner == block.owner => &mut self.tally.unharmed,
            Some(_) => &mut self.tally.believed,
            None => &mut self.tally.lost,
        };
        *count += 1;
    }

    fn charge(&mut self, owner: usize, size: usize) {
        self.figures[owner].allocated_bytes += size as u64;
        self.figures[owner].allocated_blocks += 1;
    }

    fn refund(&mut self, owner: Option<usize>, size: usize) {
        let figures = owner.map_or(&mut self.lost, |owner| &mut self.figures[owner]);
        figures.freed_bytes += size as u64;
        figures.freed_blocks += 1;
    }

    #[track_caller]
    fn assert_figures(&self, owner: usize) {
        let usage = self.services[owner].usage();
        let found = Figures {
            allocated_bytes: usage.allocated_bytes,
            allocated_blocks: usage.allocated_blocks,
            freed_bytes: usage.freed_bytes,
            freed_blocks: usage.freed_blocks,
        };
        assert_eq!(found, self.figures[owner], "{:?}", self.services[owner]);
    }

    #[track_caller]
    fn assert_ledger(&self) {
        (0..self.services.len()).for_each(|owner| self.assert_figures(owner));
        let lost = dogtag::snapshot().lost;
        assert_eq!((lost.bytes, lost.blocks), (self.lost.freed_bytes, self.lost.freed_blocks));
    }
}

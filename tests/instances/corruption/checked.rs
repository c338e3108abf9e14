//! With memory-check: each change of a guard is reported once, by the free or the reallocation
//! that finds it, or when the freed block leaves the quarantine; and by nothing else.

use super::field::{Backend, Field, Image, PLOT, PLOTS, wild_write};
use crate::common::tail;
use crate::random::{Random, seed};
use dogtag::check::{self, Reaction, Violation, ViolationKind};
use dogtag::{Dogtag, Service, Usage};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

const SERVICES: usize = 30;
/// Blocks that are live at once; others wait in the quarantine.
const MOST: usize = 300;
/// Corruptions on one thread.
const EACH_THREAD: u64 = 4096;

/// What stands around a block, from its beginning and from its end: particulars and a guard in
/// front of it, and a guard behind.
const HEAD: usize = 64;
const GUARD: usize = 16;
/// Of the particulars, who freed a block that is live: reports need it, and nothing else does.
const UNUSED: [Range<usize>; 2] = [0..8, 12..16];

static TOLD: Mutex<Vec<(ViolationKind, usize)>> = Mutex::new(Vec::new());

fn tell(violation: &Violation) -> Reaction {
    // As reports do.
    let _ = violation.to_string();
    TOLD.lock().unwrap().push((violation.kind(), violation.address()));
    Reaction::Leak
}

/// A block, and what stood there when dogtag had written what is its own.
struct Block {
    address: *mut u8,
    layout: Layout,
    owner: usize,
    head: Vec<u8>,
    tail: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    allocated: (u64, u64),
    freed: (u64, u64),
}

impl Figures {
    fn of(usage: Usage) -> Self {
        Self {
            allocated: (usage.allocated_bytes, usage.allocated_blocks),
            freed: (usage.freed_bytes, usage.freed_blocks),
        }
    }
}

fn add(count: &mut (u64, u64), size: usize) {
    count.0 += size as u64;
    count.1 += 1;
}

struct World {
    allocator: Dogtag<Backend>,
    field: &'static Field,
    image: Image,
    services: Vec<Service>,
    figures: Vec<Figures>,
    lost: (u64, u64),
    blocks: Vec<Block>,
    /// Blocks in quarantine, by address, and all of what they were.
    freed: HashMap<usize, (Block, Vec<u8>)>,
    random: Random,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    corruptions: u64,
    freed: u64,
    overruns: u64,
    underruns: u64,
    writes_after_free: u64,
    lost: u64,
}

// SAFETY: one thread at a time has it.
unsafe impl Send for World {}

pub fn run(corruptions: u64) {
    check::set_handler(tell);
    let mut world = World::new(Random::nth(seed(), 7));
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
        world.assert_ledger();
    }
    while let Some(block) = world.blocks.pop() {
        world.free(block);
    }
    world.assert_ledger();
    // What was done to blocks that are still in quarantine is reported now.
    let before = world.tally.writes_after_free;
    let verified = check::verify();
    world.released();
    assert_eq!(verified.violations, world.tally.writes_after_free - before);
    assert_eq!(
        (verified.live_blocks, verified.quarantined_blocks - verified.violations),
        (0, world.freed.len() as u64)
    );
    // With the allocator go the others.
    let other = Dogtag::with_backend(Backend(world.field));
    drop(std::mem::replace(&mut world.allocator, other));
    world.released();
    assert_eq!(world.freed.len(), 0, "blocks are still in quarantine");
    println!("{:?}", world.tally);
}

impl World {
    fn new(mut random: Random) -> Self {
        let field = Field::new();
        let image = Image::new(field, &mut random);
        let allocator = Dogtag::with_backend(Backend(field));
        let services: Vec<Service> =
            (0..SERVICES).map(|i| Service::register(format!("service {i}")).unwrap()).collect();
        Self {
            allocator,
            field,
            image,
            figures: vec![Figures::default(); services.len()],
            services,
            lost: (0, 0),
            blocks: Vec::new(),
            freed: HashMap::new(),
            random,
            tally: Tally::default(),
        }
    }

    fn step(&mut self) {
        match self.random.below(9) {
            0..2 if self.blocks.len() < MOST => self.allocate(),
            0..4 => self.corrupt(),
            4 => self.corrupt_freed(),
            5..7 => {
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

    fn any_block(&mut self) -> Option<Block> {
        let many = self.blocks.len();
        (many > 0).then(|| self.blocks.swap_remove(self.random.below(many)))
    }

    fn allocate(&mut self) {
        let layout = Layout::from_size_align(1 + self.random.below(200), 1 << self.random.below(7)).unwrap();
        let owner = self.random.below(SERVICES);
        // SAFETY: the layout is not empty.
        let address = self.services[owner].run(|| unsafe { self.allocator.alloc(layout) });
        assert!(!address.is_null(), "the field is too small");
        add(&mut self.figures[owner].allocated, layout.size());
        self.plant(address, layout, owner);
    }

    /// A new block, around which stands what is dogtag's, and nothing else is new.
    fn plant(&mut self, address: *mut u8, layout: Layout, owner: usize) {
        let start = self.field.offset_of(address.addr());
        let end = start + layout.size();
        self.image.learn(start - HEAD..end + tail(layout));
        let fill = vec![self.random.next() as u8; layout.size()];
        self.image.write(start, &fill);
        self.image.assert_whole(self.image.around(address.addr()));
        let bytes = |range| self.field.bytes(range).to_vec();
        let (head, tail) = (bytes(start - HEAD..start), bytes(end..end + tail(layout)));
        self.blocks.push(Block { address, layout, owner, head, tail });
    }

    fn corrupt(&mut self) {
        if !self.blocks.is_empty() {
            let block = &self.blocks[self.random.below(self.blocks.len())];
            let (address, size) = (block.address.addr(), block.layout.size());
            self.write_near(address, size);
        }
    }

    /// Near a block that is in quarantine, or at its very beginning, as most are.
    fn corrupt_freed(&mut self) {
        let place = self.random.below(self.freed.len().max(1));
        let Some((&address, (block, _))) = self.freed.iter().nth(place) else { return };
        let size = block.layout.size();
        if self.random.below(2) == 0 {
            self.write_near(address, size);
        } else {
            let bytes = self.random.next().to_ne_bytes();
            let length = 1 + self.random.below(size.min(bytes.len()));
            self.image.write(self.field.offset_of(address), &bytes[..length]);
            self.tally.corruptions += 1;
        }
    }

    fn write_near(&mut self, address: usize, size: usize) {
        let cookies: Vec<_> = self.blocks.iter().take(3).map(|block| block.tail.clone()).collect();
        let (start, bytes) = wild_write(&mut self.random, size, &cookies);
        if let Some(start) = self.field.offset_of(address).checked_add_signed(start)
            && start + bytes.len() <= PLOT * PLOTS
        {
            self.image.write(start, &bytes);
            self.tally.corruptions += 1;
        }
    }

    /// What memory-check will find about a live block: whether its header is whole, and
    /// a violation, if there is one.
    fn found(&self, block: &Block) -> (bool, Option<ViolationKind>) {
        let start = self.field.offset_of(block.address.addr());
        let end = start + block.layout.size();
        let head = self.field.bytes(start - HEAD..start);
        let differs = |place: &usize| head[*place] != block.head[*place];
        let is_used = |place: &usize| !UNUSED.iter().any(|unused| unused.contains(place));
        let is_known = !(0..HEAD - GUARD).filter(is_used).any(|place| differs(&place));
        let kind = match is_known {
            false => Some(ViolationKind::Underrun),
            true if self.field.bytes(end..end + block.tail.len()) != block.tail => {
                Some(ViolationKind::Overrun)
            }
            true if (HEAD - GUARD..HEAD).any(|place| differs(&place)) => Some(ViolationKind::Underrun),
            true => None,
        };
        (is_known, kind)
    }

    fn free(&mut self, block: Block) {
        let found = self.found(&block);
        // SAFETY: the block was allocated with that layout, and is freed once. Something has
        // written over what is around it, perhaps.
        unsafe { self.allocator.dealloc(block.address, block.layout) };
        self.gone(block, found);
    }

    fn resize(&mut self, block: Block) {
        let found = self.found(&block);
        let (size, owner) = (1 + self.random.below(200), self.random.below(SERVICES));
        let start = self.field.offset_of(block.address.addr());
        let content = self.field.bytes(start..start + block.layout.size().min(size)).to_vec();
        // SAFETY: the block was allocated with that layout, and is given back once. Something has
        // written over what is around it, perhaps.
        let address =
            unsafe { self.services[owner].run(|| self.allocator.realloc(block.address, block.layout, size)) };
        assert!(!address.is_null(), "the field is too small");
        add(&mut self.figures[owner].allocated, size);
        let start = self.field.offset_of(address.addr());
        assert_eq!(self.field.bytes(start..start + content.len()), content, "not what was in it");
        let layout = Layout::from_size_align(size, block.layout.align()).unwrap();
        self.image.learn(start - HEAD..start + size + tail(layout));
        self.gone(block, found);
        self.plant(address, layout, owner);
    }

    /// A block was freed of which that was found.
    fn gone(&mut self, block: Block, (is_known, kind): (bool, Option<ViolationKind>)) {
        self.tally.freed += 1;
        let refunded = if is_known { &mut self.figures[block.owner].freed } else { &mut self.lost };
        add(refunded, block.layout.size());
        self.tally.lost += u64::from(!is_known);
        let address = block.address.addr();
        let start = self.field.offset_of(address);
        match kind {
            Some(kind) => {
                self.take_reported(kind, address);
                match kind {
                    ViolationKind::Overrun => self.tally.overruns += 1,
                    _ => self.tally.underruns += 1,
                }
                self.image.assert_whole(self.image.around(address));
                self.field.take_back(address);
            }
            None => {
                // Now it is filled, and says who has freed it.
                self.image.learn(start - HEAD..start + block.layout.size());
                let range = start - HEAD..start + block.layout.size() + block.tail.len();
                let bytes = self.field.bytes(range).to_vec();
                self.image.assert_whole(self.image.around(address));
                self.freed.insert(address, (block, bytes));
            }
        }
        self.released();
        self.assert_figures();
    }

    fn take_reported(&mut self, kind: ViolationKind, address: usize) {
        let mut told = TOLD.lock().unwrap();
        let place = told.iter().position(|told| *told == (kind, address));
        assert!(place.is_some(), "{kind} of {address:#x} is not reported: {told:?}");
        told.remove(place.unwrap());
    }

    /// Blocks have left the quarantine: those that are whole to the field, the others were reported.
    fn released(&mut self) {
        let is_whole = |field: &Field, (block, bytes): &(Block, Vec<u8>)| {
            let start = field.offset_of(block.address.addr()) - HEAD;
            let found = field.bytes(start..start + bytes.len());
            // Of who has freed it nothing is made sure of.
            (0..bytes.len()).all(|place| {
                found[place] == bytes[place] || UNUSED.iter().any(|unused| unused.contains(&place))
            })
        };
        for returned in self.field.returned() {
            let start = returned.address + returned.layout.align().max(HEAD);
            let freed = self.freed.remove(&start).expect("a block that was in quarantine");
            assert!(is_whole(self.field, &freed), "{start:#x} was written to, and is used again");
            assert_eq!(returned.layout, self.field.asked(returned.address));
            self.field.take_back(returned.address);
        }
        let told = std::mem::take(&mut *TOLD.lock().unwrap());
        for (kind, address) in told {
            assert_eq!(kind, ViolationKind::WriteAfterFree, "{address:#x}");
            let freed = self.freed.remove(&address).expect("a block that was in quarantine");
            assert!(!is_whole(self.field, &freed), "{address:#x} was not written to");
            self.tally.writes_after_free += 1;
            self.field.take_back(address);
        }
    }

    /// Of a few services.
    #[track_caller]
    fn assert_figures(&mut self) {
        let owner = self.random.below(SERVICES);
        assert_eq!(Figures::of(self.services[owner].usage()), self.figures[owner], "service {owner}");
    }

    #[track_caller]
    fn assert_ledger(&self) {
        for (service, figures) in self.services.iter().zip(&self.figures) {
            assert_eq!(Figures::of(service.usage()), *figures, "{service:?}");
        }
        let lost = dogtag::snapshot().lost;
        assert_eq!((lost.bytes, lost.blocks), self.lost);
    }
}

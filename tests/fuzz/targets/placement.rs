//! Blocks in windows of mapped memory, of the region itself and of collections in it, against a
//! map of the window's granules: where they are, what is in them, and what is free.

#![no_main]

#[path = "../../common/mod.rs"]
mod common;

use allocator_api2::alloc::Allocator;
use arbitrary::Arbitrary;
use common::{CHECKED, before, tail};
use dogtag::{Service, Usage};
use dogtag_fuzz::engine::piece::{Piece, WHOLE, are_all};
use dogtag_fuzz::{Align, Size, layout, pick};
use dogtag_mapped::{MappedRegion, RegionStats};
use libfuzzer_sys::fuzz_target;
use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::LazyLock;

static SERVICE: LazyLock<Service> = LazyLock::new(|| Service::register("placement").expect("a service"));

#[derive(Arbitrary, Debug)]
struct Program {
    pages: u8,
    granularity: u8,
    is_deferred: bool,
    has_guards: bool,
    is_populated: bool,
    is_shared: bool,
    operations: Vec<Operation>,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Allocate { way: Way, size: Size, align: Align, is_zeroed: bool },
    Resize { block: u8, size: Size, align: Align, is_zeroed: bool },
    Free { block: u8 },
    FreeMany { from: u8, every: u8 },
    Trim,
    Check,
}

/// How a block is asked for.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Way {
    /// As the backend of another allocator: it is not counted.
    Backend,
    /// As a collection does.
    Collection,
}

struct Placed {
    block: Piece,
    way: Way,
    granules: Range<usize>,
}

struct Machine {
    region: MappedRegion,
    granule: usize,
    /// Which granules are taken: by where a block begins, where it ends.
    taken: BTreeMap<usize, usize>,
    used: usize,
    blocks: Vec<Placed>,
    most: usize,
    refused: u64,
    before: Usage,
}

impl Machine {
    fn new(program: &Program) -> Self {
        let len = (usize::from(program.pages % 128) + 1) << 12;
        let (region, granule) = if program.is_deferred {
            let region = MappedRegion::deferred(len);
            assert_eq!((region.len(), region.stats()), (0, RegionStats::default()));
            region.ensure_mapped().expect("a small window");
            (region, 16)
        } else {
            let granule = 16 << (program.granularity % 9);
            let mut builder = MappedRegion::builder(len).granularity(granule).name("fuzzed");
            if program.has_guards {
                builder = builder.guard_pages();
            }
            if program.is_populated {
                builder = builder.populate();
            }
            if program.is_shared {
                builder = builder.shared();
            }
            (builder.map().expect("a small window"), granule)
        };
        assert_eq!(region.len(), len);
        Self {
            taken: BTreeMap::new(),
            used: 0,
            region,
            granule,
            blocks: Vec::new(),
            most: 0,
            refused: 0,
            before: SERVICE.usage(),
        }
    }

    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::Allocate { way, size, align, is_zeroed } => {
                let layout = match (way, layout(size, align)) {
                    (Way::Backend, empty) if empty.size() == 0 => return,
                    (_, layout) => layout,
                };
                let start = self.allocate(way, layout, is_zeroed);
                self.allocated(way, layout, start, is_zeroed);
            }
            Operation::Resize { block, size, align, is_zeroed } => {
                let Some(place) = pick(block, self.blocks.len()) else { return };
                match self.blocks[place].way {
                    Way::Backend => self.reallocate(place, size.bytes().max(1)),
                    Way::Collection => self.resize(place, layout(size, align), is_zeroed),
                }
            }
            Operation::Free { block } => {
                if let Some(place) = pick(block, self.blocks.len()) {
                    self.free(place);
                }
            }
            Operation::FreeMany { from, every } => {
                let step = usize::from(every % 8) + 1;
                let first = usize::from(from);
                for place in (first..self.blocks.len()).step_by(step).collect::<Vec<_>>().into_iter().rev() {
                    self.free(place);
                }
            }
            Operation::Trim => {
                let bytes = self.region.trim();
                assert!(bytes.is_multiple_of(4096) && bytes <= self.region.len());
                self.blocks.iter().for_each(|placed| {
                    // SAFETY: it is live.
                    unsafe { placed.block.check() };
                });
            }
            Operation::Check => self.check(),
        }
    }

    fn allocate(&self, way: Way, layout: Layout, is_zeroed: bool) -> Option<NonNull<u8>> {
        let region = &self.region;
        match way {
            Way::Backend => {
                // SAFETY: the layout is not empty.
                let start = unsafe {
                    if is_zeroed { region.alloc_zeroed(layout) } else { GlobalAlloc::alloc(region, layout) }
                };
                NonNull::new(start)
            }
            Way::Collection => SERVICE.run(|| {
                let start = if is_zeroed { region.allocate_zeroed(layout) } else { region.allocate(layout) };
                start.ok().map(NonNull::cast)
            }),
        }
    }

    fn allocated(&mut self, way: Way, layout: Layout, start: Option<NonNull<u8>>, is_zeroed: bool) {
        let Some(start) = start else { return self.refused(way, layout) };
        // SAFETY: the block is that long; it was written to by who zeroed it.
        assert!(!is_zeroed || unsafe { are_all(start, layout.size(), 0) }, "not zeroed");
        self.add(way, layout, start);
    }

    /// There must be no space for it.
    fn refused(&mut self, way: Way, layout: Layout) {
        self.refused += 1;
        if CHECKED {
            return;
        }
        let layout = outer(way, layout);
        let (len, align) = (layout.size().div_ceil(self.granule), layout.align());
        let window = self.window();
        for free in self.free_ranges() {
            let start = (window + free.start * self.granule).next_multiple_of(align);
            let end = window + free.end * self.granule;
            assert!(start + len * self.granule > end, "there is space for {layout:?} in {free:?}");
        }
    }

    fn add(&mut self, way: Way, layout: Layout, start: NonNull<u8>) {
        let granules = self.granules(way, layout, start);
        if !granules.is_empty() {
            let before = self.taken.range(..granules.end).next_back();
            assert!(before.is_none_or(|(_, end)| *end <= granules.start), "{granules:?} are {before:?}'s");
            self.taken.insert(granules.start, granules.end);
            self.used += granules.len() * self.granule;
        }
        // SAFETY: it is live, and of that layout.
        let block = unsafe { Piece::fill(start, layout, WHOLE) };
        self.blocks.push(Placed { block, way, granules });
        self.most = self.most.max(self.used);
    }

    /// Where a block is, what stands around it included: in the window.
    fn granules(&self, way: Way, layout: Layout, start: NonNull<u8>) -> Range<usize> {
        if layout.size() == 0 {
            return 0..0;
        }
        assert!(self.region.contains(start.as_ptr()));
        let before = if CHECKED && way == Way::Collection { before(layout) } else { 0 };
        let offset = start.addr().get() - self.window() - before;
        assert!(offset.is_multiple_of(self.granule), "it begins in the middle of a granule");
        let first = offset / self.granule;
        first..first + outer(way, layout).size().div_ceil(self.granule)
    }

    /// As GlobalAlloc does.
    fn reallocate(&mut self, place: usize, size: usize) {
        let Placed { block, granules, .. } = &self.blocks[place];
        let (block, old) = (*block, granules.clone());
        let new = Layout::from_size_align(size, block.layout.align()).expect("a small layout");
        // SAFETY: the model knows that it is live, and of which layout; sizes begin at 1.
        let start = unsafe {
            block.check();
            self.region.realloc(block.start.as_ptr(), block.layout, size)
        };
        let Some(start) = NonNull::new(start) else {
            let behind = self.free_ranges().into_iter().find(|free| free.start == old.end);
            let space = old.len() + behind.map_or(0, |free| free.len());
            assert!(CHECKED || size.div_ceil(self.granule) > space, "it could have stayed where it was");
            return self.refused(Way::Backend, new);
        };
        // SAFETY: both are as long.
        unsafe { block.check_moved(start, size) };
        if start != block.start {
            // For a moment it was in both places.
            let both = self.used + size.next_multiple_of(self.granule);
            self.most = self.most.max(both);
        }
        self.forget(place);
        self.add(Way::Backend, new, start);
    }

    /// As collections do.
    fn resize(&mut self, place: usize, new: Layout, is_zeroed: bool) {
        let (block, region) = (self.blocks[place].block, &self.region);
        let old = block.layout;
        // SAFETY: the model knows that it is live, and of which layout.
        let start = SERVICE.run(|| unsafe {
            block.check();
            match (new.size() >= old.size(), is_zeroed) {
                (true, true) => region.grow_zeroed(block.start, old, new),
                (true, false) => region.grow(block.start, old, new),
                (false, _) => region.shrink(block.start, old, new),
            }
        });
        let Ok(start) = start else {
            return self.refused(Way::Collection, new);
        };
        let start = start.cast::<u8>();
        let kept = old.size().min(new.size());
        // SAFETY: both are as long.
        unsafe {
            block.check_moved(start, new.size());
            let is_fresh = is_zeroed && new.size() > old.size();
            assert!(!is_fresh || are_all(start.add(kept), new.size() - kept, 0), "not zeroed");
        }
        if start != block.start && new.size() > 0 {
            let both = self.used + outer(Way::Collection, new).size().next_multiple_of(self.granule);
            self.most = self.most.max(both);
        }
        self.forget(place);
        self.add(Way::Collection, new, start);
    }

    fn free(&mut self, place: usize) {
        let Placed { block, way, .. } = self.forget(place);
        // SAFETY: the model knows that it is live, and of which layout.
        unsafe {
            block.check();
            match way {
                Way::Backend => self.region.dealloc(block.start.as_ptr(), block.layout),
                Way::Collection => (&self.region).deallocate(block.start, block.layout),
            }
        }
    }

    fn forget(&mut self, place: usize) -> Placed {
        let placed = self.blocks.swap_remove(place);
        if !placed.granules.is_empty() {
            self.taken.remove(&placed.granules.start);
            self.used -= placed.granules.len() * self.granule;
        }
        placed
    }

    fn window(&self) -> usize {
        self.region.start().expect("it is mapped").addr().get()
    }

    fn free_ranges(&self) -> Vec<Range<usize>> {
        let begins = [0].into_iter().chain(self.taken.values().copied());
        let ends = self.taken.keys().copied().chain([self.region.len() / self.granule]);
        begins.zip(ends).map(|(begin, end)| begin..end).filter(|free| !free.is_empty()).collect()
    }

    fn check(&self) {
        let live = self.blocks.iter().filter(|placed| placed.block.layout.size() > 0);
        let stats = self.region.stats();
        let counted = live.clone().filter(|placed| placed.way == Way::Collection);
        let bytes: u64 = counted.clone().map(|placed| placed.block.layout.size() as u64).sum();
        let usage = SERVICE.usage().since(&self.before);
        assert_eq!((usage.bytes(), usage.blocks()), (bytes, counted.count() as u64));
        assert_eq!(stats.size, self.region.len());
        if CHECKED {
            assert!(stats.used >= self.used && stats.blocks >= live.count());
            assert_eq!(stats.used + stats.free, stats.size);
            return;
        }
        let free = self.free_ranges();
        let bytes = |ranges: &Range<usize>| ranges.len() * self.granule;
        assert_eq!(stats.used, self.used);
        assert_eq!(stats.free, free.iter().map(bytes).sum());
        assert_eq!(stats.largest_free, free.iter().map(bytes).max().unwrap_or(0));
        assert_eq!(stats.free_ranges, free.len());
        assert_eq!(stats.blocks, live.count());
        assert_eq!(stats.peak, self.most);
        assert_eq!(stats.refused, self.refused);
    }
}

/// What the region is asked for.
fn outer(way: Way, layout: Layout) -> Layout {
    let around = match way {
        Way::Collection if CHECKED => before(layout) + tail(layout),
        Way::Collection => 2,
        Way::Backend => 0,
    };
    Layout::from_size_align(layout.size() + around, layout.align()).expect("a small layout")
}

fuzz_target!(|program: Program| {
    let mut machine = Machine::new(&program);
    for operation in &program.operations {
        machine.step(operation);
    }
    machine.check();
    while !machine.blocks.is_empty() {
        machine.free(0);
    }
    machine.check();
});

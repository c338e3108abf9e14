//! A field of plots with a block in each, as a backend. What should stand there is known
//! byte by byte, the strips between the blocks included: so nothing that dogtag writes
//! outside of its own bytes passes unseen.

use crate::random::Random;
use std::alloc::{GlobalAlloc, Layout};
use std::ops::Range;
use std::ptr;
use std::sync::Mutex;

/// Bytes of a plot; the block's memory begins at the strip's end, at least.
pub const PLOT: usize = 512;
const STRIP: usize = 64;
pub const PLOTS: usize = 1024;

#[repr(align(4096))]
struct Memory([u8; PLOT * PLOTS]);

/// The backend, and who looks after it.
pub struct Field {
    memory: *mut Memory,
    plots: Mutex<Plots>,
}

struct Plots {
    free: Vec<usize>,
    /// What was asked for, plot by plot.
    taken: Vec<Option<Layout>>,
    returned: Vec<Returned>,
}

/// A block's memory that dogtag has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    pub address: usize,
    /// What dogtag said it had asked for.
    pub layout: Layout,
}

// SAFETY: the memory is the field's, and is used by one thread at a time, as the tests are.
unsafe impl Sync for Field {}
// SAFETY: the memory belongs to no thread, and one thread at a time uses it.
unsafe impl Send for Field {}

impl Field {
    pub fn new() -> &'static Self {
        // SAFETY: bytes may be anything.
        let memory = Box::into_raw(unsafe { Box::<Memory>::new_uninit().assume_init() });
        let plots = Plots { free: (0..PLOTS).collect(), taken: vec![None; PLOTS], returned: Vec::new() };
        Box::leak(Box::new(Self { memory, plots: Mutex::new(plots) }))
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the memory is there for good.
        unsafe { (&raw mut (*self.memory).0).cast() }
    }

    /// The plot that an address lies in.
    pub fn plot_of(&self, address: usize) -> usize {
        (address - self.start().addr()) / PLOT
    }

    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.end <= PLOT * PLOTS);
        // SAFETY: within the memory, which is written to by this thread alone.
        unsafe { std::slice::from_raw_parts(self.start().add(range.start), range.len()) }
    }

    pub fn offset_of(&self, address: usize) -> usize {
        address - self.start().addr()
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PLOT * PLOTS);
        // SAFETY: within the memory, which is nobody else's.
        unsafe { self.start().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// The blocks' memory that was given back since this was asked last.
    pub fn returned(&self) -> Vec<Returned> {
        std::mem::take(&mut self.plots.lock().unwrap().returned)
    }

    /// What was asked for at that address.
    pub fn asked(&self, address: usize) -> Layout {
        self.plots.lock().unwrap().taken[self.plot_of(address)].unwrap()
    }

    /// Takes a plot back, whose block dogtag has given back, or never will.
    pub fn take_back(&self, address: usize) {
        let plot = self.plot_of(address);
        let mut plots = self.plots.lock().unwrap();
        assert!(plots.taken[plot].take().is_some(), "{address:#x} is not taken");
        plots.free.insert(0, plot);
    }
}

/// To be had by dogtag.
pub struct Backend(pub &'static Field);

// SAFETY: memory is handed out that is in a plot of its own, until it is taken back.
unsafe impl GlobalAlloc for Backend {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut plots = self.0.plots.lock().unwrap();
        let start = STRIP.next_multiple_of(layout.align());
        if start + layout.size() + STRIP > PLOT {
            return ptr::null_mut();
        }
        let Some(plot) = plots.free.pop() else { return ptr::null_mut() };
        plots.taken[plot] = Some(layout);
        self.0.start().wrapping_add(plot * PLOT + start)
    }

    /// Nothing is used again before it is [taken back](Field::take_back).
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.0.plots.lock().unwrap().returned.push(Returned { address: block.addr(), layout });
    }
}

/// The field as it should be.
pub struct Image {
    field: &'static Field,
    bytes: Vec<u8>,
}

impl Image {
    pub fn new(field: &'static Field, random: &mut Random) -> Self {
        let bytes: Vec<u8> = (0..PLOT * PLOTS).map(|_| random.next() as u8).collect();
        field.write(0, &bytes);
        Self { field, bytes }
    }

    /// What stands there is as it should be.
    pub fn learn(&mut self, range: Range<usize>) {
        self.bytes[range.clone()].copy_from_slice(self.field.bytes(range));
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.field.write(offset, bytes);
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    #[track_caller]
    pub fn assert_whole(&self, range: Range<usize>) {
        let found = self.field.bytes(range.clone());
        if found != &self.bytes[range.clone()] {
            let wrong =
                found.iter().zip(&self.bytes[range.clone()]).position(|(found, meant)| found != meant);
            panic!("something was written at {:#x} of the field", range.start + wrong.unwrap_or(0));
        }
    }

    /// The plots of a block and of its neighbours.
    pub fn around(&self, address: usize) -> Range<usize> {
        let plot = self.field.plot_of(address);
        plot.saturating_sub(1) * PLOT..(plot + 2).min(PLOTS) * PLOT
    }
}

/// A wild write near a block: where, from the block's beginning, and what. `cookies` are what
/// somebody's blocks have behind them.
pub fn wild_write(random: &mut Random, size: usize, cookies: &[Vec<u8>]) -> (isize, Vec<u8>) {
    let end = size as isize;
    let somewhere = |random: &mut Random, range: Range<isize>| {
        range.start + random.below((range.end - range.start) as usize) as isize
    };
    let (start, longest) = match random.below(10) {
        // The first byte past the end, as most are, and what else is there.
        0..4 => (end, 24),
        4..6 => (somewhere(random, end - 4..end + 24), 24),
        6..8 => (somewhere(random, -80..4), 32),
        // Whatever a block has for a neighbour.
        _ => (somewhere(random, -(PLOT as isize) / 2..PLOT as isize), 160),
    };
    let length = if random.below(3) == 0 { 1 } else { 1 + random.below(longest) };
    let bytes = match random.below(8) {
        0 => vec![0; length],
        1 => vec![0xff; length],
        2 => b"all work and no play makes jack a dull boy ".iter().copied().cycle().take(length).collect(),
        3 => (0..length as u8).collect(),
        4..6 if !cookies.is_empty() => return (end, cookies[random.below(cookies.len())].clone()),
        _ => (0..length).map(|_| random.next() as u8).collect(),
    };
    (start, bytes)
}

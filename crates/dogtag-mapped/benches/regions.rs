//! Regions against other allocators over windows that are as large.
//!
//! `cargo bench -p dogtag-mapped --features jemalloc --bench regions -- 31`
//!
//! Medians of interleaved rounds, 21 unless another number is given. The first line of
//! each table is the yardstick; × is the median of the ratios to it within the rounds.
//! What is locked is behind the kind of lock that a region has.

#[path = "../../../benches/rounds/mod.rs"]
mod rounds;

use dogtag::{Dogtag, Jemalloc};
use dogtag_mapped::MappedRegion;
use linked_list_allocator::Heap;
use rlsf::Tlsf;
use rounds::{compare, each, random, timed};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::{Barrier, Mutex, PoisonError};
use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const WINDOW: usize = 16 << 20;
/// Pairs of an allocation and a free in each round.
const PAIRS: usize = 20_000;
/// The same, where some have to look at thousands of ranges.
const FEW: usize = 10_000;
const BLOCKS: usize = 1000;
/// Steps that break a window into pieces, before anything is measured.
const LONG_RUN: usize = 200_000;
const LARGE: usize = 64 << 10;
/// So many large blocks fill most of a window.
const LARGE_BLOCKS: usize = 200;
const GROWTHS: usize = 100;
/// More than fill a window, so that no predictor knows them by heart.
const KINDS: usize = 1 << 16;
const FILLING_STEPS: usize = 500_000;

/// Compares all of them at one thing, those that need not look at every free range for it, or
/// those that threads can share.
macro_rules! compare {
    (all, $what:expr, $rounds:expr, $work:ident($($argument:expr),*)) => {
        compare!($what, $rounds, $work($($argument),*), ("linked_list_allocator, locked", Locked<Heap>),
            ("talc, alone", Alone<InBand>), ("rlsf, alone", Alone<Levels>))
    };
    (quick, $what:expr, $rounds:expr, $work:ident($($argument:expr),*)) => {
        compare!($what, $rounds, $work($($argument),*),
            ("talc, alone", Alone<InBand>), ("rlsf, alone", Alone<Levels>))
    };
    (shared, $what:expr, $rounds:expr, $work:ident($($argument:expr),*)) => {
        compare!($what, $rounds, $work($($argument),*), ("linked_list_allocator, locked", Locked<Heap>))
    };
    ($what:expr, $rounds:expr, $work:ident $arguments:tt, $(($name:expr, $more:ty)),*) => {
        compare(&$what, "ns", $rounds, &mut [
            ("talc, locked", &mut $work::<Locked<InBand>> $arguments),
            ("rlsf, locked", &mut $work::<Locked<Levels>> $arguments),
            ("region", &mut $work::<MappedRegion> $arguments),
            ("first fit, locked", &mut $work::<Locked<FirstFit>> $arguments),
            ("jemalloc", &mut $work::<Jemalloc> $arguments),
            $(($name, &mut $work::<$more> $arguments),)*
        ])
    };
}

fn main() {
    let rounds = rounds::asked_for();
    for size in [64, 1024] {
        compare!(all, format!("a pair of {size} bytes, nothing else"), rounds, pairs(size, Fill::Empty));
        compare!(
            all,
            format!("a pair of {size} bytes, half full, in pieces"),
            rounds,
            pairs(size, Fill::Half)
        );
    }
    compare!(all, "a pair of 1 to 1024 bytes, 1000 live blocks", rounds, replaced(Fill::Few));
    // linked_list_allocator takes some 300 µs for a pair there.
    compare!(quick, "a pair of 1 to 1024 bytes, nearly full, in pieces", rounds, replaced(Fill::Nearly));
    compare!(all, "64 KiB zeroed, of memory that is new", rounds, pristine());
    compare!(all, "64 KiB zeroed and freed, of memory that is not", rounds, zeroed());
    compare!(all, "grown from 16 bytes to 64 KiB, doubled, and freed", rounds, grown(1));
    compare!(all, "the same, two by turns", rounds, grown(2));
    compare!(shared, "two threads, each a pair of 1 to 1024 bytes, 500 live blocks", rounds, threads());
    filling();
}

/// How much of a window is used when an allocation fails for the first time.
fn filling() {
    println!("\nat the first failure, after a long run: live bytes, and the largest block there is");
    until_full::<Locked<InBand>>("talc");
    until_full::<Locked<Levels>>("rlsf");
    until_full::<MappedRegion>("region");
    until_full::<Locked<Heap>>("linked_list_allocator");
    until_full::<Locked<FirstFit>>("first fit");
}

/// What can be compared.
trait Contestant: GlobalAlloc + Sized + 'static {
    /// Over a window of its own.
    fn fresh() -> Self;

    /// The same, all of it written to.
    fn touched() -> Self;
}

/// What is not thread-safe of itself.
trait Engine: 'static {
    /// # Safety
    ///
    /// The window must be this one's alone as long as it is there.
    unsafe fn over(window: NonNull<u8>) -> Self;

    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>>;

    /// # Safety
    ///
    /// The block must be from here, of that layout, and used no more.
    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout);

    /// # Safety
    ///
    /// The block must be from here, of that layout, and used no more unless this fails.
    unsafe fn resize(&mut self, block: NonNull<u8>, layout: Layout, new: Layout) -> Option<NonNull<u8>> {
        let moved = self.take(new)?;
        // SAFETY: both blocks are as large; and the caller's promise.
        unsafe {
            moved.copy_from_nonoverlapping(block, layout.size().min(new.size()));
            self.give(block, layout);
        }
        Some(moved)
    }
}

type InBand = Talc<Manual, DefaultBinning>;
type Levels = Tlsf<'static, u32, u32, 20, 32>;

impl Engine for InBand {
    unsafe fn over(window: NonNull<u8>) -> Self {
        let mut this = Talc::new(Manual);
        // SAFETY: the caller's promise.
        unsafe { this.claim(window.as_ptr(), WINDOW) }.unwrap();
        this
    }

    #[inline(always)]
    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: no layout here is empty.
        unsafe { self.allocate(layout) }
    }

    #[inline(always)]
    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.deallocate(block.as_ptr(), layout) };
    }

    unsafe fn resize(&mut self, block: NonNull<u8>, layout: Layout, new: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the caller's promise; both blocks are as large.
        unsafe {
            if self.try_realloc_in_place(block.as_ptr(), layout, new.size()) {
                return Some(block);
            }
            let moved = self.allocate(new)?;
            moved.copy_from_nonoverlapping(block, layout.size().min(new.size()));
            self.deallocate(block.as_ptr(), layout);
            Some(moved)
        }
    }
}

impl Engine for Levels {
    unsafe fn over(window: NonNull<u8>) -> Self {
        let mut this = Tlsf::new();
        // SAFETY: the caller's promise.
        unsafe { this.insert_free_block_ptr(NonNull::slice_from_raw_parts(window, WINDOW)) }.unwrap();
        this
    }

    #[inline(always)]
    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.allocate(layout)
    }

    #[inline(always)]
    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.deallocate(block, layout.align()) };
    }

    unsafe fn resize(&mut self, block: NonNull<u8>, _: Layout, new: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the caller's promise.
        unsafe { self.reallocate(block, new) }
    }
}

impl Engine for Heap {
    unsafe fn over(window: NonNull<u8>) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Heap::new(window.as_ptr(), WINDOW) }
    }

    #[inline(always)]
    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.allocate_first_fit(layout).ok()
    }

    #[inline(always)]
    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.deallocate(block, layout) };
    }
}

/// The free ranges in order, of which the first that is large enough is taken.
struct FirstFit {
    window: NonNull<u8>,
    /// Lengths, by offsets.
    free: BTreeMap<usize, usize>,
}

// SAFETY: the window is its own.
unsafe impl Send for FirstFit {}

impl FirstFit {
    fn rounded(layout: Layout) -> usize {
        layout.size().next_multiple_of(16)
    }
}

impl Engine for FirstFit {
    unsafe fn over(window: NonNull<u8>) -> Self {
        Self { window, free: BTreeMap::from([(0, WINDOW)]) }
    }

    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let (len, align) = (Self::rounded(layout), layout.align().max(16));
        let mut ranges =
            self.free.iter().map(|(start, len)| (*start, start.next_multiple_of(align), start + len));
        let (range, start, end) = ranges.find(|(_, start, end)| start + len <= *end)?;
        if start == range {
            self.free.remove(&range);
        } else {
            self.free.insert(range, start - range);
        }
        if start + len < end {
            self.free.insert(start + len, end - start - len);
        }
        // SAFETY: it is in the window.
        Some(unsafe { self.window.add(start) })
    }

    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout) {
        let mut start = block.addr().get() - self.window.addr().get();
        let mut end = start + Self::rounded(layout);
        let before = self.free.range(..start).next_back();
        if let Some((range, _)) = before.filter(|(range, len)| **range + **len == start) {
            start = *range;
        }
        if let Some(len) = self.free.remove(&end) {
            end += len;
        }
        self.free.insert(start, end - start);
    }
}

/// An engine, what keeps others out of it, and its window.
struct Over<Access> {
    engine: Access,
    _window: MappedRegion,
}

type Alone<E> = Over<UnsafeCell<E>>;
type Locked<E> = Over<Mutex<E>>;

/// How an engine is got at.
trait Access: From<Self::Engine> + 'static {
    type Engine: Engine;

    /// # Safety
    ///
    /// Not from within itself.
    unsafe fn with<R>(&self, work: impl FnOnce(&mut Self::Engine) -> R) -> R;
}

impl<E: Engine> Access for UnsafeCell<E> {
    type Engine = E;

    #[inline(always)]
    unsafe fn with<R>(&self, work: impl FnOnce(&mut E) -> R) -> R {
        // SAFETY: no other thread has it; and the caller's promise.
        work(unsafe { &mut *self.get() })
    }
}

impl<E: Engine> Access for Mutex<E> {
    type Engine = E;

    #[inline(always)]
    unsafe fn with<R>(&self, work: impl FnOnce(&mut E) -> R) -> R {
        work(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// SAFETY: the engines' blocks do not overlap, and stay until they are freed.
unsafe impl<A: Access> GlobalAlloc for Over<A> {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: no engine uses this.
        let block = unsafe { self.engine.with(|engine| engine.take(layout)) };
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above; and the caller's promise.
        unsafe { self.engine.with(|engine| engine.give(NonNull::new_unchecked(block), layout)) };
    }

    #[inline(always)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above; and the caller's promise.
        let block = unsafe {
            let new = Layout::from_size_align_unchecked(new_size, layout.align());
            self.engine.with(|engine| engine.resize(NonNull::new_unchecked(block), layout, new))
        };
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}

impl<A: Access> Contestant for Over<A> {
    fn fresh() -> Self {
        let window = MappedRegion::fresh();
        // SAFETY: nobody else uses the window, and it is kept as long.
        let engine = unsafe { A::Engine::over(window.start().unwrap()) };
        Self { engine: engine.into(), _window: window }
    }

    fn touched() -> Self {
        let window = MappedRegion::touched();
        // SAFETY: as above.
        let engine = unsafe { A::Engine::over(window.start().unwrap()) };
        Self { engine: engine.into(), _window: window }
    }
}

impl Contestant for MappedRegion {
    fn fresh() -> Self {
        Self::anonymous(WINDOW).unwrap()
    }

    fn touched() -> Self {
        let (this, layout) = (Self::fresh(), layout(WINDOW));
        // SAFETY: the block is so large, and freed as it was allocated.
        unsafe {
            let all = this.alloc(layout);
            all.write_bytes(1, WINDOW);
            this.dealloc(all, layout);
        }
        this
    }
}

/// It has as much memory as it likes.
impl Contestant for Jemalloc {
    fn fresh() -> Self {
        Self
    }

    fn touched() -> Self {
        Self
    }
}

/// What is there before anything is measured.
#[derive(Clone, Copy)]
enum Fill {
    Empty,
    /// A thousand blocks.
    Few,
    /// Half of the window, of which more was used before.
    Half,
    /// Most of the window, after a long run.
    Nearly,
}

/// Live blocks of a contestant's.
struct Blocks<Held: Deref<Target: GlobalAlloc>> {
    allocator: Held,
    live: Vec<(*mut u8, Layout)>,
}

impl<C: Contestant> Blocks<Box<C>> {
    fn new(fill: Fill) -> Self {
        let mut this = Self { allocator: Box::new(C::touched()), live: Vec::new() };
        let mut random = random();
        match fill {
            Fill::Empty => {}
            Fill::Few => this.fill(&mut random, BLOCKS * MEAN),
            Fill::Half => {
                this.fill(&mut random, WINDOW / 8 * 7);
                for _ in 0..this.live.len() * 3 / 7 {
                    let which = random(this.live.len());
                    this.free(which);
                }
            }
            Fill::Nearly => {
                this.fill(&mut random, WINDOW / 8 * 7);
                for _ in 0..LONG_RUN {
                    let which = random(this.live.len());
                    this.replace(which, 1 + random(LARGEST));
                }
            }
        }
        this
    }
}

impl<Held: Deref<Target: GlobalAlloc>> Blocks<Held> {
    fn fill(&mut self, random: &mut impl FnMut(usize) -> usize, bytes: usize) {
        let mut used = 0;
        while used < bytes {
            let size = 1 + random(LARGEST);
            self.live.push(self.block(size));
            used += size;
        }
    }

    #[inline(always)]
    fn block(&self, size: usize) -> (*mut u8, Layout) {
        let layout = layout(size);
        // SAFETY: no layout here is empty.
        let block = unsafe { self.allocator.alloc(layout) };
        touch(block, size);
        (block, layout)
    }

    /// Frees a block and puts another one in its place, if it fits.
    #[inline(always)]
    fn replace(&mut self, which: usize, size: usize) {
        let (block, layout) = self.live[which];
        if !block.is_null() {
            // SAFETY: it was allocated with that layout.
            unsafe { self.allocator.dealloc(block, layout) };
        }
        self.live[which] = self.block(size);
    }

    fn free(&mut self, which: usize) -> usize {
        let (block, layout) = self.live.swap_remove(which);
        if !block.is_null() {
            // SAFETY: it was allocated with that layout.
            unsafe { self.allocator.dealloc(block, layout) };
        }
        layout.size()
    }

    /// The largest block that fits.
    fn largest(&self) -> usize {
        let (mut fits, mut none) = (0, WINDOW + 1);
        while none - fits > 1 {
            let layout = layout((fits + none) / 2);
            // SAFETY: the layout is not empty, and the block is freed as it was allocated.
            unsafe {
                let block = self.allocator.alloc(layout);
                if block.is_null() {
                    none = layout.size();
                } else {
                    self.allocator.dealloc(block, layout);
                    fits = layout.size();
                }
            }
        }
        fits
    }
}

impl<Held: Deref<Target: GlobalAlloc>> Drop for Blocks<Held> {
    fn drop(&mut self) {
        while let Some(last) = self.live.len().checked_sub(1) {
            self.free(last);
        }
    }
}

/// A block, allocated and freed again and again.
fn pairs<C: Contestant>(size: usize, fill: Fill) -> impl FnMut() -> f64 {
    let (blocks, layout) = (Blocks::<Box<C>>::new(fill), layout(size));
    move || {
        each(PAIRS, || {
            let (block, _) = blocks.block(size);
            // SAFETY: it was allocated with that layout.
            unsafe { blocks.allocator.dealloc(black_box(block), layout) };
        })
    }
}

/// Blocks that are freed at random, with others in their places.
fn replaced<C: Contestant>(fill: Fill) -> impl FnMut() -> f64 {
    let mut blocks = Blocks::<Box<C>>::new(fill);
    let (steps, mut done) = (steps(blocks.live.len()), 0);
    let count = if matches!(fill, Fill::Nearly) { FEW } else { PAIRS };
    move || {
        let time = timed(|| {
            for i in done..done + count {
                let (which, size) = steps[i % KINDS];
                blocks.replace(which, size);
            }
        });
        done += count;
        time / count as f64
    }
}

/// Zeroed memory that nobody has had.
fn pristine<C: Contestant>() -> impl FnMut() -> f64 {
    move || {
        let mut blocks = Blocks { allocator: Box::new(C::fresh()), live: Vec::with_capacity(LARGE_BLOCKS) };
        each(LARGE_BLOCKS, || {
            // SAFETY: the layout is not empty.
            let block = unsafe { blocks.allocator.alloc_zeroed(layout(LARGE)) };
            touch(block, LARGE);
            blocks.live.push((block, layout(LARGE)));
        })
    }
}

/// Zeroed memory that was written to.
fn zeroed<C: Contestant>() -> impl FnMut() -> f64 {
    let blocks = Blocks::<Box<C>>::new(Fill::Few);
    move || {
        each(LARGE_BLOCKS, || {
            // SAFETY: the layout is not empty, and the block is freed as it was allocated.
            unsafe {
                let block = blocks.allocator.alloc_zeroed(layout(LARGE));
                touch(block, LARGE);
                blocks.allocator.dealloc(block, layout(LARGE));
            }
        })
    }
}

/// So many blocks that grow by turns.
fn grown<C: Contestant>(count: usize) -> impl FnMut() -> f64 {
    let mut blocks = Blocks::<Box<C>>::new(Fill::Few);
    let others = blocks.live.len();
    move || {
        each(GROWTHS, || {
            for _ in 0..count {
                blocks.live.push(blocks.block(16));
            }
            let mut size = 16;
            while size < LARGE {
                size *= 2;
                for (block, layout) in &mut blocks.live[others..] {
                    // SAFETY: it was allocated with that layout.
                    *block = unsafe { blocks.allocator.realloc(*block, *layout, size) };
                    *layout = self::layout(size);
                    touch(*block, size);
                }
            }
            for _ in 0..count {
                blocks.free(others);
            }
        })
    }
}

/// Two threads that replace blocks of their own.
fn threads<C: Contestant + Sync>() -> impl FnMut() -> f64 {
    let (allocator, steps) = (C::touched(), steps(BLOCKS / 2));
    move || {
        let start = Barrier::new(2);
        let work = |own: usize| {
            let (mut blocks, mut random) = (Blocks { allocator: &allocator, live: Vec::new() }, random());
            blocks.fill(&mut random, BLOCKS / 2 * MEAN);
            let count = blocks.live.len();
            start.wait();
            timed(|| {
                for i in 0..PAIRS {
                    let (which, size) = steps[(own + i) % KINDS];
                    blocks.replace(which % count, size);
                }
            })
        };
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(|| work(KINDS / 2));
            work(0).max(other.join().unwrap())
        });
        both / PAIRS as f64
    }
}

/// Blocks of sizes as programs have them, until the window is full; then a part of them is
/// freed, and so on.
fn until_full<C: Contestant>(name: &str) {
    let mut blocks = Blocks::<Box<C>>::new(Fill::Empty);
    let (mut random, mut live, mut steps) = (random(), 0, 0);
    let (mut used, mut largest) = (vec![], vec![]);
    while steps < FILLING_STEPS {
        if random(10) < 4 && !blocks.live.is_empty() {
            let which = random(blocks.live.len());
            live -= blocks.free(which);
            steps += 1;
            continue;
        }
        let size = match random(100) {
            0..80 => 16 + random(241),
            80..95 => 256 + random(3841),
            _ => 4096 + random(61441),
        };
        let (block, layout) = blocks.block(size);
        steps += 1;
        if !block.is_null() {
            blocks.live.push((block, layout));
            live += size;
            continue;
        }
        // The run is long enough by then.
        if steps > FILLING_STEPS / 2 {
            used.push(live as f64);
            largest.push(blocks.largest() as f64);
        }
        for _ in 0..blocks.live.len() / 10 {
            let which = random(blocks.live.len());
            live -= blocks.free(which);
            steps += 1;
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (used, largest) = (mean(&used) / WINDOW as f64 * 100.0, mean(&largest) / 1024.0);
    println!("    {name:<31} {used:>8.2} %  {largest:>7.1} KiB");
}

/// The largest of small blocks, and what they have on average.
const LARGEST: usize = 1024;
const MEAN: usize = LARGEST / 2;

/// Which of so many blocks is replaced, and by one of which size.
fn steps(blocks: usize) -> Vec<(usize, usize)> {
    let mut random = random();
    (0..KINDS).map(|_| (random(blocks), 1 + random(LARGEST))).collect()
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// Writes to a block, as everybody does.
#[inline(always)]
fn touch(block: *mut u8, size: usize) {
    if !block.is_null() {
        // SAFETY: the memory is so large.
        unsafe { block.write_bytes(1, size.min(8)) };
    }
    black_box(block);
}

//! Pools against arenas, and against malloc and free one by one.
//!
//! `cargo bench --features jemalloc --bench pools -- 31`
//!
//! Medians of interleaved rounds, 21 unless another number is given. The first line of
//! each table is the yardstick; × is the median of the ratios to it within the rounds.

#[path = "../../../benches/rounds/mod.rs"]
mod rounds;

use allocator_api2::alloc::{Allocator, Global as GlobalIn};
use allocator_api2::vec::Vec as VecIn;
use bumpalo::Bump;
use dogtag::{Dogtag, Jemalloc};
use dogtag_pool::Pool;
use rounds::{Contestant, compare, each, random, timed};
use std::alloc::{self, GlobalAlloc, Layout};
use std::hint::black_box;
use std::ptr::NonNull;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const MIB: usize = 1 << 20;
/// Each round fills an arena so often.
const FILLS: usize = 64;
/// So many arenas are full when the first of them is cleared.
const FULL: usize = 8;
const REQUESTS: usize = 2000;
const NUMBERS: usize = 1000;
/// More than fill an arena, so that no predictor knows them by heart.
const KINDS: usize = 1 << 16;

fn main() {
    let rounds = rounds::asked_for();
    small(rounds);
    clearing(rounds);
    requests(rounds);
    lists(rounds);
    children(rounds);
}

/// Small allocations, into arenas that have had as much before.
fn small(rounds: usize) {
    let (texts, layouts) = (texts(), layouts());
    let row = |what, bump: &mut dyn FnMut() -> f64, pool: &mut dyn FnMut() -> f64| {
        let mut both: [Contestant; 2] = [("bumpalo", bump), ("pool", pool)];
        compare(&format!("an allocation, of those that fill 1 MiB: {what}"), "ns", rounds, &mut both);
    };
    row("u64", &mut fills::<Bump>(fill_values::<_, 1>), &mut fills::<Pool>(fill_values::<_, 1>));
    row("16 bytes", &mut fills::<Bump>(fill_values::<_, 2>), &mut fills::<Pool>(fill_values::<_, 2>));
    row("24 bytes", &mut fills::<Bump>(fill_values::<_, 3>), &mut fills::<Pool>(fill_values::<_, 3>));
    row("64 bytes", &mut fills::<Bump>(fill_values::<_, 8>), &mut fills::<Pool>(fill_values::<_, 8>));
    row(
        "text of 1 to 100 bytes",
        &mut fills::<Bump>(|arena| fill_texts(arena, &texts)),
        &mut fills::<Pool>(|arena| fill_texts(arena, &texts)),
    );
    row(
        "layouts of 1 to 256 bytes, aligned to 1, 8 or 16",
        &mut fills::<Bump>(|arena| fill_layouts(arena, &layouts)),
        &mut fills::<Pool>(|arena| fill_layouts(arena, &layouts)),
    );
    let mut both: [Contestant; 2] = [
        ("bumpalo", &mut || each(FILLS, || fill_values::<_, 8>(&Bump::make()))),
        ("pool", &mut || each(FILLS, || fill_values::<_, 8>(&Pool::make()))),
    ];
    compare("a fresh arena, 1 MiB filled with 64 bytes each, dropped", "µs", rounds, &mut both);
}

/// What it takes to have 1 MiB of 64 bytes each free again.
fn clearing(rounds: usize) {
    let mut all: [Contestant; 3] = [
        ("bumpalo, reset", &mut clears(Bump::reset)),
        ("pool, cleared", &mut clears(Pool::clear)),
        ("pool, reset", &mut clears(Pool::reset)),
    ];
    compare("clearing alone, of arenas that have had as much before", "ns", rounds, &mut all);
    let mut all: [Contestant; 3] = [
        ("bumpalo, reset", &mut first_clears(Bump::reset)),
        ("pool, cleared", &mut first_clears(Pool::clear)),
        ("pool, reset", &mut first_clears(Pool::reset)),
    ];
    compare("clearing alone, of fresh arenas", "ns", rounds, &mut all);
    let mut all: [Contestant; 3] = [
        ("bumpalo, reset", &mut fills_with(Bump::reset)),
        ("pool, cleared", &mut fills_with(Pool::clear)),
        ("pool, reset", &mut fills_with(Pool::reset)),
    ];
    compare("filling and clearing", "µs", rounds, &mut all);
}

/// A request of 200 small allocations, and two large ones, all freed at its end.
fn requests(rounds: usize) {
    let layouts = request();
    let (mut cleared, mut reset, parent) = (Pool::new(), Bump::new(), Pool::new());
    let mut all: [Contestant; 6] = [
        ("malloc and free", &mut || each(REQUESTS, || one_by_one(&Global, &layouts))),
        ("the same without accounting", &mut || each(REQUESTS, || one_by_one(&Jemalloc, &layouts))),
        ("pool, cleared", &mut || {
            each(REQUESTS, || {
                serve(&cleared, &layouts);
                cleared.clear();
            })
        }),
        ("a child pool for each", &mut || each(REQUESTS, || serve(&*parent.child(), &layouts))),
        ("bumpalo, reset", &mut || {
            each(REQUESTS, || {
                serve(&reset, &layouts);
                reset.reset();
            })
        }),
        ("bumpalo, a new one for each", &mut || each(REQUESTS, || serve(&Bump::new(), &layouts))),
    ];
    compare("a request: 200 of 16 to 200 bytes, 8 KiB, 32 KiB", "ns", rounds, &mut all);
}

fn lists(rounds: usize) {
    let mut pool = Pool::new();
    let mut all: [Contestant; 3] = [
        ("Vec", &mut || each(REQUESTS, push_to_vec)),
        ("Vec of allocator-api2", &mut || each(REQUESTS, || push_in(GlobalIn))),
        ("Vec in a pool that is cleared", &mut || {
            each(REQUESTS, || {
                push_in(&pool);
                pool.clear();
            })
        }),
    ];
    compare("a Vec<u64>, pushed to 1000 numbers and dropped", "ns", rounds, &mut all);
}

fn children(rounds: usize) {
    const TIMES: usize = 20 * REQUESTS;
    let page = [Layout::from_size_align(4096, 8).unwrap()];
    let parent = Pool::new();
    let mut all: [Contestant; 4] = [
        ("malloc and free of 4 KiB", &mut || each(TIMES, || one_by_one(&Global, &page))),
        ("the same without accounting", &mut || each(TIMES, || one_by_one(&Jemalloc, &page))),
        ("a child pool with a u64", &mut || each(TIMES, || one_value(&*parent.child()))),
        ("a new bumpalo with a u64", &mut || each(TIMES, || one_value(&Bump::new()))),
    ];
    compare("an arena of its own", "ns", rounds, &mut all);
}

/// What both kinds of arenas can do.
trait Arena {
    fn make() -> Self;
    fn value<T: Copy + Send + 'static>(&self, value: T) -> &T;
    fn text(&self, text: &str) -> &str;
    fn memory(&self, layout: Layout) -> NonNull<u8>;
    fn clear(&mut self);
}

impl Arena for Pool<'_> {
    fn make() -> Self {
        Self::new()
    }

    #[inline(always)]
    fn value<T: Copy + Send + 'static>(&self, value: T) -> &T {
        self.alloc(value)
    }

    #[inline(always)]
    fn text(&self, text: &str) -> &str {
        self.alloc_str(text)
    }

    #[inline(always)]
    fn memory(&self, layout: Layout) -> NonNull<u8> {
        self.alloc_layout(layout)
    }

    fn clear(&mut self) {
        self.clear();
    }
}

impl Arena for Bump {
    fn make() -> Self {
        Self::new()
    }

    #[inline(always)]
    fn value<T: Copy + Send + 'static>(&self, value: T) -> &T {
        self.alloc(value)
    }

    #[inline(always)]
    fn text(&self, text: &str) -> &str {
        self.alloc_str(text)
    }

    #[inline(always)]
    fn memory(&self, layout: Layout) -> NonNull<u8> {
        self.alloc_layout(layout)
    }

    fn clear(&mut self) {
        self.reset();
    }
}

/// Fills 1 MiB with values of so many words, and returns how many there are.
#[inline(never)]
fn fill_values<A: Arena, const WORDS: usize>(arena: &A) -> usize {
    let count = MIB / size_of::<[u64; WORDS]>();
    for i in 0..count as u64 {
        black_box(arena.value([i; WORDS]));
    }
    count
}

#[inline(never)]
fn fill_texts<A: Arena>(arena: &A, texts: &[&str]) -> usize {
    fill_with(texts, |text| text.len(), |text| _ = black_box(arena.text(text)))
}

#[inline(never)]
fn fill_layouts<A: Arena>(arena: &A, layouts: &[Layout]) -> usize {
    fill_with(layouts, Layout::size, |layout| _ = black_box(arena.memory(*layout)))
}

#[inline(always)]
fn fill_with<T>(things: &[T], size: impl Fn(&T) -> usize, allocate: impl Fn(&T)) -> usize {
    let (mut bytes, mut count) = (0, 0);
    for thing in things.iter().cycle() {
        if bytes >= MIB {
            break;
        }
        allocate(thing);
        bytes += size(thing);
        count += 1;
    }
    count
}

/// The global allocator, as everybody calls it.
struct Global;

// SAFETY: all calls go to the global allocator unchanged.
unsafe impl GlobalAlloc for Global {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is not empty, as this function demands, too.
        unsafe { alloc::alloc(layout) }
    }

    #[inline(always)]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `alloc` above has allocated the memory, with this layout.
        unsafe { alloc::dealloc(memory, layout) }
    }
}

/// Allocates a request's memory, which is freed with the arena.
#[inline(never)]
fn serve<A: Arena>(arena: &A, layouts: &[Layout]) {
    for layout in layouts {
        touch(arena.memory(*layout));
    }
}

/// Allocates a request's memory, and frees it block by block.
#[inline(never)]
fn one_by_one(allocator: &impl GlobalAlloc, layouts: &[Layout]) {
    let mut memory = [NonNull::dangling(); REQUEST];
    for (layout, memory) in layouts.iter().zip(&mut memory) {
        // SAFETY: no layout here is empty.
        *memory = NonNull::new(unsafe { allocator.alloc(*layout) }).unwrap();
        touch(*memory);
    }
    for (layout, memory) in layouts.iter().zip(&memory) {
        // SAFETY: it was allocated with that layout.
        unsafe { allocator.dealloc(memory.as_ptr(), *layout) };
    }
}

#[inline(always)]
fn touch(memory: NonNull<u8>) {
    // SAFETY: every layout here has at least 16 bytes, and nobody else has the memory.
    unsafe { memory.cast::<[u8; 8]>().write([1; 8]) };
    black_box(memory);
}

#[inline(never)]
fn one_value<A: Arena>(arena: &A) {
    black_box(arena.value(1_u64));
}

#[inline(never)]
fn push_to_vec() {
    let mut list = Vec::new();
    for i in 0..NUMBERS as u64 {
        list.push(i);
        black_box(&list);
    }
}

#[inline(never)]
fn push_in(allocator: impl Allocator) {
    let mut list = VecIn::new_in(allocator);
    for i in 0..NUMBERS as u64 {
        list.push(i);
        black_box(&list);
    }
}

fn texts() -> Vec<&'static str> {
    const TEXT: &str = "What is allocated from a pool costs a few instructions and is never freed \
        one by one, but all together.";
    let mut random = random();
    (0..KINDS).map(|_| &TEXT[..1 + random(100)]).collect()
}

fn layouts() -> Vec<Layout> {
    let mut random = random();
    (0..KINDS).map(|_| Layout::from_size_align(1 + random(256), [1, 8, 16][random(3)]).unwrap()).collect()
}

const REQUEST: usize = 202;

fn request() -> Vec<Layout> {
    let mut random = random();
    let size = |i| match i {
        50 => 8 << 10,
        150 => 32 << 10,
        _ => 16 + random(185),
    };
    (0..REQUEST).map(size).map(|size| Layout::from_size_align(size, 8).unwrap()).collect()
}

/// Time of one allocation of those that fill an arena; clearing it is not among it.
fn fills<A: Arena>(fill: impl Fn(&A) -> usize) -> impl FnMut() -> f64 {
    let mut arena = A::make();
    move || {
        let (mut time, mut count) = (0.0, 0);
        for _ in 0..FILLS {
            arena.clear();
            time += timed(|| count = fill(&arena));
        }
        time / (FILLS * count) as f64
    }
}

/// Time to fill an arena and clear it.
fn fills_with<A: Arena>(clear: impl Fn(&mut A)) -> impl FnMut() -> f64 {
    let mut arena = A::make();
    move || {
        each(FILLS, || {
            fill_values::<_, 8>(&arena);
            clear(black_box(&mut arena));
        })
    }
}

/// Time to clear an arena.
fn clears<A: Arena>(clear: impl Fn(&mut A)) -> impl FnMut() -> f64 {
    let mut arenas: Vec<A> = (0..FULL).map(|_| A::make()).collect();
    let mut fill_and_clear = move || {
        arenas.iter().for_each(|arena| _ = fill_values::<_, 8>(arena));
        timed(|| arenas.iter_mut().for_each(|arena| clear(black_box(arena)))) / FULL as f64
    };
    for _ in 0..3 {
        fill_and_clear();
    }
    move || (0..FILLS / FULL).map(|_| fill_and_clear()).sum::<f64>() / (FILLS / FULL) as f64
}

/// Time to clear an arena for the first time.
fn first_clears<A: Arena>(clear: impl Fn(&mut A)) -> impl FnMut() -> f64 {
    move || {
        let mut arenas: Vec<A> = (0..FULL).map(|_| A::make()).collect();
        arenas.iter().for_each(|arena| _ = fill_values::<_, 8>(arena));
        timed(|| arenas.iter_mut().for_each(|arena| clear(black_box(arena)))) / FULL as f64
    }
}

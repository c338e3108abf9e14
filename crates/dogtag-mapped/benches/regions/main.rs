//! Regions beside other allocators, over windows of one size.
//!
//! `cargo bench -p dogtag-mapped --features jemalloc --bench regions -- 31`
//!
//! Medians of interleaved rounds, 21 unless another number is given. The first line of
//! each table is the yardstick; × is the median of the ratios to it within the rounds.
//! "Locked" means: behind the kind of lock that a region has.

mod blocks;
mod contestants;
mod engines;
#[path = "../../../../benches/rounds/mod.rs"]
mod rounds;
mod workloads;

use blocks::Fill;
use contestants::{Alone, Locked};
use dogtag::{Dogtag, Jemalloc};
use dogtag_mapped::MappedRegion;
use engines::{FirstFit, InBand, Levels};
use linked_list_allocator::Heap;
use rounds::compare;
use workloads::{grown, pairs, pristine, replaced, threads, until_full, zeroed};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// The size of each window.
const WINDOW: usize = 16 << 20;

/// Compares allocators at one workload: all of them, those that are quick at it because they do not
/// look at every free range, or those that threads can share.
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

/// Prints how much of a window is used when an allocation first fails.
fn filling() {
    println!("\nat the first failure, after a long run: live bytes, and the largest block there is");
    until_full::<Locked<InBand>>("talc");
    until_full::<Locked<Levels>>("rlsf");
    until_full::<MappedRegion>("region");
    until_full::<Locked<Heap>>("linked_list_allocator");
    until_full::<Locked<FirstFit>>("first fit");
}

//! Call stacks inside allocations allocate nothing themselves.

use dogtag::__private::unwind::{capture, prepare};
use std::hint::black_box;

/// Frames whose rules are not known yet at first, then known.
#[test]
fn taking_a_stack_allocates_nothing() {
    #[inline(never)]
    fn recurse(depth: usize, frames: &mut [usize]) -> usize {
        let count = if depth == 0 { capture(frames) } else { recurse(depth - 1, frames) };
        black_box(count)
    }

    prepare();
    std::thread::spawn(|| {
        let mut frames = [0; 64];
        for depth in [0, 3, 100, 0] {
            let (count, usage) = dogtag::measure(|| recurse(depth, &mut frames));
            assert!(count > 3, "no stack: {count}");
            assert_eq!((usage.allocated_blocks, usage.freed_blocks), (0, 0));
        }
    })
    .join()
    .unwrap();
}

/// The first frame is in the function that asks.
#[test]
fn a_stack_begins_at_whoever_asks() {
    #[inline(never)]
    fn asks(frames: &mut [usize]) -> usize {
        black_box(capture(frames))
    }

    prepare();
    let mut frames = [0; 64];
    let count = asks(&mut frames);
    assert!(count > 3, "no stack: {count}");
    // Code as short as this is no longer than that.
    let (start, first) = (asks as fn(&mut [usize]) -> usize as usize, frames[0]);
    assert!(first > start && first - start < 500, "{first:x} is not in what begins at {start:x}");
}

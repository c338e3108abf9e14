//! What is done about a violation, and what becomes of the block.

use super::{LAYOUT, culprit, met, note, twice, victim};
use crate::child::dealloc;
use dogtag::check::{self, Reaction, Violation, ViolationKind};
use dogtag::{Dogtag, Service};
use std::alloc::{GlobalAlloc, Layout, realloc};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn reaction_leak_goes_on() {
    survives!("");
    check::set_handler(note);
    let victim = victim();
    let mut leaked = Vec::new();
    // SAFETY: none; the violations are the point.
    unsafe {
        let block = culprit();
        block.add(24).write(0);
        dealloc(block, LAYOUT);
        leaked.push((ViolationKind::Overrun, block as usize));

        // What is left of the block moves along.
        let block = culprit();
        block.write_bytes(7, 24);
        block.sub(3).write(0);
        let moved = victim.run(|| realloc(block, LAYOUT, 48));
        assert_eq!(std::slice::from_raw_parts(moved, 24), [7; 24]);
        dealloc(moved, Layout::new::<[u64; 6]>());
        leaked.push((ViolationKind::Underrun, block as usize));

        let block = culprit();
        dealloc(block, Layout::new::<[u64; 4]>());
        leaked.push((ViolationKind::LayoutMismatch, block as usize));

        let block = culprit();
        twice(block);
        leaked.push((ViolationKind::DoubleFree, block as usize));

        // Not a block at all: nothing to resize.
        assert!(realloc(block.add(1), LAYOUT, 100).is_null());
        leaked.push((ViolationKind::InvalidFree, block as usize + 1));

        let block = culprit();
        dealloc(block, LAYOUT);
        block.write(0);
        assert_eq!(check::verify().violations, 1);
        leaked.push((ViolationKind::WriteAfterFree, block as usize));
    }
    assert_eq!(met(), leaked);
    assert_eq!((victim.usage().bytes(), victim.usage().blocks()), (0, 0));
    assert_eq!(dogtag::snapshot().lost.blocks, 0);
    // Through the whole quarantine several times, and nobody gets one of those.
    for _ in 0..300_000 {
        let block = culprit();
        assert!(
            !leaked
                .iter()
                .any(|(kind, address)| *kind != ViolationKind::DoubleFree && *address == block as usize)
        );
        // SAFETY: the block is live.
        unsafe { dealloc(block, LAYOUT) };
    }
    assert_eq!(met(), []);
}

/// A block that was reported is not reported again.
#[test]
fn violation_is_told_once() {
    survives!("");
    check::set_handler(note);
    let victim = victim();
    let (freed, resized) = (culprit(), culprit());
    // SAFETY: none; the bytes behind the blocks are not ours.
    unsafe {
        freed.add(30).write(0);
        resized.add(24).write(0);
        assert_eq!(check::verify().violations, 2);
        assert_eq!(met().len(), 2);
        assert_eq!(check::verify().violations, 0);
        assert_eq!(victim.usage().blocks(), 2);
        dealloc(freed, LAYOUT);
        assert!(realloc(resized, LAYOUT, isize::MAX as usize).is_null());
        let moved = black_box(victim.run(|| realloc(resized, LAYOUT, 10)));
        assert_eq!(victim.usage().bytes(), 10);
        dealloc(moved, Layout::from_size_align(10, 8).unwrap());
        assert_eq!((met(), victim.usage().blocks()), (vec![], 0));
        // But it is freed now.
        dealloc(freed, LAYOUT);
        assert_eq!(met(), [(ViolationKind::DoubleFree, freed as usize)]);
    }
}

#[test]
fn realloc_shrinks_a_block_that_was_told_of() {
    survives!("");
    // The thread is in a service at its limit.
    check::set_handler(|violation| Service::unattributed().run(|| note(violation)));
    let victim = victim();
    let full = Service::builder("full").hard_limit(0).register().unwrap();
    // SAFETY: none; the bytes around the blocks are not ours.
    unsafe {
        let (told, lost, mismatched) = (culprit(), culprit(), culprit());
        told.add(24).write(0);
        lost.sub(32).write_bytes(0, 32);
        for (block, layout, kind) in [
            (told, LAYOUT, ViolationKind::Overrun),
            (lost, LAYOUT, ViolationKind::Underrun),
            (mismatched, Layout::from_size_align(20, 8).unwrap(), ViolationKind::LayoutMismatch),
        ] {
            let shrunk = full.run(|| realloc(block, layout, 10));
            assert!(!shrunk.is_null() && shrunk != block);
            assert_eq!(met(), [(kind, block as usize)]);
            dealloc(shrunk, Layout::from_size_align(10, 8).unwrap());
        }
        assert_eq!(met(), []);
    }
    // But for the one of which nobody knows whose it was.
    assert_eq!((victim.usage().blocks(), full.usage().denied, full.usage().allocated_blocks), (1, 0, 0));
}

#[test]
fn dealloc_by_another_instance() {
    survives!("");
    static OTHER: Dogtag = Dogtag::new();
    check::set_handler(note);
    let block = culprit();
    // SAFETY: none; the block is the global allocator's.
    unsafe { OTHER.dealloc(block, LAYOUT) };
    assert_eq!(met(), [(ViolationKind::InvalidFree, block as usize)]);
    // For the program it is freed, and once only.
    assert_eq!(victim().usage().blocks(), 0);
    // SAFETY: none.
    unsafe { dealloc(block, LAYOUT) };
    assert_eq!(met(), [(ViolationKind::DoubleFree, block as usize)]);
}

#[test]
fn dealloc_of_one_block_by_two_threads() {
    survives!("");
    static DOUBLE: AtomicUsize = AtomicUsize::new(0);

    fn count(violation: &Violation) -> Reaction {
        assert_eq!(violation.kind(), ViolationKind::DoubleFree);
        assert!(violation.freed().is_some_and(|deed| deed.service() == "victim"));
        DOUBLE.fetch_add(1, Ordering::Relaxed);
        Reaction::Leak
    }

    check::set_handler(count);
    let victim = victim();
    for round in 1..=2000 {
        let block = culprit() as usize;
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    barrier.wait();
                    // SAFETY: for one of the two.
                    victim.run(|| unsafe { dealloc(block as *mut u8, LAYOUT) });
                });
            }
        });
        assert_eq!(DOUBLE.load(Ordering::Relaxed), round);
        assert_eq!(victim.usage().blocks(), 0);
    }
}

#[test]
fn fill_by_patterns() {
    survives!("");
    let block = culprit();
    // SAFETY: none, once the block is freed; but its memory is there.
    unsafe {
        assert_eq!(std::slice::from_raw_parts(block, 24), [0xCD; 24]);
        dealloc(block, LAYOUT);
        assert_eq!(std::slice::from_raw_parts(block, 24), [0xDD; 24]);
        // Where a text without an end ends.
        assert_eq!(block.add(25).read(), 0);
        for around in (-16..0).chain([24]).chain(26..56) {
            assert!((0xF5..=0xFC).contains(&block.offset(around).read()));
        }
    }
    assert_eq!(*black_box(vec![0_u8; 100]), [0; 100]);
}

/// A reallocation moves a block, whatever its sizes, with the bytes that stay; what it grows by is fresh, and what it was is
/// freed.
#[test]
fn what_a_block_grows_by_is_fresh() {
    survives!("");
    const SIZES: [usize; 7] = [1, 24, 200, 1000, 4096, 60_000, 100_000];
    let victim = victim();
    for (old, new) in SIZES.into_iter().flat_map(|old| SIZES.map(|new| (old, new))) {
        let [before, after] = [old, new].map(|size| Layout::from_size_align(size, 8).unwrap());
        let bytes = |number: usize| (0..number).map(|byte| byte as u8);
        victim.run(|| {
            // SAFETY: the layouts are not empty, and each block is freed with its own. No memory is used again yet.
            unsafe {
                let block = black_box(std::alloc::alloc(before));
                bytes(old).enumerate().for_each(|(at, byte)| block.add(at).write(byte));
                let moved = black_box(realloc(block, before, new));
                assert_ne!(moved, block);
                let kept = std::slice::from_raw_parts(moved, new);
                assert!(kept.iter().copied().take(old).eq(bytes(old.min(new))), "{old} to {new}");
                assert!(kept.iter().skip(old).all(|byte| *byte == 0xCD), "{old} to {new}");
                if old < 100_000 {
                    assert!(std::slice::from_raw_parts(block, old).iter().all(|byte| *byte == 0xDD));
                }
                assert_eq!((victim.usage().bytes(), victim.usage().blocks()), (new as u64, 1));
                dealloc(moved, after);
            }
        });
    }
    assert_eq!((victim.usage().bytes(), victim.usage().blocks()), (0, 0));
    assert_eq!(check::verify().violations, 0);
}

#[test]
fn fill_with_zeros() {
    survives!("fill=zero");
    check::set_handler(note);
    let block = culprit();
    // SAFETY: none, once the block is freed; but its memory is there.
    unsafe {
        assert_eq!(std::slice::from_raw_parts(block, 24), [0; 24]);
        block.write_bytes(7, 24);
        // A text without an end ends at the block's.
        assert_eq!(block.add(24).read(), 0);
        dealloc(block, LAYOUT);
        assert_eq!(std::slice::from_raw_parts(block, 24), [0; 24]);
        block.add(3).write(1);
        assert_eq!(check::verify().violations, 1);
        let other = culprit();
        other.add(24).write(1);
        assert_eq!(check::verify().violations, 1);
        assert_eq!(
            met(),
            [(ViolationKind::WriteAfterFree, block as usize), (ViolationKind::Overrun, other as usize)]
        );
    }
}

#[test]
fn fill_without_patterns() {
    survives!("fill=0");
    check::set_handler(note);
    let block = culprit();
    // SAFETY: none, once the block is freed; but its memory is there.
    unsafe {
        block.write_bytes(7, 24);
        dealloc(block, LAYOUT);
        assert_eq!(std::slice::from_raw_parts(block, 24), [7; 24]);
        block.write(0);
        assert_eq!(check::verify().violations, 0);
        block.add(24).write(0);
        assert_eq!(check::verify().violations, 1);
    }
    assert_eq!(met(), [(ViolationKind::WriteAfterFree, block as usize)]);
}

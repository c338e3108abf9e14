//! Collections in regions, regions as backends, and the allocators behind them.

use crate::{PAGE, layout};
use allocator_api2::vec::Vec as RegionVec;
use dogtag::{Dogtag, Service};
use dogtag_mapped::{Fallback, MappedRegion};
use std::alloc::{GlobalAlloc, System};

#[test]
fn collections_are_charged_like_all_others() {
    let service = Service::register("mapped collections").unwrap();
    let region = MappedRegion::anonymous(1 << 20).unwrap();
    let mut numbers = service.run(|| RegionVec::<u64, _>::with_capacity_in(1000, &region));
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (8000, 1));
    numbers.extend(0..1000);
    assert!(region.contains(numbers.as_ptr()));
    assert!(numbers.try_reserve(1 << 20).is_err());
    service.run(|| numbers.extend(0..10_000));
    assert!(numbers.iter().copied().eq((0..1000).chain(0..10_000)));
    assert_eq!(service.usage().bytes(), numbers.capacity() as u64 * 8);
    service.run(|| numbers.truncate(10));
    service.run(|| numbers.shrink_to_fit());
    assert_eq!(service.usage().bytes(), 80);
    drop(numbers);
    assert_eq!(service.usage().bytes(), 0);
    // A block in quarantine is not free yet.
    assert!(region.stats().used == 0 || cfg!(feature = "memory-check"));
    // As a backend the region charges nothing by itself.
    let counted = Dogtag::with_backend(region);
    // SAFETY: the block is freed once, with its own layout.
    service.run(|| unsafe {
        let block = counted.alloc(layout(1000, 8));
        assert_eq!(service.usage().bytes(), 1000);
        counted.dealloc(block, layout(1000, 8));
    });
    assert_eq!(service.usage().bytes(), 0);
}

/// Collections may ask their allocator for empty blocks and for another alignment.
#[test]
fn blocks_of_no_bytes_and_other_alignments() {
    use allocator_api2::alloc::Allocator;

    let service = Service::register("odd sizes").unwrap();
    let region = MappedRegion::anonymous(4 * PAGE).unwrap();
    let region = &region;
    let held = || (service.usage().bytes(), service.usage().blocks());
    // SAFETY: each block is passed with the layout that it had last, and used no more once it is freed
    // or moved; reads stay within its size.
    service.run(|| unsafe {
        let (nothing, some, more) = (layout(0, 64), layout(100, 8), layout(1000, 256));
        let first = region.allocate(layout(0, 8)).unwrap().cast::<u8>();
        let first = region.grow(first, layout(0, 8), some).unwrap().cast::<u8>();
        assert!(region.contains(first.as_ptr()));
        let block = region.allocate(nothing).unwrap().cast::<u8>();
        assert!(block.addr().get().is_multiple_of(64));
        assert_eq!(held(), (100, 1));
        let block = region.grow_zeroed(block, nothing, some).unwrap().cast::<u8>();
        assert_eq!((held(), std::slice::from_raw_parts(block.as_ptr(), 100)), ((200, 2), &[0; 100][..]));
        block.write_bytes(7, 100);
        // The memory behind the block has been used before.
        let behind = region.allocate(layout(500, 8)).unwrap().cast::<u8>();
        behind.write_bytes(9, 500);
        region.deallocate(behind, layout(500, 8));
        let block = region.grow_zeroed(block, some, layout(500, 8)).unwrap().cast::<u8>();
        let bytes = std::slice::from_raw_parts(block.as_ptr(), 500);
        assert!(bytes[..100].iter().all(|byte| *byte == 7) && bytes[100..].iter().all(|byte| *byte == 0));
        // Its place is not aligned enough.
        let block = region.grow(block, layout(500, 8), more).unwrap().cast::<u8>();
        assert!(block.addr().get().is_multiple_of(256));
        assert_eq!((held(), *block.as_ptr()), ((1100, 2), 7));
        let block = region.shrink(block, more, nothing).unwrap().cast::<u8>();
        assert_eq!(held(), (100, 1));
        region.deallocate(block, nothing);
        let first = region.shrink(first, some, layout(0, 8)).unwrap().cast::<u8>();
        assert_eq!(held(), (0, 0));
        region.deallocate(first, layout(0, 8));
    });
}

#[test]
fn whoever_owns_it_gets_it_back() {
    let [near, far] = [2 * PAGE, 4 * PAGE].map(|len| MappedRegion::anonymous(len).unwrap());
    let all = Fallback::new(near, Fallback::new(far, System));
    let one = layout(PAGE, 8);
    // SAFETY: the blocks are resized and freed with the layouts that they had last.
    unsafe {
        let blocks: Vec<_> = (1..=8_u8)
            .map(|i| {
                let block = all.alloc_zeroed(one);
                block.write_bytes(i, PAGE);
                block
            })
            .collect();
        let regions = || (all.primary().stats().blocks, all.secondary().primary().stats().blocks);
        assert_eq!(regions(), (2, 4));
        assert_eq!((all.stats().secondary_blocks, all.secondary().stats().secondary_blocks), (6, 2));
        assert_eq!(all.stats().secondary_bytes, 6 * PAGE as u64);
        // A block that does not fit any more moves to the next allocator.
        let moved = all.realloc(blocks[0], one, 3 * PAGE);
        assert!(!all.primary().contains(moved));
        assert_eq!(std::slice::from_raw_parts(moved, PAGE), [1; PAGE]);
        assert_eq!(regions(), (1, 4));
        assert!(all.realloc(blocks[1], one, 1 << 62).is_null(), "and stays if it fits nowhere");
        assert_eq!(std::slice::from_raw_parts(blocks[1], PAGE), [2; PAGE]);
        assert_eq!((regions(), all.stats().failures), ((1, 4), 1));
        let more = all.realloc(moved, layout(3 * PAGE, 8), 4 * PAGE);
        assert!(!more.is_null() && all.realloc(more, layout(4 * PAGE, 8), 1 << 62).is_null());
        let less = all.realloc(blocks[1], one, 100);
        assert_eq!(less, all.realloc(less, layout(100, 8), PAGE));
        let moved = more;
        let (stats, pages) = (all.stats(), |bytes| bytes / PAGE as u64);
        assert_eq!((stats.primary_blocks, stats.primary_bytes), (2, 3 * PAGE as u64 - 100));
        assert_eq!((stats.secondary_blocks, pages(stats.secondary_bytes)), (7, 10));
        assert_eq!((stats.moved_blocks, stats.failures), (1, 2));
        all.dealloc(moved, layout(4 * PAGE, 8));
        for (i, block) in (1..).zip(&blocks).skip(1) {
            assert_eq!(std::slice::from_raw_parts(*block, PAGE), [i; PAGE]);
            all.dealloc(*block, one);
        }
        assert_eq!(regions(), (0, 0));
    }
}

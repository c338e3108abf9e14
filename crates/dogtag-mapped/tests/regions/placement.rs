//! Where a region places blocks: merged, resized, trimmed, by several threads, in very large windows.

use crate::child::watch::random::{Random, times};
use crate::{PAGE, SetOnDrop, file, layout};
use dogtag_mapped::{MapError, MappedRegion, Owns};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[test]
fn blocks_are_placed_merged_and_counted() {
    let region = MappedRegion::anonymous(10 * PAGE - 100).unwrap();
    assert_eq!(region.len(), 10 * PAGE, "whole pages");
    let empty = region.stats();
    assert_eq!((empty.size, empty.free, empty.largest_free), (10 * PAGE, 10 * PAGE, 10 * PAGE));
    assert_eq!((empty.used, empty.blocks, empty.free_ranges, empty.peak), (0, 0, 1, 0));
    let sizes = [1, 16, 17, 1000, 5000, 100];
    // SAFETY: the layouts are not empty, and each block is freed once, with its own layout.
    unsafe {
        let blocks = sizes.map(|size| (region.alloc(layout(size, 8)), layout(size, 8)));
        let used: usize = sizes.iter().map(|size| size.next_multiple_of(16)).sum();
        let stats = region.stats();
        assert_eq!((stats.used, stats.free, stats.blocks), (used, 10 * PAGE - used, 6));
        assert!(region.alloc(layout(10 * PAGE, 1)).is_null());
        assert!(region.alloc(layout(1, 1 << 40)).is_null());
        assert_eq!(region.stats().refused, 2);
        for i in [1, 3, 5, 0, 2, 4] {
            let (block, layout) = blocks[i];
            assert!(region.contains(block) && region.owns(block));
            assert_eq!(region.at(region.offset_of(block).unwrap()).map(NonNull::as_ptr), Some(block));
            region.dealloc(block, layout);
        }
    }
    let mut emptied = region.stats();
    assert!(emptied.peak > 6000 && emptied.refused == 2);
    (emptied.peak, emptied.refused) = (0, 0);
    assert_eq!(emptied, empty);
    assert!(!region.contains(&raw const empty));
    // All of a value must be in the window, where such a value can be.
    assert!(region.at::<u64>(8).is_some() && region.at::<u64>(12).is_none());
    assert!(region.at::<u64>(10 * PAGE - 8).is_some() && region.at::<u64>(10 * PAGE).is_none());
    assert!(region.slice_at::<u16>(PAGE, 9 * PAGE / 2).is_some());
    assert!(region.slice_at::<u16>(PAGE, 9 * PAGE / 2 + 1).is_none());
    assert!(region.slice_at::<u64>(8, usize::MAX).is_none() && region.at::<u8>(usize::MAX).is_none());
}

#[test]
fn blocks_grow_and_shrink_where_they_are() {
    let region = MappedRegion::anonymous(PAGE).unwrap();
    // SAFETY: the blocks are resized and freed with the layouts that they had last.
    unsafe {
        let one = region.alloc(layout(100, 8));
        one.write_bytes(7, 100);
        assert_eq!(region.realloc(one, layout(100, 8), 2000), one);
        let other = region.alloc(layout(100, 8));
        assert_eq!(region.realloc(one, layout(2000, 8), 200), one);
        assert_eq!(region.realloc(one, layout(200, 8), 1900), one);
        // Another block stands behind it.
        assert!(region.realloc(one, layout(1900, 8), 3000).is_null());
        let moved = region.realloc(other, layout(100, 8), 1000);
        assert_eq!(moved, other);
        assert_eq!(std::slice::from_raw_parts(one, 100), [7; 100]);
        region.dealloc(one, layout(1900, 8));
        let moved = region.realloc(other, layout(1000, 8), 3000);
        assert!(moved.is_null(), "it would have to be in two places at once");
        region.dealloc(other, layout(1000, 8));
    }
    assert_eq!((region.stats().free_ranges, region.stats().used), (1, 0));
}

/// Bytes freed a moment ago can be allocated again like any others.
#[test]
fn what_was_just_freed_is_free() {
    let region = MappedRegion::anonymous(PAGE).unwrap();
    let [small, whole] = [layout(100, 8), layout(PAGE, 8)];
    // SAFETY: the blocks are resized and freed with the layouts that they had last.
    unsafe {
        let blocks: Vec<_> = (0..20).map(|_| region.alloc(small)).collect();
        blocks.iter().for_each(|block| region.dealloc(*block, small));
        let all = region.alloc(whole);
        assert!(!all.is_null());
        region.dealloc(all, whole);

        let [one, other] = [(); 2].map(|()| region.alloc(small));
        region.dealloc(other, small);
        assert_eq!(region.realloc(one, small, PAGE), one);
        region.dealloc(one, whole);

        let [one, other] = [(); 2].map(|()| region.alloc(small));
        region.dealloc(other, small);
        assert_eq!(region.trim(), 0);
        region.dealloc(one, small);
        assert_eq!((region.trim(), region.trim()), (PAGE, 0));

        // A free block at another address does not serve an aligned request.
        let [one, other] = [(); 2].map(|()| region.alloc(layout(16, 1)));
        region.dealloc(other, layout(16, 1));
        let aligned = region.alloc(layout(16, 512));
        assert!(aligned.addr().is_multiple_of(512));
        region.dealloc(aligned, layout(16, 512));
        region.dealloc(one, layout(16, 1));
    }
    assert_eq!(region.stats().free_ranges, 1);
}

#[test]
fn zeroed_memory_is_zero_and_pristine_memory_untouched() {
    let region = MappedRegion::anonymous(1 << 20).unwrap();
    let resident = || {
        let mut pages = vec![0_u8; (1 << 20) / PAGE];
        let start = region.start().unwrap().as_ptr();
        // SAFETY: there is a byte for each page.
        assert_eq!(unsafe { libc::mincore(start.cast(), 1 << 20, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    };
    // SAFETY: the blocks are freed once, with their own layouts; reads stay within their sizes.
    unsafe {
        let large = layout(500_000, 16);
        let block = region.alloc_zeroed(large);
        assert_eq!(resident(), 0, "memory that is zero is not cleared");
        assert!(std::slice::from_raw_parts(block, 500_000).iter().all(|byte| *byte == 0));
        block.write_bytes(0xEE, 500_000);
        region.dealloc(block, large);
        // Used memory is cleared, also where only a part was used.
        let larger = layout(700_000, 16);
        let block = region.alloc_zeroed(larger);
        assert!(std::slice::from_raw_parts(block, 700_000).iter().all(|byte| *byte == 0));
        block.write_bytes(0xEE, 700_000);
        region.dealloc(block, larger);
        // Pages given back to the system are zero again.
        let kept = region.alloc(layout(PAGE, PAGE));
        kept.write_bytes(0xEE, PAGE);
        let trimmed = region.trim();
        assert!((690_000 / PAGE * PAGE..=1 << 20).contains(&trimmed), "{trimmed}");
        assert_eq!((region.trim(), resident()), (0, 1));
        assert_eq!(std::slice::from_raw_parts(kept, PAGE), [0xEE; PAGE]);
        let block = region.alloc_zeroed(larger);
        assert!(std::slice::from_raw_parts(block, 700_000).iter().all(|byte| *byte == 0));
        region.dealloc(block, larger);
        region.dealloc(kept, layout(PAGE, PAGE));
    }
}

/// Offsets have 32 bits, so granules grow with the window.
#[test]
fn windows_can_be_very_large() {
    for (len, granule) in [(33_usize << 30, 16), (40 << 30, 32), (100 << 30, 64)] {
        // A file's pages need no memory before they are written to, so the system does not refuse them.
        let file = file(len as u64);
        // SAFETY: no one else has the file.
        let region = match unsafe { MappedRegion::file(&file, 0, len) } {
            Ok(region) => region,
            // Addresses are limited (`ulimit -v`).
            Err(MapError::OutOfMemory { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        let [small, large] = [layout(1, 8192), layout(len / 2 + 1, 16)];
        // SAFETY: the blocks are freed once, with their own layouts.
        unsafe {
            let (block, more) = (region.alloc(small), region.alloc(large));
            assert!(block.addr().is_multiple_of(8192) && !more.is_null());
            assert!(region.alloc(large).is_null());
            assert_eq!(region.stats().used, granule + (len / 2 + granule) / granule * granule);
            region.dealloc(block, small);
            region.dealloc(more, large);
        }
        let stats = region.stats();
        assert_eq!((stats.free_ranges, stats.largest_free, stats.free), (1, len, len));
    }
    assert!(matches!(MappedRegion::anonymous(10 << 40), Err(MapError::OutOfMemory { .. })));
}

/// Millions of operations by several threads, each of which checks its own blocks, while another one
/// gives free pages back.
#[test]
fn nothing_overlaps_and_all_is_merged_in_the_end() {
    const THREADS: u64 = 4;
    let operations = times(10_000_000);
    let region = MappedRegion::anonymous(8 << 20).unwrap();
    let work = |thread: u64| {
        let mut random = Random::new(thread + 1);
        let mut next = move |below| random.below(below);
        let mut blocks: Vec<(*mut u8, Layout, u8)> = Vec::new();
        // A block's ends show whether another one overlaps it.
        let fill = |(block, layout, value): (*mut u8, Layout, u8)| {
            let end = layout.size().min(512);
            // SAFETY: the block is live and this thread's, and both ends are within its size.
            unsafe {
                block.write_bytes(value, end);
                block.add(layout.size() - end).write_bytes(value, end);
            }
        };
        let check = |(block, layout, value): (*mut u8, Layout, u8)| {
            let end = layout.size().min(512);
            // SAFETY: the block is live and this thread's, and both ends, within its size, were written.
            let [first, last] = unsafe {
                [block, block.add(layout.size() - end)].map(|at| std::slice::from_raw_parts(at, end))
            };
            assert!(first.iter().chain(last).all(|byte| *byte == value));
        };
        for i in 0..operations / THREADS {
            let value = (i % 251) as u8 + 1;
            match next(8) {
                0..4 if blocks.len() < 1500 => {
                    let size = 1 + if next(20) == 0 { next(20_000) } else { next(300) };
                    let layout = layout(size, 1 << if next(10) == 0 { next(13) } else { next(5) });
                    let is_zeroed = next(4) == 0;
                    // SAFETY: the layout is not empty.
                    let block =
                        unsafe { if is_zeroed { region.alloc_zeroed(layout) } else { region.alloc(layout) } };
                    if block.is_null() {
                        continue;
                    }
                    assert!(block.addr().is_multiple_of(layout.align()));
                    if is_zeroed {
                        // SAFETY: the block has the layout's size, and is initialised with zeros.
                        let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
                        assert!(bytes.iter().all(|byte| *byte == 0));
                    }
                    blocks.push((block, layout, value));
                    fill((block, layout, value));
                }
                4 if !blocks.is_empty() => {
                    let place = next(blocks.len());
                    let (block, old, former) = blocks[place];
                    check((block, old, former));
                    let size = 1 + next(600);
                    // SAFETY: the block is live, of that layout, and used no more if it moves; the size is
                    // not 0.
                    let moved = unsafe { region.realloc(block, old, size) };
                    if moved.is_null() {
                        continue;
                    }
                    // SAFETY: the block keeps the bytes of the smaller size, which were written before.
                    let kept = unsafe { std::slice::from_raw_parts(moved, old.size().min(size).min(512)) };
                    assert!(kept.iter().all(|byte| *byte == former));
                    blocks[place] = (moved, layout(size, old.align()), value);
                    fill(blocks[place]);
                }
                _ if !blocks.is_empty() => {
                    let (block, layout, value) = blocks.swap_remove(next(blocks.len()));
                    check((block, layout, value));
                    // SAFETY: the block is live, of that layout, and was taken out of the list.
                    unsafe { region.dealloc(block, layout) };
                }
                _ => {}
            }
        }
        blocks
    };
    let is_over = AtomicBool::new(false);
    let left: Vec<(usize, Layout)> = std::thread::scope(|threads| {
        threads.spawn(|| {
            while !is_over.load(Relaxed) {
                region.trim();
                let stats = region.stats();
                assert_eq!(stats.used + stats.free, stats.size);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                threads.spawn(move || {
                    work(thread)
                        .into_iter()
                        .map(|(block, layout, _)| (block.addr(), layout))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let _end = SetOnDrop(&is_over);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let used: usize = left.iter().map(|(_, layout)| layout.size().next_multiple_of(16)).sum();
    let stats = region.stats();
    assert_eq!((stats.used, stats.blocks, stats.free), (used, left.len(), (8 << 20) - used));
    for (address, layout) in left {
        let block = region.at(address - region.start().unwrap().addr().get()).unwrap();
        // SAFETY: the block is live, of that layout, and listed once.
        unsafe { region.dealloc(block.as_ptr(), layout) };
    }
    let stats = region.stats();
    assert_eq!((stats.used, stats.blocks, stats.free_ranges, stats.largest_free), (0, 0, 1, 8 << 20));
}

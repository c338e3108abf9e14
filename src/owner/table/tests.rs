//! Tests of the owner table, with addresses that are nobody's, and models of its threads.
//!
//! `allocate` and `owner` do what the allocator does, in the same order.

use super::*;

fn block(address: usize) -> *mut u8 {
    ptr::without_provenance_mut(address)
}

fn allocate(block: *mut u8, named: impl Into<Named>) -> bool {
    let named = named.into();
    let sight = Sight::of(block);
    let is_at_once = named.is_short()
        && (sight.mark_of_page() == named.mark() || sight.write_in_mixed(block, named.mark()));
    is_at_once || write(block, named)
}

/// The owner that a free finds.
fn owner(block: *const u8) -> Option<Named> {
    let named = read(block);
    // What the hot path finds is the same, or no cell's.
    assert!([named, None].contains(&Named::of_mark(read_mark(block))));
    named
}

#[cfg(not(dogtag_loom))]
mod real {
    use super::*;
    use crate::owner::SampleId;
    use std::sync::Mutex;

    /// Where no process of ours has a heap: a stretch for each test.
    const NOWHERE: usize = 0x1237 << 32;

    fn slot(index: u32) -> Slot {
        Slot::new(index).unwrap()
    }

    fn is_mixed(address: usize) -> bool {
        super::super::is_mixed(Sight::of(block(address)).entry)
    }

    #[test]
    fn every_slot_reads_back_alone_and_among_others() {
        let slots = (0..70_000).chain([1 << 20, Slot::COUNT - 1]).filter_map(Slot::new);
        let samples =
            [0, 70_000, SampleId::COUNT - 1].map(|index| Named::Sample(SampleId::new(index).unwrap()));
        let all: Vec<Named> = slots.map(Named::Slot).chain(samples).collect();
        for (page, &named) in all.iter().enumerate() {
            let page = NOWHERE + page * PAGE;
            assert!(allocate(block(page + 64), named));
            assert_eq!(owner(block(page + 64)), Some(named));
            assert_eq!(is_mixed(page), !named.is_short(), "{named:?}");
            assert_eq!(read_mark(block(page + 64)), named.mark());
        }
        for (page, &named) in all.iter().enumerate() {
            let (page, other) = (NOWHERE + page * PAGE, all[(page + 7) % all.len()]);
            assert!(allocate(block(page), other) && allocate(block(page + PAGE - 8), other));
            for (offset, named) in [(0, other), (64, named), (PAGE - 8, other)] {
                assert_eq!(owner(block(page + offset)), Some(named), "at {offset}");
            }
            assert!(is_mixed(page));
        }
    }

    #[test]
    fn a_page_of_one_owner_stays_unmixed() {
        let page = NOWHERE + (1 << 32);
        for at in (0..PAGE).step_by(8) {
            assert!(allocate(block(page + at), slot(7)));
        }
        assert!(!is_mixed(page) && !is_mixed(page + PAGE));
        assert_eq!(owner(block(page + PAGE)), Some(Slot::UNATTRIBUTED.into()), "nobody's");
        // From now on each place has an owner of its own; those from before keep theirs.
        for at in (8..PAGE).step_by(16) {
            assert!(allocate(block(page + at), slot(1000 + at as u32)));
        }
        for at in (0..PAGE).step_by(16) {
            assert_eq!(owner(block(page + at)), Some(slot(7).into()));
            assert_eq!(owner(block(page + at + 8)), Some(slot(1008 + at as u32).into()));
        }
        // The former owner's new blocks are its own, too.
        assert!(allocate(block(page + 8), slot(7)));
        assert_eq!(owner(block(page + 8)), Some(slot(7).into()));
    }

    #[test]
    fn a_block_that_had_no_memory_for_its_owner_stays_unattributed() {
        let start = NOWHERE + (2 << 32);
        let (ownerless, later) = (block(start), block(start + 16));
        assert!(refuse(distance(ownerless)).is_none() && refuse(distance(ownerless)).is_none());
        assert!(distance(ownerless).mapped().is_none());
        assert_eq!(owner(ownerless), Some(Slot::UNATTRIBUTED.into()));
        // The system is not asked again at once.
        assert!(!allocate(later, slot(9)) && distance(later).mapped().is_none());
        assert_eq!(owner(later), Some(Slot::UNATTRIBUTED.into()));
        // A second has passed, and there is memory again.
        ASKED_AGAIN.store(0, Ordering::Relaxed);
        assert!(allocate(later, slot(9)));
        assert_eq!(owner(later), Some(slot(9).into()));
        assert_eq!(owner(ownerless), Some(Slot::UNATTRIBUTED.into()));
        assert_eq!(owner(block(start + PART - PAGE)), Some(Slot::UNATTRIBUTED.into()));
        // The leaf's other parts may have had such blocks, too.
        let other = block(start + PART);
        assert!(allocate(other, slot(9)));
        assert!(is_mixed(start + PART) && owner(block(start + PART + 16)) == Some(Slot::UNATTRIBUTED.into()));
        // Somebody else's leaf came first.
        assert!(refuse(distance(later)).is_some());

        // A part alone is refused.
        let start = NOWHERE + (4 << 32);
        assert!(allocate(block(start), slot(9)));
        let (ownerless, later) = (block(start + PART), block(start + PART + 16));
        assert!(refuse(leaf(ownerless).parts.of(ownerless)).is_none());
        assert!(!allocate(later, slot(9)));
        ASKED_AGAIN.store(0, Ordering::Relaxed);
        assert!(allocate(later, slot(9)));
        assert_eq!(owner(later), Some(slot(9).into()));
        assert_eq!(owner(ownerless), Some(Slot::UNATTRIBUTED.into()));
        assert_eq!(owner(block(start)), Some(slot(9).into()));
        assert!(!is_mixed(start) && is_mixed(start + PART) && !is_mixed(start + 2 * PART));
        // The last page of the part before, and the first of the next one, are nobody's.
        assert_eq!(Sight::of(block(start + PART - PAGE)).entry, u32::from(NOBODY));
        assert_eq!(Sight::of(block(start + 2 * PART)).entry, u32::from(NOBODY));
        assert_eq!(Sight::of(block(start + 2 * PART - PAGE)).entry, UNATTRIBUTED.bits());
    }

    #[test]
    fn addresses_that_no_process_has_are_nobodys() {
        for address in [0, 8, usize::MAX & !7, 1 << 47, 0xfe << 56] {
            assert_eq!(owner(block(address)), Some(Slot::UNATTRIBUTED.into()));
        }
    }

    /// Blocks go from thread to thread as a backend hands them on, in pages that all share.
    #[test]
    fn threads_that_share_pages_find_each_blocks_owner() {
        const THREADS: u32 = 4;
        const TURNS: usize = 200_000;
        let start = NOWHERE + (3 << 32);
        let free: Mutex<Vec<usize>> = Mutex::new((0..64 * PAGE / 8).map(|at| start + at * 8).rev().collect());
        let live: Mutex<Vec<(usize, Named)>> = Mutex::default();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (free, live) = (&free, &live);
                scope.spawn(move || {
                    for turn in 0..TURNS as u32 {
                        let at = free.lock().unwrap().pop().unwrap();
                        // Long stretches of one owner, as programs have them; now and then a long slot.
                        let index = thread + turn / 50 % 3 * THREADS + u32::from(turn % 1000 == 0) * 70_000;
                        let named = Named::Slot(slot(index));
                        assert!(allocate(block(at), named));
                        assert_eq!(owner(block(at)), Some(named));
                        let freed = {
                            let mut live = live.lock().unwrap();
                            live.push((at, named));
                            let other = turn as usize * 7919 % live.len();
                            (live.len() > 3000).then(|| live.swap_remove(other))
                        };
                        if let Some((at, named)) = freed {
                            assert_eq!(owner(block(at)), Some(named));
                            free.lock().unwrap().push(at);
                        }
                    }
                });
            }
        });
        for (at, named) in live.into_inner().unwrap() {
            assert_eq!(owner(block(at)), Some(named));
        }
    }
}

#[cfg(dogtag_loom)]
mod model {
    use super::*;
    use crate::sync::{AtomicBool, model, whole_model};
    use loom::thread;
    use std::sync::Arc;

    fn slot(index: u32) -> Named {
        Slot::new(index).unwrap().into()
    }

    /// Allocates a block, and finds its owner again.
    fn allocate_and_read(address: usize, named: Named) {
        assert!(allocate(block(address), named));
        assert_eq!(owner(block(address)), Some(named));
    }

    /// Two threads find a page that is nobody's, and each makes it its own, or mixed.
    #[test]
    fn a_page_that_two_threads_make_mixed_at_once_has_both_owners() {
        whole_model(|| {
            let other = thread::spawn(|| allocate_and_read(16, slot(1)));
            allocate_and_read(0, slot(2));
            other.join().unwrap();
            assert_eq!((owner(block(16)), owner(block(0))), (Some(slot(1)), Some(slot(2))));
        });
    }

    /// Two threads make a third one's page mixed, while that one frees a block, and allocates another one.
    #[test]
    fn a_page_that_others_make_mixed_keeps_its_former_owners_blocks() {
        whole_model(|| {
            allocate_and_read(0, slot(1));
            let others = [(16, 2), (8, 3)]
                .map(|(address, index)| thread::spawn(move || allocate_and_read(address, slot(index))));
            assert_eq!(owner(block(0)), Some(slot(1)));
            allocate_and_read(24, slot(1));
            for other in others {
                other.join().unwrap();
            }
            let found = [0, 8, 16, 24].map(|address| owner(block(address)));
            assert_eq!(found, [1, 3, 2, 1].map(|index| Some(slot(index))));
        });
    }

    /// A long slot's thread makes a page mixed that was nobody's when it looked, while two short ones' take it.
    #[test]
    fn a_long_slot_and_short_ones_meet_in_a_fresh_page() {
        model(|| {
            let others = [(16, 70_000), (8, 3)]
                .map(|(address, index)| thread::spawn(move || allocate_and_read(address, slot(index))));
            allocate_and_read(0, slot(2));
            for other in others {
                other.join().unwrap();
            }
            let found = [0, 8, 16].map(|address| owner(block(address)));
            assert_eq!(found, [2, 3, 70_000].map(|index| Some(slot(index))));
        });
    }

    /// A block's memory is handed on, by release and acquire as a backend does it, to a thread that
    /// looks at the page for the first time; it was mixed when the former block was allocated.
    #[test]
    fn memory_that_is_handed_on_has_the_new_owner() {
        whole_model(|| {
            allocate_and_read(16, slot(1));
            let is_free = Arc::new(AtomicBool::new(false));
            let taker = thread::spawn({
                let is_free = Arc::clone(&is_free);
                move || {
                    if is_free.load(Ordering::Acquire) {
                        allocate_and_read(0, slot(1));
                    }
                    allocate_and_read(24, slot(1));
                }
            });
            allocate_and_read(0, slot(2));
            is_free.store(true, Ordering::Release);
            taker.join().unwrap();
            assert_eq!((owner(block(16)), owner(block(24))), (Some(slot(1)), Some(slot(1))));
        });
    }

    /// A thread has no memory for a leaf while another one maps it.
    #[test]
    fn a_block_without_an_owner_is_unattributed_whoever_maps_the_leaf() {
        whole_model(|| {
            let other = thread::spawn(|| allocate_and_read(16, slot(1)));
            let is_refused = refuse(distance(block(0))).is_none();
            if !is_refused {
                allocate_and_read(0, slot(2));
            }
            other.join().unwrap();
            let expected = if is_refused { Slot::UNATTRIBUTED.into() } else { slot(2) };
            assert_eq!((owner(block(16)), owner(block(0))), (Some(slot(1)), Some(expected)));
        });
    }

    /// The same for a part of a leaf that is mapped.
    #[test]
    fn a_block_without_an_owner_is_unattributed_whoever_maps_the_part() {
        whole_model(|| {
            let leaf = map_leaf(block(0)).unwrap();
            let other = thread::spawn(|| allocate_and_read(16, slot(1)));
            let is_refused = refuse(leaf.parts.of(block(0))).is_none();
            if !is_refused {
                allocate_and_read(0, slot(2));
            }
            other.join().unwrap();
            let expected = if is_refused { Slot::UNATTRIBUTED.into() } else { slot(2) };
            assert_eq!((owner(block(16)), owner(block(0))), (Some(slot(1)), Some(expected)));
        });
    }
}

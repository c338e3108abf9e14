//! The magazines that threads keep for themselves while they fill them, each in a place
//! of its thread's.
//!
//! Only the thread puts a magazine into its place and takes it out, and only the thread puts blocks in: with plain
//! loads and stores, since that is done for each block that is freed. Another thread, whose allocator has run
//! out of memory, takes the blocks out and leaves the magazine where it is. Meanwhile the place is marked. If the
//! thread finds the mark when the magazine is full, it leaves the magazine to the other one.

use super::quarantine::{Leaves, Magazine};
use crate::sync::{AtomicPtr, Ordering};
use std::ptr;

/// Where a thread keeps a magazine, or none. The lowest bit of its address is the mark.
pub(crate) type Place = AtomicPtr<()>;

/// Set while another thread takes blocks out.
const MARK: usize = 1;
const _: () = assert!(align_of::<Magazine>() > MARK);

/// The magazine that the calling thread keeps.
///
/// # Safety
///
/// The place must be the calling thread's, and what was ever put there outlive the result.
#[inline(always)]
pub(crate) unsafe fn kept<'a>(place: &Place) -> Option<&'a Magazine> {
    let word = place.load(Ordering::Relaxed);
    // SAFETY: `put` has stored it, or its address with the mark; the caller says that it is still there.
    unsafe { word.map_addr(|address| address & !MARK).cast::<Magazine>().as_ref() }
}

/// Puts a magazine that the calling thread has into its place, which is empty.
pub(crate) fn put(place: &Place, magazine: &Magazine) {
    place.store(ptr::from_ref(magazine).cast_mut().cast(), Ordering::Release);
}

/// Takes the magazine out that the calling thread keeps. `false` if it is left to another thread, which takes
/// the blocks out.
pub(crate) fn take_out(place: &Place) -> bool {
    place.swap(ptr::null_mut(), Ordering::AcqRel).addr() & MARK == 0
}

/// Takes the blocks out of the magazine in a place of any thread's, if `is_wanted` says so, and calls `release` for
/// each. Returns the magazine if it was left to the caller; nobody else has it then.
///
/// # Safety
///
/// What was ever put there must outlive the result.
pub(crate) unsafe fn take_blocks<'a>(
    place: &Place,
    is_wanted: impl Fn(&Magazine) -> bool,
    release: &mut impl Leaves,
) -> Option<&'a Magazine> {
    let word = place.load(Ordering::Acquire);
    if word.is_null() || word.addr() & MARK != 0 {
        return None;
    }
    // SAFETY: `put` has stored it.
    let magazine = unsafe { &*word.cast::<Magazine>() };
    // A hint, so that others' are not marked for nothing.
    if !is_wanted(magazine) {
        return None;
    }
    let marked = word.map_addr(|address| address | MARK);
    place.compare_exchange(word, marked, Ordering::Acquire, Ordering::Relaxed).ok()?;
    // From here on the magazine stays what it is, since the thread gives none back that is marked.
    if is_wanted(magazine) {
        magazine.take_blocks(release);
    }
    place.compare_exchange(marked, word, Ordering::Release, Ordering::Acquire).is_err().then_some(magazine)
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::super::quarantine::{self, Held, Left};
    use super::*;

    #[test]
    fn a_thread_keeps_one_magazine_and_others_take_the_blocks() {
        let magazine = quarantine::magazine();
        let place = Place::default();
        let kept = || {
            // SAFETY: the magazine is there until the end.
            unsafe { kept(&place) }
        };
        let take = |is_wanted, blocks: &mut Vec<usize>| {
            // SAFETY: the magazine is there until the end.
            let left =
                unsafe { take_blocks(&place, |_| is_wanted, &mut |left: Left| blocks.push(left.address)) };
            assert!(left.is_none());
        };
        let mut blocks = Vec::new();
        take(true, &mut blocks);
        assert!(kept().is_none() && blocks.is_empty());
        put(&place, &magazine);
        magazine.push(16, Held::memory(100));
        magazine.push(1 << 47, Held::memory(2000));
        take(false, &mut blocks);
        assert!(blocks.is_empty());
        take(true, &mut blocks);
        assert_eq!((&blocks[..], magazine.holds()), (&[16, 1 << 47][..], (0, 0)));
        magazine.push(48, Held::memory(300));
        assert_eq!(magazine.holds(), (300, 1));
        assert!(kept().is_some_and(|kept| ptr::eq(kept, &magazine)) && take_out(&place) && kept().is_none());
    }

    #[test]
    fn who_takes_the_blocks_has_the_magazine_that_is_left_to_him() {
        let magazine = quarantine::magazine();
        let place = Place::default();
        put(&place, &magazine);
        let mut blocks = Vec::new();
        magazine.push(16, Held::memory(100));
        let mut amid = |left: Left| {
            blocks.push(left.address);
            // SAFETY: the magazine is there until the end.
            assert!(unsafe { kept(&place) }.is_some(), "it can be filled on");
            // SAFETY: as above.
            let other = unsafe { take_blocks(&place, |_| true, &mut |_: Left| unreachable!()) };
            assert!(other.is_none(), "one at a time");
            magazine.push(32, Held::memory(100));
            assert!(!take_out(&place));
        };
        // SAFETY: as above.
        let left = unsafe { take_blocks(&place, |_| true, &mut amid) };
        assert!(left.is_some_and(|left| ptr::eq(left, &magazine)));
        magazine.take_blocks(&mut |left: Left| blocks.push(left.address));
        assert_eq!((&blocks[..], magazine.holds()), (&[16, 32][..], (0, 0)));
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::super::quarantine::{self, Held, Left};
    use super::*;
    use crate::sync::whole_model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        place: Place,
        magazines: [Magazine; 2],
        /// What was done with each block before it was put in, and is to be done once by who takes it out.
        blocks: [UnsafeCell<u32>; 2],
    }

    impl Shared {
        fn put_in(&self, magazine: &Magazine, block: usize) -> bool {
            // SAFETY: nobody has the block yet, or the model fails.
            self.blocks[block].with_mut(|block| unsafe { *block += 1 });
            magazine.push((block + 1) * 16, Held::memory(100))
        }

        fn release(&self, address: usize) {
            // SAFETY: the block is this thread's alone, or the model fails.
            self.blocks[address / 16 - 1].with_mut(|block| unsafe { *block += 10 });
        }
    }

    /// A thread fills magazines, each of which is full with one block, while another takes the blocks away: each
    /// is taken out once, after it was put in, and each magazine is had by one thread in the end.
    #[test]
    fn a_block_is_taken_out_once() {
        whole_model(|| {
            let shared = Arc::new(Shared {
                place: Place::new(ptr::null_mut()),
                magazines: [quarantine::magazine(), quarantine::magazine()],
                blocks: [UnsafeCell::new(0), UnsafeCell::new(0)],
            });
            let other = thread::spawn({
                let shared = shared.clone();
                move || {
                    // SAFETY: the magazines are there until the end.
                    let left = unsafe {
                        take_blocks(&shared.place, |_| true, &mut |left: Left| shared.release(left.address))
                    };
                    left.map_or(0, |magazine| {
                        magazine.take_blocks(&mut |left: Left| shared.release(left.address));
                        assert_eq!(magazine.holds(), (0, 0));
                        1
                    })
                }
            });
            let mut had = 0;
            for (number, magazine) in shared.magazines.iter().enumerate() {
                put(&shared.place, magazine);
                // SAFETY: the magazines are there until the end.
                let kept = unsafe { kept(&shared.place) }.expect("put there");
                assert!(shared.put_in(kept, number), "it is full");
                if take_out(&shared.place) {
                    had += 1;
                    let (bytes, blocks) = kept.holds();
                    let mut left = 0;
                    kept.each(&mut |block: Left| {
                        left += 1;
                        shared.release(block.address);
                    });
                    assert_eq!((bytes, blocks), (left * 100, left));
                }
            }
            assert_eq!(had + other.join().unwrap(), 2);
            // SAFETY: the other thread has ended.
            let sums = shared.blocks.each_ref().map(|block| block.with(|block| unsafe { *block }));
            assert_eq!(sums, [11, 11]);
        });
    }
}

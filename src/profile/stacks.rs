//! Call stacks, each kept once, in pages of our own that only grow.
//!
//! A table of hashes leads to an arena of words in which the stacks stand one behind the other, so
//! that as many pages are touched as the stacks need. Stacks are put in inside allocations: there is no
//! lock, and where there is no space the stack has no number.

use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sys;
use std::ptr;

/// The most frames of a stack.
pub(super) const MOST_FRAMES: usize = 128;

/// Entries of the table: 512 KiB.
const ENTRIES: usize = 1 << 16;
/// Entries that are tried before a stack is given up; the first ones in a small part of the table, lest
/// each stack touch a page of its own.
const TRIES: usize = 64;
const FIRST_TRIES: usize = 16;
const FIRST_ENTRIES: usize = 1 << 12;
/// Words of a chunk of the arena, 256 KiB, and chunks: 64 MiB.
const CHUNK: usize = 1 << 15;
const CHUNKS: usize = 256;

/// The upper half of a stack's hash, and where it stands in the arena, counted from 1; 0 for none.
struct Table([AtomicU64; ENTRIES]);

struct Chunk([AtomicUsize; CHUNK]);

static TABLE: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());
static ARENA: [AtomicPtr<Chunk>; CHUNKS] = [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];
/// Words of the arena that are taken. The first one is nobody's, since 0 is no number.
static TAKEN: AtomicU32 = AtomicU32::new(1);

/// Stacks that there was no space for.
static DROPPED: AtomicU64 = AtomicU64::new(0);

pub(super) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Returns the number of a call stack; 0 for an empty one, and where there is no space for another, which is
/// counted.
pub(super) fn number(frames: &[usize]) -> u32 {
    let number = find_or_put(frames);
    if number == 0 {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
    number
}

fn find_or_put(frames: &[usize]) -> u32 {
    // SAFETY: all atomics, for which zeros are valid; only this fills the place.
    let Some(table) = (unsafe { sys::get_or_map(&TABLE) }) else { return 0 };
    if frames.is_empty() || frames.len() > MOST_FRAMES {
        return 0;
    }
    let hash = hash(frames);
    let mut own = 0;
    for attempt in 0..TRIES {
        let place = (hash as usize).wrapping_add(attempt);
        let entry = &table.0[if attempt < FIRST_TRIES {
            place % FIRST_ENTRIES
        } else {
            FIRST_ENTRIES + place % (ENTRIES - FIRST_ENTRIES)
        }];
        let mut word = entry.load(Ordering::Acquire);
        if word == 0 {
            if own == 0 {
                own = put(frames);
            }
            if own == 0 {
                return 0;
            }
            let new = hash & UPPER | u64::from(own);
            match entry.compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return own,
                // Another thread's, which may have the same stack. Ours stays in the arena, unused.
                Err(first) => word = first,
            }
        }
        if word & UPPER == hash & UPPER && get(word as u32).eq(frames.iter().copied()) {
            return word as u32;
        }
    }
    0
}

/// Iterates over the frames of the stack with that number: return addresses, the innermost first.
pub(super) fn get(number: u32) -> impl ExactSizeIterator<Item = usize> {
    let words = chunk(number).map_or(&[][..], |chunk| &chunk.0[number as usize % CHUNK..]);
    let length = words.first().map_or(0, |length| length.load(Ordering::Relaxed));
    let frames = words.get(1..).and_then(|rest| rest.get(..length)).unwrap_or_default();
    frames.iter().map(|frame| frame.load(Ordering::Relaxed))
}

const UPPER: u64 = !(u32::MAX as u64);

/// Puts a stack into the arena. Whoever finds its number in the table sees it whole.
fn put(frames: &[usize]) -> u32 {
    let length = frames.len() + 1;
    let mut taken = TAKEN.load(Ordering::Relaxed);
    loop {
        // What does not fit into a chunk begins the next one.
        let left = CHUNK - taken as usize % CHUNK;
        let start = if left < length { taken as usize + left } else { taken as usize };
        if start / CHUNK >= CHUNKS {
            return 0;
        }
        // SAFETY: all atomics, for which zeros are valid; only this fills the place.
        if unsafe { sys::get_or_map(&ARENA[start / CHUNK]) }.is_none() {
            return 0;
        }
        let end = (start + length) as u32;
        match TAKEN.compare_exchange_weak(taken, end, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                let Some(chunk) = chunk(start as u32) else { return 0 };
                let words = &chunk.0[start % CHUNK..];
                words[0].store(frames.len(), Ordering::Relaxed);
                words[1..].iter().zip(frames).for_each(|(word, &frame)| word.store(frame, Ordering::Relaxed));
                return start as u32;
            }
            Err(now) => taken = now,
        }
    }
}

fn chunk(number: u32) -> Option<&'static Chunk> {
    let place = ARENA.get(number as usize / CHUNK).filter(|_| number != 0)?;
    // SAFETY: chunks are never unmapped.
    unsafe { place.load(Ordering::Acquire).as_ref() }
}

fn hash(frames: &[usize]) -> u64 {
    let mixed = frames.iter().fold(frames.len() as u64, |hash, &frame| {
        (hash.rotate_left(23) ^ frame as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    });
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn stack(seed: usize) -> Vec<usize> {
        (0..1 + seed % MOST_FRAMES).map(|i| (seed + 1) * 1_000_003 + i * 7).collect()
    }

    #[test]
    fn each_stack_has_one_number_and_reads_back() {
        let numbers: Vec<HashMap<usize, u32>> = std::thread::scope(|threads| {
            let threads: Vec<_> = (0..4)
                .map(|_| threads.spawn(|| (0..20_000).map(|seed| (seed, number(&stack(seed)))).collect()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (&seed, &number) in &numbers[0] {
            assert!(number != 0);
            assert!(numbers.iter().all(|others| others[&seed] == number));
            assert!(get(number).eq(stack(seed)), "{seed}");
        }
    }

    #[test]
    fn what_is_no_stack_has_no_number() {
        assert_eq!(number(&[]), 0);
        assert_eq!(number(&[1; MOST_FRAMES + 1]), 0);
        assert_eq!(get(0).len(), 0);
        assert_eq!(get(u32::MAX).len(), 0);
    }
}

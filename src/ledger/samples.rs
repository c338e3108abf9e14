//! The table of live samples: blocks whose cookie names an entry here instead of a slot.
//!
//! An entry is taken and given back without a lock, inside allocations and frees, from a list of free
//! ones. Entries are in chunks that are mapped when they are needed and stay. A reader looks at all
//! of them while others come and go: each has a number that changes whenever it does.

use crate::ledger::slots::{self, Record};
use crate::owner::{Named, SampleId, Slot};
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence, nulls, shared};
use crate::sys;
use std::iter;

/// A sampled block, as a reader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// The owner, which the block keeps.
    pub(crate) slot: Slot,
    /// Which of the services that have had the slot.
    pub(crate) generation: u64,
    /// The bytes that it was sampled for.
    pub(crate) size: u64,
    /// How many more it is charged with, or fewer: of C's blocks, whose cookies are part of a size class.
    pub(crate) more: i32,
    /// The mean distance of samples when it was allocated, in bytes.
    pub(crate) interval: u64,
    /// The number of the call stack; 0 for none.
    pub(crate) stack: u32,
}

/// How many samples there can be: 64 MiB of them.
pub(crate) const MOST: u32 = if cfg!(dogtag_loom) { 2 } else { MOST_INDEX };
const CHUNK: usize = if cfg!(dogtag_loom) { 1 } else { 1 << 12 };
const CHUNKS: usize = MOST as usize / CHUNK;
const _: () = assert!(MOST <= SampleId::GUARDED.index() as u32);

#[repr(C, align(64))]
#[cfg_attr(dogtag_loom, derive(Default))]
struct Entry {
    /// Odd while the sample is live; each change adds one.
    version: AtomicU64,
    /// The block's address; 0 unless the sample is live.
    block: AtomicUsize,
    generation: AtomicU64,
    size: AtomicU64,
    interval: AtomicU64,
    slot: AtomicU32,
    stack: AtomicU32,
    more: AtomicU32,
    /// While it is free: one more than the index of the next one.
    next_free: AtomicU32,
}

struct Chunk([Entry; CHUNK]);

#[cfg(dogtag_loom)]
impl Default for Chunk {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Entry::default()))
    }
}

shared! {
    static TABLE: [AtomicPtr<Chunk>; CHUNKS] = nulls!(CHUNKS);

    /// The first index that was never used.
    static NEXT: AtomicU32 = AtomicU32::new(0);

    /// The top of the free ones: one more than its index, and above it a counter, so that nobody takes a
    /// top for the one that he has seen before.
    static FREE: AtomicU64 = AtomicU64::new(0);

    /// Samples that there was no space for.
    static DROPPED: AtomicU64 = AtomicU64::new(0);
}

/// The part of [`FREE`] that is an index: the counter has 43 bits, which are days of nothing but
/// sampled blocks that come and go.
const INDEX: u64 = 2 * MOST_INDEX as u64 - 1;
const CHANGE: u64 = INDEX + 1;
/// What `MOST` is without loom.
const MOST_INDEX: u32 = 1 << 20;

/// Reserves an entry. `None`, which is counted, where all are taken or the system has no memory.
pub(crate) fn reserve() -> Option<SampleId> {
    let sample = pop_free().or_else(fresh);
    if sample.is_none() {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
    sample
}

/// Makes a reserved entry a live block's sample.
pub(crate) fn publish(sample: SampleId, block: *mut u8, what: Sample) {
    let Some(entry) = entry(sample) else { return };
    // What a reader sees of this comes after the end of the sample before.
    fence(Ordering::Release);
    entry.generation.store(what.generation, Ordering::Relaxed);
    entry.size.store(what.size, Ordering::Relaxed);
    entry.interval.store(what.interval, Ordering::Relaxed);
    entry.slot.store(what.slot.index() as u32, Ordering::Relaxed);
    entry.stack.store(what.stack, Ordering::Relaxed);
    entry.more.store(what.more.cast_unsigned(), Ordering::Relaxed);
    entry.block.store(block.addr(), Ordering::Relaxed);
    entry.version.store(entry.version.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
}

/// Gives an entry back: of a block that is freed, or of none.
pub(crate) fn release(sample: SampleId) {
    let Some(entry) = entry(sample) else { return };
    let version = entry.version.load(Ordering::Relaxed);
    if !version.is_multiple_of(2) {
        entry.block.store(0, Ordering::Relaxed);
        entry.version.store(version.wrapping_add(1), Ordering::Relaxed);
    }
    let mut top = FREE.load(Ordering::Relaxed);
    loop {
        entry.next_free.store((top & INDEX) as u32, Ordering::Relaxed);
        let new = (top & !INDEX).wrapping_add(CHANGE) | (sample.index() as u64 + 1);
        match FREE.compare_exchange_weak(top, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => top = now,
        }
    }
}

/// The service that a live block names, and its sample if it is a sampled one; `None` for the service
/// if what the block names cannot be believed.
#[inline]
pub fn owner(named: Option<Named>, block: *const u8) -> (Option<&'static Record>, Option<SampleId>) {
    match named {
        None => (None, None),
        Some(Named::Slot(slot)) => (slots::record(slot), None),
        Some(Named::Sample(sample)) => sampled(sample, block),
    }
}

#[cold]
fn sampled(sample: SampleId, block: *const u8) -> (Option<&'static Record>, Option<SampleId>) {
    // Its own block's free has seen what was written when it was allocated.
    let own = entry(sample).filter(|entry| entry.block.load(Ordering::Relaxed) == block.addr());
    let slot = own.and_then(|entry| Slot::new(entry.slot.load(Ordering::Relaxed)));
    match slot.and_then(slots::record) {
        Some(record) => (Some(record), Some(sample)),
        None => (None, None),
    }
}

/// Calls `each` for every live sample. Those that come and go meanwhile may be among them or not.
pub(crate) fn for_each(mut each: impl FnMut(Sample)) {
    let end = NEXT.load(Ordering::Acquire).min(MOST);
    for entry in (0..end).filter_map(SampleId::new).filter_map(entry) {
        let version = entry.version.load(Ordering::Acquire);
        if version.is_multiple_of(2) {
            continue;
        }
        let sample = Sample {
            slot: Slot::new(entry.slot.load(Ordering::Relaxed)).unwrap_or(Slot::UNATTRIBUTED),
            generation: entry.generation.load(Ordering::Relaxed),
            size: entry.size.load(Ordering::Relaxed),
            more: entry.more.load(Ordering::Relaxed).cast_signed(),
            interval: entry.interval.load(Ordering::Relaxed),
            stack: entry.stack.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        if entry.version.load(Ordering::Relaxed) == version {
            each(sample);
        }
    }
}

/// Samples that there was no space for, since the process began.
pub(crate) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// How full the table of samples is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Entries that were ever used.
    pub used: u64,
    /// Those of live blocks.
    pub live: u64,
    /// Those of them whose owner has ended, which it cannot have while its block is live.
    pub orphaned: u64,
    /// Those that the next samples get. What is neither belongs to a thread that allocates or frees just now.
    pub free: u64,
}

/// Looks at the table of samples. It is true while nobody takes or gives back any.
pub fn tables() -> Tables {
    let used = NEXT.load(Ordering::Acquire);
    let (mut live, mut orphaned) = (0, 0);
    for_each(|sample| {
        let is_its = |record: &&Record| record.generation() == sample.generation;
        live += 1;
        orphaned += u64::from(slots::record(sample.slot).filter(is_its).is_none());
    });
    let top = FREE.load(Ordering::Acquire) & INDEX;
    let sample = |place: u64| SampleId::new((place as u32).checked_sub(1)?);
    let next = |place: &u64| Some(u64::from(entry(sample(*place)?)?.next_free.load(Ordering::Relaxed)));
    // There are no more; a list that changes meanwhile might lead on for ever.
    let free = iter::successors(Some(top), next).take_while(|place| *place != 0).take(used as usize).count();
    Tables { used: used.into(), live, orphaned, free: free as u64 }
}

fn entry(sample: SampleId) -> Option<&'static Entry> {
    let (chunk, index) = (sample.index() / CHUNK, sample.index() % CHUNK);
    // SAFETY: chunks are never unmapped.
    let chunk: &'static Chunk = unsafe { TABLE.get(chunk)?.load(Ordering::Acquire).as_ref() }?;
    Some(&chunk.0[index])
}

fn pop_free() -> Option<SampleId> {
    let mut top = FREE.load(Ordering::Acquire);
    loop {
        let sample = SampleId::new(((top & INDEX) as u32).checked_sub(1)?)?;
        // Another thread may have taken it just now; entries stay, so it can be looked at.
        let next = u64::from(entry(sample)?.next_free.load(Ordering::Relaxed));
        let new = (top & !INDEX).wrapping_add(CHANGE) | next;
        match FREE.compare_exchange_weak(top, new, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => return Some(sample),
            Err(now) => top = now,
        }
    }
}

fn fresh() -> Option<SampleId> {
    let mut index = NEXT.load(Ordering::Relaxed);
    loop {
        let sample = SampleId::new(index).filter(|_| index < MOST)?;
        // SAFETY: atomics only, for which zeros are valid; only this fills the table.
        unsafe { sys::get_or_map(&TABLE[sample.index() / CHUNK]) }?;
        match NEXT.compare_exchange_weak(index, index + 1, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return Some(sample),
            Err(now) => index = now,
        }
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use crate::ledger::slots::UNATTRIBUTED;
    use std::collections::HashSet;
    use std::ptr;

    fn sample(size: u64) -> Sample {
        Sample { slot: Slot::UNATTRIBUTED, generation: 1, size, more: 0, interval: 1 << 19, stack: 7 }
    }

    fn live(stack: u32) -> Vec<u64> {
        let mut sizes = Vec::new();
        for_each(|sample| sizes.extend((sample.stack == stack).then_some(sample.size)));
        sizes.sort_unstable();
        sizes
    }

    #[test]
    fn what_is_published_is_found_until_it_is_released() {
        let samples: Vec<_> = (0..10_000).map(|_| reserve().unwrap()).collect();
        assert_eq!(samples.iter().map(|sample| sample.index()).collect::<HashSet<_>>().len(), 10_000);
        assert!(live(7).is_empty());
        let block = |i: usize| ptr::without_provenance_mut::<u8>(0x1000 + i * 16);
        for (i, &id) in samples.iter().enumerate() {
            publish(id, block(i), sample(i as u64));
        }
        assert_eq!(live(7), (0..10_000).collect::<Vec<_>>());
        let named = Named::Sample(samples[17]);
        let (record, id) = owner(Some(named), block(17));
        assert!(record.is_some_and(|record| ptr::eq(record, &UNATTRIBUTED)) && id == Some(samples[17]));
        // Another block that names it has been overwritten.
        assert!(owner(Some(named), block(18)).0.is_none());
        samples.iter().step_by(2).copied().for_each(release);
        assert_eq!(live(7), (1..10_000).step_by(2).collect::<Vec<_>>());
        assert!(owner(Some(Named::Sample(samples[16])), block(16)).0.is_none());
        // One of a service that has ended. (Other tests sample, too.)
        let orphan = reserve().unwrap();
        publish(orphan, block(10_000), Sample { generation: 99, ..sample(1) });
        let tables = tables();
        assert!(tables.used >= 10_000 && tables.live > 5_000 && tables.orphaned >= 1, "{tables:?}");
        release(orphan);
        samples.iter().skip(1).step_by(2).copied().for_each(release);
        assert!(live(7).is_empty());
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::model;
    use loom::thread;
    use std::ptr;

    /// Two threads take, publish and release samples, of which there are two; a reader sees whole ones.
    #[test]
    fn samples_are_one_blocks_and_seen_whole() {
        model(|| {
            let turn = |number: u64| {
                for round in 0..2 {
                    let id = reserve().expect("there are as many as threads");
                    let size = number * 10 + round;
                    let (slot, generation, interval) = (Slot::UNATTRIBUTED, size, size);
                    let sample = Sample { slot, generation, size, more: 0, interval, stack: 0 };
                    let block = ptr::without_provenance_mut(size as usize + 1);
                    publish(id, block, sample);
                    assert!(owner(Some(Named::Sample(id)), block).0.is_some());
                    release(id);
                }
            };
            let other = thread::spawn(move || turn(1));
            for_each(|sample| {
                assert_eq!((sample.generation, sample.interval), (sample.size, sample.size));
            });
            turn(2);
            other.join().unwrap();
            for_each(|_| panic!("all are released"));
        });
    }

    /// A thread takes two free entries and gives the first one back, so that the top of the list looks untouched
    /// while what was below it is in use.
    #[test]
    fn a_free_entry_is_taken_once() {
        model(|| {
            let [a, b] = [reserve(), reserve()].map(|id| id.expect("there are two"));
            release(b);
            release(a);
            let other = thread::spawn(|| {
                let [first, second] = [reserve(), reserve()];
                first.into_iter().for_each(release);
                second
            });
            let own = [reserve(), reserve()];
            let others = other.join().unwrap();
            let taken: Vec<_> = own.into_iter().chain([others]).flatten().collect();
            assert!((1..taken.len()).all(|i| !taken[..i].contains(&taken[i])), "{taken:?}");
        });
    }
}

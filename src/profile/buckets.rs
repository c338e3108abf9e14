//! What was allocated since sampling began, by service and call stack: sums that only grow.
//!
//! The sums of a service that has ended go to all ended ones together, when its slot's next service is
//! met with the same stack. So there are no more of them than slots that were in use at once, and
//! programs in which services come and go for months fill nothing up.

use crate::ledger::samples::Sample;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::sys;
use std::ptr;

/// What was sampled of one service and stack, as estimates of what there was.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pub(super) samples: u64,
    pub(super) objects: f64,
    pub(super) bytes: f64,
    pub(super) objects_variance: f64,
    pub(super) bytes_variance: f64,
}

impl Sums {
    /// What one sample stands for: [`weight`] of its kind, of which it is itself one.
    pub(super) fn of(sample: &Sample) -> Self {
        let (weight, size) = (weight(sample.size, sample.interval), sample.size as f64);
        let variance = weight * (weight - 1.0);
        Self {
            samples: 1,
            objects: weight,
            // Those that were not sampled are charged with `size`.
            bytes: weight * size + f64::from(sample.more),
            objects_variance: variance,
            bytes_variance: variance * size * size,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.objects_variance += other.objects_variance;
        self.bytes_variance += other.bytes_variance;
    }
}

/// How many blocks a sampled one of that size stands for: the inverse of its probability.
fn weight(size: u64, interval: u64) -> f64 {
    if interval <= 1 {
        return 1.0;
    }
    // Exact where the size is small, unlike 1 - exp.
    let probability = -f64::exp_m1(-(size as f64) / interval as f64);
    if probability > 0.0 { 1.0 / probability } else { 0.0 }
}

/// The sums of one service and stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// The slot; [`ENDED`] for all services that have ended.
    pub(super) slot: u32,
    pub(super) generation: u64,
    pub(super) stack: u32,
    pub(super) sums: Sums,
}

pub(super) const ENDED: u32 = u32::MAX;

/// Buckets that there can be: 8 MiB of them.
const MOST: usize = 1 << 17;
const CHUNK: usize = 1 << 10;
/// Entries that are tried before a sample is dropped; the first ones in a small part of the table, lest
/// each bucket touch a page of its own.
const TRIES: usize = 64;
const FIRST_TRIES: usize = 16;
const FIRST_ENTRIES: usize = 1 << 14;
/// Entries of the table that leads to them: a MiB.
const ENTRIES: usize = 1 << 18;

#[repr(C, align(64))]
struct Entry {
    generation: AtomicU64,
    /// With the stack below, what the table looks for; written before its number is in the table.
    slot: AtomicU32,
    stack: AtomicU32,
    samples: AtomicU64,
    /// Bits of `f64`, all of them.
    sums: [AtomicU64; 4],
}

struct Chunk([Entry; CHUNK]);
struct Table([AtomicU32; ENTRIES]);

static TABLE: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());
static CHUNKS: [AtomicPtr<Chunk>; MOST / CHUNK] = [const { AtomicPtr::new(ptr::null_mut()) }; MOST / CHUNK];
static TAKEN: AtomicU32 = AtomicU32::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Counts a sampled allocation. Called inside of it.
pub(super) fn count(sample: &Sample) {
    let slot = sample.slot.index() as u32;
    let Some(entry) = entry(slot, sample.stack) else {
        DROPPED.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let known = entry.generation.load(Ordering::Relaxed);
    // Of several threads one moves the former service's sums.
    let is_another = known != sample.generation
        && entry
            .generation
            .compare_exchange(known, sample.generation, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
    if is_another && known != 0 {
        let former = entry.take();
        match self::entry(ENDED, sample.stack) {
            Some(ended) => ended.add(&former),
            None => _ = DROPPED.fetch_add(former.samples, Ordering::Relaxed),
        }
    }
    entry.add(&Sums::of(sample));
}

/// Samples that there was no bucket for.
pub(super) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Forgets what was counted.
pub(super) fn reset() {
    let all = 1..=TAKEN.load(Ordering::Acquire).min(MOST as u32);
    all.filter_map(place).for_each(|entry| _ = entry.take());
}

/// Calls `each` for every bucket.
pub(super) fn for_each(mut each: impl FnMut(Bucket)) {
    for number in 1..=TAKEN.load(Ordering::Acquire).min(MOST as u32) {
        let Some(entry) = place(number) else { continue };
        let bucket = Bucket {
            generation: entry.generation.load(Ordering::Relaxed),
            slot: entry.slot.load(Ordering::Relaxed),
            stack: entry.stack.load(Ordering::Relaxed),
            sums: entry.sums(),
        };
        if bucket.sums.samples != 0 {
            each(bucket);
        }
    }
}

impl Entry {
    fn add(&self, sums: &Sums) {
        let add = |sum: &AtomicU64, by: f64| {
            let added = |bits| Some((f64::from_bits(bits) + by).to_bits());
            _ = sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added);
        };
        self.samples.fetch_add(sums.samples, Ordering::Relaxed);
        let by = [sums.objects, sums.bytes, sums.objects_variance, sums.bytes_variance];
        self.sums.iter().zip(by).for_each(|(sum, by)| add(sum, by));
    }

    fn sums(&self) -> Sums {
        let samples = self.samples.load(Ordering::Relaxed);
        Sums::from_parts(samples, self.sums.each_ref().map(|sum| sum.load(Ordering::Relaxed)))
    }

    fn take(&self) -> Sums {
        let samples = self.samples.swap(0, Ordering::Relaxed);
        Sums::from_parts(samples, self.sums.each_ref().map(|sum| sum.swap(0, Ordering::Relaxed)))
    }
}

impl Sums {
    fn from_parts(samples: u64, bits: [u64; 4]) -> Self {
        let [objects, bytes, objects_variance, bytes_variance] = bits.map(f64::from_bits);
        Self { samples, objects, bytes, objects_variance, bytes_variance }
    }
}

/// The entry of a slot and stack, which is made if need be.
fn entry(slot: u32, stack: u32) -> Option<&'static Entry> {
    // SAFETY: all atomics, for which zeros are valid; only this fills the place.
    let table = unsafe { sys::get_or_map(&TABLE) }?;
    let key = u64::from(slot) << 32 | u64::from(stack);
    let mixed = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let start = (mixed ^ mixed >> 32) as usize;
    let is_it = |entry: &&'static Entry| {
        (entry.slot.load(Ordering::Relaxed), entry.stack.load(Ordering::Relaxed)) == (slot, stack)
    };
    for attempt in 0..TRIES {
        let hashed = start.wrapping_add(attempt);
        let place_of_number = &table.0[if attempt < FIRST_TRIES {
            hashed % FIRST_ENTRIES
        } else {
            FIRST_ENTRIES + hashed % (ENTRIES - FIRST_ENTRIES)
        }];
        let mut number = place_of_number.load(Ordering::Acquire);
        if number == 0 {
            let (own, entry) = fresh(slot, stack)?;
            match place_of_number.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(entry),
                // The one that was made stays empty.
                Err(first) => number = first,
            }
        }
        if let Some(entry) = place(number).filter(is_it) {
            return Some(entry);
        }
    }
    None
}

fn fresh(slot: u32, stack: u32) -> Option<(u32, &'static Entry)> {
    let mut taken = TAKEN.load(Ordering::Relaxed);
    loop {
        if taken as usize >= MOST {
            return None;
        }
        // SAFETY: all atomics, for which zeros are valid; only this fills the place.
        unsafe { sys::get_or_map(&CHUNKS[taken as usize / CHUNK]) }?;
        match TAKEN.compare_exchange_weak(taken, taken + 1, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => {
                let entry = place(taken + 1)?;
                entry.slot.store(slot, Ordering::Relaxed);
                entry.stack.store(stack, Ordering::Relaxed);
                return Some((taken + 1, entry));
            }
            Err(now) => taken = now,
        }
    }
}

/// The entry of that number, counted from 1.
fn place(number: u32) -> Option<&'static Entry> {
    let index = number.checked_sub(1)? as usize;
    // SAFETY: chunks are never unmapped.
    let chunk: &'static Chunk = unsafe { CHUNKS.get(index / CHUNK)?.load(Ordering::Acquire).as_ref() }?;
    Some(&chunk.0[index % CHUNK])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::Slot;

    fn sums(slot: u32, generation: Option<u64>, stack: u32) -> Sums {
        let mut found = Sums::default();
        for_each(|bucket| {
            let is_it = bucket.slot == slot && bucket.stack == stack;
            if is_it && generation.is_none_or(|generation| bucket.generation == generation) {
                found.add(&bucket.sums);
            }
        });
        found
    }

    #[test]
    fn what_was_sampled_adds_up_and_outlives_its_service() {
        let slot = Slot::new(4_000_000).unwrap();
        let sample =
            |generation, stack| Sample { slot, generation, size: 100, more: -4, interval: 1000, stack };
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| (0..1000).for_each(|i| count(&sample(7, 1_000_000 + i % 3))));
            }
        });
        let one = Sums::of(&sample(7, 1));
        let of_first = sums(4_000_000, Some(7), 1_000_000);
        assert_eq!(of_first.samples, 4 * 334);
        assert!((of_first.bytes - 1336.0 * one.bytes).abs() < 1e-6 * of_first.bytes);
        // The next service of that slot.
        count(&sample(8, 1_000_000));
        assert_eq!(sums(4_000_000, None, 1_000_000), one);
        let ended = sums(ENDED, None, 1_000_000);
        assert_eq!(ended.samples, 1336);
        assert!((ended.bytes - of_first.bytes).abs() < 1e-6 * ended.bytes);
    }

    #[test]
    fn weights_are_the_inverse_of_the_probability() {
        assert_eq!(weight(8, 1), 1.0);
        assert_eq!(weight(u64::MAX, 1 << 19), 1.0);
        assert!((weight(1 << 19, 1 << 19) - 1.0 / (1.0 - (-1.0_f64).exp())).abs() < 1e-12);
        assert!((weight(1, 1 << 40) / (1_u64 << 40) as f64 - 1.0).abs() < 1e-6);
        assert_eq!(weight(0, 1 << 19), 0.0);
    }
}

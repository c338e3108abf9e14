//! How to get from a frame to its caller's, in a word, and a cache of that for all threads.

use super::memory::Memory;
#[cfg(target_arch = "aarch64")]
use super::registers;
use super::registers::{FP, Registers, SP};
use crate::sync::{AtomicPtr, AtomicU64, Ordering};
use crate::sys;
use std::ptr;

/// How to unwind at an address.
///
/// ```text
/// bits 0-1   the kind
/// bit  2     the frame address (the stack pointer's value before the call) is counted from the frame pointer,
///            not from the stack pointer
/// bits 3-22  by how many words it is above that
/// bits 23-   where registers are saved: words below the frame address, 0 if the register is unchanged
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rule(u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Has it all in its word.
    Simple = 0,
    /// The table has to be read each time: signal frames, stubs of the linker.
    Table = 1,
    /// Nothing is known: by the frame pointer, if there is one.
    FramePointer = 2,
    /// There is no caller.
    End = 3,
}

/// The registers whose places a rule has, and in how many bits each.
#[cfg(target_arch = "x86_64")]
pub(super) const SAVED: [(usize, u32); 6] = [(FP, 5), (3, 5), (12, 5), (13, 5), (14, 5), (15, 5)];
#[cfg(target_arch = "aarch64")]
pub(super) const SAVED: [(usize, u32); 2] = [(registers::RETURN_ADDRESS, 20), (FP, 20)];

/// The highest place on x86-64 has the return address, always.
#[cfg(target_arch = "x86_64")]
const ABOVE: usize = 1;
#[cfg(target_arch = "aarch64")]
const ABOVE: usize = 0;

const OFFSET_BITS: u32 = 20;
const FIRST_PLACE: u32 = 3 + OFFSET_BITS;
const WORD: usize = size_of::<usize>();

impl Rule {
    pub(super) const TABLE: Self = Self(Kind::Table as u64);
    pub(super) const FRAME_POINTER: Self = Self(Kind::FramePointer as u64);
    pub(super) const END: Self = Self(Kind::End as u64);

    /// A rule for a frame whose address is `offset` bytes above `register`, with registers saved at so many bytes
    /// from it. `None` if that does not fit.
    pub(super) fn simple(register: usize, offset: i64, saved: impl Fn(usize) -> Option<i64>) -> Option<Self> {
        let words =
            u64::try_from(offset).ok().filter(|bytes| bytes.is_multiple_of(WORD as u64))? / WORD as u64;
        if !(register == FP || register == SP) || words >= 1 << OFFSET_BITS {
            return None;
        }
        let mut rule = Kind::Simple as u64 | u64::from(register == FP) << 2 | words << 3;
        let mut shift = FIRST_PLACE;
        for (register, bits) in SAVED {
            if let Some(offset) = saved(register) {
                let below = u64::try_from(offset.checked_neg()?).ok()?;
                let place = (below / WORD as u64).checked_sub(ABOVE as u64)?;
                if !below.is_multiple_of(WORD as u64) || place == 0 || place >= 1 << bits {
                    return None;
                }
                rule |= place << shift;
            }
            shift += bits;
        }
        Some(Self(rule))
    }

    pub(super) fn kind(self) -> Kind {
        match self.0 & 3 {
            0 => Kind::Simple,
            1 => Kind::Table,
            2 => Kind::FramePointer,
            _ => Kind::End,
        }
    }

    /// Goes from a frame to its caller's, by a simple rule. `false` where that cannot be read.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(super) fn step(self, registers: &mut Registers, memory: &mut Memory, _exact: bool) -> bool {
        // What the places can reach.
        const REACH: usize = (ABOVE + 31) * WORD;
        let address = self.frame_address(registers);
        if memory.has(address.wrapping_sub(REACH), address) && address.is_multiple_of(WORD) {
            // SAFETY: readable, as it was just asked.
            let read =
                |address| Some(unsafe { ptr::with_exposed_provenance::<usize>(address).read_volatile() });
            return self.restore(registers, address, read);
        }
        self.restore(registers, address, |address| memory.read(address))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn restore(
        self,
        registers: &mut Registers,
        address: usize,
        mut read: impl FnMut(usize) -> Option<usize>,
    ) -> bool {
        let Some(ip) = read(address.wrapping_sub(WORD)) else { return false };
        let mut places = self.0 >> FIRST_PLACE;
        if places != 0 {
            for (register, bits) in SAVED {
                let place = (places & ((1 << bits) - 1)) as usize;
                places >>= bits;
                if place != 0 {
                    let Some(value) = read(address.wrapping_sub((place + ABOVE) * WORD)) else {
                        return false;
                    };
                    registers.by_number[register] = value;
                }
            }
        }
        registers.ip = ip;
        registers.set_sp(address);
        true
    }

    /// Goes from a frame to its caller's, by a simple rule. `false` where that cannot be read.
    #[cfg(target_arch = "aarch64")]
    #[inline]
    pub(super) fn step(self, registers: &mut Registers, memory: &mut Memory, exact: bool) -> bool {
        let address = self.frame_address(registers);
        let mut places = self.0 >> FIRST_PLACE;
        let mut saved = false;
        for (register, bits) in SAVED {
            let place = (places & ((1 << bits) - 1)) as usize;
            places >>= bits;
            if place != 0 {
                let Some(value) = memory.read(address.wrapping_sub((place + ABOVE) * WORD)) else {
                    return false;
                };
                registers.by_number[register] = value;
                saved |= register == registers::RETURN_ADDRESS;
            }
        }
        // Who has called somebody has saved it, except the first function of all.
        if !saved && !exact {
            return false;
        }
        registers.ip = registers::without_signature(registers.by_number[registers::RETURN_ADDRESS]);
        registers.set_sp(address);
        true
    }

    #[inline(always)]
    fn frame_address(self, registers: &Registers) -> usize {
        let from = if self.0 & 4 != 0 { registers.fp() } else { registers.sp() };
        from.wrapping_add(((self.0 >> 3) & ((1 << OFFSET_BITS) - 1)) as usize * WORD)
    }
}

/// 128 KiB, in pages that are touched when they are used.
const BUCKETS: usize = 2048;
const IN_BUCKET: usize = 4;

/// A line of the processor's cache.
#[repr(C, align(64))]
struct Bucket([Entry; IN_BUCKET]);

/// An address with its rule. The key is stored together with the rule (`key ^ rule`): what two threads wrote at once, half
/// each, is nobody's entry then.
struct Entry {
    mixed: AtomicU64,
    rule: AtomicU64,
}

struct Cache([Bucket; BUCKETS]);

static CACHE: AtomicPtr<Cache> = AtomicPtr::new(ptr::null_mut());

pub(super) fn prepare() {
    // SAFETY: zeros are valid atomics, and only this fills the place. Without memory, each rule is looked up.
    unsafe { sys::get_or_map(&CACHE) };
}

fn bucket(key: u64) -> Option<(&'static Bucket, usize)> {
    // SAFETY: what is mapped there stays.
    let cache = unsafe { CACHE.load(Ordering::Acquire).as_ref() }?;
    let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Some((&cache.0[(hash >> 53) as usize % BUCKETS], (hash >> 51) as usize % IN_BUCKET))
}

/// Never 0, which stands in an entry that is free. The same address in other libraries is another key.
fn key(generation: u16, place: usize) -> u64 {
    place as u64 ^ u64::from(generation) << 48
}

/// The rule for an address, if it is known.
#[inline]
pub(super) fn get(generation: u16, place: usize) -> Option<Rule> {
    let key = key(generation, place);
    let (bucket, _) = bucket(key)?;
    for entry in &bucket.0 {
        let rule = entry.rule.load(Ordering::Relaxed);
        if entry.mixed.load(Ordering::Relaxed) ^ rule == key {
            return Some(Rule(rule));
        }
    }
    None
}

pub(super) fn insert(generation: u16, place: usize, rule: Rule) {
    let key = key(generation, place);
    let Some((bucket, victim)) = bucket(key) else { return };
    let free =
        |entry: &&Entry| entry.mixed.load(Ordering::Relaxed) == 0 && entry.rule.load(Ordering::Relaxed) == 0;
    let entry = bucket.0.iter().find(free).unwrap_or(&bucket.0[victim]);
    entry.rule.store(rule.0, Ordering::Relaxed);
    entry.mixed.store(key ^ rule.0, Ordering::Relaxed);
}

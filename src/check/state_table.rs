//! Where the state of every block is kept: a byte for each 16 bytes of the
//! address space in which blocks have been, beside the heap, so that nothing
//! that is written past a block's end can reach it.
//!
//! A free looks here before it looks at the pointer's memory. So a pointer that
//! was never handed out is not followed.

use super::block::ALIGN;
use super::state::{Entry, State};
use crate::sync::AtomicPtr;
use crate::sync::Ordering;
use crate::sys;
use std::ops::RangeInclusive;
use std::ptr;

/// The entry for an address; `None` where no block can begin, or ever began
/// nearby.
#[inline]
pub(crate) fn entry(address: usize) -> Option<&'static Entry> {
    let (root, middle, leaf) = position(address)?;
    // SAFETY: tables are never unmapped.
    unsafe {
        Some(
            &TABLE[root].load(Ordering::Acquire).as_ref()?.0[middle].load(Ordering::Acquire).as_ref()?.0
                [leaf],
        )
    }
}

/// The same, with a table mapped if need be; `None` when the operating system
/// gives no memory for it.
#[inline]
pub(crate) fn entry_or_map(address: usize) -> Option<&'static Entry> {
    let (root, middle, leaf) = position(address)?;
    // SAFETY: all atomics, for which zeros are valid.
    unsafe { Some(&sys::get_or_map(&sys::get_or_map(&TABLE[root])?.0[middle])?.0[leaf]) }
}

/// Calls `each` with the address and the entry of every block there is.
pub(crate) fn for_each(each: impl FnMut(usize, &'static Entry)) {
    for_each_in(0..=usize::MAX, each);
}

/// The same of the blocks that begin from the first of these addresses to the last.
pub(crate) fn for_each_in(addresses: RangeInclusive<usize>, mut each: impl FnMut(usize, &'static Entry)) {
    /// Entries that are looked at together: nearly all are for no block.
    const RUN: usize = 16;

    let mut next = addresses.start().div_ceil(ALIGN);
    let end = addresses.end().saturating_add(1).div_ceil(ALIGN).min(ROOTS * MIDDLES * LEAVES);
    while next < end {
        let (root, middle, first) = split(next);
        // SAFETY: tables are never unmapped.
        let Some(middles) = (unsafe { TABLE[root].load(Ordering::Acquire).as_ref() }) else {
            next = (root + 1) * MIDDLES * LEAVES;
            continue;
        };
        let start = next - first;
        // SAFETY: tables are never unmapped.
        if let Some(leaf) = unsafe { middles.0[middle].load(Ordering::Acquire).as_ref() } {
            let entries = &leaf.0[first..LEAVES.min(end - start)];
            for (run, entries) in entries.chunks(RUN).enumerate() {
                if !Entry::is_any_set(entries) {
                    continue;
                }
                for (index, entry) in entries.iter().enumerate() {
                    if entry.get() != State::None {
                        each((next + run * RUN + index) * ALIGN, entry);
                    }
                }
            }
        }
        next = start + LEAVES;
    }
}

/// The nearest block that begins below an address, no further down than
/// [`REACH`].
pub(crate) fn below(address: usize) -> Option<(usize, &'static Entry)> {
    let mut candidate = address / ALIGN * ALIGN;
    let end = candidate.saturating_sub(REACH);
    while candidate > end {
        match entry(candidate) {
            Some(entry) if entry.get() != State::None => return Some((candidate, entry)),
            Some(_) => candidate -= ALIGN,
            // No table: on to the last address of the one before.
            None => candidate = (candidate / (LEAVES * ALIGN) * (LEAVES * ALIGN)).checked_sub(ALIGN)?,
        }
    }
    None
}

/// How far [`below`] looks: 256 MiB.
const REACH: usize = 256 << 20;

/// Bits of an address that a process of this size of word can have.
const ADDRESS_BITS: u32 = 48;
/// Entries in a leaf: 64 KiB for a MiB of addresses.
const LEAVES: usize = 1 << 16;
/// Leaves in a middle table: 32 KiB for 4 GiB.
const MIDDLES: usize = 1 << 12;
const ROOTS: usize = 1 << (ADDRESS_BITS - 32);
const _: () = assert!(ROOTS * MIDDLES * LEAVES * ALIGN == 1 << ADDRESS_BITS);

struct Leaf([Entry; LEAVES]);
struct Middle([AtomicPtr<Leaf>; MIDDLES]);

static TABLE: [AtomicPtr<Middle>; ROOTS] = [const { AtomicPtr::new(ptr::null_mut()) }; ROOTS];

#[inline]
fn position(address: usize) -> Option<(usize, usize, usize)> {
    if !address.is_multiple_of(ALIGN) || address >> ADDRESS_BITS != 0 {
        return None;
    }
    Some(split(address / ALIGN))
}

#[inline]
fn split(index: usize) -> (usize, usize, usize) {
    (index / LEAVES / MIDDLES, index / LEAVES % MIDDLES, index % LEAVES)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses that no program has blocks at: the tests of this crate are not checked.
    const MIB: usize = LEAVES * ALIGN;
    const START: usize = (3 << 32) - 2 * MIB;

    fn found(addresses: RangeInclusive<usize>) -> Vec<usize> {
        let mut found = Vec::new();
        for_each_in(addresses, |address, _| found.push(address));
        found
    }

    #[test]
    fn a_range_is_looked_through_from_its_first_address_to_its_last() {
        // From one root's tables to the next one's, with a leaf between that is not there.
        let addresses = [START, START + 16, START + MIB - 16, START + 2 * MIB, START + 4 * MIB + 160];
        let set = |state| addresses.iter().for_each(|at| entry_or_map(*at).expect("memory").set(state));
        set(State::Live);
        assert_eq!(found(START..=START + 5 * MIB), addresses);
        for (first, from) in addresses.iter().enumerate() {
            for (last, to) in addresses.iter().enumerate().skip(first) {
                assert_eq!(found(*from..=*to), addresses[first..=last]);
                assert_eq!(found(from - 15..=to + 15), addresses[first..=last]);
                assert!(
                    found(from + 1..=to - 1).iter().eq(addresses.get(first + 1..last).into_iter().flatten())
                );
            }
        }
        assert_eq!(found(RangeInclusive::new(usize::MAX, 0)), []);
        let mut all = Vec::new();
        for_each(|address, _| all.push(address));
        assert!(addresses.iter().all(|address| all.contains(address)));
        set(State::None);
        assert_eq!(found(START..=START + 5 * MIB), []);
    }
}

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
pub(crate) fn for_each(mut each: impl FnMut(usize, &'static Entry)) {
    for (root, middles) in TABLE.iter().enumerate() {
        // SAFETY: tables are never unmapped.
        let Some(middles) = (unsafe { middles.load(Ordering::Acquire).as_ref() }) else { continue };
        for (middle, leaf) in middles.0.iter().enumerate() {
            // SAFETY: tables are never unmapped.
            let Some(leaf) = (unsafe { leaf.load(Ordering::Acquire).as_ref() }) else { continue };
            for (index, entry) in leaf.0.iter().enumerate() {
                if entry.get() != State::None {
                    each(((root * MIDDLES + middle) * LEAVES + index) * ALIGN, entry);
                }
            }
        }
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
    let index = address / ALIGN;
    Some((index / LEAVES / MIDDLES, index / LEAVES % MIDDLES, index % LEAVES))
}

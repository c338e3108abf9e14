//! Where the state of every block is kept: a byte for each 16 bytes of the
//! address space in which blocks have been, beside the heap, so that nothing
//! that is written past a block's end can reach it.
//!
//! A free looks here before it looks at the pointer's memory. So a pointer that
//! was never handed out is not followed.
//!
//! A fork copies what maps these tables, so a page of them in which there is no block any more is
//! given back to the operating system at the next fork. That is known by a count of the blocks
//! for [each page](counts).

mod counts;
#[cfg(test)]
mod tests;

pub(crate) use counts::{Credits, Vacancies};

use super::block::ALIGN;
use super::block_state::{self, Entry, EntryTable, State};
use crate::sync::{AtomicPtr, AtomicUsize, Ordering};
use crate::sys;
use counts::{Page, count_in};
use std::ops::{Range, RangeInclusive};
use std::ptr;

/// The entry for an address; `None` where no block can begin, or ever began
/// nearby.
#[inline]
pub(crate) fn entry(address: usize) -> Option<&'static Entry> {
    let (root, middle, leaf) = position(address)?;
    // SAFETY: tables are never unmapped.
    unsafe {
        Some(
            &TABLE[root].load(Ordering::Acquire).as_ref()?.leaves[middle].load(Ordering::Acquire).as_ref()?.0
                [leaf],
        )
    }
}

/// Has the processor fetch an entry.
#[inline]
pub(crate) fn prefetch(entry: Option<&'static Entry>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(entry) = entry {
        // SAFETY: a hint, which any address will do for.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(ptr::from_ref(entry).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = entry;
}

/// The entry for a block that is about to be handed out, with a table mapped if need be. It is
/// counted until it is [vacated](vacate). `None` when the operating system gives no memory for it.
/// The credits must be the calling thread's own.
#[inline(always)]
pub(crate) fn occupy(address: usize, credits: Option<Credits>) -> Option<&'static Entry> {
    let (root, middle, leaf) = position(address)?;
    // SAFETY: all atomics, for which zeros are valid.
    unsafe {
        let middles = sys::get_or_map(&TABLE[root])?;
        let known = middles.leaves[middle].load(Ordering::Acquire);
        let leaves = match known.as_ref() {
            Some(leaves) => leaves,
            None => map_leaf(middles, root, middle)?,
        };
        if credits.is_none_or(|credits| !credits.spend(address)) {
            count_in(&middles.pages[page_of(middle, leaf)], address, credits);
        }
        Some(&leaves.0[leaf])
    }
}

#[cold]
fn map_leaf(middles: &'static Middle, root: usize, middle: usize) -> Option<&'static Leaf> {
    block_state::set_table(&ENTRIES);
    let number = root * MIDDLES + middle;
    FIRST.fetch_min(number, Ordering::Relaxed);
    END.fetch_max(number + 1, Ordering::Relaxed);
    MAPPED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: all atomics, for which zeros are valid.
    unsafe { sys::get_or_map(&middles.leaves[middle]) }
}

/// Makes the entry of a block that has been seized one of no block.
#[inline]
pub(crate) fn vacate(address: usize, entry: &'static Entry) {
    entry.set(State::None);
    vacated(address, 1);
}

/// Counts so many blocks of an address's page out, whose entries have been set so.
#[inline]
pub(crate) fn vacated(address: usize, number: u32) {
    let Some((root, middle, leaf)) = position(address).filter(|_| number != 0) else { return };
    // SAFETY: tables are never unmapped.
    if let Some(middles) = unsafe { TABLE[root].load(Ordering::Acquire).as_ref() } {
        middles.pages[page_of(middle, leaf)].count_out(number);
    }
}

/// How many leaves there are, each for a MiB of addresses.
pub(crate) fn leaves() -> usize {
    MAPPED.load(Ordering::Relaxed)
}

/// Gives the pages back that were written to and have no block in them. By one thread at a time.
pub(crate) fn give_back() {
    let mut next = FIRST.load(Ordering::Relaxed)..END.load(Ordering::Relaxed);
    while let Some(number) = next.next() {
        let (root, middle) = (number / MIDDLES, number % MIDDLES);
        // SAFETY: tables are never unmapped.
        let Some(middles) = (unsafe { TABLE[root].load(Ordering::Acquire).as_ref() }) else {
            next.start = (root + 1) * MIDDLES;
            continue;
        };
        // SAFETY: tables are never unmapped.
        if let Some(leaf) = unsafe { middles.leaves[middle].load(Ordering::Acquire).as_ref() } {
            leaf.give_back(&middles.pages[middle * PAGES..][..PAGES]);
        }
    }
}

/// Calls `each` with the address and the entry of every block there is.
pub(crate) fn for_each(each: impl FnMut(usize, &'static Entry)) {
    for_each_in(0..=usize::MAX, each);
}

static ENTRIES: EntryTable = EntryTable { for_each: |each| for_each(|_, entry| each(entry)) };

/// Calls `each` for the blocks that begin from the first of these addresses to the last.
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
        if let Some(leaf) = unsafe { middles.leaves[middle].load(Ordering::Acquire).as_ref() } {
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

/// Notes how far a block reaches, so that [`covering`] finds it from every address in it.
#[inline]
pub(crate) fn cover(start: usize, end: usize) {
    if start / STRETCH != end / STRETCH {
        cover_pages(start / STRETCH + 1..=end.min(start.saturating_add(REACH)) / STRETCH);
    }
}

#[cold]
fn cover_pages(pages: RangeInclusive<usize>) {
    for page in pages {
        let (root, middle, leaf) = split(page * PAGE);
        // SAFETY: all atomics, for which zeros are valid.
        let middles = TABLE.get(root).and_then(|table| unsafe { sys::get_or_map(table) });
        let Some(middles) = middles else { return };
        middles.pages[page_of(middle, leaf)].cover();
    }
}

/// The block that begins nearest below an address or at it, if it may reach the address. Where there
/// is no block anywhere near, that takes three loads.
#[inline]
pub(crate) fn covering(address: usize) -> Option<(usize, &'static Entry)> {
    let mut index = address / ALIGN;
    if address >> ADDRESS_BITS != 0 {
        return None;
    }
    let end = index.saturating_sub(REACH / ALIGN);
    while index >= end {
        let (root, middle, leaf) = split(index);
        // SAFETY: tables are never unmapped.
        let middles = unsafe { TABLE[root].load(Ordering::Acquire).as_ref() }?;
        let (blocks, is_covered) = middles.pages[page_of(middle, leaf)].blocks();
        if blocks != 0
            // SAFETY: tables are never unmapped.
            && let Some(leaves) = unsafe { middles.leaves[middle].load(Ordering::Acquire).as_ref() }
            && let Some(found) = leaves.last_set(leaf / PAGE * PAGE, leaf)
        {
            return Some(((index - leaf + found) * ALIGN, &leaves.0[found]));
        }
        if !is_covered {
            return None;
        }
        index = (index / PAGE * PAGE).checked_sub(1)?;
    }
    None
}

/// The first block that begins in a range of addresses.
#[inline]
pub(crate) fn first_in(addresses: Range<usize>) -> Option<(usize, &'static Entry)> {
    let mut index = addresses.start.div_ceil(ALIGN);
    let end = addresses.end.div_ceil(ALIGN).min(ROOTS * MIDDLES * LEAVES);
    while index < end {
        let (root, middle, leaf) = split(index);
        // SAFETY: tables are never unmapped.
        let Some(middles) = (unsafe { TABLE[root].load(Ordering::Acquire).as_ref() }) else {
            index = (root + 1) * MIDDLES * LEAVES;
            continue;
        };
        let next = (index / PAGE + 1) * PAGE;
        if middles.pages[page_of(middle, leaf)].blocks().0 != 0
            // SAFETY: tables are never unmapped.
            && let Some(leaves) = unsafe { middles.leaves[middle].load(Ordering::Acquire).as_ref() }
            && let Some(found) = leaves.first_set(leaf, leaf + (next.min(end) - index) - 1)
        {
            return Some(((index - leaf + found) * ALIGN, &leaves.0[found]));
        }
        index = next;
    }
    None
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

/// How far [`below`] and [`covering`] look: 256 MiB.
pub(crate) const REACH: usize = 256 << 20;

/// Bits of an address that a process of this size of word can have.
const ADDRESS_BITS: u32 = 48;
/// Entries in a leaf: 64 KiB for a MiB of addresses.
const LEAVES: usize = 1 << 16;
/// Leaves in a middle table: 32 KiB for 4 GiB, and 256 KiB for the counts, as far as they are
/// touched.
const MIDDLES: usize = 1 << 12;
/// Entries that are given back together, which is a multiple of the system's page.
const PAGE: usize = if cfg!(target_arch = "x86_64") { 4 << 10 } else { LEAVES };
/// The addresses of those entries.
const STRETCH: usize = PAGE * ALIGN;
/// Entries that are read at once.
const WORD: usize = size_of::<u64>();
/// Pages in a leaf.
const PAGES: usize = LEAVES / PAGE;
const ROOTS: usize = 1 << (ADDRESS_BITS - 32);
const _: () = assert!(ROOTS * MIDDLES * LEAVES * ALIGN == 1 << ADDRESS_BITS);

struct Leaf([Entry; LEAVES]);

struct Middle {
    leaves: [AtomicPtr<Leaf>; MIDDLES],
    pages: [Page; MIDDLES * PAGES],
}

impl Leaf {
    /// The last entry of a block from the first one, which is a multiple of a word's, to the last.
    #[inline]
    fn last_set(&self, first: usize, last: usize) -> Option<usize> {
        let mut word = last / WORD;
        let mut bits = self.word(word) << (8 * (WORD - 1 - last % WORD));
        let mut top = last;
        while bits == 0 {
            if word * WORD <= first {
                return None;
            }
            word -= 1;
            bits = self.word(word);
            top = word * WORD + WORD - 1;
        }
        Some(top - bits.leading_zeros() as usize / 8)
    }

    /// The first entry of a block from the first one to the last.
    #[inline]
    fn first_set(&self, first: usize, last: usize) -> Option<usize> {
        let mut word = first / WORD;
        let mut bits = self.word(word) >> (8 * (first % WORD)) << (8 * (first % WORD));
        while bits == 0 {
            word += 1;
            if word * WORD > last {
                return None;
            }
            bits = self.word(word);
        }
        Some(word * WORD + bits.trailing_zeros() as usize / 8).filter(|found| *found <= last)
    }

    /// Some entries at once, the first one in the lowest byte.
    #[inline]
    fn word(&self, number: usize) -> u64 {
        // SAFETY: a leaf is whole words of mapped pages. Others change entries meanwhile, hence volatile:
        // each is as it was or as it is, which is all that is asked.
        let word = unsafe { ptr::from_ref(self).cast::<u64>().add(number % (LEAVES / WORD)).read_volatile() };
        u64::from_le(word)
    }

    fn give_back(&self, pages: &[Page]) {
        let mut first = 0;
        while first < pages.len() {
            let closed = pages[first..].iter().take_while(|page| page.close()).count();
            if closed != 0 {
                let entries = &self.0[first * PAGE..(first + closed) * PAGE];
                // SAFETY: zeros are valid, and what there is already.
                unsafe { sys::zero_pages(entries) };
                pages[first..first + closed].iter().for_each(Page::open);
            }
            // The next one has blocks, or nothing to give.
            first += closed + 1;
        }
    }
}

/// The numbers of the first leaf, and of the last one plus one.
static FIRST: AtomicUsize = AtomicUsize::new(usize::MAX);
static END: AtomicUsize = AtomicUsize::new(0);
static MAPPED: AtomicUsize = AtomicUsize::new(0);

#[inline]
fn page_of(middle: usize, leaf: usize) -> usize {
    middle * PAGES + leaf / PAGE
}

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

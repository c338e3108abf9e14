//! Where the state of every block is kept: a byte for each 16 bytes of the
//! address space in which blocks have been, beside the heap, so that nothing
//! that is written past a block's end can reach it.
//!
//! A free looks here before it looks at the pointer's memory. So a pointer that
//! was never handed out is not followed.
//!
//! A fork copies what maps these tables, so a page of them in which there is no block any more is
//! given back to the operating system at the next fork. That is known by a count of the blocks
//! for each page. Whoever counts a block in waits while its page is given back. A thread counts some blocks in
//! ahead ([`Credits`]), and blocks out that leave the quarantine together ([`Vacancies`]), since each count is a
//! locked instruction.

use super::block::ALIGN;
use super::block_state::{self, Entry, EntryTable, State};
use crate::ledger::thread;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, yield_now};
use crate::sys;
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

/// Has the processor fetch the entry for an address.
#[inline]
pub(crate) fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(entry) = entry(address) {
        // SAFETY: a hint, which any address will do for.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(ptr::from_ref(entry).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
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

/// Counts a block in where that was not done ahead.
#[inline(never)]
fn count_in(page: &Page, address: usize, credits: Option<Credits>) {
    match credits {
        Some(credits) => {
            page.count_in(AHEAD);
            credits.exchange(address, AHEAD - 1);
        }
        None => page.count_in(1),
    }
}

/// How many blocks are counted in at once: fewer than a page holds, and many for a locked instruction.
const AHEAD: u32 = 64;

/// The blocks that a thread has counted in ahead: for some pages how many there are. A page that has any stays.
#[derive(Clone, Copy)]
pub(crate) struct Credits(pub(crate) &'static [AtomicU64; thread::NUMBERS]);

impl Credits {
    /// Uses up one of an address's page; `false` if there is none.
    #[inline(always)]
    fn spend(self, address: usize) -> bool {
        let place = self.place(address);
        let word = place.load(Ordering::Relaxed);
        let has_any = word >> u32::BITS == (address / STRETCH) as u64 && word as u32 != 0;
        if has_any {
            place.store(word - 1, Ordering::Relaxed);
        }
        has_any
    }

    /// Keeps so many of an address's page, and gives back what there is of the page that was in their place.
    fn exchange(self, address: usize, number: u32) {
        let place = self.place(address);
        let former = place.load(Ordering::Relaxed);
        place.store(((address / STRETCH) as u64) << u32::BITS | u64::from(number), Ordering::Relaxed);
        vacated((former >> u32::BITS) as usize * STRETCH, former as u32);
    }

    /// Where those of an address's page stand.
    #[inline(always)]
    fn place(self, address: usize) -> &'static AtomicU64 {
        &self.0[address / STRETCH % thread::NUMBERS]
    }
}

/// Blocks that have been vacated and not yet counted out, all in one page. They are when this is dropped.
#[derive(Default)]
pub(crate) struct Vacancies {
    address: usize,
    number: u32,
}

impl Vacancies {
    /// Makes the entry of a block that has been seized one of no block.
    #[inline]
    pub(crate) fn vacate(&mut self, address: usize, entry: &'static Entry) {
        entry.set(State::None);
        if self.address / STRETCH != address / STRETCH {
            self.count_out();
            self.address = address;
        }
        self.number += 1;
    }

    #[inline]
    fn count_out(&mut self) {
        vacated(self.address, std::mem::take(&mut self.number));
    }
}

impl Drop for Vacancies {
    #[inline]
    fn drop(&mut self) {
        self.count_out();
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
        middles.pages[page_of(middle, leaf)].0.fetch_sub(number, Ordering::Release);
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
        let page = &middles.pages[page_of(middle, leaf)].0;
        if page.load(Ordering::Relaxed) & COVERED == 0 {
            page.fetch_or(COVERED, Ordering::Relaxed);
        }
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
        let page = middles.pages[page_of(middle, leaf)].0.load(Ordering::Relaxed);
        if page & BLOCKS != 0
            // SAFETY: tables are never unmapped.
            && let Some(leaves) = unsafe { middles.leaves[middle].load(Ordering::Acquire).as_ref() }
            && let Some(found) = leaves.last_set(leaf / PAGE * PAGE, leaf)
        {
            return Some(((index - leaf + found) * ALIGN, &leaves.0[found]));
        }
        if page & COVERED == 0 {
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
        if middles.pages[page_of(middle, leaf)].0.load(Ordering::Relaxed) & BLOCKS != 0
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

/// The blocks in a page of a leaf, and three flags.
struct Page(AtomicU32);

/// It may have been written to.
const USED: u32 = 1 << 31;
/// It is being given back.
const GOING: u32 = 1 << 30;
/// Its first addresses may be in a block that begins before them. Stays set.
const COVERED: u32 = 1 << 29;
/// The blocks.
const BLOCKS: u32 = COVERED - 1;

impl Page {
    /// Counts so many blocks in. From here on the page stays.
    #[inline]
    fn count_in(&self, number: u32) {
        let before = self.0.fetch_add(number, Ordering::Acquire);
        if before & (USED | GOING) != USED {
            self.use_it();
        }
    }

    #[cold]
    fn use_it(&self) {
        while self.0.load(Ordering::Acquire) & GOING != 0 {
            yield_now();
        }
        self.0.fetch_or(USED, Ordering::Relaxed);
    }

    /// Has blocks wait that come now; `false` if there are some already.
    fn close(&self) -> bool {
        let bits = self.0.load(Ordering::Relaxed);
        let closed = bits ^ USED ^ GOING;
        bits & !COVERED == USED
            && self.0.compare_exchange(bits, closed, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn open(&self) {
        self.0.fetch_and(!GOING, Ordering::Release);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// However often it is forked off again.
    #[test]
    fn a_pin_of_another_process_is_void() {
        // Where no program has blocks. Alone: all entries are read, which maps pages of zeros.
        let _alone = GIVER.lock();
        let entry = occupy(5 << 32, None).expect("memory");
        block_state::a_pin_of_another_process_is_void(entry);
        vacate(5 << 32, entry);
    }

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
        let _alone = GIVER.lock();
        let addresses = [START, START + 16, START + MIB - 16, START + 2 * MIB, START + 4 * MIB + 160];
        addresses.iter().for_each(|at| occupy(*at, None).expect("memory").set(State::Live));
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
        assert!(found(RangeInclusive::new(usize::MAX, 0)).is_empty());
        let mut all = Vec::new();
        for_each(|address, _| all.push(address));
        assert!(addresses.iter().all(|address| all.contains(address)));
        addresses.iter().for_each(|at| vacate(*at, entry(*at).expect("there")));
        assert!(found(START..=START + 5 * MIB).is_empty());
    }

    #[test]
    fn a_block_is_found_from_all_of_its_addresses() {
        const START: usize = (17 << 32) - MIB;

        let _alone = GIVER.lock();
        let blocks = [
            (START + 64, 100),
            (START + 256, 16),
            (START + 4096, 300_000),
            (START + STRETCH * 8 + 16, 3 * MIB),
            (START + 5 * MIB + 48, 1),
        ];
        for (at, size) in blocks {
            occupy(at, None).expect("memory").set(State::Live);
            cover(at, at + size);
        }
        let found = |address| covering(address).map(|(at, _)| at);
        for (at, size) in blocks {
            for address in [at, at + 1, at + size / 2, at + size - 1] {
                assert_eq!(found(address), Some(at));
            }
            assert_eq!(first_in(at - 40..at + 1).map(|(at, _)| at), Some(at));
            assert_eq!(first_in(at + 1..at + size.min(30)).map(|(at, _)| at), None);
        }
        assert_eq!(found(START + 63), None);
        assert_eq!(found(START + 4 * MIB), None);
        assert_eq!(found(usize::MAX), None);
        assert_eq!(first_in(START..START + MIB).map(|(at, _)| at), Some(START + 64));
        assert_eq!(first_in(START + 4097..START + 6 * MIB).map(|(at, _)| at), Some(blocks[3].0));
        assert_eq!(first_in(blocks[3].0 + 1..usize::MAX).map(|(at, _)| at), Some(blocks[4].0));
        give_back();
        blocks.iter().for_each(|(at, _)| vacate(*at, entry(*at).expect("there")));
        assert_eq!(found(START + MIB), None);
    }

    /// Whether the page of memory that an entry is in is there.
    fn is_in_memory(entry: &Entry) -> bool {
        let (mut is, page) = (0_u8, std::ptr::from_ref(entry).addr() & !(PAGE - 1));
        // SAFETY: the page is mapped, and `is` a place for the result.
        let error = unsafe { libc::mincore(ptr::without_provenance_mut(page), 1, &mut is) };
        error == 0 && is & 1 == 1
    }

    #[test]
    fn a_page_without_blocks_is_given_back_and_one_with_a_block_is_not() {
        const START: usize = 9 << 32;

        let _alone = GIVER.lock();
        let all: Vec<usize> = (START..START + 2 * MIB).step_by(256).collect();
        all.iter().for_each(|at| occupy(*at, None).expect("memory").set(State::Live));
        give_back();
        assert!(all.iter().all(|at| is_in_memory(entry(*at).expect("there"))));
        let kept = START + MIB + 3 * 16 * PAGE + 256;
        for at in all.iter().filter(|at| **at != kept) {
            vacate(*at, entry(*at).expect("there"));
        }
        give_back();
        let left: Vec<usize> =
            all.iter().copied().filter(|at| is_in_memory(entry(*at).expect("there"))).collect();
        assert_eq!(left.len() * 256, 16 * PAGE, "{left:x?}");
        assert!(left.contains(&kept) && entry(kept).expect("there").get() == State::Live);
        vacate(kept, entry(kept).expect("there"));
        give_back();
        assert!(!is_in_memory(entry(kept).expect("there")));
        assert!(found(START..=START + 2 * MIB).is_empty());
    }

    /// A thread's own, which has none yet.
    fn no_credits() -> Credits {
        Credits(Box::leak(Box::new([const { AtomicU64::new(0) }; thread::NUMBERS])))
    }

    /// The blocks that are counted in an address's page.
    fn counted(address: usize) -> u32 {
        let (root, middle, leaf) = position(address).expect("a block can begin there");
        // SAFETY: tables are never unmapped.
        let middles = unsafe { TABLE[root].load(Ordering::Acquire).as_ref() }.expect("mapped");
        middles.pages[page_of(middle, leaf)].0.load(Ordering::Relaxed) & BLOCKS
    }

    #[test]
    fn blocks_are_counted_in_ahead_and_out_together() {
        const FIRST: usize = 13 << 32;
        /// Its credits stand where the first one's do.
        const SECOND: usize = FIRST + thread::NUMBERS * STRETCH;

        let _alone = GIVER.lock();
        let credits = no_credits();
        let occupy = |at| {
            let entry = occupy(at, Some(credits)).expect("memory");
            entry.set(State::Live);
            entry
        };
        let all: Vec<usize> = (0..=AHEAD as usize).map(|number| FIRST + 16 * number).collect();
        let (last, others) = all.split_last().expect("many");
        let mut entries: Vec<_> = others.iter().map(|at| occupy(*at)).collect();
        assert_eq!(counted(FIRST), AHEAD, "each block has used one up");
        entries.push(occupy(*last));
        assert_eq!(counted(FIRST), 2 * AHEAD);
        let second = occupy(SECOND);
        assert_eq!((counted(FIRST), counted(SECOND)), (AHEAD + 1, AHEAD), "what was left is given back");
        let mut vacancies = Vacancies::default();
        entries.iter().zip(&all).for_each(|(entry, at)| vacancies.vacate(*at, entry));
        assert_eq!((found(FIRST..=SECOND), counted(FIRST)), (vec![SECOND], AHEAD + 1));
        vacancies.vacate(SECOND, second);
        assert_eq!((counted(FIRST), counted(SECOND)), (0, AHEAD), "another page's");
        drop(vacancies);
        assert_eq!(counted(SECOND), AHEAD - 1);
        give_back();
        assert!(!is_in_memory(entries[0]) && is_in_memory(second), "a block may come without a count");
        let last = occupy(SECOND + 16);
        assert_eq!(counted(SECOND), AHEAD - 1);
        vacate(SECOND + 16, last);
        vacate(FIRST, occupy(FIRST));
        assert_eq!((counted(FIRST), counted(SECOND)), (AHEAD - 1, 0));
        give_back();
        assert!(!is_in_memory(second));
    }

    #[test]
    fn no_block_loses_its_state_while_pages_are_given_back() {
        use std::sync::atomic::AtomicBool;

        const START: usize = 11 << 32;
        const ROUNDS: usize = 100_000;

        let _alone = GIVER.lock();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    give_back();
                }
            });
            let workers = [0, 1, 2].map(|worker| {
                threads.spawn(move || {
                    let credits = (worker != 0).then(no_credits);
                    for round in 0..ROUNDS {
                        // All in one page, and by turns in others, whose credits stand in the same place.
                        let at = START + round % 3 * thread::NUMBERS * STRETCH + worker * 16;
                        let entry = occupy(at, credits).expect("memory");
                        entry.set(State::Live);
                        if round % 7 == 0 {
                            std::thread::yield_now();
                        }
                        assert_eq!(entry.get(), State::Live, "in round {round}");
                        vacate(at, entry);
                    }
                })
            });
            let all_went_well = workers.map(|worker| worker.join().is_ok()) == [true; 3];
            is_over.store(true, Ordering::Relaxed);
            assert!(all_went_well);
        });
        give_back();
        assert!(found(START..=START + 3 * thread::NUMBERS * STRETCH).is_empty());
    }

    /// Held by a test that gives pages back, which one thread does at a time, or reads entries of all.
    static GIVER: std::sync::Mutex<()> = std::sync::Mutex::new(());
}

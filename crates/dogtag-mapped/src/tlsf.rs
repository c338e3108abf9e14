//! Placement of blocks in a window by two-level segregated fit (TLSF; Masmano et al., 2004).
//!
//! The window is divided into granules. Each free range has a node, in a bin of ranges of about its
//! size, so that a range is found in constant time, unless only those of its own bin may fit. Each
//! range is marked at both ends, so that a freed one is merged with its neighbours at once. Live blocks
//! need no bookkeeping, since a free says how large its block is.
//!
//! All of this is outside of the window: the window may be a device's or another process's too, memory
//! that was never handed out is still zero, and a write past a block's end destroys no metadata.

use std::ptr::NonNull;

/// Offsets and sizes are in granules.
pub(crate) struct Tlsf {
    /// For each granule: the node whose range it was last an end of. Marks may be stale, so they are
    /// compared with the node.
    marks: NonNull<u32>,
    nodes: NonNull<Node>,
    len: u32,
    /// Nodes that were used and are so no more, and how many have been used ever.
    unused: u32,
    used_ever: u32,
    bins: [u32; BINS],
    /// Which bins are not empty.
    filled: [u64; WORDS],
    /// Which of those words are not zero.
    words: u32,
    /// How many bins there are up to the last that is not empty.
    last: u32,
    free: u32,
    ranges: u32,
}

// SAFETY: the tables that it points to are used by nobody else, as for `new`.
unsafe impl Send for Tlsf {}

/// A free range.
#[derive(Clone, Copy)]
struct Node {
    offset: u32,
    len: u32,
    /// In its bin; or the next unused one.
    next: u32,
    previous: u32,
}

/// No node, and no mark.
const NONE: u32 = 0;

/// Sizes that have so many leading bits in common are in one bin.
const BITS: u32 = 3;
const BINS: usize = (33 - BITS as usize) << BITS;
const WORDS: usize = BINS.div_ceil(64);
/// How many ranges of a size that may just do are looked at before larger ones are divided.
const TRIES: usize = 4;
/// How far from its bin's beginning a range is put at most, to have lower ones in front of it.
const STEPS: usize = 4;

impl Tlsf {
    /// Bytes of the tables for so many granules: marks, and then nodes.
    pub(crate) fn table_bytes(len: u32) -> usize {
        Self::marks_bytes(len) + (len as usize / 2 + 2) * size_of::<Node>()
    }

    fn marks_bytes(len: u32) -> usize {
        (len as usize * size_of::<u32>()).next_multiple_of(align_of::<Node>())
    }

    /// Makes a placement of `len` granules, all of them free.
    ///
    /// # Safety
    ///
    /// `tables` must have [`table_bytes`](Self::table_bytes) bytes, be aligned to 8 and zeroed, outlive
    /// this, and be used by nobody else.
    pub(crate) unsafe fn new(len: u32, tables: NonNull<u8>) -> Self {
        let mut this = Self {
            marks: tables.cast(),
            // SAFETY: the tables have nodes behind `marks_bytes`, see `table_bytes`.
            nodes: unsafe { tables.add(Self::marks_bytes(len)) }.cast(),
            len,
            unused: NONE,
            used_ever: 0,
            bins: [NONE; BINS],
            filled: [0; WORDS],
            words: 0,
            last: 0,
            free: 0,
            ranges: 0,
        };
        if len > 0 {
            this.insert(0, len);
        }
        this
    }

    /// Takes a range of that length whose offset plus `base` is a multiple of `align`, a power of two.
    #[inline(always)]
    pub(crate) fn take(&mut self, len: u32, align: u32, base: u32) -> Option<u32> {
        let padding = |offset: u32| (base.wrapping_add(offset)).wrapping_neg() & (align - 1);
        let fits = |node: &Node| node.len >= len && node.len - len >= padding(node.offset);
        // One that may be just large enough, then one that is large enough wherever it begins,
        // then whatever there is.
        let tight = bin_of(len);
        let surely_fits = bin_above(len.saturating_add(align - 1));
        let found = self
            .search(tight, TRIES, fits)
            .or_else(|| self.next_filled(surely_fits).map(|bin| self.bins[bin]))
            .or_else(|| {
                (tight..=surely_fits.min(BINS - 1)).find_map(|bin| self.search(bin, usize::MAX, fits))
            })?;
        let node = *self.node(found);
        let start = node.offset + padding(node.offset);
        let (end, node_end) = (start + len, node.offset + node.len);
        if start > node.offset {
            self.change(found, node.offset, start - node.offset);
            if end < node_end {
                self.insert(end, node_end - end);
            }
        } else if end < node_end {
            self.change(found, end, node_end - end);
        } else {
            self.remove(found);
        }
        Some(start)
    }

    /// Gives back a range, all of which must be taken; it may be a part of what `take` returned, or
    /// several of these.
    #[inline(always)]
    pub(crate) fn give(&mut self, offset: u32, len: u32) {
        if len == 0 {
            return;
        }
        let (before, behind) = (self.ending_at(offset), self.beginning_at(offset + len));
        match (before, behind) {
            (None, None) => self.insert(offset, len),
            (Some(before), None) => {
                let node = *self.node(before);
                self.change(before, node.offset, node.len + len);
            }
            (None, Some(behind)) => self.change(behind, offset, self.node(behind).len + len),
            (Some(before), Some(behind)) => {
                let (node, more) = (*self.node(before), self.node(behind).len);
                self.remove(behind);
                self.change(before, node.offset, node.len + len + more);
            }
        }
    }

    /// Makes a taken range longer where it is, if what is behind it is free.
    pub(crate) fn extend(&mut self, offset: u32, len: u32, new_len: u32) -> bool {
        let (end, more) = (offset + len, new_len - len);
        let Some(behind) = self.beginning_at(end) else { return false };
        let node = *self.node(behind);
        if node.len < more {
            return false;
        }
        if node.len > more {
            self.change(behind, end + more, node.len - more);
        } else {
            self.remove(behind);
        }
        true
    }

    /// Moves or resizes a free range; the new one overlaps or touches the old one.
    fn change(&mut self, number: u32, offset: u32, len: u32) {
        let old = *self.node(number);
        self.mark(offset, number);
        self.mark(offset + len - 1, number);
        self.free = self.free - old.len + len;
        let (from, to) = (bin_of(old.len), bin_of(len));
        if from == to {
            let node = self.node_mut(number);
            (node.offset, node.len) = (offset, len);
        } else {
            self.unlink(old, from);
            self.link(number, offset, len, to);
        }
    }

    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    pub(crate) fn ranges(&self) -> u32 {
        self.ranges
    }

    /// The length of the longest free range. Looks at all ranges in the last bin.
    pub(crate) fn largest(&self) -> u32 {
        self.last()
            .checked_sub(1)
            .map_or(0, |bin| self.ranges_in(bin as usize).map(|node| node.len).max().unwrap_or(0))
    }

    /// How many bins there are up to the last that is not empty.
    pub(crate) fn last(&self) -> u32 {
        self.last
    }

    #[cold]
    fn find_last(&self) -> u32 {
        match self.words.checked_ilog2() {
            None => 0,
            Some(word) => word * 64 + self.filled[word as usize].checked_ilog2().unwrap_or(0) + 1,
        }
    }

    /// All free ranges: offsets and lengths.
    pub(crate) fn free_ranges(&self) -> impl Iterator<Item = (u32, u32)> {
        (0..BINS).flat_map(|bin| self.ranges_in(bin)).map(|node| (node.offset, node.len))
    }

    fn ranges_in(&self, bin: usize) -> impl Iterator<Item = &Node> {
        let follow = |node: u32| (node != NONE).then(|| self.node(node));
        std::iter::successors(follow(self.bins[bin]), move |node| follow(node.next))
    }

    /// The first of some nodes of a bin that will do.
    fn search(&self, bin: usize, tries: usize, will_do: impl Fn(&Node) -> bool) -> Option<u32> {
        let mut node = self.bins[bin];
        for _ in 0..tries {
            if node == NONE {
                return None;
            }
            if will_do(self.node(node)) {
                return Some(node);
            }
            node = self.node(node).next;
        }
        None
    }

    /// The first bin from this one on that is not empty.
    fn next_filled(&self, bin: usize) -> Option<usize> {
        let word = bin / 64;
        let bits = *self.filled.get(word)? & (u64::MAX << (bin % 64));
        if bits != 0 {
            return Some(word * 64 + bits.trailing_zeros() as usize);
        }
        let words = self.words & (u32::MAX << word << 1);
        (words != 0).then(|| {
            let word = words.trailing_zeros() as usize;
            word * 64 + self.filled[word].trailing_zeros() as usize
        })
    }

    fn insert(&mut self, offset: u32, len: u32) {
        let number = match self.unused {
            NONE => {
                self.used_ever += 1;
                self.used_ever
            }
            unused => {
                self.unused = self.node(unused).next;
                unused
            }
        };
        self.link(number, offset, len, bin_of(len));
        self.mark(offset, number);
        self.mark(offset + len - 1, number);
        self.free += len;
        self.ranges += 1;
    }

    fn remove(&mut self, number: u32) {
        let node = *self.node(number);
        self.unlink(node, bin_of(node.len));
        let next = std::mem::replace(&mut self.unused, number);
        *self.node_mut(number) = Node { offset: u32::MAX, len: 0, next, previous: NONE };
        self.free -= node.len;
        self.ranges -= 1;
    }

    /// Puts a node in a bin, about where its offset belongs, so that what is low is taken first
    /// and what is high grows together.
    fn link(&mut self, number: u32, offset: u32, len: u32, bin: usize) {
        let (mut previous, mut next) = (NONE, self.bins[bin]);
        if next == NONE {
            self.filled[bin / 64] |= 1 << (bin % 64);
            self.words |= 1 << (bin / 64);
            self.last = self.last.max(bin as u32 + 1);
        }
        for _ in 0..STEPS {
            if next == NONE || self.node(next).offset > offset {
                break;
            }
            (previous, next) = (next, self.node(next).next);
        }
        if previous == NONE {
            self.bins[bin] = number;
        } else {
            self.node_mut(previous).next = number;
        }
        if next != NONE {
            self.node_mut(next).previous = number;
        }
        *self.node_mut(number) = Node { offset, len, next, previous };
    }

    fn unlink(&mut self, Node { next, previous, .. }: Node, bin: usize) {
        if next != NONE {
            self.node_mut(next).previous = previous;
        }
        if previous != NONE {
            self.node_mut(previous).next = next;
        } else {
            self.bins[bin] = next;
            if next == NONE {
                self.filled[bin / 64] &= !(1 << (bin % 64));
                self.words &= !(u32::from(self.filled[bin / 64] == 0) << (bin / 64));
                if bin as u32 + 1 == self.last {
                    self.last = self.find_last();
                }
            }
        }
    }

    /// The free range in front of a granule, if the one in front of it is free.
    fn ending_at(&self, granule: u32) -> Option<u32> {
        let number = self.marked(granule.checked_sub(1)?)?;
        let node = self.node(number);
        (node.offset.wrapping_add(node.len) == granule).then_some(number)
    }

    /// The free range that begins with a granule.
    fn beginning_at(&self, granule: u32) -> Option<u32> {
        self.marked(granule).filter(|number| self.node(*number).offset == granule)
    }

    fn marked(&self, granule: u32) -> Option<u32> {
        if granule >= self.len {
            return None;
        }
        // SAFETY: `granule < self.len`, and the table has a mark for each granule.
        let number = unsafe { self.marks.add(granule as usize).read() };
        (number != NONE).then_some(number)
    }

    fn mark(&mut self, granule: u32, number: u32) {
        debug_assert!(granule < self.len);
        // SAFETY: granules of ranges are below `self.len`, and the table has a mark for each.
        unsafe { self.marks.add(granule as usize).write(number) };
    }

    fn node(&self, number: u32) -> &Node {
        // SAFETY: two free ranges are never next to each other, so there are as many nodes as
        // could be used at once, with the one that is inserted before another is removed.
        unsafe { self.nodes.add(number as usize - 1).as_ref() }
    }

    fn node_mut(&mut self, number: u32) -> &mut Node {
        // SAFETY: the table has all nodes that can be in use, see `node`.
        unsafe { self.nodes.add(number as usize - 1).as_mut() }
    }
}

/// The bin in which ranges of that length are.
#[inline]
pub(crate) fn bin_of(len: u32) -> usize {
    if len < 1 << BITS {
        return len as usize;
    }
    let exponent = len.ilog2() - BITS;
    (((exponent + 1) << BITS) | ((len >> exponent) & ((1 << BITS) - 1))) as usize
}

/// The first bin in which all ranges are at least so long. There may be none.
fn bin_above(len: u32) -> usize {
    let exponent = (len | 1).ilog2().saturating_sub(BITS);
    match len.checked_add((1 << exponent) - 1) {
        Some(len) => bin_of(len),
        None => BINS,
    }
}

/// The length that ranges of a bin have at most.
#[cfg(test)]
fn longest_in(bin: usize) -> u32 {
    let next = bin as u32 + 1;
    match (next >> BITS).checked_sub(1) {
        None => next - 1,
        Some(exponent) => {
            let first = u64::from(next & ((1 << BITS) - 1) | (1 << BITS)) << exponent;
            u32::try_from(first - 1).unwrap_or(u32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tables in ordinary memory.
    fn tlsf(len: u32) -> (Tlsf, Vec<u64>) {
        let mut tables = vec![0_u64; Tlsf::table_bytes(len).div_ceil(8)];
        // SAFETY: they are so large, aligned and zeroed, and stay as long.
        (unsafe { Tlsf::new(len, NonNull::new(tables.as_mut_ptr()).unwrap().cast()) }, tables)
    }

    #[test]
    fn bins_are_in_order() {
        let mut last = 0;
        for len in (1..5000).chain((12..32).flat_map(|bit| [(1_u32 << bit) - 1, 1 << bit, (1 << bit) + 1])) {
            let (below, above) = (bin_of(len), bin_above(len));
            assert!(longest_in(below) >= len && bin_of(longest_in(below)) == below, "{len}");
            assert!(below >= last && below < BINS, "{len}");
            assert!(above == below || above == below + 1, "{len}");
            assert!(above == BINS || above > below || bin_of(len - 1) < below, "all in {below} fit {len}");
            last = if len < 4999 { below } else { 0 };
        }
        assert_eq!(bin_above(u32::MAX), BINS);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take { len: u32, align: u32 },
        Give { which: usize },
        Resize { which: usize, len: u32 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let len = || prop_oneof![4 => 1_u32..20, 1 => 1_u32..300];
        prop_oneof![
            4 => (len(), 0_u32..7).prop_map(|(len, shift)| Step::Take { len, align: 1 << shift }),
            3 => any::<usize>().prop_map(|which| Step::Give { which }),
            2 => (any::<usize>(), len()).prop_map(|(which, len)| Step::Resize { which, len }),
        ]
    }

    proptest! {
        #[test]
        fn ranges_are_as_in_a_bitmap(
            window in 1_u32..3000,
            base in 0_u32..100,
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let (mut tlsf, _tables) = tlsf(window);
            let mut map = vec![false; window as usize];
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take { len, align } => {
                        let fits = |start: usize| {
                            (base as usize + start).is_multiple_of(align as usize)
                                && map.get(start..start + len as usize).is_some_and(|map| !map.contains(&true))
                        };
                        match tlsf.take(len, align, base) {
                            Some(start) => {
                                prop_assert!(fits(start as usize));
                                map[start as usize..][..len as usize].fill(true);
                                taken.push((start, len));
                            }
                            None => prop_assert!(!(0..window as usize).any(fits), "a range fits"),
                        }
                    }
                    Step::Give { which } if !taken.is_empty() => {
                        let (start, len) = taken.swap_remove(which % taken.len());
                        tlsf.give(start, len);
                        map[start as usize..][..len as usize].fill(false);
                    }
                    Step::Resize { which, len } if !taken.is_empty() => {
                        let place = which % taken.len();
                        let (start, old) = taken[place];
                        if len <= old {
                            tlsf.give(start + len, old - len);
                            map[(start + len) as usize..][..(old - len) as usize].fill(false);
                        } else {
                            let behind = map.get((start + old) as usize..(start + len) as usize);
                            let fits_behind = behind.is_some_and(|map| !map.contains(&true));
                            prop_assert_eq!(tlsf.extend(start, old, len), fits_behind);
                            if !fits_behind {
                                continue;
                            }
                            map[(start + old) as usize..][..(len - old) as usize].fill(true);
                        }
                        taken[place].1 = len;
                    }
                    _ => {}
                }
                let mut expected: Vec<(u32, u32)> = Vec::new();
                for (granule, is_taken) in (0..).zip(&map) {
                    match expected.last_mut() {
                        _ if *is_taken => {}
                        Some((start, len)) if *start + *len == granule => *len += 1,
                        _ => expected.push((granule, 1)),
                    }
                }
                let mut ranges: Vec<_> = tlsf.free_ranges().collect();
                ranges.sort_unstable();
                prop_assert_eq!(tlsf.ranges() as usize, expected.len());
                prop_assert_eq!(tlsf.free(), expected.iter().map(|(_, len)| len).sum::<u32>());
                prop_assert_eq!(tlsf.largest(), expected.iter().map(|(_, len)| *len).max().unwrap_or(0));
                prop_assert_eq!(ranges, expected, "all neighbours are merged");
            }
        }
    }
}

//! How much memory was mapped as jemalloc maps its own, but by others.
//!
//! The system joins mappings that are beside each other, whoever they are from, so a mapping may be
//! both. jemalloc says how many bytes of addresses are its own, and how many of them are its
//! bookkeeping; the rest of all such mappings is the others'. Of any page jemalloc says whether it
//! knows it, which it does of the first and the last one of each of its extents, but neither of what
//! is between nor of its bookkeeping. Of what has no access memory-check says that it is jemalloc's.
//!
//! So a run of pages that it does not know is the inside of an extent, or bookkeeping, or the
//! others', or the latter two joined. It is no extent's inside at a mapping's end. Between two known
//! pages it may be, so those are looked into only as far as bookkeeping and the others' are not all
//! at ends. What runs hold is then told apart: blocks of bookkeeping begin at multiples of
//! [`BLOCK`] and are as many of them long, so what does not fill a block is the others'; and for the
//! rest bookkeeping is taken to be the blocks of which least is in memory. If the runs were the right
//! ones, the result is never too small, and too large at most by what is in memory of bookkeeping.

use crate::backend::Extents;
use crate::sys::smaps;
use std::cmp::Reverse;
use std::ops::Range;

/// Mappings that are like jemalloc's, and what of each is in memory.
pub(super) struct Mappings {
    all: Vec<(Range<usize>, u64)>,
    /// Which of their addresses have no access: all of these are jemalloc's.
    parts: Vec<Range<usize>>,
}

impl Mappings {
    pub(super) fn new() -> Self {
        Self { all: Vec::with_capacity(256), parts: Vec::with_capacity(64) }
    }

    /// Adds the next one, which is joined with those beside it if it `is_part` of an extent: the system has
    /// parted them since it lost its access.
    pub(super) fn add(&mut self, mapping: Range<usize>, resident: u64, is_part: bool) {
        let is_joined = is_part || self.parts.last().is_some_and(|part| part.end == mapping.start);
        if is_part {
            self.parts.push(mapping.clone());
        }
        match self.all.last_mut() {
            Some((last, in_memory)) if is_joined && last.end == mapping.start => {
                last.end = mapping.end;
                *in_memory += resident;
            }
            _ => self.all.push((mapping, resident)),
        }
    }

    fn has_in_part(&self, address: usize) -> bool {
        let number = self.parts.partition_point(|part| part.end <= address);
        self.parts.get(number).is_some_and(|part| part.contains(&address))
    }
}

/// Returns how many bytes in memory are not jemalloc's, of mappings that are like its own and of
/// which it has `held` in memory at most.
pub(super) fn in_memory(own: &Extents, all: &Mappings, held: u64) -> u64 {
    let mappings = &all.all;
    let resident: u64 = mappings.iter().map(|(_, resident)| resident).sum();
    let addresses: u64 = mappings.iter().map(|(mapping, _)| mapping.len() as u64).sum();
    let mut theirs = addresses.saturating_sub(own.mapped);
    // What nobody has touched is not looked into; it may be terabytes.
    let untouched = mappings.iter().filter(|(mapping, resident)| *resident == 0 && !own.knows(mapping.start));
    theirs = theirs.saturating_sub(untouched.map(|(mapping, _)| mapping.len() as u64).sum());
    if theirs < LEAST {
        return 0;
    }
    // More than it holds is not jemalloc's in any case.
    let least = resident.saturating_sub(held).min(theirs);
    // The largest last: if patience ends there, all of jemalloc's that is elsewhere is known.
    let mut mappings: Vec<_> = mappings.iter().collect();
    mappings.sort_by_key(|(mapping, _)| mapping.len());
    let mut patience = PATIENCE;
    let mut runs: Vec<Run> = mappings
        .into_iter()
        .flat_map(|mapping| runs(mapping, |page| own.knows(page) || all.has_in_part(page), &mut patience))
        .collect();
    let mut pieces: Vec<Piece> =
        outside_extents(&mut runs, theirs + own.bookkeeping).flat_map(Run::pieces).collect();
    share_of_others(&mut pieces, theirs).max(least).min(resident)
}

/// What is less may have come since jemalloc was asked.
const LEAST: u64 = 256 << 10;

/// Pages that are asked about: a few tenths of a second. What is beyond is taken for unknown.
const PATIENCE: usize = 4 << 20;

/// What jemalloc maps for bookkeeping is aligned to that, and so is its size.
const BLOCK: usize = 2 << 20;

/// A longer run is not looked at block by block, which would take seconds for some terabytes: what
/// of it is in memory is taken for the others'.
const LONG: usize = 4 << 30;

const PAGE: usize = 4096;

/// Pages of a mapping that jemalloc does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    pages: Range<usize>,
    /// Whether it has known pages on both sides.
    is_between: bool,
    /// What of it is in memory, if it is a whole mapping.
    resident: Option<u64>,
}

impl Run {
    /// Cuts it where blocks of bookkeeping may begin.
    fn pieces(&self) -> Vec<Piece> {
        let Range { start, end } = self.pages;
        let whole_blocks = start.next_multiple_of(BLOCK)..end / BLOCK * BLOCK;
        if end - start > LONG {
            let resident = self.resident.unwrap_or_else(|| smaps::in_memory(&self.pages));
            return vec![Piece { len: resident, resident, is_block: false }];
        }
        let piece = |pages: Range<usize>, is_block| {
            let resident = smaps::in_memory(&pages);
            Piece { len: pages.len() as u64, resident, is_block }
        };
        if whole_blocks.is_empty() {
            return vec![piece(start..end, false)];
        }
        let ends = [start..whole_blocks.start, whole_blocks.end..end];
        let blocks = whole_blocks.step_by(BLOCK).map(|block| piece(block..block + BLOCK, true));
        blocks.chain(ends.map(|end| piece(end, false))).collect()
    }
}

fn runs(
    (mapping, resident): &(Range<usize>, u64),
    mut knows: impl FnMut(usize) -> bool,
    patience: &mut usize,
) -> Vec<Run> {
    let mut runs = Vec::new();
    if *resident == 0 {
        return runs;
    }
    let mut start = None;
    for page in mapping.clone().step_by(PAGE) {
        if *patience == 0 {
            start = start.or(Some(page));
            break;
        }
        *patience -= 1;
        match (knows(page), start) {
            (true, Some(first)) => {
                runs.push(Run { pages: first..page, is_between: first != mapping.start, resident: None });
                start = None;
            }
            (false, None) => start = Some(page),
            _ => {}
        }
    }
    if let Some(first) = start {
        let is_whole = first == mapping.start;
        let resident = is_whole.then_some(*resident);
        runs.push(Run { pages: first..mapping.end, is_between: false, resident });
    }
    runs
}

/// Returns the runs that are not inside of extents, of which so many bytes are not: all at ends, and
/// of those between known pages what fits into the rest, the largest first.
fn outside_extents(runs: &mut [Run], bytes: u64) -> impl Iterator<Item = &Run> {
    let len = |run: &Run| run.pages.len() as u64;
    let at_ends = runs.iter().filter(|run| !run.is_between).map(len).sum();
    let mut rest = bytes.saturating_sub(at_ends);
    // One that is just as large is it.
    runs.sort_by_key(|run| (run.is_between, len(run) != rest, Reverse(len(run))));
    runs.iter().filter(move |run| {
        let fits = len(run) <= rest;
        if run.is_between && fits {
            rest -= len(run);
        }
        !run.is_between || fits
    })
}

/// What is not inside of extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    len: u64,
    resident: u64,
    /// Whether it is as large as a block of bookkeeping, and may be one.
    is_block: bool,
}

/// Returns how much is in memory of the others', who have so many bytes of addresses.
fn share_of_others(pieces: &mut [Piece], mut theirs: u64) -> u64 {
    pieces.sort_by_key(|piece| (piece.is_block, Reverse(piece.resident)));
    let mut found = 0;
    for piece in pieces {
        let taken = piece.len.min(theirs);
        theirs -= taken;
        found += piece.resident.min(taken);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: usize = 100 * PAGE;

    fn found(known: &[usize]) -> Vec<Run> {
        runs(&(0..WHOLE, 7), |page| known.contains(&(page / PAGE)), &mut 1000)
    }

    fn run(pages: Range<usize>, is_between: bool, resident: Option<u64>) -> Run {
        Run { pages: pages.start * PAGE..pages.end * PAGE, is_between, resident }
    }

    #[test]
    fn runs_are_what_is_not_known() {
        assert_eq!(found(&[]), [run(0..100, false, Some(7))]);
        assert_eq!(found(&[0, 99]), [run(1..99, true, None)]);
        assert_eq!(
            found(&[10, 11, 20]),
            [run(0..10, false, None), run(12..20, true, None), run(21..100, false, None)]
        );
        assert_eq!(runs(&(0..WHOLE, 0), |_| false, &mut 1000), []);
        // Who has no patience left takes the rest for unknown.
        assert_eq!(runs(&(0..WHOLE, 7), |page| page < 50 * PAGE, &mut 10), [run(10..100, false, None)]);
    }

    #[test]
    fn parts_of_extents_are_joined_with_what_is_beside_them() {
        let joined = |mappings: &[(Range<usize>, bool)]| {
            let mut all = Mappings::new();
            mappings.iter().for_each(|(mapping, is_part)| all.add(mapping.clone(), 1, *is_part));
            for (mapping, is_part) in mappings {
                assert_eq!([mapping.start, mapping.end - 1].map(|page| all.has_in_part(page)), [*is_part; 2]);
            }
            all.all
        };
        let (whole, part) = (false, true);
        assert_eq!(joined(&[(0..10, whole), (10..20, part), (20..30, whole)]), [(0..30, 3)]);
        assert_eq!(joined(&[(0..10, whole), (10..20, whole), (20..30, part)]), [(0..10, 1), (10..30, 2)]);
        assert_eq!(joined(&[(0..10, part), (10..20, whole), (20..30, whole)]), [(0..20, 2), (20..30, 1)]);
        assert_eq!(
            joined(&[(0..10, whole), (11..20, part), (21..30, whole)]),
            [(0..10, 1), (11..20, 1), (21..30, 1)]
        );
    }

    #[test]
    fn what_is_between_known_pages_is_chosen_for_what_is_not_at_ends() {
        let chosen = |runs: &[Run], pages: usize| {
            let mut runs = runs.to_vec();
            let chosen = outside_extents(&mut runs, (pages * PAGE) as u64);
            chosen.map(|run| run.pages.start / PAGE).collect::<Vec<_>>()
        };
        let [at_end, between, large] =
            [run(0..10, false, None), run(20..40, true, None), run(50..90, true, None)];
        let all = [between, at_end, large.clone()];
        assert_eq!(chosen(&all, 5), [0]);
        assert_eq!(chosen(&all, 10), [0]);
        // What is too large is a block.
        assert_eq!(chosen(&all, 45), [0, 20]);
        assert_eq!(chosen(&all, 55), [0, 50]);
        // One that is just as large is it.
        assert_eq!(chosen(&all, 30), [0, 20]);
        assert_eq!(chosen(&all, 70), [0, 50, 20]);
        assert_eq!(chosen(&[large], 31), [0; 0]);
    }

    #[test]
    fn bookkeeping_is_where_least_is_in_memory() {
        let block = |resident| Piece { len: 100, resident, is_block: true };
        let rest = |len, resident| Piece { len, resident, is_block: false };
        let found = |pieces: &[Piece], theirs| share_of_others(&mut pieces.to_vec(), theirs);
        // Two full blocks that were joined with one of bookkeeping, in whatever order.
        assert_eq!(found(&[block(7), block(100), block(100)], 200), 200);
        assert_eq!(found(&[block(100), block(100), block(7)], 200), 200);
        // What does not fill a block is not bookkeeping, however little is in memory.
        assert_eq!(found(&[block(90), rest(30, 1), block(100)], 130), 101);
        // No more is in memory than there is.
        assert_eq!(found(&[block(90), block(80)], 20), 20);
        assert_eq!(found(&[block(10)], 50), 10);
        assert_eq!(found(&[rest(30, 20)], 100), 20);
        assert_eq!(found(&[], 100), 0);
    }

    #[test]
    fn runs_are_cut_where_bookkeeping_may_begin() {
        // Nothing is mapped there, so that nothing is in memory.
        let cut = |start: usize, end: usize| {
            let run = Run { pages: start..end, is_between: false, resident: None };
            run.pieces().iter().map(|piece| (piece.len as usize, piece.is_block)).collect::<Vec<_>>()
        };
        assert_eq!(cut(BLOCK, 3 * BLOCK), [(BLOCK, true), (BLOCK, true), (0, false), (0, false)]);
        assert_eq!(
            cut(BLOCK - PAGE, 2 * BLOCK + 3 * PAGE),
            [(BLOCK, true), (PAGE, false), (3 * PAGE, false)]
        );
        assert_eq!(cut(PAGE, 2 * BLOCK - PAGE), [(2 * BLOCK - 2 * PAGE, false)]);
        let long = Run { pages: 0..LONG + BLOCK, is_between: false, resident: Some(7) };
        assert_eq!(long.pieces(), [Piece { len: 7, resident: 7, is_block: false }]);
    }
}

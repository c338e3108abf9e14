//! How much memory was mapped as jemalloc maps its own, but by others.
//!
//! The system joins mappings that are beside each other, whoever they are from, so a mapping may be
//! both. How many bytes of addresses are jemalloc's it says; the rest of all such mappings is the
//! others'. And of any page it says whether it knows it, which it does of the first and the last one
//! of each of its extents, but neither of what is between nor of its bookkeeping. So what is the
//! others' is looked for in runs of pages that it does not know: in those at a mapping's ends first,
//! for between two known pages may be a large block.

use crate::backend::Extents;
use crate::sys::smaps;
use std::cmp::Reverse;
use std::ops::Range;

/// Of mappings that are like jemalloc's, in which jemalloc has so much in memory at most: what of
/// them is in memory and not jemalloc's.
pub(super) fn in_memory(own: &Extents, mappings: &[(Range<usize>, u64)], held: u64) -> u64 {
    let resident: u64 = mappings.iter().map(|(_, resident)| resident).sum();
    let all: u64 = mappings.iter().map(|(mapping, _)| mapping.len() as u64).sum();
    let mut theirs = all.saturating_sub(own.mapped);
    // What nobody has touched is not looked into; it may be terabytes.
    let untouched = mappings.iter().filter(|(mapping, resident)| *resident == 0 && !own.knows(mapping.start));
    theirs = theirs.saturating_sub(untouched.map(|(mapping, _)| mapping.len() as u64).sum());
    if theirs < LEAST {
        return 0;
    }
    // More than it holds is not jemalloc's in any case.
    let least = resident.saturating_sub(held).min(theirs);
    let mut patience = PATIENCE;
    let mut runs: Vec<Run> =
        mappings.iter().flat_map(|mapping| runs(mapping, |page| own.knows(page), &mut patience)).collect();
    let found = choose(&mut runs, theirs).map(|(run, len)| run.in_memory(len)).sum::<u64>();
    found.max(least).min(resident)
}

/// What is less may have come since jemalloc was asked.
const LEAST: u64 = 256 << 10;

/// Pages that are asked about: a few tenths of a second. What is beyond is taken for unknown.
const PATIENCE: usize = 4 << 20;

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
    /// How much of so many bytes of it is in memory.
    fn in_memory(&self, len: u64) -> u64 {
        let resident = self.resident.unwrap_or_else(|| smaps::in_memory(&self.pages));
        (u128::from(resident) * u128::from(len) / self.pages.len().max(1) as u128) as u64
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

/// Those runs that are the others', who have so many bytes of addresses, and how many each.
fn choose(runs: &mut [Run], mut theirs: u64) -> impl Iterator<Item = (&Run, u64)> {
    let len = |run: &Run| run.pages.len() as u64;
    runs.sort_by_key(|run| (len(run) != theirs, run.is_between, Reverse(run.pages.len())));
    runs.iter().map_while(move |run| {
        let taken = if run.is_between && len(run) > theirs { 0 } else { len(run).min(theirs) };
        theirs -= taken;
        (theirs > 0 || taken > 0).then_some((run, taken))
    })
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
    fn what_stands_at_an_end_is_chosen_first() {
        let pages = |pages: usize| (pages * PAGE) as u64;
        let chosen = |runs: &[Run], theirs| {
            let mut runs = runs.to_vec();
            choose(&mut runs, pages(theirs))
                .filter(|(_, len)| *len > 0)
                .map(|(run, len)| (run.clone(), len))
                .collect::<Vec<_>>()
        };
        let [end, between, large] =
            [run(0..10, false, None), run(20..40, true, None), run(50..90, true, None)];
        let all = [between.clone(), end.clone(), large.clone()];
        assert_eq!(chosen(&all, 5), [(end.clone(), pages(5))]);
        assert_eq!(chosen(&all, 10), [(end.clone(), pages(10))]);
        // One that is just as large is it, wherever it stands.
        assert_eq!(chosen(&all, 20), [(between.clone(), pages(20))]);
        // What is too large for them is a block.
        assert_eq!(chosen(&all, 31), [(end, pages(10)), (between, pages(20))]);
        assert_eq!(chosen(&[large], 31), []);
    }
}

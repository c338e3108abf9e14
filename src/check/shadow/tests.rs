//! Tables, the blocks in them, and the pages that are given back.

use super::counts::AHEAD;
use super::*;
use crate::ledger::thread;
use crate::sync::AtomicU64;

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
            assert!(found(from + 1..=to - 1).iter().eq(addresses.get(first + 1..last).into_iter().flatten()));
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
    middles.pages[page_of(middle, leaf)].blocks().0
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

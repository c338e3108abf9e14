//! Freed blocks, kept back for a while before their memory is used again.
//!
//! A thread collects the blocks that it frees in a *magazine* of its own (the
//! word and the idea are Bonwick's), so most frees touch nothing that threads
//! share. A full one goes into a ring of places: to put it in is to take the
//! next place and swap the magazine with the one that has been there for a turn
//! of the ring. That is the oldest one, and its blocks are released. So a
//! magazine is always in one place only, and whoever swapped it out has it
//! alone. First in, first out, by the magazine.

use super::block::{PAGE, prefetch};
#[cfg(not(dogtag_loom))]
use super::block_state::Entry;
use super::instance_id::Identity;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, const_unless_loom};

/// A queue of magazines, bounded by the number of its places, which callers
/// keep (a power of two), and in bytes. It is full of numbers: each stands for a
/// magazine in [`Magazines`], and 0 for none.
#[derive(Debug)]
pub(crate) struct MagazineQueue {
    /// Bytes that may be in, unless the limit is lower.
    allowed: AtomicU64,
    /// The number of forks when a magazine was put in last.
    forks: AtomicU64,
    counts: Counts,
}

/// What all threads change, for each magazine.
#[derive(Debug)]
struct Counts {
    /// How many magazines were ever put in; the next one's place is this,
    /// modulo the number of places.
    entered: AtomicU64,
    /// The oldest magazine's turn, unless the ring's turn made it leave.
    oldest: AtomicU64,
    /// Bytes of memory that are in. Counted a moment after the places are changed, so it
    /// may wrap around below 0 and is read as signed.
    bytes: AtomicU64,
    /// Bytes of addresses without memory, in the same way.
    addresses: AtomicU64,
}

/// How many times as many bytes of addresses without memory as of memory may be in.
pub(crate) const ADDRESSES: u64 = 64;

/// What a block takes while it is in quarantine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Bytes of memory.
    pub(crate) memory: usize,
    /// Bytes of addresses, whole [pages](PAGE), whose memory was given back to the system.
    pub(crate) addresses: usize,
}

impl Held {
    #[inline(always)]
    pub(crate) fn memory(memory: usize) -> Self {
        Self { memory, addresses: 0 }
    }
}

impl MagazineQueue {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self {
                allowed: AtomicU64::new(u64::MAX),
                forks: AtomicU64::new(0),
                counts: Counts {
                    entered: AtomicU64::new(0),
                    oldest: AtomicU64::new(0),
                    bytes: AtomicU64::new(0),
                    addresses: AtomicU64::new(0),
                },
            }
        }
    }

    /// Puts a magazine in, and releases the blocks of the magazines that have to leave for it, which
    /// are free then. `forks` is the number of times that the process has forked. Returns by how many
    /// bytes the queue holds less than before.
    pub(crate) fn enter(
        &self,
        places: &[AtomicU32],
        magazines: &Magazines<'_>,
        magazine: &Magazine,
        limit: u64,
        forks: u64,
        release: &mut impl Leaves,
    ) -> u64 {
        let (bytes, _) = magazine.holds();
        let addresses = magazine.addresses();
        // A fork copies nothing that maps these.
        let most_addresses = limit.saturating_mul(ADDRESSES);
        let limit = self.limit(limit, bytes, forks);
        let turn = self.counts.entered.fetch_add(1, Ordering::Relaxed);
        let displaced = swap(places, turn, magazines.number(magazine));
        let before = self.bytes();
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        if addresses != 0 {
            self.counts.addresses.fetch_add(addresses, Ordering::Relaxed);
        }
        self.empty(magazines, displaced, release);
        // Others, whose limit may be higher by now, go on to put some in: those are not waited for.
        while (self.bytes() > limit || self.addresses() > most_addresses)
            && let Some(oldest) = self.leave(places, turn + 1)
        {
            self.empty(magazines, oldest, release);
        }
        before.saturating_sub(self.bytes())
    }

    /// The bytes that may be in now.
    ///
    /// A fork copies what maps the quarantine's pages, and who writes to one of them then has to
    /// copy it. So each fork halves what may be in, and a quarter of what is put in raises it
    /// again: a process that forks all the time keeps back half of what it frees between two forks.
    fn limit(&self, limit: u64, bytes: u64, forks: u64) -> u64 {
        // Nobody forks under loom.
        if cfg!(dogtag_loom) {
            return limit;
        }
        let fresh_forks = forks.saturating_sub(self.forks.load(Ordering::Relaxed));
        let allowed = self.allowed.load(Ordering::Relaxed);
        if fresh_forks == 0 && allowed >= limit {
            return limit;
        }
        self.forks.store(forks, Ordering::Relaxed);
        let halved = allowed.min(limit) >> fresh_forks.min(63);
        let allowed = halved.max(LEAST).saturating_add(bytes / 4);
        self.allowed.store(allowed, Ordering::Relaxed);
        allowed.min(limit)
    }

    /// Bytes at which a thread's magazine is put in: a 64th of what may be in.
    #[inline]
    pub(crate) fn heavy(&self, limit: u64) -> u64 {
        (self.allowed.load(Ordering::Relaxed).min(limit) / 64).min(256 << 10)
    }

    /// Releases the blocks of all magazines that are in.
    pub(crate) fn clear(&self, places: &[AtomicU32], magazines: &Magazines<'_>, release: &mut impl Leaves) {
        // Others may go on to put magazines in, perhaps for ever: those are left.
        let end = self.counts.entered.load(Ordering::Relaxed);
        while let Some(oldest) = self.leave(places, end) {
            self.empty(magazines, oldest, release);
        }
    }

    /// Empties a magazine that was swapped out.
    fn empty(&self, magazines: &Magazines<'_>, number: u32, release: &mut impl Leaves) {
        let Some(magazine) = magazines.get(number) else { return };
        self.counts.bytes.fetch_sub(magazine.holds().0, Ordering::Relaxed);
        let addresses = magazine.addresses();
        if addresses != 0 {
            self.counts.addresses.fetch_sub(addresses, Ordering::Relaxed);
        }
        magazines.empty(magazine, release);
    }

    fn bytes(&self) -> u64 {
        (self.counts.bytes.load(Ordering::Relaxed) as i64).max(0) as u64
    }

    fn addresses(&self) -> u64 {
        (self.counts.addresses.load(Ordering::Relaxed) as i64).max(0) as u64
    }

    /// Takes out the oldest magazine whose turn was before `end`; `None` when there is none.
    fn leave(&self, places: &[AtomicU32], end: u64) -> Option<u32> {
        loop {
            let oldest = self.counts.oldest.load(Ordering::Relaxed);
            let entered = self.counts.entered.load(Ordering::Relaxed);
            let turn = oldest.max(entered.saturating_sub(places.len() as u64));
            if turn >= end {
                return None;
            }
            let next =
                self.counts.oldest.compare_exchange(oldest, turn + 1, Ordering::Relaxed, Ordering::Relaxed);
            // An empty place is one whose magazine is still on its way in, or
            // has left: then the next.
            if next.is_ok() {
                match swap(places, turn, NONE) {
                    NONE => {}
                    number => return Some(number),
                }
            }
        }
    }
}

const NONE: u32 = 0;

/// The least that the bound in bytes falls to, however often the process forks.
const LEAST: u64 = 256 << 10;

/// Exchanges the number in a place. The accesses of the thread that put a magazine in happen before
/// those of the thread that takes it out.
fn swap(places: &[AtomicU32], turn: u64, number: u32) -> u32 {
    places[turn as usize & (places.len() - 1)].swap(number, Ordering::AcqRel)
}

/// The magazines of the process. Zeroed memory is a free magazine.
pub(crate) struct Magazines<'a> {
    pub(crate) all: &'a [Magazine],
    /// Where the search for a free one begins: at one that was given back.
    pub(crate) next: &'a AtomicU32,
}

impl<'a> Magazines<'a> {
    /// Takes a free magazine for an allocator's blocks. `None` where there is none.
    /// It is full with more than `heavy` bytes.
    pub(crate) fn take(&self, identity: Identity, heavy: u64) -> Option<&'a Magazine> {
        let start = self.next.load(Ordering::Relaxed) as usize % self.all.len().max(1);
        let (before, after) = self.all.split_at(start);
        let magazine = after.iter().chain(before).find(|magazine| {
            !magazine.taken.load(Ordering::Relaxed) && !magazine.taken.swap(true, Ordering::Acquire)
        })?;
        magazine.identity.store(identity.bits(), Ordering::Relaxed);
        magazine.heavy.store(heavy, Ordering::Relaxed);
        self.next.store(self.number(magazine), Ordering::Relaxed);
        Some(magazine)
    }

    /// Releases the blocks of a magazine that the caller has, and makes the magazine free.
    pub(crate) fn empty(&self, magazine: &Magazine, release: &mut impl Leaves) {
        magazine.each(release);
        self.give_back(magazine);
    }

    /// Makes a magazine free, whatever is in it.
    pub(crate) fn give_back(&self, magazine: &Magazine) {
        for counter in [
            &magazine.blocks,
            &magazine.bytes,
            &magazine.addresses,
            &magazine.taken_blocks,
            &magazine.taken_bytes,
            &magazine.taken_addresses,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
        magazine.taken.store(false, Ordering::Release);
        // So that the same few are used over and over.
        self.next.store(self.number(magazine) - 1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self, number: u32) -> Option<&'a Magazine> {
        self.all.get((number as usize).checked_sub(1)?)
    }

    pub(crate) fn number(&self, magazine: &Magazine) -> u32 {
        let offset = std::ptr::from_ref(magazine).addr() - self.all.as_ptr().addr();
        (offset / size_of::<Magazine>()) as u32 + 1
    }
}

/// Some freed blocks of one allocator. Whoever has taken it, or has swapped it
/// out of the ring, has it alone; others may read what it holds. While a thread
/// [keeps](super::magazine) it, another may take blocks out.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Magazine {
    taken: AtomicBool,
    identity: AtomicU64,
    /// Bytes of memory with more than which it is full; of addresses, [so many times](ADDRESSES) as many.
    heavy: AtomicU64,
    /// How many blocks were put in, and what they [hold](Held).
    blocks: AtomicU64,
    bytes: AtomicU64,
    addresses: AtomicU64,
    /// Those of them that another thread has taken out.
    taken_blocks: AtomicU64,
    taken_bytes: AtomicU64,
    taken_addresses: AtomicU64,
    /// The blocks that were put in; 0 for one that was taken out.
    contents: [AtomicU64; MAGAZINE],
}

/// A block in a magazine: its address, and what it holds, or the most that can be told. The highest bit says
/// that it is pages of addresses, and a page of memory.
#[derive(Clone, Copy)]
struct Packed(u64);

/// Bits for an address, which is a multiple of 16.
const ADDRESS: u32 = 44;
/// Set where the number is one of pages.
const PAGES: u64 = 1 << 63;

impl Packed {
    #[inline(always)]
    fn new(address: usize, held: Held) -> Self {
        const MOST: usize = (1 << (u64::BITS - ADDRESS - 1)) - 1;

        let address = address as u64 >> 4;
        if held.addresses != 0 {
            return Self(PAGES | ((held.addresses / PAGE).min(MOST) as u64) << ADDRESS | address);
        }
        Self((held.memory.min(MOST) as u64) << ADDRESS | address)
    }

    #[inline(always)]
    fn address(self) -> usize {
        (self.0 << (u64::BITS - ADDRESS) >> (u64::BITS - ADDRESS - 4)) as usize
    }

    #[inline(always)]
    fn held(self) -> Held {
        let number = (self.0 << 1 >> 1 >> ADDRESS) as usize;
        match self.0 & PAGES {
            0 => Held::memory(number),
            _ => Held { memory: PAGE, addresses: number * PAGE },
        }
    }

    /// The block, which will be looked at in a moment: has the processor fetch it.
    #[inline(always)]
    fn fetched(self) -> Left {
        prefetch(self.address(), (self.0 >> ADDRESS) as usize);
        Left::fetched(self.address())
    }
}

/// What becomes of blocks that leave the quarantine. (A trait, since the compiler makes a call for each block of a closure
/// that is passed by reference.)
pub(crate) trait Leaves {
    fn leave(&mut self, left: Left);
}

impl<F: FnMut(Left)> Leaves for F {
    #[inline(always)]
    fn leave(&mut self, left: Left) {
        self(left);
    }
}

/// A block that leaves the quarantine.
#[derive(Clone, Copy, Default)]
pub(crate) struct Left {
    pub(crate) address: usize,
    /// Where its state is.
    #[cfg(not(dogtag_loom))]
    pub(crate) entry: Option<&'static Entry>,
}

impl Left {
    #[inline(always)]
    pub(crate) fn new(address: usize) -> Self {
        Self {
            address,
            #[cfg(not(dogtag_loom))]
            entry: super::shadow::entry(address),
        }
    }

    /// Has the processor fetch the state.
    #[inline(always)]
    fn fetched(address: usize) -> Self {
        let left = Self::new(address);
        #[cfg(not(dogtag_loom))]
        super::shadow::prefetch(left.entry);
        left
    }
}

/// Blocks in a magazine.
pub(crate) const MAGAZINE: usize = if cfg!(dogtag_loom) { 1 } else { 32 };

impl Magazine {
    /// The allocator whose blocks the magazine is for.
    #[inline]
    pub(crate) fn identity(&self) -> Option<Identity> {
        Identity::from_bits(self.identity.load(Ordering::Relaxed))
    }

    /// Whether the magazine is for that allocator's blocks.
    #[inline(always)]
    pub(crate) fn is_for(&self, identity: Identity) -> bool {
        self.identity.load(Ordering::Relaxed) == identity.bits()
    }

    /// Puts a block in, and says whether the magazine is full now. The caller has or keeps the magazine, which is not full
    /// yet.
    #[inline(always)]
    pub(crate) fn push(&self, address: usize, held: Held) -> bool {
        let blocks = self.blocks.load(Ordering::Relaxed);
        self.contents[blocks as usize % MAGAZINE].store(Packed::new(address, held).0, Ordering::Relaxed);
        let sum = self.bytes.load(Ordering::Relaxed) + held.memory as u64;
        self.bytes.store(sum, Ordering::Relaxed);
        let heavy = self.heavy.load(Ordering::Relaxed);
        let mut is_full = blocks + 1 == MAGAZINE as u64 || sum > heavy;
        if held.addresses != 0 {
            let sum = self.addresses.load(Ordering::Relaxed) + held.addresses as u64;
            self.addresses.store(sum, Ordering::Relaxed);
            is_full |= sum > heavy.saturating_mul(ADDRESSES);
        }
        // For who takes blocks out: they are there.
        self.blocks.store(blocks + 1, Ordering::Release);
        is_full
    }

    /// Takes the blocks out while another thread keeps the magazine and puts more in; one thread at a time. Calls
    /// `release` for each. (Those that are so large that [`Packed`] does not tell have made the magazine full.)
    pub(crate) fn take_blocks(&self, release: &mut impl Leaves) {
        let blocks = self.blocks.load(Ordering::Acquire) as usize;
        for content in &self.contents[..blocks.min(MAGAZINE)] {
            let block = Packed(content.swap(0, Ordering::Relaxed));
            if block.0 != 0 {
                let count = |counter: &AtomicU64, more: u64| {
                    counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
                };
                count(&self.taken_blocks, 1);
                count(&self.taken_bytes, block.held().memory as u64);
                count(&self.taken_addresses, block.held().addresses as u64);
                release.leave(Left::new(block.address()));
            }
        }
    }

    /// Bytes of memory, and blocks.
    pub(crate) fn holds(&self) -> (u64, u64) {
        (left(&self.taken_bytes, &self.bytes), left(&self.taken_blocks, &self.blocks))
    }

    /// Bytes of addresses without memory.
    pub(crate) fn addresses(&self) -> u64 {
        left(&self.taken_addresses, &self.addresses)
    }

    /// Calls `look` for what may be blocks in it, for who does not have the magazine: all may have changed meanwhile.
    #[cfg_attr(dogtag_loom, allow(dead_code))]
    pub(crate) fn each_hint(&self, look: impl FnMut(usize)) {
        let blocks = self.blocks.load(Ordering::Relaxed) as usize;
        let contents = self.contents.iter().take(blocks);
        contents.map(|content| Packed(content.load(Ordering::Relaxed)).address()).for_each(look);
    }

    /// Calls `release` for all blocks, in the order in which they were put in.
    pub(super) fn each(&self, release: &mut impl Leaves) {
        /// How far ahead a block is fetched: it has not been touched for long.
        const AHEAD: usize = 4;

        let blocks = self.blocks.load(Ordering::Relaxed) as usize;
        let contents = &self.contents[..blocks.min(MAGAZINE)];
        let fetched = |content: &AtomicU64| Packed(content.load(Ordering::Relaxed)).fetched();
        let mut ahead = [Left::default(); AHEAD];
        for (place, content) in ahead.iter_mut().zip(contents) {
            *place = fetched(content);
        }
        for index in 0..contents.len() {
            let place = &mut ahead[index % AHEAD];
            let left = *place;
            if let Some(content) = contents.get(index + AHEAD) {
                *place = fetched(content);
            }
            if left.address != 0 {
                release.leave(left);
            }
        }
    }
}

fn left(taken: &AtomicU64, all: &AtomicU64) -> u64 {
    // In this order: all of what was taken out had been put in.
    let taken = taken.load(Ordering::Relaxed);
    all.load(Ordering::Relaxed).saturating_sub(taken)
}

#[cfg(test)]
fn identity(number: u16) -> Identity {
    Identity::from_bits(number.into()).expect("not 0")
}

#[cfg(test)]
pub(super) fn magazine() -> Magazine {
    Magazine {
        taken: AtomicBool::new(false),
        identity: AtomicU64::new(0),
        heavy: AtomicU64::new(u64::MAX),
        blocks: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        addresses: AtomicU64::new(0),
        taken_blocks: AtomicU64::new(0),
        taken_bytes: AtomicU64::new(0),
        taken_addresses: AtomicU64::new(0),
        contents: std::array::from_fn(|_| AtomicU64::new(0)),
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// What a block holds, some of which have no memory.
    fn block() -> impl Strategy<Value = Held> {
        let without = (1_usize..300).prop_map(|pages| Held { memory: PAGE, addresses: pages * PAGE });
        prop_oneof![4 => (1_usize..200).prop_map(Held::memory), 1 => without]
    }

    proptest! {
        /// Compares the ring with a queue that is as plain as can be.
        #[test]
        fn first_in_first_out_within_the_bounds(
            magazines in prop::collection::vec(prop::collection::vec(block(), 1..=MAGAZINE), 1..100),
            places in 0_u32..5,
            limit in 1_u64..30_000,
        ) {
            let ring: Vec<_> = (0..1 << places).map(|_| AtomicU32::new(NONE)).collect();
            let all: Vec<_> = (0..80).map(|_| magazine()).collect();
            let pool = Magazines { all: &all, next: &AtomicU32::new(0) };
            let quarantine = MagazineQueue::new();
            let mut model = VecDeque::<Vec<(usize, Held)>>::new();
            let mut address = 0;
            for sizes in magazines {
                let magazine = pool.take(identity(3), u64::MAX).expect("most are free");
                prop_assert_eq!((magazine.identity(), magazine.holds()), (Some(identity(3)), (0, 0)));
                let mut blocks = Vec::new();
                for held in sizes {
                    address += 16;
                    let is_full = magazine.push(address, held);
                    blocks.push((address, held));
                    prop_assert_eq!(is_full, blocks.len() == MAGAZINE);
                }
                model.push_back(blocks);
                let sums = |model: &VecDeque<Vec<(usize, Held)>>| {
                    let held = || model.iter().flatten().map(|block| block.1);
                    (
                        held().map(|held| held.memory as u64).sum::<u64>(),
                        held().map(|held| held.addresses as u64).sum::<u64>(),
                    )
                };
                let mut expected = Vec::new();
                while model.len() > 1 << places
                    || sums(&model).0 > limit
                    || sums(&model).1 > limit * ADDRESSES
                {
                    expected.extend(model.pop_front().into_iter().flatten().map(|block| block.0));
                }
                let mut released = Vec::new();
                quarantine.enter(&ring, &pool, magazine, limit, 0, &mut |left: Left| released.push(left.address));
                prop_assert_eq!(released, expected);
                prop_assert_eq!((quarantine.bytes(), quarantine.addresses()), sums(&model));
                let taken = all.iter().filter(|magazine| magazine.taken.load(Ordering::Relaxed)).count();
                prop_assert_eq!(taken, model.len());
            }
        }
    }

    #[test]
    fn forks_halve_what_may_be_in_and_what_enters_raises_it_again() {
        const LIMIT: u64 = 64 << 20;

        let quarantine = MagazineQueue::new();
        let mut forks = 0;
        assert_eq!(quarantine.limit(LIMIT, 1000, forks), LIMIT);
        forks += 1;
        assert_eq!(quarantine.limit(LIMIT, 1000, forks), LIMIT / 2 + 250);
        assert_eq!(quarantine.limit(LIMIT, LIMIT, forks), LIMIT / 2 + 250 + LIMIT / 4);
        assert_eq!(quarantine.heavy(LIMIT), LEAST.min(LIMIT / 64));
        assert_eq!(quarantine.limit(LIMIT, 2 * LIMIT, forks), LIMIT);
        forks += 2;
        assert_eq!(quarantine.limit(LIMIT, 0, forks), LIMIT / 4);
        // Who forks all the time keeps half a fork's worth.
        for _ in 0..100 {
            forks += 1;
            quarantine.limit(LIMIT, 20 * LEAST, forks);
        }
        assert_eq!(quarantine.limit(LIMIT, 0, forks) / LEAST, 10);
        forks += 1000;
        assert_eq!(quarantine.limit(LIMIT, 0, forks), LEAST);
        assert_eq!(quarantine.heavy(LIMIT), LEAST / 64);
        assert_eq!(quarantine.limit(1000, 0, forks), 1000);
    }

    /// A thread that has to release blocks does not release them for all that come after.
    #[test]
    fn nobody_waits_for_others_to_put_in_less() {
        const BLOCK: usize = 1000;

        let ring: Vec<_> = (0..64).map(|_| AtomicU32::new(NONE)).collect();
        let all: Vec<_> = (0..200).map(|_| magazine()).collect();
        let pool = Magazines { all: &all, next: &AtomicU32::new(0) };
        let quarantine = MagazineQueue::new();
        let put_in = |limit, release: &mut dyn FnMut(Left)| {
            let magazine = pool.take(identity(1), u64::MAX).expect("most are free");
            magazine.push(16, Held::memory(BLOCK));
            quarantine.enter(&ring, &pool, magazine, limit, 0, &mut &mut *release);
        };
        const BEFORE: usize = 10;
        (0..BEFORE).for_each(|_| put_in(u64::MAX, &mut |_| unreachable!()));
        // For each block that is released another thread puts one in, which finds that more may be.
        let mut released = 0;
        let mut meanwhile = |_| {
            released += 1;
            assert!(released <= BEFORE + 1, "it goes on for ever");
            put_in(u64::MAX, &mut |_| unreachable!());
        };
        put_in(BLOCK as u64, &mut meanwhile);
        assert_eq!(released, BEFORE + 1);
        let mut released = 0;
        quarantine.clear(&ring, &pool, &mut |_: Left| {
            released += 1;
            assert!(released <= BEFORE + 1, "it goes on for ever");
            put_in(u64::MAX, &mut |_| unreachable!());
        });
        assert_eq!((released, quarantine.bytes()), (BEFORE + 1, (BLOCK * (BEFORE + 1)) as u64));
    }

    #[test]
    fn heavy_magazines_are_full() {
        let pool = Magazines { all: &[magazine()], next: &AtomicU32::new(0) };
        let magazine = pool.take(identity(1), 1000).expect("it is free");
        assert!(!magazine.push(16, Held::memory(1000)));
        assert!(magazine.push(32, Held::memory(1)));
        pool.give_back(magazine);
        assert!(pool.take(identity(1), 999).is_some_and(|again| again.push(16, Held::memory(1000))));
    }

    #[test]
    fn addresses_make_a_magazine_full_too_and_are_taken_out_with_their_block() {
        let pool = Magazines { all: &[magazine()], next: &AtomicU32::new(0) };
        let heavy = 2 * PAGE as u64;
        let most = heavy as usize * ADDRESSES as usize;
        let magazine = pool.take(identity(1), heavy).expect("it is free");
        let held = Held { memory: PAGE, addresses: most - PAGE };
        assert!(!magazine.push(16, held));
        assert_eq!((magazine.holds(), magazine.addresses()), ((PAGE as u64, 1), (most - PAGE) as u64));
        let mut taken = Vec::new();
        magazine.take_blocks(&mut |left: Left| taken.push(left.address));
        assert_eq!((&taken[..], magazine.holds(), magazine.addresses()), (&[16][..], (0, 0), 0));
        pool.give_back(magazine);
        let again = pool.take(identity(1), heavy).expect("it was given back");
        assert_eq!(again.addresses(), 0);
        assert!(again.push(16, Held { memory: PAGE, addresses: most + PAGE }));
    }

    #[test]
    fn every_magazine_can_be_taken() {
        let all: Vec<_> = (0..100).map(|_| magazine()).collect();
        let pool = Magazines { all: &all, next: &AtomicU32::new(0) };
        let taken: Vec<_> = std::iter::from_fn(|| pool.take(identity(1), u64::MAX)).collect();
        assert_eq!(taken.len(), 100);
        pool.give_back(taken[57]);
        assert!(std::ptr::eq(pool.take(identity(2), u64::MAX).expect("one is free"), taken[57]));
        assert!(pool.take(identity(2), u64::MAX).is_none());
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::{model, whole_model};
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        places: Vec<AtomicU32>,
        all: Vec<Magazine>,
        next: AtomicU32,
        quarantine: MagazineQueue,
    }

    /// However threads put magazines in and push others out, each block is
    /// released once or still there, and what is there is what is counted.
    fn nothing_is_lost_or_released_twice(places: usize, each: usize, limit: u64, held: Held) {
        model(move || {
            let shared = Arc::new(Shared {
                places: (0..places).map(|_| AtomicU32::new(NONE)).collect(),
                all: (0..2 * each).map(|_| magazine()).collect(),
                next: AtomicU32::new(0),
                quarantine: MagazineQueue::new(),
            });
            let put_in = move |shared: &Shared, thread: usize| {
                let pool = Magazines { all: &shared.all, next: &shared.next };
                let mut released = Vec::new();
                for number in thread * each..(thread + 1) * each {
                    let magazine = &shared.all[number];
                    magazine.taken.store(true, Ordering::Relaxed);
                    magazine.push((number + 1) * 16, held);
                    let release = &mut |left: Left| released.push(left.address);
                    shared.quarantine.enter(&shared.places, &pool, magazine, limit, 0, release);
                }
                released
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || put_in(&shared, 1)
            });
            let mut seen = put_in(&shared, 0);
            seen.extend(other.join().unwrap());

            let mut left = 0;
            for place in &shared.places {
                let pool = Magazines { all: &shared.all, next: &shared.next };
                if let Some(magazine) = pool.get(place.load(Ordering::Acquire)) {
                    left += 1;
                    magazine.each(&mut |left: Left| seen.push(left.address));
                }
            }
            assert_eq!(shared.quarantine.bytes(), left * held.memory as u64);
            assert_eq!(shared.quarantine.addresses(), left * held.addresses as u64);
            seen.sort_unstable();
            assert_eq!(seen, (1..=2 * each).map(|number| number * 16).collect::<Vec<_>>());
        });
    }

    #[test]
    fn when_the_ring_is_full() {
        nothing_is_lost_or_released_twice(1, 1, 1000, Held::memory(16));
        nothing_is_lost_or_released_twice(2, 2, 1000, Held::memory(16));
    }

    #[test]
    fn when_the_bytes_are_too_many() {
        nothing_is_lost_or_released_twice(2, 1, 16, Held::memory(16));
    }

    #[test]
    fn when_the_addresses_are_too_many() {
        const LIMIT: u64 = 4 * PAGE as u64;

        let held = Held { memory: PAGE, addresses: (LIMIT * ADDRESSES) as usize };
        nothing_is_lost_or_released_twice(2, 1, LIMIT, held);
    }

    #[test]
    fn a_magazine_is_taken_once() {
        whole_model(|| {
            let shared = Arc::new(([magazine(), magazine()], AtomicU32::new(0)));
            let take = |shared: &([Magazine; 2], AtomicU32)| {
                let pool = Magazines { all: &shared.0, next: &shared.1 };
                pool.take(identity(1), u64::MAX).map(|magazine| {
                    assert_eq!(magazine.holds(), (0, 0), "somebody else has it");
                    magazine.push(16, Held::memory(16));
                    pool.give_back(magazine);
                })
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || take(&shared)
            });
            assert!(take(&shared).is_some() && other.join().unwrap().is_some());
        });
    }
}

//! How many blocks there are in each page of the shadow, so that a page without any can be given back.
//!
//! Whoever counts a block in waits while its page is given back. Each count is a locked instruction, so a thread
//! counts some blocks in ahead ([`Credits`]), and blocks out that leave the quarantine together ([`Vacancies`]).

use super::{STRETCH, vacated};
use crate::check::block_state::{Entry, State};
use crate::ledger::thread;
use crate::sync::{AtomicU32, AtomicU64, Ordering, yield_now};

/// The blocks in a page of a leaf, and three flags.
pub(super) struct Page(AtomicU32);

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

    /// Counts so many blocks out.
    #[inline]
    pub(super) fn count_out(&self, number: u32) {
        self.0.fetch_sub(number, Ordering::Release);
    }

    /// How many blocks are counted in, and whether others reach the page from before it.
    #[inline]
    pub(super) fn blocks(&self) -> (u32, bool) {
        let bits = self.0.load(Ordering::Relaxed);
        (bits & BLOCKS, bits & COVERED != 0)
    }

    /// Notes that a block reaches the page from before it.
    pub(super) fn cover(&self) {
        if !self.blocks().1 {
            self.0.fetch_or(COVERED, Ordering::Relaxed);
        }
    }

    /// Has blocks wait that come now; `false` if there are some already.
    pub(super) fn close(&self) -> bool {
        let bits = self.0.load(Ordering::Relaxed);
        let closed = bits ^ USED ^ GOING;
        bits & !COVERED == USED
            && self.0.compare_exchange(bits, closed, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    pub(super) fn open(&self) {
        self.0.fetch_and(!GOING, Ordering::Release);
    }
}

/// Counts a block in where that was not done ahead.
#[inline(never)]
pub(super) fn count_in(page: &Page, address: usize, credits: Option<Credits>) {
    match credits {
        Some(credits) => {
            page.count_in(AHEAD);
            credits.exchange(address, AHEAD - 1);
        }
        None => page.count_in(1),
    }
}

/// How many blocks are counted in at once: fewer than a page holds, and many for a locked instruction.
pub(super) const AHEAD: u32 = 64;

/// The blocks that a thread has counted in ahead: for some pages how many there are. A page that has any stays.
#[derive(Clone, Copy)]
pub(crate) struct Credits(pub(crate) &'static [AtomicU64; thread::NUMBERS]);

impl Credits {
    /// Uses up one of an address's page; `false` if there is none.
    #[inline(always)]
    pub(super) fn spend(self, address: usize) -> bool {
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

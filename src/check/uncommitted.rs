//! Pages that the backend has reserved and that hold no block: they have no access, so that who reads or writes one
//! is found at once.
//!
//! The backend says which these are: jemalloc by the hooks of its [extents](super::extent_hooks), where it
//! commits and decommits them. A bit for each page says that it has no access. A page without its bit has its access:
//! so no commit takes a system call more than it needs, and a page that the program protects itself is not taken for
//! one of these. Accesses and bits are changed by one thread at a time.
//!
//! An access takes a system call, so pages up to a multiple of [`AHEAD`] get theirs together. Each run of such pages may
//! be a mapping more, of which Linux lets a process have some 65,000: so there are no more than [`MOST`]. Once the system
//! refuses to give an access back, or the program is about to forbid itself the call, all pages have their access back,
//! and keep it.
//!
//! Addresses that are [reserved](reserve) beside the backend's are nobody's. They are in a set of their own, since they never
//! get an access, and do not count.

use super::block::PAGE;
use super::inspect::pointer;
use super::protection::{self, protect};
use crate::sync::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, spin};
use crate::sys;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicIsize;

/// How many runs of pages without access there may be.
const MOST: isize = 8192;

/// How many there are.
static RUNS: AtomicIsize = AtomicIsize::new(0);

/// Up to a multiple of that more pages are opened than the backend asks for.
const AHEAD: usize = 256 << 10;

/// Addresses of a table of bits.
const REGION: usize = 1 << 32;
/// Addresses of a word of bits.
const STRETCH: usize = PAGE * u64::BITS as usize;
/// Tables: for as many addresses as a process can have.
const REGIONS: usize = 1 << 16;

struct Bits([AtomicU64; REGION / STRETCH]);

/// A set of pages.
struct Pages {
    tables: [AtomicPtr<Bits>; REGIONS],
    /// Where there have ever been some: the first address, and the end.
    from: AtomicUsize,
    to: AtomicUsize,
}

/// The backend's pages without access.
static CLOSED: Pages = Pages::new();

/// Addresses that nobody uses.
static RESERVED: Pages = Pages::new();

/// Set when no more access is taken away.
static IS_OVER: AtomicBool = AtomicBool::new(false);
/// Set when all pages have their access back for good.
static ALL_ARE_OPEN: AtomicBool = AtomicBool::new(false);
/// The thread that changes accesses and their bits, or 0.
static CHANGING: AtomicUsize = AtomicUsize::new(0);
/// Set when it was waited for in vain.
static IS_STUCK: AtomicBool = AtomicBool::new(false);
/// Set when an access to such a page was let through, which may have written there.
static SOME_ARE_WRITTEN: AtomicBool = AtomicBool::new(false);

/// Set if the backend takes the access away itself, as jemalloc does where the system does not overcommit.
static ARE_LEFT: AtomicBool = AtomicBool::new(false);

/// Has the backend change accesses itself: here pages are only [marked](mark).
pub(super) fn leave_to_backend() {
    ARE_LEFT.store(true, Ordering::Relaxed);
}

pub(super) fn are_left_to_backend() -> bool {
    ARE_LEFT.load(Ordering::Relaxed)
}

/// Whether accesses are taken away.
pub(super) fn is_on() -> bool {
    !IS_OVER.load(Ordering::Relaxed)
}

/// Does `change` while no other thread changes accesses. `None` if that is not to be had for seconds, or if the calling
/// thread does so itself, which a signal has interrupted.
fn alone<R>(change: impl FnOnce() -> R) -> Option<R> {
    const TRIES: u32 = 10_000;

    // SAFETY: asks for a number, and has no preconditions.
    let own = unsafe { libc::pthread_self() } as usize;
    for attempt in 0..TRIES {
        match CHANGING.compare_exchange(0, own, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {
                IS_STUCK.store(false, Ordering::Relaxed);
                let done = change();
                CHANGING.store(0, Ordering::Release);
                return Some(done);
            }
            // Seconds were lost once: whoever has it may be gone.
            Err(other) if other == own || IS_STUCK.load(Ordering::Relaxed) => return None,
            Err(_) => spin(attempt),
        }
    }
    IS_STUCK.store(true, Ordering::Relaxed);
    None
}

/// Takes the access to pages away, if there may be more without, and the system lets it.
///
/// # Safety
///
/// They must be whole pages of the caller's that hold nothing.
pub(super) unsafe fn close(pages: NonNull<u8>, length: usize) {
    let start = pages.as_ptr().expose_provenance();
    alone(|| {
        // These and the pages beside them are one run then.
        let runs = 1 - CLOSED.runs_at(&(start..start + length));
        let is_too_much = RUNS.load(Ordering::Relaxed) + runs > MOST;
        if !is_on() || is_too_much || !mark(start..start + length) {
            return;
        }
        protection::begin_turn();
        // Where there was no memory, a part may have been done. All else is refused as a whole.
        // SAFETY: the caller's pages.
        match unsafe { protect(pages, length, libc::PROT_NONE) } {
            Ok(()) | Err(libc::ENOMEM) => _ = RUNS.fetch_add(runs, Ordering::Relaxed),
            Err(_) => unmark(start..start + length),
        }
    });
}

/// Notes pages that have no access. `false` if there is no memory for that.
pub(super) fn mark(addresses: Range<usize>) -> bool {
    CLOSED.add(addresses)
}

/// Notes pages that have their access.
pub(super) fn unmark(addresses: Range<usize>) {
    CLOSED.remove(addresses);
}

/// Notes addresses that nobody uses, and nobody will.
pub(super) fn reserve(addresses: Range<usize>) {
    RESERVED.add(addresses);
}

/// Gives the access to pages back, which are zeros then. `false` if the system refuses.
///
/// # Safety
///
/// They must be whole pages that hold nothing, and that were [closed](close), or may have been.
pub(super) unsafe fn open(pages: NonNull<u8>, length: usize) -> bool {
    let addresses = pages.addr().get()..pages.addr().get() + length;
    let is_closed = !ALL_ARE_OPEN.load(Ordering::Acquire) && CLOSED.has_any(addresses.clone());
    // SAFETY: the caller's pages.
    let is_open = !is_closed
        || unsafe {
            // Somebody has died with it, or a debugger has him: the bits stay as they are.
            let alone = alone(|| open_with_more(pages, addresses));
            alone.unwrap_or_else(|| protect(pages, length, libc::PROT_READ | libc::PROT_WRITE).is_ok())
        };
    if is_open && SOME_ARE_WRITTEN.load(Ordering::Relaxed) {
        // SAFETY: the caller's pages, which hold nothing.
        unsafe { pages.write_bytes(0, length) };
    }
    is_open
}

/// Gives the access to pages back, and to some behind them, which the backend will take next: small extents come one
/// after the other.
///
/// # Safety
///
/// As for [`open`]; and nobody may change accesses meanwhile.
unsafe fn open_with_more(pages: NonNull<u8>, addresses: Range<usize>) -> bool {
    let most = addresses.end.next_multiple_of(AHEAD);
    let mut all = addresses.start..CLOSED.end_of_run(addresses.end, most);
    // In the middle of such pages it makes one run two. If these are too many, all that follows is opened.
    if RUNS.load(Ordering::Relaxed) >= MOST && beside(&all) > CLOSED.runs_at(&all) {
        all.end = CLOSED.end_of_run(all.end, usize::MAX);
    }
    let runs = beside(&all) - CLOSED.runs_at(&all);
    // SAFETY: the caller's pages, and others that hold nothing.
    if unsafe { protect(pages, all.len(), libc::PROT_READ | libc::PROT_WRITE) }.is_ok() {
        unmark(all);
        RUNS.fetch_add(runs, Ordering::Relaxed);
        return true;
    }
    // To open a part makes a mapping more; to open all makes them fewer.
    if is_on() {
        open_all_alone();
    }
    // Where it refuses all, the backend takes other addresses.
    !CLOSED.has_any(addresses)
}

/// Gives all pages their access back, but for those that nobody uses, and takes no more away.
#[cold]
pub(super) fn open_all() {
    IS_OVER.store(true, Ordering::Relaxed);
    alone(open_all_alone);
}

/// The same where nobody changes accesses meanwhile.
#[cold]
fn open_all_alone() {
    IS_OVER.store(true, Ordering::Relaxed);
    if are_left_to_backend() {
        return;
    }
    let mut is_done = true;
    CLOSED.each_run(|run| {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: pages that hold nothing.
        let is_open =
            pointer(run.start).is_some_and(|start| unsafe { protect(start, run.len(), access).is_ok() });
        if is_open {
            unmark(run);
        }
        is_done &= is_open;
    });
    if is_done {
        ALL_ARE_OPEN.store(true, Ordering::Release);
    }
}

/// Only the thread that has forked is there.
pub(super) fn in_the_child() {
    CHANGING.store(0, Ordering::Relaxed);
}

/// Whether an address is in a page without access.
pub(super) fn has(address: usize) -> bool {
    CLOSED.has(address) || RESERVED.has(address)
}

/// Whether there are such pages below an address and above it, or were.
pub(super) fn are_around(address: usize) -> bool {
    CLOSED.is_around(address) || RESERVED.is_around(address)
}

/// Lets accesses to a page through; `false` if the system refuses.
pub(super) fn let_through(address: usize) -> bool {
    let page = address & !(PAGE - 1);
    let Some(start) = pointer(page) else { return false };
    SOME_ARE_WRITTEN.store(true, Ordering::Relaxed);
    let page = page..page + PAGE;
    let is_open = alone(|| {
        // Somebody may have opened it meanwhile.
        if !has(page.start) {
            return true;
        }
        let runs = beside(&page) - 1;
        // SAFETY: a page that holds nothing.
        let is_open = unsafe { protect(start, PAGE, libc::PROT_READ | libc::PROT_WRITE) }.is_ok();
        if is_open && CLOSED.has(page.start) {
            unmark(page.clone());
            RUNS.fetch_add(runs, Ordering::Relaxed);
        }
        if is_open {
            RESERVED.remove(page.clone());
        }
        is_open
    });
    is_open.unwrap_or(false)
}

/// How many of the pages on both sides have no access.
fn beside(addresses: &Range<usize>) -> isize {
    isize::from(CLOSED.has(addresses.start.wrapping_sub(1))) + isize::from(CLOSED.has(addresses.end))
}

impl Pages {
    const fn new() -> Self {
        Self {
            tables: [const { AtomicPtr::new(std::ptr::null_mut()) }; REGIONS],
            from: AtomicUsize::new(usize::MAX),
            to: AtomicUsize::new(0),
        }
    }

    /// Adds all of these, or none: then there is no memory for that, and the result is `false`.
    fn add(&'static self, addresses: Range<usize>) -> bool {
        self.from.fetch_min(addresses.start, Ordering::Relaxed);
        self.to.fetch_max(addresses.end, Ordering::Relaxed);
        let is_done =
            self.each_word(addresses.clone(), true, |word, bits| _ = word.fetch_or(bits, Ordering::Relaxed));
        if !is_done {
            self.remove(addresses);
        }
        is_done
    }

    fn remove(&'static self, addresses: Range<usize>) {
        self.each_word(addresses, false, |word, bits| _ = word.fetch_and(!bits, Ordering::Relaxed));
    }

    fn has(&'static self, address: usize) -> bool {
        self.has_any(address..address.saturating_add(1))
    }

    fn has_any(&'static self, addresses: Range<usize>) -> bool {
        let mut is_any = false;
        self.each_word(addresses, false, |word, bits| is_any |= word.load(Ordering::Relaxed) & bits != 0);
        is_any
    }

    /// Whether there are some below an address and above it, or were.
    fn is_around(&self, address: usize) -> bool {
        (self.from.load(Ordering::Relaxed)..self.to.load(Ordering::Relaxed)).contains(&address)
    }

    /// The first page from `start` on that is not there, or `most`.
    fn end_of_run(&'static self, start: usize, most: usize) -> usize {
        let most = most.min(REGIONS * REGION);
        (start..most).step_by(PAGE).find(|page| !self.has(*page)).unwrap_or(most)
    }

    /// How many runs have pages among these or beside them. Some of these may not be there: those opened ahead, and
    /// those whose accesses were let through.
    fn runs_at(&'static self, addresses: &Range<usize>) -> isize {
        let (mut runs, mut last) = (0, 0);
        let window = addresses.start.saturating_sub(PAGE)..addresses.end.saturating_add(PAGE);
        self.each_word(window, false, |word, bits| {
            let there = word.load(Ordering::Relaxed) & bits;
            runs += (there & !(there << 1 | last)).count_ones() as isize;
            last = there >> (u64::BITS - 1);
        });
        runs
    }

    /// Calls `each` with the words that have the bits of these pages, and the bits. `false` if there is a table
    /// missing: it is mapped if `is_mapped`, and no bit is set in it otherwise.
    fn each_word(
        &'static self,
        addresses: Range<usize>,
        is_mapped: bool,
        mut each: impl FnMut(&'static AtomicU64, u64),
    ) -> bool {
        let mut is_all = true;
        let mut next = addresses.start / PAGE * PAGE;
        let end = addresses.end.min(REGIONS * REGION);
        while next < end {
            let stop = (next / STRETCH + 1) * STRETCH;
            match self.table(next / REGION, is_mapped) {
                Some(table) => {
                    let first = next % STRETCH / PAGE;
                    let count = (end.min(stop) - next).div_ceil(PAGE);
                    let bits = (u64::MAX >> (u64::BITS as usize - count)) << first;
                    each(&table.0[next % REGION / STRETCH], bits);
                    next = stop;
                }
                None => {
                    is_all = false;
                    next = (next / REGION + 1) * REGION;
                }
            }
        }
        is_all
    }

    fn table(&'static self, number: usize, is_mapped: bool) -> Option<&'static Bits> {
        let place = &self.tables[number];
        if is_mapped {
            // SAFETY: all atomics, for which zeros are valid; only this fills the table.
            unsafe { sys::get_or_map(place) }
        } else {
            // SAFETY: tables are never unmapped.
            unsafe { place.load(Ordering::Acquire).as_ref() }
        }
    }

    /// Calls `each` for every run of pages.
    fn each_run(&'static self, mut each: impl FnMut(Range<usize>)) {
        let mut run = 0..0;
        let from = self.from.load(Ordering::Relaxed).min(REGIONS * REGION);
        let to = self.to.load(Ordering::Relaxed).min(REGIONS * REGION);
        let mut word = from / STRETCH;
        while word * STRETCH < to {
            let Some(table) = self.table(word * STRETCH / REGION, false) else {
                word = (word * STRETCH / REGION + 1) * (REGION / STRETCH);
                continue;
            };
            let bits = table.0[word % (REGION / STRETCH)].load(Ordering::Relaxed);
            for page in (0..u64::BITS as usize).filter(|page| bits >> page & 1 != 0) {
                let start = word * STRETCH + page * PAGE;
                if run.end != start {
                    if !run.is_empty() {
                        each(run);
                    }
                    run = start..start;
                }
                run.end = start + PAGE;
            }
            word += 1;
        }
        if !run.is_empty() {
            each(run);
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::sync::Mutex;
    use proptest::prelude::*;
    use std::ptr;

    /// More than three words of bits, and what is opened ahead ends among them.
    const PAGES: usize = 200;
    /// What the pages are of is a process's: one test at a time.
    static ONE: Mutex<()> = Mutex::new(());

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Close(usize, usize),
        Open(usize, usize),
        LetThrough(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let range = || (0..PAGES, 1..90_usize).prop_map(|(from, count)| (from, count.min(PAGES - from)));
        let step = prop_oneof![
            range().prop_map(|(from, count)| Step::Close(from, count)),
            range().prop_map(|(from, count)| Step::Open(from, count)),
            (0..PAGES).prop_map(Step::LetThrough),
        ];
        prop::collection::vec(step, 1..60)
    }

    /// Pages with others around that are nobody's, and never have their access.
    fn map() -> usize {
        let length = (PAGES + 2 * 64) * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: new pages.
        let mapped =
            unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        mapped.expose_provenance() + 64 * PAGE
    }

    fn runs(model: &[bool]) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = vec![];
        for page in (0..model.len()).filter(|page| model[*page]) {
            match runs.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    /// Whether the system lets the process read the page.
    fn has_access(page: usize) -> bool {
        let mut byte = 0_u8;
        let to = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let from = libc::iovec { iov_base: ptr::with_exposed_provenance_mut(page), iov_len: 1 };
        // SAFETY: reads a byte into one, or says that it cannot.
        unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &from, 1, 0) == 1 }
    }

    fn check(steps: &[Step]) {
        let base = map();
        // What nobody uses does not count.
        reserve(base - 64 * PAGE..base);
        reserve(base + PAGES * PAGE..base + (PAGES + 64) * PAGE);
        let before = RUNS.load(Ordering::Relaxed);
        let mut model = [false; PAGES];
        let at = |page: usize| pointer(base + page * PAGE).expect("not null");
        for step in steps {
            match *step {
                // SAFETY: the test's pages, which hold nothing.
                Step::Close(from, count) => unsafe {
                    close(at(from), count * PAGE);
                    model[from..from + count].fill(true);
                },
                // SAFETY: the test's pages, which hold nothing.
                Step::Open(from, count) => unsafe {
                    assert!(open(at(from), count * PAGE));
                    if model[from..from + count].contains(&true) {
                        let end = (base + (from + count) * PAGE).next_multiple_of(AHEAD);
                        let most = ((end - base) / PAGE).min(PAGES);
                        let more = (from + count..most).take_while(|page| model[*page]).count();
                        model[from..from + count + more].fill(false);
                    }
                },
                Step::LetThrough(page) => {
                    assert!(let_through(base + page * PAGE));
                    model[page] = false;
                }
            }
            let expected = runs(&model);
            assert_eq!(RUNS.load(Ordering::Relaxed) - before, expected.len() as isize, "{step:?}");
            let mut seen = vec![];
            CLOSED.each_run(|run| seen.push(run));
            seen.retain(|run| (base..base + PAGES * PAGE).contains(&run.start));
            let seen: Vec<_> =
                seen.iter().map(|run| (run.start - base) / PAGE..(run.end - base) / PAGE).collect();
            assert_eq!(seen, expected, "{step:?}");
            assert!((0..PAGES).all(|page| has(base + page * PAGE + 9) == model[page]), "{step:?}");
        }
        assert!((0..PAGES).all(|page| has_access(base + page * PAGE) != model[page]), "{steps:?}");
        // SAFETY: the test's pages.
        assert!(unsafe { open(at(0), PAGES * PAGE) });
        assert_eq!(RUNS.load(Ordering::Relaxed), before);
        for beside in [base - PAGE, base + PAGES * PAGE] {
            assert!(has(beside) && !CLOSED.has(beside));
        }
    }

    /// Pages opened ahead are between others that are closed, and all are opened.
    #[test]
    fn runs_are_counted_where_an_opened_range_has_two() {
        let _one = ONE.lock();
        check(&[Step::Close(0, 64), Step::LetThrough(20), Step::Open(0, 40), Step::Close(0, 40)]);
    }

    proptest! {
        #[test]
        fn the_pages_and_their_runs_are_a_plain_models(steps in steps()) {
            let _one = ONE.lock();
            check(&steps);
        }
    }
}

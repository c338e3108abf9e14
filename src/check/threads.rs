//! Numbers and names of threads, for reports on threads that may be gone.
//!
//! Numbers are given in the order of the first allocations, and never again, but for the last:
//! threads from the 2^31st on have that one, and no name.

use super::text::Text;
use crate::ledger::thread::Word;
use crate::sync::{AtomicPtr, AtomicU64, Ordering};
use crate::sys;
use std::ptr;

/// The calling thread's number.
#[inline]
pub(crate) fn number() -> u32 {
    match (Word::CheckNumber.get() as u32) & !SETTLED {
        0 => give_number(),
        number => number,
    }
}

/// The name that a thread had when it was last asked for; empty if it had none.
pub(crate) fn name(number: u32) -> Text {
    match entry(number) {
        Some(entry) => entry.get(),
        None => Text::default(),
    }
}

/// Looks up the calling thread's name again, if this was not done yet: a thread
/// is named after its beginning, and may have allocated before.
#[inline]
pub(crate) fn settle_name() {
    if (Word::CheckNumber.get() as u32) & SETTLED == 0 {
        settle();
    }
}

#[cold]
#[inline(never)]
fn settle() {
    Word::CheckNumber.set((number() | SETTLED).into());
    refresh_name();
}

/// Has reports to come show the calling thread's new name.
pub fn renamed() {
    if (Word::CheckNumber.get() as u32) != 0 {
        refresh_name();
    }
}

/// Looks up the calling thread's name again.
#[cold]
pub(crate) fn refresh_name() {
    if let Some(entry) = entry(number()) {
        entry.set(&own_name());
    }
}

/// Set beside a thread's number when its name was looked up for good.
const SETTLED: u32 = 1 << 31;

/// Bytes of a name, with a zero at its end: what the kernel keeps.
const LENGTH: usize = 16;

#[derive(Default)]
struct Name([AtomicU64; LENGTH / 8]);

impl Name {
    fn set(&self, name: &[u8; LENGTH]) {
        for (word, bytes) in self.0.iter().zip(name.chunks_exact(8)) {
            word.store(u64::from_ne_bytes(bytes.try_into().unwrap_or_default()), Ordering::Relaxed);
        }
    }

    fn get(&self) -> Text {
        let mut name = [0; LENGTH];
        for (word, bytes) in self.0.iter().zip(name.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(LENGTH);
        Text::from_bytes(&name[..length])
    }
}

/// Names in a page, and pages: threads beyond the last are numbered, not named.
const PAGE: usize = 4096;
const PAGES: usize = 1024;

static TABLE: [AtomicPtr<[Name; PAGE]>; PAGES] = [const { AtomicPtr::new(ptr::null_mut()) }; PAGES];

#[cold]
fn give_number() -> u32 {
    static LAST: AtomicU64 = AtomicU64::new(0);

    let number = next_number(&LAST);
    Word::CheckNumber.set(number.into());
    if let Some(page) = TABLE.get(number as usize / PAGE) {
        // SAFETY: all atomics, for which zeros are valid; only this fills the table.
        unsafe { sys::get_or_map(page) };
    }
    refresh_name();
    number
}

fn next_number(last: &AtomicU64) -> u32 {
    let next = last.fetch_add(1, Ordering::Relaxed) + 1;
    next.min((SETTLED - 1).into()) as u32
}

fn entry(number: u32) -> Option<&'static Name> {
    let page = TABLE.get(number as usize / PAGE)?.load(Ordering::Acquire);
    // SAFETY: pages in the table are never unmapped.
    Some(unsafe { &page.as_ref()?[number as usize % PAGE] })
}

/// Makes `source` the source of threads' names: it makes no system call, and fills the rest of the
/// buffer with zeros. Call it where all names pass through the caller, as in dogtag-c where it
/// interposes.
#[inline]
pub fn learn_names_from(source: NameSource) {
    if SOURCE.load(Ordering::Relaxed).is_null() {
        SOURCE.store(source as *mut (), Ordering::Release);
    }
}

/// Whether there is a source of names, and so C's `malloc` is dogtag's.
#[inline]
pub(super) fn has_source() -> bool {
    !SOURCE.load(Ordering::Relaxed).is_null()
}

/// Asks for the calling thread's name.
pub type NameSource = fn() -> [u8; LENGTH];

/// A [`NameSource`], if there is one.
static SOURCE: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

fn own_name() -> [u8; LENGTH] {
    let source = SOURCE.load(Ordering::Acquire);
    if !source.is_null() {
        // SAFETY: only `learn_names_from` stores there, such a function.
        return unsafe { std::mem::transmute::<*mut (), NameSource>(source) }();
    }
    let mut name = [0_u8; LENGTH];
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    // SAFETY: the calling thread exists, and the buffer has the length that is passed.
    unsafe {
        libc::pthread_getname_np(libc::pthread_self(), name.as_mut_ptr().cast(), LENGTH);
    }
    name
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    #[test]
    fn past_the_last_number_threads_share_it_and_take_nobodys_name() {
        let last = AtomicU64::new(u64::from(SETTLED) - 3);
        let numbers: Vec<u32> = (0..4).map(|_| next_number(&last)).collect();
        assert_eq!(numbers, [SETTLED - 2, SETTLED - 1, SETTLED - 1, SETTLED - 1]);
        assert!(entry(SETTLED - 1).is_none());
    }
}

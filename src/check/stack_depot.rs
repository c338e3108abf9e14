//! Call stacks, each kept once: a table that only grows, of hashes and return
//! addresses. Blocks refer to them by number.

use crate::ledger::slots::UNATTRIBUTED;
use crate::ledger::thread::{self, Word};
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sys::{self, resolve};
use crate::unwind;
use std::ffi::c_void;
use std::fmt;
use std::ptr;

/// A call stack, from the innermost function outwards.
///
/// Kept when `DOGTAG_CHECK` has `backtrace=1`. Its `Display` looks up the
/// functions' names, their files and lines, from where the program or the thread
/// begins; that takes locks, allocates, and is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backtrace(u32);

impl Backtrace {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// The return addresses, the innermost one first; no more than 32 of them.
    #[must_use]
    pub fn addresses(&self) -> Vec<usize> {
        self.each_address().collect()
    }

    pub(crate) fn each_address(self) -> impl Iterator<Item = usize> {
        let entry = table().and_then(|table| table.get(self.0 as usize - 1));
        let length = entry.map_or(0, |entry| entry.length.load(Ordering::Acquire));
        let frames = entry.map_or(&[][..], |entry| &entry.frames[..length as usize]);
        frames.iter().map(|frame| frame.load(Ordering::Relaxed))
    }
}

impl fmt::Display for Backtrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        resolve::write_stack(f, self.each_address())
    }
}

/// Takes the calling thread's call stack and gives its number: 0 where there is
/// no memory for it, or the thread is taking one already.
pub(crate) fn take() -> u32 {
    // Nor where a violation is reported.
    if Word::CheckInside.get() != 0 || Word::IsTakingStack.replace(1) != 0 {
        return 0;
    }
    let number = take_alone();
    Word::IsTakingStack.set(0);
    number
}

/// Variant of [`take`] for a signal handler: takes the call stack that the signal has interrupted.
///
/// # Safety
///
/// `context` must be what the handler was given, which has not returned.
#[cold]
pub(crate) unsafe fn take_interrupted(context: *const c_void) -> u32 {
    let Some(table) = table() else { return 0 };
    if Word::CheckInside.get() != 0 || Word::IsTakingStack.replace(1) != 0 {
        return 0;
    }
    let mut frames = [0; FRAMES];
    // SAFETY: the caller's context.
    let length = unsafe { unwind::capture_interrupted(context, &mut frames) };
    Word::IsTakingStack.set(0);
    let stack = &frames[..length];
    let hash = hash(stack);
    find(table, hash).unwrap_or_else(|| insert(table, hash, stack))
}

/// [`take`], of a thread that does nothing else of memory-check's meanwhile. (It is not inside of it: what a look
/// at the libraries frees may be found written to, which is to be reported.)
#[inline(always)]
fn take_alone() -> u32 {
    let Some(table) = table() else { return 0 };
    let mut frames = [0; FRAMES];
    let mut has_looked = false;
    loop {
        let (length, is_known) = walk(&mut frames);
        let stack = &frames[..length];
        let hash = hash(stack);
        // What no stack was before may go through a library that is where another was.
        let number = find(table, hash).filter(|_| is_known || has_looked || !is_time_to_look());
        if number.is_some() || has_looked || !look_for_libraries() {
            return number.unwrap_or_else(|| insert(table, hash, stack));
        }
        has_looked = true;
    }
}

/// Code of no library, such as a JIT's, is among a stack's that was there before: whether to look all the same.
#[cold]
fn is_time_to_look() -> bool {
    static STACKS: AtomicU32 = AtomicU32::new(0);
    const PERIOD: u32 = 64;

    STACKS.fetch_add(1, Ordering::Relaxed).is_multiple_of(PERIOD)
}

/// Whether there are others than were known. What the list of them takes is nobody's.
#[cold]
fn look_for_libraries() -> bool {
    let current = thread::go_to(&UNATTRIBUTED);
    let are_new = unwind::try_refresh();
    thread::leave_for(current);
    are_new
}

/// One place, so that a stack is the same when it is taken again.
#[inline(never)]
fn walk(frames: &mut [usize]) -> (usize, bool) {
    unwind::capture_known(frames)
}

/// Frames that are kept of a stack.
const FRAMES: usize = 32;
/// Stacks that are kept: 70 MiB of address space, touched one by one.
const STACKS: usize = 1 << 18;

struct Entry {
    /// 0 while the entry is free.
    hash: AtomicU64,
    /// 0 until the frames are there.
    length: AtomicU32,
    frames: [AtomicUsize; FRAMES],
}

/// Entries that are tried before a stack is given up.
const TRIES: usize = 64;

/// The number of a stack that is there already.
#[inline]
fn find(table: &[Entry; STACKS], hash: u64) -> Option<u32> {
    for attempt in 0..TRIES {
        let index = (hash as usize + attempt) % STACKS;
        match table[index].hash.load(Ordering::Relaxed) {
            // 64 bits of hash: nobody has enough stacks for two to have the same.
            known if known == hash => return Some(index as u32 + 1),
            0 => return None,
            _ => {}
        }
    }
    None
}

#[cold]
fn insert(table: &[Entry; STACKS], hash: u64, frames: &[usize]) -> u32 {
    for attempt in 0..TRIES {
        let index = (hash as usize + attempt) % STACKS;
        let entry = &table[index];
        match entry.hash.compare_exchange(0, hash, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                for (kept, &frame) in entry.frames.iter().zip(frames) {
                    kept.store(frame, Ordering::Relaxed);
                }
                entry.length.store(frames.len() as u32, Ordering::Release);
                return index as u32 + 1;
            }
            Err(known) if known == hash => return index as u32 + 1,
            Err(_) => {}
        }
    }
    0
}

fn hash(frames: &[usize]) -> u64 {
    let mixed = frames.iter().fold(frames.len() as u64, |hash, &frame| {
        (hash.rotate_left(23) ^ frame as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    });
    (mixed ^ mixed >> 32).max(1)
}

fn table() -> Option<&'static [Entry; STACKS]> {
    static TABLE: AtomicPtr<[Entry; STACKS]> = AtomicPtr::new(ptr::null_mut());

    // SAFETY: the table is never unmapped once it is in its place; it is all
    // atomics, for which zeros are valid.
    unsafe { sys::get_or_map(&TABLE) }
}

//! The regions of the process, for the snapshot.

use super::window::Window;
use super::{MapError, Region};
use crate::format::beginning;
use crate::service;
use crate::sync::{AtomicPtr, Mutex, MutexGuard, Ordering};
use std::cell::Cell;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::PoisonError;

/// A region's place among the others, and its name.
pub(super) struct Entry {
    next: Cell<Option<NonNull<Window>>>,
    name: Name,
}

#[derive(Clone, Copy)]
struct Name {
    bytes: [u8; LONGEST],
    len: usize,
}

/// Bytes of a name.
const LONGEST: usize = 64;

impl Entry {
    /// A name that is too long is cut, between characters.
    pub(super) fn new(name: &str) -> Self {
        let name = beginning(name, LONGEST).as_bytes();
        let (mut bytes, len) = ([0; LONGEST], name.len());
        bytes[..len].copy_from_slice(name);
        Self { next: Cell::new(None), name: Name { bytes, len } }
    }
}

struct Roll {
    first: Cell<Option<NonNull<Window>>>,
    len: usize,
}

// SAFETY: windows that are in it are there, and their entries are touched only under its lock.
unsafe impl Send for Roll {}

static ROLL: Mutex<Roll> = Mutex::new(Roll { first: Cell::new(None), len: 0 });

fn roll() -> MutexGuard<'static, Roll> {
    ROLL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Safety
///
/// The window must be there until it is taken out, and not be in yet.
pub(super) unsafe fn add(window: NonNull<Window>) {
    service::prepare_forks();
    // SAFETY: the caller's promise.
    unsafe { roll().add(window) };
}

/// Puts a window in its place, and adds it, unless there is one. No fork comes between, after which
/// a child would wait for a thread that it does not have.
pub(super) fn add_first(
    place: &AtomicPtr<Window>,
    map: impl FnOnce() -> Result<NonNull<Window>, MapError>,
) -> Result<(), MapError> {
    service::prepare_forks();
    let mut roll = roll();
    if place.load(Ordering::Relaxed).is_null() {
        let window = map()?;
        // SAFETY: it is there until it is taken out of its place, and has just come.
        unsafe { roll.add(window) };
        place.store(window.as_ptr(), Ordering::Release);
    }
    Ok(())
}

/// # Safety
///
/// The window must be in it.
pub(super) unsafe fn take_out(window: NonNull<Window>) {
    let mut roll = roll();
    roll.len -= 1;
    let mut link = &roll.first;
    while let Some(other) = link.get() {
        // SAFETY: those that are in it are there.
        let next = unsafe { &other.as_ref().entry.next };
        if other == window {
            return link.set(next.get());
        }
        link = next;
    }
}

/// Where a region is, and the bytes of blocks in it that somebody counts, with what stands around
/// them.
pub(crate) struct Placed {
    pub(crate) addresses: Range<usize>,
    pub(crate) counted: usize,
}

/// All regions and where they are, the youngest first.
pub(crate) fn all() -> Vec<(Region, Placed)> {
    // Nothing may be allocated under the lock: it might be one of these that is asked.
    let mut found = Vec::new();
    loop {
        let len = roll().len;
        found.reserve(len);
        let roll = roll();
        if roll.len <= found.capacity() {
            found.extend(roll.windows().map(|window| {
                let placed = Placed { addresses: window.addresses(), counted: window.counted() };
                (window.entry.name, window.stats(), placed)
            }));
            break;
        }
    }
    let text = |Name { bytes, len }| String::from_utf8_lossy(&bytes[..len]).into_owned();
    let region = |(name, stats, placed)| (Region { name: text(name), stats }, placed);
    found.into_iter().map(region).collect()
}

/// Keeps all regions as they are while the process is forked, so that the child finds them
/// whole.
pub(crate) struct AllHeld(MutexGuard<'static, Roll>);

impl AllHeld {
    pub(crate) fn lock() -> Self {
        let roll = roll();
        // SAFETY: those that are in it are there as long as it is locked.
        roll.windows().for_each(|window| unsafe { window.hold() });
        Self(roll)
    }
}

impl Drop for AllHeld {
    fn drop(&mut self) {
        // SAFETY: they were held when it was locked.
        self.0.windows().for_each(|window| unsafe { window.let_go() });
    }
}

impl Roll {
    /// # Safety
    ///
    /// As of the function above.
    unsafe fn add(&mut self, window: NonNull<Window>) {
        // SAFETY: the caller's promise.
        unsafe { window.as_ref() }.entry.next.set(self.first.replace(Some(window)));
        self.len += 1;
    }

    fn windows(&self) -> impl Iterator<Item = &Window> {
        // SAFETY: those that are in it are there.
        let follow =
            |link: &Cell<Option<NonNull<Window>>>| link.get().map(|window| unsafe { window.as_ref() });
        std::iter::successors(follow(&self.first), move |window| follow(&window.entry.next))
    }
}

//! Services named after threads, which begin inside allocations.
//!
//! A thread's first allocation may be the first of its name, and an allocation can register nothing:
//! the registry locks and allocates. So their slots are claimed and prepared beforehand
//! ([`turn_on`]). A name takes a slot by a compare-and-exchange of its hash; then its service begins,
//! with atomics alone, by whichever thread of that name comes first: all do the same, and each step
//! counts once. `service` publishes it in the registry later ([`Entry::publish`]).

use crate::format::FoldedName;
use crate::ledger::anomalies;
use crate::ledger::slots::Record;
use crate::sync::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::ptr;

/// How many names have services of their own.
pub(crate) const MOST: usize = 64;

/// The main thread's service before its first scope, and after it.
pub(super) const STARTUP: FoldedName = FoldedName::of("startup");
pub(super) const MAIN: FoldedName = FoldedName::of("main");

/// The service of threads whose names are too many.
const OTHERS: FoldedName = FoldedName::of("other threads");

/// One name, and its service.
pub(crate) struct Entry {
    /// The name's hash; 0 while the entry is free.
    hash: AtomicU64,
    /// The name, in words that are written once.
    name: [AtomicU64; FoldedName::CAPACITY / 8],
    /// Null while no slot is prepared for it.
    record: AtomicPtr<Record>,
    has_begun: AtomicBool,
    is_published: AtomicBool,
}

static ENTRIES: [Entry; MOST + 1] = [const { Entry::new() }; MOST + 1];

/// How many have begun, and how many of these were published.
static BEGUN: AtomicUsize = AtomicUsize::new(0);
static PUBLISHED: AtomicUsize = AtomicUsize::new(0);

static IS_ON: AtomicBool = AtomicBool::new(false);

/// Whether threads outside of scopes work for services named after them.
#[inline]
pub(super) fn is_on() -> bool {
    IS_ON.load(Ordering::Acquire)
}

/// Has threads outside of scopes work for services named after them, as many as there are slots.
/// `claim` claims a slot, and chooses a handle.
pub(crate) fn turn_on(mut claim: impl FnMut() -> Option<(&'static Record, u32)>) {
    // The one for all others first.
    for entry in ENTRIES.iter().rev() {
        let Some((record, handle)) = claim() else { break };
        record.prepare(&entry.name, handle);
        entry.record.store(ptr::from_ref(record).cast_mut(), Ordering::Release);
    }
    IS_ON.store(true, Ordering::Release);
}

/// Returns the service of a name, which never ends. `None` for an empty name, and where no slot was
/// to be had.
pub(super) fn service(name: &FoldedName) -> Option<&'static Record> {
    if name.as_str().is_empty() {
        return None;
    }
    let (others, entries) = ENTRIES.split_last()?;
    let Some(own) = entries.iter().find(|entry| entry.record().is_some() && entry.takes(name)) else {
        static WAS_TOLD: AtomicBool = AtomicBool::new(false);
        if !WAS_TOLD.swap(true, Ordering::Relaxed) {
            anomalies::UNNAMED.add(0);
        }
        return others.begin(&OTHERS);
    };
    own.begin(name)
}

/// Whether there are services that the registry does not know yet.
#[inline]
pub(crate) fn has_unpublished() -> bool {
    PUBLISHED.load(Ordering::Acquire) != BEGUN.load(Ordering::Acquire)
}

/// Those that have begun and are not published. Only one thread at a time may publish them.
pub(crate) fn unpublished() -> impl Iterator<Item = &'static Entry> {
    ENTRIES.iter().filter(|entry| {
        entry.has_begun.load(Ordering::Acquire) && !entry.is_published.load(Ordering::Relaxed)
    })
}

impl Entry {
    const fn new() -> Self {
        Self {
            hash: AtomicU64::new(0),
            name: [const { AtomicU64::new(0) }; FoldedName::CAPACITY / 8],
            record: AtomicPtr::new(ptr::null_mut()),
            has_begun: AtomicBool::new(false),
            is_published: AtomicBool::new(false),
        }
    }

    /// Whether this is the name's, or was free, and is now.
    fn takes(&self, name: &FoldedName) -> bool {
        let hash = name.hash();
        let taken = match self.hash.load(Ordering::Acquire) {
            0 => self.hash.compare_exchange(0, hash, Ordering::AcqRel, Ordering::Acquire),
            taken => Err(taken),
        };
        taken.map_or_else(|taken| taken == hash, |_| true)
    }

    pub(crate) fn record(&self) -> Option<&'static Record> {
        // SAFETY: null, or what a `&'static Record` was made of.
        unsafe { self.record.load(Ordering::Acquire).as_ref() }
    }

    /// Begins the service if it has not begun, and returns it.
    fn begin(&self, name: &FoldedName) -> Option<&'static Record> {
        let record = self.record()?;
        if !record.lifecycle().is_in_use() {
            for (word, bytes) in self.name.iter().zip(name.words()) {
                // Written once: who reads the name, reads what does not change.
                _ = word.compare_exchange(0, bytes, Ordering::AcqRel, Ordering::Acquire);
            }
            if record.begin_prepared(name.as_str().len()) {
                self.has_begun.store(true, Ordering::Release);
                BEGUN.fetch_add(1, Ordering::AcqRel);
            }
        }
        Some(record)
    }

    /// Notes that the registry knows the service; or that the name is another one's, who is retained
    /// for good, and whom threads of this name work for from now on.
    pub(crate) fn publish(&self, another: Option<&'static Record>) {
        if let (Some(another), Some(own)) = (another, self.record()) {
            self.record.store(ptr::from_ref(another).cast_mut(), Ordering::Release);
            own.lifecycle().show_retired();
        }
        self.is_published.store(true, Ordering::Relaxed);
        PUBLISHED.fetch_add(1, Ordering::AcqRel);
    }
}

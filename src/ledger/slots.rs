//! The table of slots: what is known of the service behind each.
//!
//! Read without a lock, from inside an allocation too; that is why a service's
//! name is kept here and not only in the registry, which may allocate.

use crate::cookie::Slot;
use crate::ledger::cell::Cell;
use crate::sys;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

/// A service, as the ledger knows it.
#[repr(C)]
pub(crate) struct Record {
    /// First, so that a thread can start at the first record's address.
    shared: Cell,
    slot: AtomicU32,
    handle: AtomicU32,
    name_length: AtomicUsize,
    /// Null until the record is complete: stored last, loaded first.
    name: AtomicPtr<u8>,
}

impl Record {
    #[inline]
    pub(crate) fn slot(&self) -> Slot {
        Slot::new(self.slot.load(Ordering::Relaxed)).unwrap_or(Slot::UNATTRIBUTED)
    }

    /// The slot's index.
    #[cfg(feature = "memory-check")]
    #[inline]
    pub(crate) fn index(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    pub(crate) fn handle(&self) -> u32 {
        self.handle.load(Ordering::Relaxed)
    }

    pub(crate) fn name(&self) -> &'static str {
        let Some(name) = NonNull::new(self.name.load(Ordering::Acquire)) else {
            return "";
        };
        let bytes = NonNull::slice_from_raw_parts(name, self.name_length.load(Ordering::Relaxed));
        // SAFETY: name and length are those of one `&'static str`, stored before
        // the record was published, and never change.
        unsafe { str::from_utf8_unchecked(bytes.as_ref()) }
    }

    /// The counters that threads without a shard share.
    pub(crate) const fn shared(&self) -> &Cell {
        &self.shared
    }

    fn is_published(&self) -> bool {
        !self.name.load(Ordering::Acquire).is_null()
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Record").field(&self.name()).finish()
    }
}

/// Why [`add`] could not.
pub(crate) enum AddError {
    /// All slots are in use.
    Full,
    /// The operating system gives no memory for another record.
    NoMemory,
}

/// How many services there can be: all but the reserved slots.
pub(crate) const CAPACITY: u32 = Slot::COUNT - 3;

/// Gives a new service a slot.
pub(crate) fn add(name: Box<str>, handle: u32) -> Result<&'static Record, AddError> {
    let (slot, record) = take_slot()?;
    let name: &'static str = Box::leak(name);
    record.shared.claim_shared(slot.mark());
    record.slot.store(slot.index() as u32, Ordering::Relaxed);
    record.handle.store(handle, Ordering::Relaxed);
    record.name_length.store(name.len(), Ordering::Relaxed);
    // Published with the last store, so a reader sees all of it or nothing. An
    // empty name's pointer is not null either.
    record.name.store(name.as_ptr().cast_mut(), Ordering::Release);
    Ok(record)
}

/// The first slot that was never used, and its record. Takes none if there is
/// no memory for it.
fn take_slot() -> Result<(Slot, &'static Record), AddError> {
    let mut index = NEXT.load(Ordering::Relaxed);
    loop {
        if index >= Slot::COUNT {
            return Err(AddError::Full);
        }
        // `None` for a reserved index, which is passed over.
        let taken = match Slot::new(index) {
            Some(slot) => Some((slot, page(slot).ok_or(AddError::NoMemory)?)),
            None => None,
        };
        match NEXT.compare_exchange_weak(index, index + 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => match taken {
                Some(taken) => return Ok(taken),
                None => index += 1,
            },
            Err(now) => index = now,
        }
    }
}

/// The service of that slot, `None` when there is none. Takes no lock.
#[inline]
pub(crate) fn record(slot: Slot) -> Option<&'static Record> {
    if slot == Slot::UNATTRIBUTED {
        return Some(&UNATTRIBUTED);
    }
    let (page, index) = (slot.index() / PAGE, slot.index() % PAGE);
    // SAFETY: pages of records are never unmapped.
    let page: &'static [Record; PAGE] = unsafe { PAGES[page].load(Ordering::Acquire).as_ref() }?;
    Some(&page[index]).filter(|record| record.is_published())
}

/// One more than the highest index in use.
pub(crate) fn end() -> u32 {
    NEXT.load(Ordering::Acquire)
}

/// The service of what nobody claims. Threads begin in it.
pub(crate) static UNATTRIBUTED: Record = Record {
    shared: Cell::shared(Slot::UNATTRIBUTED.mark()),
    slot: AtomicU32::new(0),
    handle: AtomicU32::new(0),
    name_length: AtomicUsize::new("unattributed".len()),
    name: AtomicPtr::new("unattributed".as_ptr().cast_mut()),
};

/// Records in a page: mapped together, touched one by one.
const PAGE: usize = 4096;

static PAGES: [AtomicPtr<[Record; PAGE]>; Slot::COUNT as usize / PAGE] =
    [const { AtomicPtr::new(ptr::null_mut()) }; Slot::COUNT as usize / PAGE];

/// The first index that was never used.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The slot's record, published or not, in a page that is mapped if need be.
fn page(slot: Slot) -> Option<&'static Record> {
    let (page, index) = (slot.index() / PAGE, slot.index() % PAGE);
    // SAFETY: atomics only, for which zeros are valid; only this fills the table.
    let page = unsafe { sys::get_or_map(&PAGES[page]) }?;
    Some(&page[index])
}

//! A thread's own record: the cell that it charges to, its shard, its service.
//!
//! The hot path reads two words here. On x86-64 Linux they are reached with
//! two instructions that clobber nothing, in the initial-exec model: a
//! `thread_local!` in a library crate compiles to a call of `__tls_get_addr`,
//! which the linker relaxes, but around which registers were already saved.
//! A library that is opened late has to call it all the same (feature
//! `disable-initial-exec-tls`), since the model needs memory that is given out at
//! the start; where it does, a thread's first call may allocate, from the C library's
//! `malloc`. That is another allocator, or dogtag as the program itself has it, which
//! needs no such call.
//!
//! A thread begins at the unattributed service's shared cell, whose threshold is
//! 0. So its first allocation leaves the hot path, gets a shard and comes
//! back; no flag is asked on the way. When the thread ends it is put back to a
//! shared cell, and what late destructors do is counted there, atomically. The
//! same happens when the system refuses memory for a shard.

use crate::ledger::account::Account;
use crate::ledger::anomalies;
use crate::ledger::cell::Cell;
#[cfg(not(feature = "memory-check"))]
use crate::ledger::interval;
use crate::ledger::shard::{Directory, EMPTY_DIRECTORY, SHARDS, Shard};
#[cfg(feature = "memory-check")]
pub(crate) use crate::ledger::shard::{KEEPSAKES, NUMBERS};
#[cfg(feature = "memory-check")]
use crate::ledger::slots;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::owner::{Mark, Slot};
use crate::sync::Ordering;
#[cfg(feature = "memory-check")]
use crate::sync::{AtomicPtr, AtomicU64};
use crate::sys;
use crate::usage::Usage;
use std::cell::Cell as Variable;
use std::ffi::c_void;
use std::ptr::{self, NonNull};

mod access;
mod names;
mod scopes;
#[cfg(test)]
pub(crate) mod tests;
mod word;

pub(crate) use names::{begin_startup, give, next_look};
pub(crate) use scopes::enter_by;
pub use scopes::{Entered, enter, go_to, leave, leave_for};
#[cfg(feature = "tracing-layer")]
pub(crate) use scopes::{leave_remembered_for, release, retain};
pub use word::Word;

/// The cell that the calling thread charges to; its threshold is 0 unless it is the thread's own.
#[inline(always)]
pub fn current() -> &'static Cell {
    // SAFETY: the first field is always a reference to a cell; cells are never unmapped.
    unsafe { &*access::first_word().cast::<Cell>() }
}

/// The calling thread's cell for a mark: another's or unclaimed where the
/// cell's own mark differs.
#[inline(always)]
pub fn cell(mark: Mark) -> &'static Cell {
    // SAFETY: the second field is always a reference to a directory; directories are never unmapped.
    let directory = unsafe { &*access::second_word().cast::<Directory>() };
    directory.cell(mark)
}

/// Returns where the calling thread counts for a service, whatever state the thread is in.
/// For the slow path only: it maps memory if need be.
#[inline]
pub fn account(record: &'static Record) -> Account {
    with(|thread| thread.account(record))
}

/// Whether a cell is one that only the calling thread writes. For assertions.
#[cfg(not(feature = "memory-check"))]
pub(crate) fn is_own(cell: &Cell) -> bool {
    ptr::eq(self::cell(cell.mark()), cell)
}

/// Charges a block to the unattributed service, whose owner there was no memory to note.
#[cfg(not(feature = "memory-check"))]
#[cold]
#[inline(never)]
pub fn charge_ownerless(size: usize) {
    account(&UNATTRIBUTED).charge(size);
    anomalies::OWNERLESS.add(size);
}

/// Returns where the calling thread counts for the service that it is in, and lets the hot path find
/// it from now on.
#[inline]
pub fn current_account() -> (Account, &'static Record) {
    with(|thread| {
        thread.follow_name();
        let record = thread.record();
        let account = thread.account(record);
        if let Account::Own(cell) = account {
            if cell.mark() == Mark::LONG {
                thread.long.set(Some((record, cell, record.slot())));
            } else {
                thread.cell.set(cell);
            }
        }
        (account, record)
    })
}

/// The calling thread's own cell for the service that it is in, if that is one of
/// the long slots' and `size` bytes need not ask.
#[cfg(not(feature = "memory-check"))]
#[inline]
pub(crate) fn current_long(size: usize) -> Option<(&'static Cell, Slot)> {
    with(|thread| {
        let (record, cell, slot) = thread.long.get()?;
        let is_current = ptr::eq(thread.cell.get(), record.as_cell()) && interval::rates().are_zero();
        (is_current && cell.is_own_for(Mark::LONG) && !cell.needs_grant(size)).then_some((cell, slot))
    })
}

/// The calling thread's own cell for a long slot, if it has one.
#[cfg(not(feature = "memory-check"))]
#[inline]
pub(crate) fn long_cell(slot: Slot) -> Option<&'static Cell> {
    with(|thread| thread.shard.get()?.long_cell(slot))
}

/// Refunds a block to the service that the calling thread is in, if that is the one in the slot of this index and the
/// thread has a cell of its own for it. `false`, and nothing has happened, otherwise.
#[cfg(feature = "memory-check")]
#[inline(always)]
pub(crate) fn refund_current(index: u32, size: usize) -> bool {
    with(|thread| {
        // SAFETY: what the field says; cells are never unmapped.
        let cell = unsafe { &*thread.cell.get() };
        let (mark, record, _) = thread.last_record.get();
        let is_current = cell.own_mark() == mark && record.index() == index;
        if is_current {
            cell.refund(size);
        }
        is_current
    })
}

/// Refunds a block to a service, from the calling thread. `false` if there is
/// no such service.
#[cfg(feature = "memory-check")]
#[inline(never)]
pub(crate) fn refund(slot: Slot, size: usize) -> bool {
    // A long slot's mark is no cell's.
    let mark = slot.mark();
    let cell = cell(mark);
    if cell.mark() == mark {
        cell.refund(size);
        return true;
    }
    let Some(record) = slots::record(slot) else { return false };
    account(record).refund(size);
    true
}

/// The service that the calling thread is in.
#[inline]
pub fn current_record() -> &'static Record {
    with(Thread::record)
}

/// Variant of [`current_record`] for every allocation and free: looks no service up again that was the
/// last one. Returns what `note` makes of the service and the thread, too, which must always be the same.
#[cfg(feature = "memory-check")]
#[inline(always)]
pub(crate) fn current_noted(note: fn(&'static Record) -> u64) -> (&'static Record, u64) {
    with(|thread| {
        // SAFETY: what the field says; cells are never unmapped.
        let mark = unsafe { (*thread.cell.get()).mark() };
        let (last, record, noted) = thread.last_record.get();
        if mark == last { (record, noted) } else { thread.note_record(mark, note) }
    })
}

/// Sends the calling thread's next allocation to the slow path. Signal handlers may call this.
pub fn lower_threshold() {
    current().lower_threshold();
}

/// Whether the calling thread may be settled in another service: it is in no scope, has
/// none of the registry's locks, and its end has not begun.
pub fn can_settle() -> bool {
    with(|thread| thread.stays.get() == 0 && !thread.detached.get())
}

/// Whether the calling thread is in a scope, or has one of the registry's locks.
pub(crate) fn is_in_scope() -> bool {
    with(|thread| thread.stays.get() != 0)
}

/// Makes a service, which somebody holds, the one that the calling thread is in where
/// it is in no scope.
pub fn settle(record: &'static Record) {
    with(|thread| thread.settle(record));
}

/// Keeps the calling thread where it is: it is not settled elsewhere.
#[derive(Debug)]
pub(crate) struct Stay(());

impl Stay {
    #[inline]
    pub(crate) fn begin() -> Self {
        with(Thread::stay);
        Self(())
    }
}

impl Drop for Stay {
    #[inline]
    fn drop(&mut self) {
        with(Thread::stay_no_more);
    }
}

/// Sums up what the calling thread has allocated and freed, for all services, and the threads that
/// had its shard before.
pub(crate) fn own_usage() -> Usage {
    with(|thread| {
        let shard = thread.shard.get().or_else(|| thread.attach());
        shard.map(Shard::usage).unwrap_or_default()
    })
}

/// Marks what the calling thread asks a backend for as counted, until this is dropped.
pub(crate) struct Counts(bool);

impl Counts {
    #[inline]
    pub(crate) fn begin() -> Self {
        with(|thread| Self(thread.counts.replace(true)))
    }
}

impl Drop for Counts {
    #[inline]
    fn drop(&mut self) {
        with(|thread| thread.counts.set(self.0));
    }
}

/// Whether what the calling thread asks a backend for is counted by the [`Dogtag`](crate::Dogtag)
/// in front of it.
#[inline]
#[must_use]
pub fn counts() -> bool {
    with(|thread| thread.counts.get())
}

#[repr(C)]
struct Thread {
    // The first two are read by the hot path, by their offset.
    /// The thread's own cell of a short slot, or [`Record::as_cell`] of the service that it is in.
    cell: Variable<*const Cell>,
    directory: Variable<&'static Directory>,
    shard: Variable<Option<&'static Shard>>,
    /// The long slot in which the thread allocated last, and its own cell there, which is that
    /// service's while it has the mark.
    long: Variable<Option<(&'static Record, &'static Cell, Slot)>>,
    /// Set for good when the thread's end has begun, or cannot be learnt of.
    detached: Variable<bool>,
    /// Whether it was counted among those that the system refuses memory for cells.
    shares: Variable<bool>,
    /// Set while the thread is in [`Counts`].
    counts: Variable<bool>,
    /// Scopes that the thread is in, and others for whose sake it is not settled elsewhere.
    stays: Variable<u64>,
    /// What others keep here.
    words: [Variable<u64>; Word::COUNT],
    /// A mark, the record of its slot, and what another module notes of both, if the thread was in that service.
    #[cfg(feature = "memory-check")]
    last_record: Variable<(Mark, &'static Record, u64)>,
}

/// Guards what memory-check does on a thread and must not do within itself.
#[cfg(feature = "memory-check")]
pub(crate) struct Inside(());

#[cfg(feature = "memory-check")]
impl Inside {
    /// `None` if the thread is inside already.
    pub(crate) fn enter() -> Option<Self> {
        // Not `then_some`: what is made in vain would end the thread's being inside.
        (Word::CheckInside.replace(1) == 0).then(|| Self(()))
    }
}

#[cfg(feature = "memory-check")]
impl Drop for Inside {
    fn drop(&mut self) {
        Word::CheckInside.set(0);
    }
}

/// A place where the calling thread's shard keeps something for another module;
/// `None` for threads without a shard. There are [`KEEPSAKES`].
#[cfg(feature = "memory-check")]
#[inline]
pub(crate) fn keepsake(number: usize) -> Option<&'static AtomicPtr<()>> {
    with(|thread| thread.shard.get().map(|shard| shard.keepsake(number)))
}

/// Numbers that the calling thread's shard keeps for another module, which only this thread may change;
/// `None` for threads without a shard.
#[cfg(feature = "memory-check")]
#[inline]
pub(crate) fn numbers() -> Option<&'static [AtomicU64; NUMBERS]> {
    with(|thread| thread.shard.get().map(Shard::numbers))
}

/// Iterates over that place of every shard, whether a thread has the shard or not.
#[cfg(feature = "memory-check")]
pub(crate) fn keepsakes(number: usize) -> impl Iterator<Item = &'static AtomicPtr<()>> {
    SHARDS.shards().map(move |shard| shard.keepsake(number))
}

impl Thread {
    #[inline(always)]
    fn stay(&self) {
        self.stays.set(self.stays.get().wrapping_add(1));
    }

    #[inline(always)]
    fn stay_no_more(&self) {
        self.stays.set(self.stays.get().wrapping_sub(1));
    }

    /// The service that the thread is in.
    #[inline]
    fn record(&self) -> &'static Record {
        // SAFETY: what the field says.
        unsafe { Record::of_cell(self.cell.get()) }
    }

    #[cfg(feature = "memory-check")]
    #[cold]
    #[inline(never)]
    fn note_record(&self, mark: Mark, note: fn(&'static Record) -> u64) -> (&'static Record, u64) {
        let record = self.record();
        let noted = note(record);
        // Long slots have no mark of their own, and that of no service may be anybody's in the end.
        if mark != Mark::LONG && record.slot().mark() == mark {
            self.last_record.set((mark, record, noted));
        }
        (record, noted)
    }

    fn settle(&self, record: &'static Record) {
        let former = self.cell.get();
        self.go_to(record);
        self.leave_cell(former);
    }

    /// Puts the thread into that service. In the one that it was in it is still counted.
    #[inline]
    fn go_to(&self, record: &'static Record) {
        match self.find(record) {
            Account::Own(cell) => cell.enter(),
            Account::Shared(cell) => cell.enter_shared(),
        }
    }

    /// Counts the thread out of the service of a cell that was its current one.
    #[inline]
    fn leave_cell(&self, left: *const Cell) {
        // SAFETY: a current cell, as the field says; cells are never unmapped.
        let own = self.directory.get().cell(unsafe { (*left).mark() });
        if ptr::eq(own, left) {
            own.leave();
        } else {
            // SAFETY: it is no cell of the thread's own, so it is a record's.
            self.count_out(unsafe { Record::of_cell(left) });
        }
    }

    #[inline]
    fn count_out(&self, record: &'static Record) {
        match self.own_or_shared(record) {
            Account::Own(cell) => cell.leave(),
            Account::Shared(cell) => cell.leave_shared(),
        }
    }

    /// Makes the thread charge to that service, and returns where. A thread that does not have the
    /// cell yet gets it on the slow path of its next allocation.
    #[inline]
    fn find(&self, record: &'static Record) -> Account {
        let (cell, account) = self.place_of(record);
        self.cell.set(cell);
        account
    }

    /// Returns what the current cell is where the thread is in that service.
    #[inline]
    fn place_of(&self, record: &'static Record) -> (*const Cell, Account) {
        let account = self.own_or_shared(record);
        let cell = match &account {
            Account::Own(cell) if cell.mark() != Mark::LONG => ptr::from_ref(*cell),
            _ => record.as_cell(),
        };
        (cell, account)
    }

    /// Returns the thread's own cell of that service if it has one, else the shared one.
    #[inline]
    fn own_or_shared(&self, record: &'static Record) -> Account {
        let shared = record.shared();
        let mark = shared.mark();
        let own = if mark == Mark::LONG {
            self.shard.get().and_then(|shard| shard.long_cell(record.slot()))
        } else if mark == Mark::NONE {
            // It has ended, which cells of nobody's are not.
            None
        } else {
            Some(self.directory.get().cell(mark)).filter(|cell| cell.mark() == mark)
        };
        own.map_or(Account::Shared(shared), Account::Own)
    }

    #[inline]
    fn account(&self, record: &'static Record) -> Account {
        let shard = self.shard.get().or_else(|| self.attach());
        match shard.and_then(|shard| shard.claim(record.slot())) {
            Some(cell) => Account::Own(cell),
            None => {
                self.note_sharing();
                Account::Shared(record.shared())
            }
        }
    }

    /// Counts the thread among those that have to share cells, unless it is about to end.
    #[cold]
    fn note_sharing(&self) {
        if !self.detached.get() && !self.shares.replace(true) {
            anomalies::SHARING.add(0);
        }
    }

    fn attach(&self) -> Option<&'static Shard> {
        if self.detached.get() {
            return None;
        }
        let shard = SHARDS.acquire()?;
        // Complete before the system is asked to remember the hook: it may
        // allocate for that, from us where `malloc` is ours too.
        self.shard.set(Some(shard));
        let on_the_stack = 0_u8;
        shard.stack.store(ptr::from_ref(&on_the_stack).addr(), Ordering::Relaxed);
        self.directory.set(&shard.directory);
        if !sys::at_thread_exit(on_exit, NonNull::from(shard).cast()) {
            // Nobody would ever hand this shard on.
            self.note_sharing();
            self.detach();
        }
        self.shard.get()
    }

    fn detach(&self) {
        if self.stays.get() == 0 && !ptr::eq(self.record(), &UNATTRIBUTED) {
            // Nobody else would leave the service that it was settled in.
            self.settle(&UNATTRIBUTED);
        }
        self.detached.set(true);
        self.cell.set(self.record().as_cell());
        self.directory.set(&EMPTY_DIRECTORY);
        self.long.set(None);
        if let Some(shard) = self.shard.take() {
            SHARDS.release(shard);
        }
    }
}

unsafe extern "C" fn on_exit(_: *mut c_void) {
    with(Thread::detach);
}

impl Thread {
    /// The record that every thread begins with: in the unattributed service, with the directory that
    /// has no cells.
    const fn new() -> Self {
        Self {
            cell: Variable::new(UNATTRIBUTED.as_cell()),
            directory: Variable::new(&EMPTY_DIRECTORY),
            shard: Variable::new(None),
            long: Variable::new(None),
            detached: Variable::new(false),
            shares: Variable::new(false),
            counts: Variable::new(false),
            stays: Variable::new(0),
            words: [const { Variable::new(0) }; Word::COUNT],
            // No cell has that mark.
            #[cfg(feature = "memory-check")]
            last_record: Variable::new((Mark::from_bits(u32::MAX), &UNATTRIBUTED, 0)),
        }
    }
}

#[cfg_attr(feature = "memory-check", inline(always))]
fn with<R>(body: impl FnOnce(&Thread) -> R) -> R {
    // SAFETY: the calling thread's own `Thread`, which lives as long as it runs;
    // all its fields are interior-mutable and no reference leaves the closure.
    body(unsafe { &*access::thread() })
}

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
#[cfg(feature = "memory-check")]
pub(crate) use crate::ledger::shard::KEEPSAKES;
use crate::ledger::shard::{Directory, EMPTY_DIRECTORY, SHARDS, Shard};
#[cfg(feature = "memory-check")]
use crate::ledger::slots;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::owner::{Mark, Slot};
#[cfg(feature = "memory-check")]
use crate::sync::AtomicPtr;
use crate::sync::Ordering;
use crate::sys;
use crate::usage::Usage;
use std::cell::Cell as Variable;
use std::ffi::c_void;
use std::ptr::{self, NonNull};

mod access;
mod names;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use names::{begin_startup, give, next_look};

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
                thread.long.set(Some((record, cell)));
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
        let (record, cell) = thread.long.get()?;
        let is_current = ptr::eq(thread.cell.get(), record.as_cell()) && interval::rates().are_zero();
        (is_current && cell.mark() == Mark::LONG && !cell.needs_grant(size)).then(|| (cell, record.slot()))
    })
}

/// The calling thread's own cell for a long slot, if it has one.
#[cfg(not(feature = "memory-check"))]
#[inline]
pub(crate) fn long_cell(slot: Slot) -> Option<&'static Cell> {
    with(|thread| thread.shard.get()?.long_cell(slot))
}

/// Refunds a block to a service, from the calling thread. `false` if there is
/// no such service.
#[cfg(feature = "memory-check")]
#[inline]
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

/// A scope that the calling thread has entered, for `leave`.
///
/// That the thread is in a service is counted, and keeps the service; so does a scope with the one
/// it will go back to: the count of the service that the thread was in goes over to the scope.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Entered {
    /// What the thread goes back to. After the thread's end has begun, the cell may be another
    /// thread's; its mark still says whose service it is, since that is kept.
    previous: *const Cell,
    /// The thread's own cell in which the scope is counted; null if it was not entered the short way.
    own: *const Cell,
}

#[cfg(feature = "tracing-layer")]
impl Entered {
    /// Returns the service that the calling thread goes back to from this scope.
    #[inline]
    pub(crate) fn former(&self) -> &'static Record {
        // SAFETY: as in `leave_slow`.
        unsafe { Record::of_cell(self.previous) }
    }

    /// Changes the service that the calling thread goes back to: what counts it in there, the scope has
    /// from now on, and the caller what counted it in the former one.
    #[inline]
    pub(crate) fn set_former(&mut self, record: &'static Record) {
        self.previous = with(|thread| thread.place_of(record).0);
    }
}

/// Puts the calling thread into a service, which somebody holds.
#[inline]
pub fn enter(record: &'static Record) -> Entered {
    let words = access::Words::of_thread();
    // The shared cell's, which differs from a thread's own in what is no part of the cookie.
    let mark = record.shared().own_mark();
    let own = words.directory().cell(mark);
    if own.own_mark().to_cookie() != mark.to_cookie() {
        return enter_slow(record);
    }
    let previous = words.cell();
    words.stay();
    own.enter();
    words.set_cell(own);
    Entered { previous, own }
}

/// Takes the calling thread out of the service that it is in, and back to where it was before that
/// scope: mostly that is the scope's service, but scopes may be left in any order.
#[inline]
pub fn leave(scope: Entered) {
    let words = access::Words::of_thread();
    if words.cell() != scope.own {
        return leave_slow(scope.previous);
    }
    // SAFETY: the current cell, which is the thread's own: where it is not, it is no scope's `own`.
    // Cells are never unmapped.
    unsafe { (*scope.own).leave() };
    words.stay_no_more();
    words.set_cell(scope.previous);
}

/// The thread has no cell for the service yet, or it is a long slot's.
#[cold]
#[inline(never)]
fn enter_slow(record: &'static Record) -> Entered {
    with(|thread| {
        let previous = thread.cell.get();
        // Not for a thread that has allocated nothing yet: to get a shard may allocate.
        let own = thread.shard.get().and_then(|shard| shard.claim(record.slot()));
        thread.stay();
        thread.go_to(record);
        let is_short = own.is_some_and(|own| own.mark() != Mark::LONG);
        Entered { previous, own: if is_short { thread.cell.get() } else { ptr::null() } }
    })
}

/// The thread is elsewhere, or has got a cell, or lost all.
#[cold]
#[inline(never)]
fn leave_slow(previous: *const Cell) {
    // SAFETY: `previous` was the thread's current cell, and the scope kept its service; so the cell has
    // had its mark ever since, and is a record's own if that is the mark of long slots.
    leave_for(unsafe { Record::of_cell(previous) });
}

/// Puts the calling thread into a service, which somebody holds, and returns the one it was in, for
/// [`leave_for`].
#[inline]
pub fn go_to(record: &'static Record) -> &'static Record {
    with(|thread| {
        thread.stay();
        let former = thread.record();
        thread.go_to(record);
        former
    })
}

/// Takes the calling thread out of its service and back to a former one.
#[inline]
pub fn leave_for(former: &'static Record) {
    with(|thread| {
        thread.stay_no_more();
        let left = thread.cell.get();
        thread.find(former);
        thread.leave_cell(left);
    });
}

/// Variant of [`leave_for`] for a service that the thread went to by memory, and that may have ended just
/// then (`recall`): the count is taken back where it stands.
#[cfg(feature = "tracing-layer")]
#[inline]
pub(crate) fn leave_remembered_for(former: &'static Record) {
    with(|thread| {
        let left = thread.cell.get();
        // SAFETY: the current cell; cells are never unmapped.
        let left = unsafe { &*left };
        if left.mark() != Mark::NONE {
            return leave_for(former);
        }
        thread.stay_no_more();
        thread.find(former);
        // Right in an own cell, too.
        left.leave_shared();
    });
}

/// Counts the calling thread in a service, which the caller holds, without going there: the thread
/// goes back to it later.
#[cfg(feature = "tracing-layer")]
#[inline]
pub(crate) fn retain(record: &'static Record) {
    with(|thread| {
        thread.stay();
        match thread.own_or_shared(record) {
            Account::Own(cell) => cell.enter(),
            Account::Shared(cell) => cell.enter_shared(),
        }
    });
}

/// Takes a [`retain`] back, or the count of a service that [`go_to`] returned.
#[cfg(feature = "tracing-layer")]
#[inline]
pub(crate) fn release(record: &'static Record) {
    with(|thread| {
        thread.stay_no_more();
        thread.count_out(record);
    });
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

/// A word in each thread's record that a module above the ledger, or a crate beside this one,
/// has for its own use: 0 in a new thread, and of no meaning to the ledger.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    /// Whether the thread is in an `Inside`.
    CheckInside,
    /// The number that memory-check gave the thread.
    CheckNumber,
    /// dogtag-c: what the thread's service outside of scopes was chosen by.
    OwnerKey,
    /// dogtag-c: the first half of the thread's name.
    NameLow,
    /// dogtag-c: the second half of the thread's name.
    NameHigh,
    /// dogtag-c: how many names other threads had given when this one looked last.
    NamesSeen,
    /// How the thread's service outside of scopes is chosen, by its name for instance.
    Follows,
    /// Whether the thread can do without what it asks for, if its service is cancelled.
    Fallible,
    /// Sampling: the state of the thread's random numbers.
    Random,
    /// Sampling: bytes to the next sample in cells whose threshold is never raised.
    NextSample,
    /// Sampling: for which interval that is.
    SamplingChanges,
    /// Sampling: whether the thread is taking its call stack.
    IsTakingStack,
    /// Call stacks: where the part of the thread's own stack begins that is known to be readable.
    StackFrom,
    /// Call stacks: where it ends; 0 while it is not known.
    StackTo,
    /// Call stacks: how often it was looked for in vain.
    StackFailures,
}

impl Word {
    const COUNT: usize = Self::StackFailures as usize + 1;

    /// Returns the calling thread's word.
    #[inline(always)]
    pub fn get(self) -> u64 {
        with(|thread| thread.words[self as usize].get())
    }

    /// Sets the calling thread's word. Signal handlers may call this, whatever they have interrupted.
    #[inline]
    pub fn set(self, value: u64) {
        self.replace(value);
    }

    /// Sets the calling thread's word, and returns its former value.
    #[inline]
    pub fn replace(self, value: u64) -> u64 {
        with(|thread| thread.words[self as usize].replace(value))
    }
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
    long: Variable<Option<(&'static Record, &'static Cell)>>,
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
        }
    }
}

fn with<R>(body: impl FnOnce(&Thread) -> R) -> R {
    // SAFETY: the calling thread's own `Thread`, which lives as long as it runs;
    // all its fields are interior-mutable and no reference leaves the closure.
    body(unsafe { &*access::thread() })
}

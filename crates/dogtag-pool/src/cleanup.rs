//! What is to be done when a pool is cleared: the cleanups that were registered, and the drops of
//! the values that live in it.

use crate::node::Node;
use dogtag::__private::{Payload, call, discard};
use std::alloc::Layout;
use std::cell::Cell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};

/// A cleanup that is registered: to be cancelled, or run before its time. Otherwise it runs
/// when the pool is cleared or destroyed; to drop this changes nothing.
///
/// The memory that it took is the pool's last again if nothing was allocated since.
///
/// Made by [`Pool::cleanup`](crate::Pool::cleanup) and
/// [`Pool::pre_cleanup`](crate::Pool::pre_cleanup).
#[must_use = "to drop it does not cancel the cleanup; say so with `let _ =`"]
pub struct Cleanup<'pool> {
    node: &'pool Node,
    list: &'pool Records,
    record: NonNull<Record>,
}

impl<'pool> Cleanup<'pool> {
    /// # Safety
    ///
    /// The record must be in the list, which is the node's, and be taken out by nobody else
    /// before the pool is cleared.
    pub(crate) unsafe fn of(node: &'pool Node, list: &'pool Records, record: NonNull<Record>) -> Self {
        Self { node, list, record }
    }

    /// Takes the cleanup out, and drops it without running it (APR:
    /// `apr_pool_cleanup_kill`, which takes it from both lists). Constant time.
    ///
    /// # Panics
    ///
    /// If the drop of what it has captured does.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    ///
    /// let pool = Pool::new();
    /// let delete = pool.cleanup(|| unreachable!("the file is to stay"));
    /// delete.cancel();
    /// ```
    pub fn cancel(self) {
        self.act(Act::Forget);
    }

    /// Takes the cleanup out and runs it now (APR: `apr_pool_cleanup_run`). Constant time,
    /// but for what it does.
    ///
    /// # Panics
    ///
    /// If the cleanup does.
    ///
    /// ```
    /// use dogtag_pool::Pool;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    ///
    /// static RUNS: AtomicU32 = AtomicU32::new(0);
    /// let pool = Pool::new();
    /// let count = pool.cleanup(|| _ = RUNS.fetch_add(1, Ordering::Relaxed));
    /// count.run();
    /// drop(pool);
    /// assert_eq!(RUNS.load(Ordering::Relaxed), 1);
    /// ```
    pub fn run(self) {
        self.act(Act::Run);
    }

    fn act(self, act: Act) {
        // SAFETY: it is in the list, since nobody else could have taken it out: clearing
        // the pool takes all that is borrowed from it. Then nobody uses it.
        unsafe {
            let layout = self.list.take_out(self.record).act(act);
            self.node.give_back(self.record.cast(), layout);
        }
    }
}

impl fmt::Debug for Cleanup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cleanup").finish_non_exhaustive()
    }
}

/// Does something of the user's, and keeps its panic if it is the first one.
pub(crate) fn catch(first_panic: &mut Option<Payload>, work: impl FnOnce()) {
    match call(work) {
        Ok(()) => {}
        Err(payload) if first_panic.is_none() => *first_panic = Some(payload),
        Err(payload) => discard(payload),
    }
}

/// Stands in front of what it is about.
#[repr(C)]
pub(crate) struct Record {
    next: Cell<Option<NonNull<Record>>>,
    previous: Cell<Option<NonNull<Record>>>,
    /// Returns what the record lies in.
    act: unsafe fn(NonNull<Record>, Act) -> Layout,
}

#[derive(Clone, Copy)]
pub(crate) enum Act {
    Run,
    Forget,
}

/// The records of a pool, the last one first.
#[derive(Default)]
pub(crate) struct Records(Cell<Option<NonNull<Record>>>);

impl Records {
    /// # Safety
    ///
    /// The record must be in no list, and stay where it is.
    pub(crate) unsafe fn push(&self, record: NonNull<Record>) {
        let next = self.0.replace(Some(record));
        // SAFETY: the caller's promise; its neighbour is there.
        unsafe {
            record.as_ref().next.set(next);
            if let Some(next) = next {
                next.as_ref().previous.set(Some(record));
            }
        }
    }

    /// # Safety
    ///
    /// The record must be in this list.
    unsafe fn take_out(&self, record: NonNull<Record>) -> Taken {
        // SAFETY: the caller's promise; the neighbours are there.
        unsafe {
            let (next, previous) = (record.as_ref().next.get(), record.as_ref().previous.get());
            if let Some(next) = next {
                next.as_ref().previous.set(previous);
            }
            match previous {
                Some(previous) => previous.as_ref().next.set(next),
                None => self.0.set(next),
            }
        }
        Taken(record)
    }

    /// Runs all, those included that come while this runs. The first panic is kept, if
    /// there is none yet; none keeps the others from running.
    ///
    /// # Safety
    ///
    /// What the records are about must be there.
    pub(crate) unsafe fn run_all(&self, first_panic: &mut Option<Payload>) {
        while let Some(record) = self.0.get() {
            // SAFETY: the caller's promise.
            catch(first_panic, || _ = unsafe { self.take_out(record).act(Act::Run) });
        }
    }
}

/// A record that is in no list any more.
struct Taken(NonNull<Record>);

impl Taken {
    /// # Safety
    ///
    /// What the record is about must be there.
    unsafe fn act(self, act: Act) -> Layout {
        // SAFETY: the caller's promise, and it is taken once.
        unsafe { (self.0.as_ref().act)(self.0, act) }
    }
}

/// A closure, behind its record.
#[repr(C)]
pub(crate) struct Task<F> {
    record: Record,
    work: ManuallyDrop<F>,
}

impl<F: FnOnce()> Task<F> {
    pub(crate) fn new(work: F) -> Self {
        Self { record: Record::new(Self::act), work: ManuallyDrop::new(work) }
    }

    unsafe fn act(record: NonNull<Record>, act: Act) -> Layout {
        // SAFETY: the record is the first field of this, and acts once.
        let work = unsafe { ptr::read(&raw const (*record.cast::<Self>().as_ptr()).work) };
        match act {
            Act::Run => ManuallyDrop::into_inner(work)(),
            Act::Forget => drop(ManuallyDrop::into_inner(work)),
        }
        Layout::new::<Self>()
    }
}

/// Values that have to be dropped, behind their record.
#[repr(C)]
pub(crate) struct Droppable<T> {
    record: Record,
    values: NonNull<T>,
    len: usize,
}

impl<T> Droppable<T> {
    pub(crate) fn new(values: NonNull<T>, len: usize) -> Self {
        Self { record: Record::new(Self::act), values, len }
    }

    unsafe fn act(record: NonNull<Record>, _: Act) -> Layout {
        // SAFETY: the record is the first field of this, and acts once.
        unsafe {
            let this = record.cast::<Self>().as_ref();
            ptr::slice_from_raw_parts_mut(this.values.as_ptr(), this.len).drop_in_place();
        }
        Layout::new::<Self>()
    }
}

impl Record {
    fn new(act: unsafe fn(NonNull<Record>, Act) -> Layout) -> Self {
        Self { next: Cell::new(None), previous: Cell::new(None), act }
    }
}

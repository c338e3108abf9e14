//! What runs when a pool is cleared: cleanups and the drops of values. Each has a record in the
//! pool's memory.

use dogtag::__private::{Payload, call, discard};
use std::alloc::Layout;
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};

/// The header of a [`Task`] or a [`Droppable`], in a doubly linked list.
#[repr(C)]
pub(crate) struct Record {
    next: Cell<Option<NonNull<Record>>>,
    previous: Cell<Option<NonNull<Record>>>,
    /// Runs or drops what the record is the header of, once, and returns the layout of that.
    act: unsafe fn(NonNull<Record>, Act) -> Layout,
}

/// What becomes of a record's work.
#[derive(Clone, Copy)]
pub(crate) enum Act {
    Run,
    Forget,
}

/// The records of a pool, the youngest first.
#[derive(Default)]
pub(crate) struct Records(Cell<Option<NonNull<Record>>>);

impl Records {
    /// Adds a record.
    ///
    /// # Safety
    ///
    /// The record must be in no list, and must stay valid until it is taken out.
    pub(crate) unsafe fn push(&self, record: NonNull<Record>) {
        let next = self.0.replace(Some(record));
        // SAFETY: records are valid while they are in the list, as the new one is.
        unsafe {
            record.as_ref().next.set(next);
            if let Some(next) = next {
                next.as_ref().previous.set(Some(record));
            }
        }
    }

    /// Takes a record out, and runs or drops its work. Returns the layout of what the record is
    /// the header of.
    ///
    /// # Safety
    ///
    /// The record must be in this list. Unless it is only dropped, all that its work uses must
    /// be alive.
    pub(crate) unsafe fn take_out(&self, record: NonNull<Record>, act: Act) -> Layout {
        // SAFETY: records are valid while they are in the list. This one acts once, since it is
        // in no list any more when it does.
        unsafe {
            let (next, previous) = (record.as_ref().next.get(), record.as_ref().previous.get());
            if let Some(next) = next {
                next.as_ref().previous.set(previous);
            }
            match previous {
                Some(previous) => previous.as_ref().next.set(next),
                None => self.0.set(next),
            }
            (record.as_ref().act)(record, act)
        }
    }

    /// Runs the work of all records, the youngest first, also of those that are added meanwhile.
    /// A panic stops none of it. The first one is stored, unless there is one already.
    ///
    /// # Safety
    ///
    /// All that the work of the records uses must be alive.
    pub(crate) unsafe fn run_all(&self, first_panic: &mut Option<Payload>) {
        while let Some(record) = self.0.get() {
            // SAFETY: the record is the first one of this list, and what it uses is alive, as
            // this function demands, too.
            catch(first_panic, || _ = unsafe { self.take_out(record, Act::Run) });
        }
    }
}

/// Runs code of the program, and stores its panic if it is the first one.
pub(crate) fn catch(first_panic: &mut Option<Payload>, work: impl FnOnce()) {
    match call(work) {
        Ok(()) => {}
        Err(payload) if first_panic.is_none() => *first_panic = Some(payload),
        Err(payload) => discard(payload),
    }
}

/// A closure to be run.
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
        // SAFETY: the record is the first field of a `Task<F>`, since `new` alone makes records
        // with this function; the closure is taken once, since a record acts once.
        let work = unsafe { ptr::read(&raw const (*record.cast::<Self>().as_ptr()).work) };
        match act {
            Act::Run => ManuallyDrop::into_inner(work)(),
            Act::Forget => drop(ManuallyDrop::into_inner(work)),
        }
        Layout::new::<Self>()
    }
}

/// Values to be dropped, which are elsewhere in the pool.
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
        // SAFETY: the record is the first field of a `Droppable<T>`, since `new` alone makes
        // records with this function. Its values live until they are dropped here, once, since a
        // record acts once.
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

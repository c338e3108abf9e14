//! Tells of a violation.
//!
//! A fault may interrupt the program anywhere, on a small stack: it may hold the allocator's or the loader's
//! lock. So whoever finds a violation notes it in statics, wakes a thread that was begun with the guard, and
//! waits, but not for ever. The thread takes the call stack of the one that waits, writes the report, then
//! the functions' names, and emits the event. Without it (in a forked child) or where it is stuck, the report is
//! written with bare addresses by whoever waits.

use super::entry::State;
use super::pool::{MET, PoolSlot};
use super::reaction;
use super::violation::{Found, Kind, Stacks, Violation};
use crate::contained::contain;
use crate::ledger::thread;
use crate::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sys::fork::{ForkHook, ForkOrder, at_load, register_fork_hook};
use crate::sys::{self, Parker, stderr};
use crate::unwind;
use std::ffi::c_void;
use std::fmt::{self, Write};
use std::ptr;

/// Violations that were told of.
pub(super) static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// Held by the thread whose violation is being told.
static IS_TELLING: AtomicBool = AtomicBool::new(false);

/// The violation, for the report thread.
static KIND: AtomicU32 = AtomicU32::new(0);
static FOUND: AtomicU32 = AtomicU32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static OFFSET: AtomicUsize = AtomicUsize::new(0);
/// The registers of the thread that waits, from its signal handler; null if it has taken its stack itself.
static CONTEXT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// How far the report thread is.
static PROGRESS: AtomicU32 = AtomicU32::new(ASKED);
const ASKED: u32 = 0;
const WRITTEN: u32 = 1;
const DONE: u32 = 2;

static BELL: Parker = Parker::new();
/// Whether there is a report thread, which may be about to begin.
static HAS_THREAD: AtomicBool = AtomicBool::new(false);
/// Its number, once it has begun.
static THREAD: AtomicU32 = AtomicU32::new(0);

/// How long the thread that found the violation waits, in milliseconds: for the report, and for the rest.
const SOON: u32 = 2_000;
const PATIENCE: u32 = 10_000;

/// Tells of a violation, and ends the process unless it is to go on. From anywhere, signal handlers among them,
/// which pass the registers that they were given.
pub(super) fn tell(violation: Violation, context: *mut c_void) {
    while IS_TELLING.swap(true, Ordering::Acquire) {
        // Mostly the process ends meanwhile.
        wait();
    }
    // Nobody else gets the slot while it is told of.
    let state = violation.slot.state.get();
    let is_held = matches!(state, State::Free(_)) && violation.slot.state.seize(state);
    CAUGHT.fetch_add(1, Ordering::Relaxed);
    KIND.store(violation.kind as u32, Ordering::Relaxed);
    FOUND.store(violation.found as u32, Ordering::Relaxed);
    ADDRESS.store(violation.address, Ordering::Relaxed);
    OFFSET.store(violation.offset.cast_unsigned(), Ordering::Relaxed);
    CONTEXT.store(context, Ordering::Relaxed);
    MET.set(thread::current_record());
    if context.is_null() {
        MET.set_stack();
    }
    PROGRESS.store(ASKED, Ordering::Release);
    let mut progress = ASKED;
    if HAS_THREAD.load(Ordering::Acquire) && THREAD.load(Ordering::Relaxed) != sys::own_thread_number() {
        BELL.unpark();
        for waited in 0..PATIENCE {
            progress = PROGRESS.load(Ordering::Acquire);
            if progress == DONE || (progress == ASKED && waited == SOON) {
                break;
            }
            wait();
        }
    }
    if progress == ASKED {
        let _ = write!(Unbuffered, "{violation}");
    }
    if progress != DONE {
        let _ = write!(Unbuffered, "{}", Stacks { violation, names: false });
    }
    if !reaction::goes_on() {
        // SAFETY: ends the process.
        unsafe { libc::abort() };
    }
    if is_held {
        violation.slot.state.settle(state);
    }
    IS_TELLING.store(false, Ordering::Release);
}

/// A millisecond, in signal handlers too.
fn wait() {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    // SAFETY: reads that time.
    unsafe { libc::nanosleep(&time, ptr::null_mut()) };
}

/// Standard error, without a buffer, for which a signal handler may have no stack.
struct Unbuffered;

impl Write for Unbuffered {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: the bytes are there. What cannot be written is lost.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
        Ok(())
    }
}

/// Begins the report thread, if there is none. Callers take turns.
pub(super) fn start_thread() {
    if !HAS_THREAD.load(Ordering::Acquire) {
        HAS_THREAD.store(sys::spawn(work), Ordering::Release);
    }
}

fn work() {
    THREAD.store(sys::own_thread_number(), Ordering::Relaxed);
    loop {
        BELL.park();
        if PROGRESS.load(Ordering::Acquire) != ASKED {
            continue;
        }
        let Some(violation) = asked() else { continue };
        let context = CONTEXT.load(Ordering::Relaxed);
        if !context.is_null() {
            let mut frames = [0; super::who::FRAMES];
            // SAFETY: the registers of a thread that is in its signal handler, and waits there.
            let taken = unsafe { unwind::capture_interrupted(context, &mut frames) };
            MET.set_frames(&frames[..taken]);
        }
        stderr::print(format_args!("{violation}"));
        PROGRESS.store(WRITTEN, Ordering::Release);
        contain(|| stderr::print(format_args!("{}", Stacks { violation, names: true })));
        contain(|| emit(&violation));
        PROGRESS.store(DONE, Ordering::Release);
    }
}

fn asked() -> Option<Violation> {
    let address = ADDRESS.load(Ordering::Relaxed);
    Some(Violation {
        kind: *Kind::ALL.get(KIND.load(Ordering::Relaxed) as usize)?,
        found: *Found::ALL.get(FOUND.load(Ordering::Relaxed) as usize)?,
        address,
        offset: OFFSET.load(Ordering::Relaxed).cast_signed(),
        slot: PoolSlot::of(address)?.0,
    })
}

fn emit(violation: &Violation) {
    let entry = violation.slot.entry;
    let allocated = violation.has_block().then_some(&entry.allocated);
    tracing::error!(
        target: "dogtag",
        violation = %violation.kind,
        found = %violation.found,
        address = format_args!("{:#x}", violation.address),
        size = allocated.map(|_| violation.size()),
        service = allocated.map(|who| tracing::field::display(who.service())),
        handle = allocated.map(|who| who.handle()),
        freed_by = violation.freed().map(|who| tracing::field::display(who.service())),
        freed_on = violation.freed().map(|who| tracing::field::display(who.thread_name())),
        met_by = %MET.service(),
        met_on = %MET.thread_name(),
        offset = violation.offset as i64,
        "the sampled guard found a violation",
    );
}

/// The child has no report thread, and nobody whose violation is being told.
static FORK_HOOK: ForkHook = ForkHook { order: ForkOrder::Last, before: || (), in_parent: || (), in_child };

fn in_child() {
    HAS_THREAD.store(false, Ordering::Relaxed);
    IS_TELLING.store(false, Ordering::Relaxed);
}

fn register() {
    register_fork_hook(&FORK_HOOK);
}

at_load!(register);

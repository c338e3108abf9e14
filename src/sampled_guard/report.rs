//! Tells of a violation.
//!
//! A fault may interrupt the program anywhere, on a small stack: it may hold the allocator's or the loader's
//! lock. So whoever finds a violation notes it in statics, wakes a thread that was begun with the guard, and
//! waits, but not for ever. The thread takes the call stack of the one that waits, writes the report, then
//! the functions' names, and emits the event. Without it (in a forked child) or where it is stuck, the report is
//! written with bare addresses by whoever waits. Of both only one takes the violation ([`Progress`]): the thread
//! reads a stack that is gone when the other one goes on.

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
use std::time::Duration;

/// Violations that were told of.
pub(super) static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// The thread whose violation is being told; 0 for none.
static TELLER: AtomicUsize = AtomicUsize::new(0);

/// The violation, for the report thread.
static KIND: AtomicU32 = AtomicU32::new(0);
static FOUND: AtomicU32 = AtomicU32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static OFFSET: AtomicUsize = AtomicUsize::new(0);
/// The registers of the thread that waits, from its signal handler; null if it has taken its stack itself.
static CONTEXT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// How far the report thread is, and with which violation.
static PROGRESS: Progress = Progress(AtomicU64::new(0));

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It has nothing to do.
    Idle,
    /// It is to report.
    Asked,
    /// It reads what whoever found the violation has noted, and the registers, if there are any.
    Taken,
    /// The report is there, without the functions' names. The registers are not read any more.
    Written,
    Done,
}

/// A [`Step`] and the number of the violation that it belongs to, so that a thread that comes late with one takes
/// no step of the next.
struct Progress(AtomicU64);

impl Progress {
    const STEPS: [Step; 5] = [Step::Idle, Step::Asked, Step::Taken, Step::Written, Step::Done];
    const NUMBERS: u64 = 8;

    fn get(&self) -> (u64, Step) {
        let bits = self.0.load(Ordering::Acquire);
        let step = Self::STEPS.get((bits % Self::NUMBERS) as usize);
        (bits / Self::NUMBERS, step.copied().unwrap_or(Step::Idle))
    }

    /// Asks for a report of the next violation, and returns its number. By the [`TELLER`].
    fn ask(&self) -> u64 {
        let number = self.get().0 + 1;
        self.0.store(Self::bits(number, Step::Asked), Ordering::Release);
        number
    }

    /// Takes a step, unless another one was taken meanwhile.
    fn step(&self, number: u64, from: Step, to: Step) -> bool {
        let (from, to) = (Self::bits(number, from), Self::bits(number, to));
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Has no report asked for any more.
    fn withdraw(&self) {
        self.0.store(Self::bits(self.get().0, Step::Idle), Ordering::Relaxed);
    }

    fn bits(number: u64, step: Step) -> u64 {
        number * Self::NUMBERS + step as u64
    }
}

static BELL: Parker = Parker::new();
/// Whether there is a report thread, which may be about to begin.
static HAS_THREAD: AtomicBool = AtomicBool::new(false);
/// Its number, once it has begun.
static THREAD: AtomicU32 = AtomicU32::new(0);

/// How long the thread that found the violation waits for all of the report, in milliseconds. For the report
/// thread to begin with it, a part of that.
static PATIENCE: AtomicU64 = AtomicU64::new(0);
const PATIENCE_TO_BEGIN: u64 = 5;

pub(super) fn set_patience(patience: Duration) {
    PATIENCE.store(patience.as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Tells of a violation, and ends the process unless it is to go on. From anywhere, signal handlers among them,
/// which pass the registers that they were given.
pub(super) fn tell(violation: Violation, context: *mut c_void) {
    let own = own_thread();
    while let Err(teller) = TELLER.compare_exchange(0, own, Ordering::Acquire, Ordering::Relaxed) {
        if teller == own {
            // By a handler of `SIGABRT`, for example: nobody else would ever end the first one.
            abort_at_once();
        }
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
    let reached = have_reported();
    if matches!(reached, Step::Idle | Step::Taken) {
        let _ = write!(Unbuffered, "{violation}");
    }
    if reached != Step::Done {
        let _ = write!(Unbuffered, "{}", Stacks { violation, names: false });
    }
    // The report thread still reads the registers, which would not be there any more.
    if reached == Step::Taken || !reaction::goes_on() {
        // SAFETY: ends the process.
        unsafe { libc::abort() };
    }
    if is_held {
        violation.slot.state.settle(state);
    }
    TELLER.store(0, Ordering::Release);
}

/// Has the report thread report the violation that was noted, and returns how far it has come when there is no more
/// waiting for it: idle if it has not begun, and will not.
fn have_reported() -> Step {
    let patience = PATIENCE.load(Ordering::Relaxed);
    let has_thread = HAS_THREAD.load(Ordering::Acquire);
    if patience == 0 || !has_thread || THREAD.load(Ordering::Relaxed) == sys::own_thread_number() {
        return Step::Idle;
    }
    let number = PROGRESS.ask();
    BELL.unpark();
    for waited in 0..patience {
        match PROGRESS.get() {
            (_, Step::Done) => return Step::Done,
            (_, Step::Asked)
                if waited >= patience / PATIENCE_TO_BEGIN
                    && PROGRESS.step(number, Step::Asked, Step::Idle) =>
            {
                return Step::Idle;
            }
            _ => wait(),
        }
    }
    PROGRESS.get().1
}

/// The calling thread, as itself knows it. Not 0.
fn own_thread() -> usize {
    // SAFETY: asks for a number, and has no preconditions.
    unsafe { libc::pthread_self() as usize }
}

/// Ends the process, whatever it does about `SIGABRT`.
fn abort_at_once() -> ! {
    // SAFETY: sets the default action, which is all zeros, and ends the process.
    unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGABRT, &action, ptr::null_mut());
        libc::abort()
    }
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
        let (number, step) = PROGRESS.get();
        // Whoever has asked waits until the next step is taken, or ends the process.
        if step != Step::Asked || !PROGRESS.step(number, Step::Asked, Step::Taken) {
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
        PROGRESS.step(number, Step::Taken, Step::Written);
        contain(|| stderr::print(format_args!("{}", Stacks { violation, names: true })));
        contain(|| emit(&violation));
        // Whoever has asked may have gone on, and the next one have asked.
        PROGRESS.step(number, Step::Written, Step::Done);
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
    TELLER.store(0, Ordering::Relaxed);
    CONTEXT.store(ptr::null_mut(), Ordering::Relaxed);
    PROGRESS.withdraw();
}

fn register() {
    register_fork_hook(&FORK_HOOK);
}

at_load!(register);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_is_taken_by_one_of_both_and_the_late_one_changes_nothing() {
        let progress = Progress(AtomicU64::new(0));
        assert_eq!(progress.get(), (0, Step::Idle));
        let first = progress.ask();
        // Whoever waits takes it back, before the thread has it.
        assert!(progress.step(first, Step::Asked, Step::Idle));
        assert!(!progress.step(first, Step::Asked, Step::Taken));
        let second = progress.ask();
        assert!(!progress.step(first, Step::Asked, Step::Taken));
        assert!(progress.step(second, Step::Asked, Step::Taken));
        assert!(!progress.step(second, Step::Asked, Step::Idle));
        assert!(progress.step(second, Step::Taken, Step::Written));
        // The thread comes when the next one has asked.
        let third = progress.ask();
        assert!(!progress.step(second, Step::Written, Step::Done));
        assert_eq!(progress.get(), (third, Step::Asked));
        progress.withdraw();
        assert_eq!(progress.get(), (third, Step::Idle));
        assert!(!progress.step(third, Step::Asked, Step::Taken));
    }
}

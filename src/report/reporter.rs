//! The thread that writes reports, what wakes it, and what happens at the exit.
//!
//! A signal handler may do next to nothing: it notes which signal came, and wakes the thread. What is
//! asked for stands in a list that only grows, so neither forks nor handlers meet a lock.

use super::destination::Place;
use super::error::ReportError;
use super::taken::Occasion;
use crate::contained::contain;
use crate::ledger::slots::UNATTRIBUTED;
use crate::service::Scope;
use crate::sync::{AtomicBool, AtomicPtr, Ordering};
use crate::sys::{self, Parker, fork, stderr};
use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is to be done, and when.
pub(crate) struct Task {
    pub(super) at_exit: bool,
    pub(super) signals: Vec<c_int>,
    pub(super) interval: Option<Duration>,
    pub(super) place: Place,
    /// Whether it calls a subscriber or a closure: the thread that exits may hold their locks, and has
    /// dropped its thread-locals.
    pub(super) runs_foreign_code: bool,
    pub(super) work: Box<dyn Fn(Occasion) + Send + Sync>,
}

impl Task {
    /// A task that is no report, at the exit and at a signal.
    pub(crate) fn other(signal: c_int, work: fn()) -> Self {
        Self {
            at_exit: true,
            signals: vec![signal],
            interval: None,
            place: Place::Nameless,
            runs_foreign_code: false,
            work: Box::new(move |_| work()),
        }
    }

    /// Whether both do the same on the same occasion.
    fn repeats(&self, other: &Self) -> bool {
        let same_occasion = self.at_exit && other.at_exit
            || self.interval.is_some() && other.interval.is_some()
            || self.signals.iter().any(|signal| other.signals.contains(signal));
        same_occasion && self.place.is_same(&other.place)
    }

    fn run(&self, occasion: Occasion) {
        let _scope = Scope::enter(&UNATTRIBUTED);
        contain(|| (self.work)(occasion));
    }
}

/// An element of the list of tasks, the youngest of which is [`YOUNGEST`].
struct Entry {
    task: Task,
    older: *const Entry,
}

static YOUNGEST: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

/// Has a task done from now on.
pub(crate) fn add(task: Task) -> Result<(), ReportError> {
    task.signals.iter().try_for_each(|signal| check(*signal))?;
    let signals = task.signals.clone();
    let needs_thread = !signals.is_empty() || task.interval.is_some();
    if tasks().any(|other| other.repeats(&task)) {
        return Err(ReportError::Twice);
    }
    let is_ready = (!task.at_exit || has_exit_handler()) && (!needs_thread || has_thread());
    if !is_ready {
        return Err(ReportError::NoMemory);
    }
    let entry = Box::leak(Box::new(Entry { task, older: ptr::null() }));
    loop {
        let youngest = YOUNGEST.load(Ordering::Acquire);
        entry.older = youngest;
        if tasks_from(youngest).any(|other| other.repeats(&entry.task)) {
            // Somebody has been faster; this one stays where it is, unused.
            return Err(ReportError::Twice);
        }
        let new: *mut Entry = entry;
        if YOUNGEST.compare_exchange(youngest, new, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            break;
        }
    }
    signals.into_iter().for_each(listen_to);
    if needs_thread {
        // It learns of the new interval.
        PARKER.unpark();
    }
    Ok(())
}

fn tasks() -> impl Iterator<Item = &'static Task> {
    tasks_from(YOUNGEST.load(Ordering::Acquire))
}

/// The tasks of the list from one on, the oldest last.
fn tasks_from(entry: *const Entry) -> impl Iterator<Item = &'static Task> {
    // SAFETY: null, or an entry that was leaked and, since it is in the list, never changes.
    let get = |entry: *const Entry| unsafe { entry.as_ref::<'static>() };
    std::iter::successors(get(entry), move |entry| get(entry.older)).map(|entry| &entry.task)
}

/// The tasks in the order in which they came.
fn in_order() -> Vec<&'static Task> {
    let mut tasks: Vec<_> = tasks().collect();
    tasks.reverse();
    tasks
}

/// Whether there is a handler of the process's exit, now or since before.
fn has_exit_handler() -> bool {
    static HAS_HANDLER: AtomicBool = AtomicBool::new(false);

    if HAS_HANDLER.swap(true, Ordering::Relaxed) {
        return true;
    }
    // SAFETY: the function has this signature; a library whose handler is registered here stays
    // loaded until the handler has run.
    let is_registered = unsafe { libc::atexit(at_exit) } == 0;
    HAS_HANDLER.store(is_registered, Ordering::Relaxed);
    is_registered
}

extern "C" fn at_exit() {
    // A report that nobody reads must not change how the program ends.
    // SAFETY: ignoring a signal installs no handler, so any signal may be ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let _scope = Scope::enter(&UNATTRIBUTED);
    for task in in_order().into_iter().filter(|task| task.at_exit) {
        if !task.runs_foreign_code || !is_done_apart(task) {
            task.run(Occasion::Exit);
        }
    }
}

/// Has a task done by a thread of its own and waits for it, but not for ever: it may need what the
/// calling thread holds. `false` if there is no thread to be had.
fn is_done_apart(task: &'static Task) -> bool {
    const PATIENCE: Duration = Duration::from_secs(10);

    let done = Arc::new(Parker::new());
    let is_begun = {
        let done = Arc::clone(&done);
        spawn(move || {
            task.run(Occasion::Exit);
            done.unpark();
        })
    };
    if is_begun {
        done.park_until(Some(Instant::now() + PATIENCE));
    }
    is_begun
}

/// Wakes the thread.
static PARKER: Parker = Parker::new();
static HAS_THREAD: AtomicBool = AtomicBool::new(false);

/// Signals that came, and that the thread has not seen yet.
static CAME: [AtomicBool; MOST_SIGNALS] = [const { AtomicBool::new(false) }; MOST_SIGNALS];
const MOST_SIGNALS: usize = 65;

/// Whether there is a thread for reports, now or since before.
fn has_thread() -> bool {
    static FORKS_ARE_HEEDED: AtomicBool = AtomicBool::new(false);

    if HAS_THREAD.swap(true, Ordering::SeqCst) {
        return true;
    }
    if !FORKS_ARE_HEEDED.swap(true, Ordering::Relaxed) {
        // In a child other locks are released before the thread begins.
        fork::prepare();
        sys::at_fork_in_child(begin_in_child);
    }
    let is_begun = begin();
    HAS_THREAD.store(is_begun, Ordering::SeqCst);
    is_begun
}

/// Begins a forked child's own thread, if its parent has one.
extern "C" fn begin_in_child() {
    // What was asked of the parent is not done by its child.
    CAME.iter().for_each(|came| came.store(false, Ordering::Relaxed));
    if HAS_THREAD.load(Ordering::SeqCst) && !begin() {
        HAS_THREAD.store(false, Ordering::SeqCst);
        stderr::print(format_args!("dogtag: no thread is to be had for reports and profiles at a signal\n"));
    }
}

/// Begins the thread.
fn begin() -> bool {
    spawn(wait_and_report)
}

/// Has `work` done by a thread of dogtag's own. `false` if there is none to be had.
pub(super) fn spawn(work: impl FnOnce() + Send + 'static) -> bool {
    let _scope = Scope::enter(&UNATTRIBUTED);
    sys::spawn(work)
}

fn wait_and_report() {
    let _scope = Scope::enter(&UNATTRIBUTED);
    // When each task's interval ends.
    let mut ends: Vec<(&'static Task, Instant)> = Vec::new();
    loop {
        for (signal, came) in (0..).zip(&CAME) {
            if came.swap(false, Ordering::SeqCst) {
                // Only now, so that what was asked for before the signal came is among them.
                let asked = in_order().into_iter().filter(|task| task.signals.contains(&signal));
                asked.for_each(|task| task.run(Occasion::Signal));
            }
        }
        for (task, end) in &mut ends {
            let interval = task.interval.unwrap_or_default();
            if *end <= Instant::now() {
                task.run(Occasion::Interval);
                // Where a report takes longer than that, or the machine has slept, some are left out.
                *end = (*end + interval).max(Instant::now());
            }
        }
        for task in in_order() {
            if let Some(interval) = task.interval
                && !ends.iter().any(|(known, _)| ptr::eq(*known, task))
            {
                ends.push((task, Instant::now() + interval));
            }
        }
        PARKER.park_until(ends.iter().map(|(_, end)| *end).min());
    }
}

/// Returns an error if the program has a handler of its own for the signal.
fn check(signal: c_int) -> Result<(), ReportError> {
    // SAFETY: zeros are a valid action, and the call only fills the place for the present one.
    let handler = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, ptr::null(), &mut action) != 0 {
            return Err(ReportError::Signal { signal });
        }
        action.sa_sigaction
    };
    let is_free = [libc::SIG_DFL, libc::SIG_IGN, wake as extern "C" fn(c_int) as usize].contains(&handler);
    if is_free { Ok(()) } else { Err(ReportError::SignalTaken { signal }) }
}

extern "C" fn wake(signal: c_int) {
    if let Some(came) = CAME.get(signal as usize) {
        came.store(true, Ordering::SeqCst);
        PARKER.unpark();
    }
}

/// Installs the handler of a signal.
fn listen_to(signal: c_int) {
    // SAFETY: zeros are a valid action, without flags and mask; `wake` only calls what is
    // async-signal-safe: it stores, and wakes a thread by a system call that does not fail.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = wake as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

//! The preload tool: reports, services by name and heap profiles for a program that knows nothing of
//! the library, as the environment's variables say.

#[cfg(feature = "profile")]
mod profile;

use crate::{current_owner, names};
use dogtag::__private::memory_check;
use dogtag::__private::service::unattributed;
use dogtag::__private::sys::{self, Bytes};
use dogtag::Snapshot;
use std::ffi::{OsStr, OsString, c_int};
use std::fs::OpenOptions;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// Reads the variables, before the program's `main`.
extern "C" fn begin() {
    names::inform_memory_check();
    if let Some(text) = variable("DOGTAG_SERVICE") {
        match text.trim_ascii() {
            b"thread" => names::make_services(),
            b"" => {}
            _ => complain("DOGTAG_SERVICE", &text, "there is: thread"),
        }
    }
    let mut reports = Reports::default();
    for part in variable("DOGTAG_REPORT").iter().flat_map(|text| text.split(|&byte| byte == b',')) {
        if reports.take(part.trim_ascii()).is_none() {
            let known = "there are: exit, the name of a signal such as SIGUSR2, file=PATH";
            complain("DOGTAG_REPORT", part, known);
        }
    }
    let profiles = profile::begin();
    if reports.at_exit || memory_check::IS_ON || profiles {
        // SAFETY: the function has this signature; a library whose handler is registered here stays
        // loaded until the handler has run.
        unsafe { libc::atexit(at_exit) };
    }
    if reports.file.is_none() && (reports.at_exit || !reports.signals.is_empty()) {
        reports.stderr = Some(KeptStderr::keep());
    }
    let mut signals = reports.signals.clone();
    if profiles && !signals.contains(&PROFILE_SIGNAL) {
        signals.push(PROFILE_SIGNAL);
    }
    let _ = REPORTS.set(reports);
    if !signals.is_empty() {
        listen();
        sys::at_fork_in_child(listen);
        signals.into_iter().for_each(listen_to);
    }
    // The thread that is about to run `main` has allocated before, as nobody.
    current_owner::refresh_name();
}

/// When reports are written, and where to.
#[derive(Debug, Default)]
struct Reports {
    at_exit: bool,
    signals: Vec<c_int>,
    file: Option<OsString>,
    /// Standard error, if there is no file.
    stderr: Option<KeptStderr>,
}

static REPORTS: OnceLock<Reports> = OnceLock::new();

impl Reports {
    /// Takes one part of `DOGTAG_REPORT`; `None` if it is not understood.
    fn take(&mut self, part: &[u8]) -> Option<()> {
        match part {
            b"" => {}
            b"exit" => self.at_exit = true,
            [b'f', b'i', b'l', b'e', b'=', path @ ..] if !path.is_empty() => {
                // The program may change its working directory.
                let path = std::path::absolute(OsStr::from_bytes(path)).ok()?;
                self.file = Some(path.into_os_string());
            }
            name => self.signals.push(signal(name)?),
        }
        Some(())
    }
}

/// Returns the signal of a name, of those that are meant for a program's own use or that it can do
/// without.
fn signal(name: &[u8]) -> Option<c_int> {
    Some(match name {
        b"SIGHUP" => libc::SIGHUP,
        b"SIGQUIT" => libc::SIGQUIT,
        b"SIGUSR1" => libc::SIGUSR1,
        b"SIGUSR2" => libc::SIGUSR2,
        b"SIGURG" => libc::SIGURG,
        b"SIGVTALRM" => libc::SIGVTALRM,
        b"SIGPROF" => libc::SIGPROF,
        b"SIGWINCH" => libc::SIGWINCH,
        b"SIGIO" => libc::SIGIO,
        b"SIGPWR" => libc::SIGPWR,
        _ => return None,
    })
}

extern "C" fn at_exit() {
    memory_check::verify_at_exit();
    if REPORTS.get().is_some_and(|reports| reports.at_exit) {
        // A report that nobody reads must not change how the program ends.
        // SAFETY: ignoring a signal installs no handler, so any signal may be ignored.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        report("at its exit");
    }
    profile::write();
}

/// The signal at which a heap profile is written, if the profiler was started here.
const PROFILE_SIGNAL: c_int = libc::SIGUSR2;

#[cfg(not(feature = "profile"))]
mod profile {
    use super::{sys, variable};

    /// Prints that there is no profiler if `DOGTAG_PROFILE` asks for one.
    pub(super) fn begin() -> bool {
        if variable("DOGTAG_PROFILE").is_some_and(|text| !matches!(text.trim_ascii(), b"" | b"0")) {
            sys::print(format_args!(
                "dogtag: DOGTAG_PROFILE is ignored: the library was built without the feature `profile`\n"
            ));
        }
        false
    }

    pub(super) fn write() {}
}

/// Writes a report.
fn report(when: &str) {
    let Some(reports) = REPORTS.get() else { return };
    unattributed(|| {
        let program = std::env::args_os().next().unwrap_or_default();
        let pid = std::process::id();
        let snapshot = dogtag::snapshot().with_balance();
        let program = program.to_string_lossy();
        let uncounted = uncounted(&snapshot);
        let program = program.escape_debug();
        let text = format!("dogtag: {program} (pid {pid}) {when}\n\n{snapshot}\n{uncounted}");
        let Some(file) = &reports.file else {
            if let Some(descriptor) = reports.stderr.as_ref().and_then(KeptStderr::get) {
                sys::print_to(descriptor, format_args!("{text}"));
            }
            return;
        };
        let path = numbered(file, &[(b'p', pid)]);
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            sys::print(format_args!("dogtag: no report in {}: {error}\n", path.display()));
        }
    });
}

/// Returns a line on memory of other allocators, if there is much of it.
fn uncounted(snapshot: &Snapshot) -> String {
    let Some(balance) = &snapshot.balance else { return String::new() };
    let elsewhere = balance.other_allocators + balance.other_mappings;
    let totals = &snapshot.totals;
    if elsewhere < MUCH && totals.allocated_blocks > 0 {
        return String::new();
    }
    let own = if elsewhere > totals.allocated_bytes {
        ": the program has an allocator of its own, or maps memory itself"
    } else {
        ""
    };
    format!("{} are in mappings of other allocators, and not counted{own}\n", Bytes(elsewhere))
}

/// Bytes that are much: statics and the C library's own memory are mostly less.
const MUCH: u64 = 4 << 20;

/// Standard error as it is when the program begins: many programs close theirs before they end.
#[derive(Debug)]
struct KeptStderr {
    descriptor: c_int,
    file: Option<(libc::dev_t, libc::ino_t)>,
}

impl KeptStderr {
    /// The least number for it, above those that programs count on.
    const LEAST: c_int = 500;

    /// Duplicates the descriptor.
    fn keep() -> Self {
        // SAFETY: makes a new descriptor, which is nobody else's; executed programs do not inherit it.
        let descriptor = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, Self::LEAST) };
        Self { descriptor, file: file_of(libc::STDERR_FILENO) }
    }

    /// Returns a descriptor of it; `None` if the program has closed both, and perhaps given their
    /// numbers to files of its own.
    fn get(&self) -> Option<c_int> {
        let descriptors = [self.descriptor, libc::STDERR_FILENO];
        descriptors.into_iter().find(|&descriptor| self.file.is_some() && file_of(descriptor) == self.file)
    }
}

/// Identifies the file of a descriptor.
fn file_of(descriptor: c_int) -> Option<(libc::dev_t, libc::ino_t)> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `status` is a place for the result, and initialised if the call returns 0.
    unsafe {
        let is_there = libc::fstat(descriptor, status.as_mut_ptr()) == 0;
        is_there.then(|| (status.assume_init_ref().st_dev, status.assume_init_ref().st_ino))
    }
}

/// Puts numbers in place of `%` and their letter.
fn numbered(path: &OsStr, numbers: &[(u8, u32)]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [byte, after @ ..] = rest {
        let number = after.first().and_then(|letter| numbers.iter().find(|(known, _)| known == letter));
        if let (b'%', Some((_, number))) = (byte, number) {
            bytes.extend_from_slice(number.to_string().as_bytes());
            rest = &after[1..];
        } else {
            bytes.push(*byte);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

/// Begins the thread that writes reports and profiles at a signal; the handler, which may do next to nothing, wakes it.
extern "C" fn listen() {
    let listen = || {
        loop {
            // SAFETY: the semaphore was initialised below, before this thread was begun.
            while unsafe { libc::sem_wait(SIGNALLED.as_ptr()) } != 0 {}
            if take(&REPORTS_WANTED) {
                report("at a signal");
            }
            if take(&PROFILES_WANTED) {
                profile::write();
            }
        }
    };
    // What was asked of a parent process is not done by its child.
    REPORTS_WANTED.store(0, Ordering::Relaxed);
    PROFILES_WANTED.store(0, Ordering::Relaxed);
    // SAFETY: the sets are places for results, read once they are filled. Nobody waits for the
    // semaphore: no thread that would was begun, or this is a forked child, without other threads.
    // All signals are blocked in the new thread, so it takes none that the program's threads wait for.
    unsafe {
        libc::sem_init(SIGNALLED.as_ptr(), 0, 0);
        let (mut all, mut former) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), former.as_mut_ptr());
        if !unattributed(|| sys::spawn(listen)) {
            sys::print(format_args!("dogtag: no thread is to be had for reports and profiles at a signal\n"));
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, former.as_ptr(), ptr::null_mut());
    }
}

/// Reports and profiles that signals have asked for, and that are not written yet.
static REPORTS_WANTED: AtomicU32 = AtomicU32::new(0);
static PROFILES_WANTED: AtomicU32 = AtomicU32::new(0);

/// Takes one of what is wanted, if there is one. Only one thread does.
fn take(wanted: &AtomicU32) -> bool {
    let is_wanted = wanted.load(Ordering::Relaxed) > 0;
    if is_wanted {
        wanted.fetch_sub(1, Ordering::Relaxed);
    }
    is_wanted
}

/// Installs the handler of a signal.
fn listen_to(signal: c_int) {
    extern "C" fn wake(signal: c_int) {
        if REPORTS.get().is_some_and(|reports| reports.signals.contains(&signal)) {
            REPORTS_WANTED.fetch_add(1, Ordering::Relaxed);
        }
        // Without a profiler of the environment's, `profile::write` writes nothing.
        if signal == PROFILE_SIGNAL {
            PROFILES_WANTED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the semaphore was initialised before this handler was installed. The call is
        // async-signal-safe, and leaves errno alone unless it fails.
        unsafe { libc::sem_post(SIGNALLED.as_ptr()) };
    }
    // SAFETY: zeros are a valid action, without flags and mask; `wake` only calls what is
    // async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = wake as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

struct Semaphore(std::cell::UnsafeCell<MaybeUninit<libc::sem_t>>);

// SAFETY: a semaphore is made to be shared by threads, and only its functions get at it.
unsafe impl Sync for Semaphore {}

impl Semaphore {
    const fn as_ptr(&self) -> *mut libc::sem_t {
        self.0.get().cast()
    }
}

static SIGNALLED: Semaphore = Semaphore(std::cell::UnsafeCell::new(MaybeUninit::zeroed()));

/// Reads a variable; none in a process with more rights than the user who runs it (setuid).
fn variable(name: &str) -> Option<Vec<u8>> {
    if sys::has_more_rights() {
        return None;
    }
    std::env::var_os(name).map(OsStringExt::into_vec)
}

/// Prints that a variable is not understood.
fn complain(variable: &str, text: &[u8], known: &str) {
    sys::print(format_args!(
        "dogtag: {variable}: \"{}\" is not understood and is ignored; {known}\n",
        text.escape_ascii(),
    ));
}

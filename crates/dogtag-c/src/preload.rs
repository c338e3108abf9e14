//! What the library does on its own, for a program that knows nothing of it, if the
//! environment says so.

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

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// Before the program's `main`.
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
    if reports.at_exit || memory_check::IS_ON {
        // SAFETY: the function lives as long as the process.
        unsafe { libc::atexit(at_exit) };
    }
    if reports.file.is_none() && (reports.at_exit || !reports.signals.is_empty()) {
        reports.stderr = Some(KeptStderr::keep());
    }
    let signals = reports.signals.clone();
    let _ = REPORTS.set(reports);
    if !signals.is_empty() {
        listen();
        sys::at_fork_in_child(listen);
        signals.into_iter().for_each(report_at);
    }
    // Who is about to run `main` has allocated before, as nobody.
    current_owner::refresh_name();
}

/// When, and where.
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
    fn take(&mut self, part: &[u8]) -> Option<()> {
        match part {
            b"" => {}
            b"exit" => self.at_exit = true,
            [b'f', b'i', b'l', b'e', b'=', path @ ..] if !path.is_empty() => {
                // The program may go elsewhere.
                let path = std::path::absolute(OsStr::from_bytes(path)).ok()?;
                self.file = Some(path.into_os_string());
            }
            name => self.signals.push(signal(name)?),
        }
        Some(())
    }
}

/// Of those that are meant for a program's own use, or that it can do without.
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
        // If nobody reads the report, the program has ended well all the same.
        // SAFETY: nothing else is left to be done with pipes.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        report("at its exit");
    }
}

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
        let path = numbered(file, pid);
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

/// What is said where much of the memory is not from here.
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

/// Statics and the C library's own are less, mostly.
const MUCH: u64 = 4 << 20;

/// Standard error as it is in the beginning: many programs close theirs before they end.
#[derive(Debug)]
struct KeptStderr {
    descriptor: c_int,
    file: Option<(libc::dev_t, libc::ino_t)>,
}

impl KeptStderr {
    /// Where programs that count on certain numbers do not look.
    const LEAST: c_int = 500;

    fn keep() -> Self {
        // SAFETY: asks for a number, which programs that are begun do not inherit.
        let descriptor = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, Self::LEAST) };
        Self { descriptor, file: file_of(libc::STDERR_FILENO) }
    }

    /// `None` if the program has closed it, and perhaps given the number to a file of
    /// its own.
    fn get(&self) -> Option<c_int> {
        let descriptors = [self.descriptor, libc::STDERR_FILENO];
        descriptors.into_iter().find(|&descriptor| self.file.is_some() && file_of(descriptor) == self.file)
    }
}

fn file_of(descriptor: c_int) -> Option<(libc::dev_t, libc::ino_t)> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: a place for the result, which is there if that is 0.
    unsafe {
        let is_there = libc::fstat(descriptor, status.as_mut_ptr()) == 0;
        is_there.then(|| (status.assume_init_ref().st_dev, status.assume_init_ref().st_ino))
    }
}

/// With the process's number in place of `%p`.
fn numbered(path: &OsStr, pid: u32) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [byte, after @ ..] = rest {
        if let [b'%', b'p', after @ ..] = rest {
            bytes.extend_from_slice(pid.to_string().as_bytes());
            rest = after;
        } else {
            bytes.push(*byte);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

/// A signal's handler may do next to nothing, so it wakes a thread that reports.
extern "C" fn listen() {
    let listen = || {
        loop {
            // SAFETY: made below, before there was such a thread.
            while unsafe { libc::sem_wait(SIGNALLED.as_ptr()) } != 0 {}
            report("at a signal");
        }
    };
    // SAFETY: places for results, and a semaphore of this process that nobody waits for:
    // in a forked child there are no other threads. The new thread gets no signals that
    // the program's are waiting for.
    unsafe {
        libc::sem_init(SIGNALLED.as_ptr(), 0, 0);
        let (mut all, mut former) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), former.as_mut_ptr());
        if !unattributed(|| sys::spawn(listen)) {
            sys::print(format_args!(
                "dogtag: DOGTAG_REPORT: no thread is to be had for reports at a signal\n"
            ));
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, former.as_ptr(), ptr::null_mut());
    }
}

fn report_at(signal: c_int) {
    extern "C" fn wake(_: c_int) {
        // SAFETY: initialised before this was installed; may be done in a handler, and
        // leaves errno alone unless it fails.
        unsafe { libc::sem_post(SIGNALLED.as_ptr()) };
    }
    // SAFETY: zeros are a valid action, without flags and mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = wake as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

struct Semaphore(std::cell::UnsafeCell<MaybeUninit<libc::sem_t>>);

// SAFETY: made for threads.
unsafe impl Sync for Semaphore {}

impl Semaphore {
    const fn as_ptr(&self) -> *mut libc::sem_t {
        self.0.get().cast()
    }
}

static SIGNALLED: Semaphore = Semaphore(std::cell::UnsafeCell::new(MaybeUninit::zeroed()));

/// Whoever runs a program with more rights than his own is not listened to.
fn variable(name: &str) -> Option<Vec<u8>> {
    if sys::has_more_rights() {
        return None;
    }
    std::env::var_os(name).map(OsStringExt::into_vec)
}

fn complain(variable: &str, text: &[u8], known: &str) {
    sys::print(format_args!(
        "dogtag: {variable}: \"{}\" is not understood and is ignored; {known}\n",
        text.escape_ascii(),
    ));
}

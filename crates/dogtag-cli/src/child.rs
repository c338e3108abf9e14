//! Runs a program so that it notices nothing of it: signals reach it, and its status is passed on.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// The program's process; 0 before it begins and after it ends.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Signals that came before there was a process to pass them on to.
static EARLY: [AtomicBool; 65] = [const { AtomicBool::new(false) }; 65];

const SIGNALS: [i32; 6] =
    [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

/// Starts a program.
pub fn start(mut command: Command) -> io::Result<Child> {
    SIGNALS.into_iter().for_each(pass_on);
    await_children(&mut command);
    let child = command.spawn()?;
    let pid = child.id();
    CHILD.store(pid.cast_signed(), Ordering::SeqCst);
    for signal in SIGNALS {
        if EARLY[signal as usize].swap(false, Ordering::SeqCst) {
            // SAFETY: sends a signal to our own child, which has not been waited for.
            unsafe { libc::kill(pid.cast_signed(), signal) };
        }
    }
    Ok(child)
}

/// Waits for the end of the program that was started.
pub fn end(mut child: Child) -> io::Result<ExitStatus> {
    wait_for(child.id());
    // From here on, its number may become another process's.
    CHILD.store(0, Ordering::SeqCst);
    child.wait()
}

/// Has children keep their status until it is fetched, which none does whose parent was itself started with
/// `SIGCHLD` ignored. The program still begins with what this one has begun with.
fn await_children(command: &mut Command) {
    // SAFETY: the action is one of the system's own.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } == libc::SIG_IGN {
        // SAFETY: `signal` is async-signal-safe, and the action is one of the system's own.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                Ok(())
            });
        }
    }
}

/// Waits until the child has ended, and leaves its status to be fetched.
fn wait_for(pid: u32) {
    let mut found = MaybeUninit::<libc::siginfo_t>::zeroed();
    loop {
        // SAFETY: the place is valid for a result.
        let result =
            unsafe { libc::waitid(libc::P_PID, pid, found.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) };
        if result == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// Passes a signal on to the child, unless it is to be ignored, by both.
fn pass_on(signal: i32) {
    // SAFETY: zeros are a valid action. `forward` only calls what is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut action);
        if action.sa_sigaction == libc::SIG_IGN {
            return;
        }
        action = std::mem::zeroed();
        action.sa_sigaction = forward as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

extern "C" fn forward(signal: i32, info: *const libc::siginfo_t, _context: *mut libc::c_void) {
    // What the terminal sends, the child gets by itself.
    // SAFETY: the kernel passes the signal's information.
    if unsafe { (*info).si_code } > 0 {
        return;
    }
    match CHILD.load(Ordering::SeqCst) {
        0 => EARLY[signal as usize].store(true, Ordering::SeqCst),
        // SAFETY: sends a signal to our own child, which has not been waited for.
        child => drop(unsafe { libc::kill(child, signal) }),
    }
}

/// Ends as the program has ended: with its status, or by the same signal.
pub fn end_as(status: ExitStatus) -> ! {
    if let Some(signal) = status.signal() {
        // SAFETY: the sets and limits are places of ours; the signal's default action ends this process,
        // whose memory nobody wants to see.
        unsafe {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &none);
            libc::signal(signal, libc::SIG_DFL);
            let mut set = MaybeUninit::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), signal);
            libc::sigprocmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
            libc::raise(signal);
        }
        std::process::exit(128 + signal);
    }
    std::process::exit(status.code().unwrap_or(1));
}

/// Says how a program has ended.
pub fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

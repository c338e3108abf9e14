//! Finds what hangs, on a machine of any speed. What is slow, or waits for its turn on a busy
//! machine, is left alone: nobody here compares times. A process hangs if look after look all its
//! threads sleep, or have only asked in vain and gone back to sleep; or if it has used up more of a
//! processor than any test needs.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

#[path = "../random/mod.rs"]
pub mod random;

use std::fmt::Display;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// Between two looks. On a busy machine it takes longer, and so is everything more patient.
const PAUSE: Duration = Duration::from_secs(1);

/// So many looks in a row that find a process asleep say that it hangs.
const LOOKS: u32 = 60;

/// What a process may use of a processor within a pause, and still be asleep: some wait by
/// asking every millisecond. On a busy machine they are found waiting for their turn, and come to
/// ask less often.
const MOMENT: Duration = Duration::from_millis(30);
const MOMENT_OF_BUSY: Duration = Duration::from_millis(10);

/// What a process may use of a processor: minutes more than what valgrind makes of any test. With more
/// effort than usual, as many times more.
const MOST: Duration = Duration::from_secs(1800);

/// Runs a program, with all that it starts, until it ends or hangs. What hangs is killed, and
/// said on standard error.
pub fn output(command: &mut Command) -> Output {
    output_within(command, LOOKS)
}

/// [`output`] with another number of looks.
pub fn output_within(command: &mut Command, looks: u32) -> Output {
    static NEXT: AtomicU64 = AtomicU64::new(0);

    // What it starts has the same mark, daemons too; and those of whoever has started this one.
    let mark = format!("/{}.{}/", std::process::id(), NEXT.fetch_add(1, SeqCst));
    command
        .env(MARK, std::env::var(MARK).unwrap_or_default() + &mark)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let watchdog = threads.spawn(|| {
            let mut watch = Watch::new(looks);
            while !is_over.load(SeqCst) {
                std::thread::park_timeout(PAUSE);
                let hanging = watch.look(&marked(&mark));
                if let (false, Some(why)) = (is_over.load(SeqCst), hanging) {
                    // Until nobody is left: some may be about to start others.
                    loop {
                        let left = marked(&mark);
                        let left: Vec<_> = left.iter().filter(|process| process.lives).collect();
                        // SAFETY: they were started here, and nobody else has that mark.
                        left.iter().for_each(|process| _ = unsafe { libc::kill(process.id, libc::SIGKILL) });
                        if left.is_empty() {
                            return Some(why);
                        }
                        std::thread::yield_now();
                    }
                }
            }
            None
        });
        let output = child.wait_with_output();
        is_over.store(true, SeqCst);
        watchdog.thread().unpark();
        let why = watchdog.join().unwrap();
        let mut output = output.unwrap();
        output.stderr.extend(why.unwrap_or_default().bytes());
        output
    })
}

/// Marks what a test has started, by a variable of its environment.
const MARK: &str = "DOGTAG_TEST_WATCHED";

/// Asks until something is there. Panics with what was missing in the end if all other threads
/// of this process sleep look after look: then it will never be there.
pub fn eventually<T, E: Display>(mut ready: impl FnMut() -> Result<T, E>) -> T {
    let mut watch = Watch::new(LOOKS / 3);
    let own = std::process::id() as i32;
    // SAFETY: asks for a number.
    let caller = unsafe { libc::gettid() };
    for attempt in 1_u64.. {
        let missing = match ready() {
            Ok(there) => return there,
            Err(missing) => missing,
        };
        if attempt < 100 {
            std::thread::yield_now();
            continue;
        }
        const TRY: Duration = Duration::from_millis(5);
        std::thread::sleep(TRY);
        if attempt.is_multiple_of((PAUSE.as_millis() / TRY.as_millis()) as u64) {
            let own = Process::read(own, Some(caller));
            let hangs = watch.look(&own.into_iter().collect::<Vec<_>>());
            assert!(hangs.is_none(), "waited in vain: {missing}");
        }
    }
    unreachable!()
}

/// Waits for a forked child that has nobody of its own, and says how it ended: killed if it
/// hangs.
pub fn ended(child: libc::pid_t) -> ExitStatus {
    let mut watch = Watch::new(LOOKS);
    loop {
        for _ in 0..PAUSE.as_millis() {
            let mut status = 0;
            // SAFETY: `status` is a place for the result.
            match unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } {
                0 => std::thread::sleep(Duration::from_millis(1)),
                ended => {
                    assert_eq!(ended, child);
                    return ExitStatus::from_raw(status);
                }
            }
        }
        if watch.look(&Process::read(child, None).into_iter().collect::<Vec<_>>()).is_some() {
            // SAFETY: it is a child for which nobody has waited yet.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
    }
}

/// How often each process was found asleep, one look after the other.
struct Watch {
    looks: u32,
    before: Vec<(Process, u32)>,
}

impl Watch {
    fn new(looks: u32) -> Self {
        Self { looks, before: Vec::new() }
    }

    /// Says what hangs, if something does.
    fn look(&mut self, processes: &[Process]) -> Option<String> {
        let before = std::mem::take(&mut self.before);
        for process in processes.iter().filter(|process| process.lives) {
            // Who has children may be waiting for them.
            let waits = processes.iter().any(|other| other.parent == process.id && other.lives);
            let asleep =
                before.iter().find(|(before, _)| before.id == process.id).map_or(0, |(before, asleep)| {
                    let used = process.used.saturating_sub(before.used);
                    // Who did not sleep at all has something to do, and has not got its turn.
                    let has_slept = process.slept > before.slept && used <= MOMENT_OF_BUSY;
                    let is_asleep = !waits && (process.sleeps && used <= MOMENT || has_slept);
                    if is_asleep { asleep + 1 } else { 0 }
                });
            let Process { id, used, .. } = process;
            if asleep >= self.looks {
                return Some(format!("\nkilled: process {id} sleeps and does nothing else\n"));
            }
            if used.as_secs_f64() > MOST.as_secs_f64() * random::effort().max(1.0) {
                return Some(format!("\nkilled: process {id} has used {used:?} of a processor\n"));
            }
            self.before.push((process.clone(), asleep));
        }
        None
    }
}

/// A process, as the system tells.
#[derive(Clone)]
struct Process {
    id: libc::pid_t,
    parent: libc::pid_t,
    /// Nobody needs to wait for it any more.
    lives: bool,
    /// No thread of it has something to do.
    sleeps: bool,
    /// How often its threads went to sleep.
    slept: u64,
    /// Of processors, by all its threads.
    used: Duration,
}

impl Process {
    /// Without that thread. `None` if there is no such process, or a system that tells nothing.
    fn read(id: libc::pid_t, without: Option<libc::pid_t>) -> Option<Self> {
        let (state, fields) = stat(&format!("/proc/{id}/stat"))?;
        // Threads that have ended are in the whole's.
        let mut all = Self {
            id,
            parent: fields[1].parse().ok()?,
            lives: !matches!(state, 'Z' | 'X'),
            sleeps: true,
            slept: 0,
            used: if without.is_none() { used(&fields) } else { Duration::ZERO },
        };
        for thread in fs::read_dir(format!("/proc/{id}/task")).ok()?.flatten() {
            if without.is_some_and(|without| thread.file_name() == without.to_string().as_str()) {
                continue;
            }
            let Some((state, fields)) = stat(&format!("{}/stat", thread.path().display())) else {
                // It had something to do, and has ended.
                all.sleeps = false;
                continue;
            };
            all.sleeps &= matches!(state, 'S' | 'T' | 't' | 'Z' | 'X');
            all.slept += slept(&thread.path()).unwrap_or(0);
            if without.is_some() {
                all.used += used(&fields);
            }
        }
        Some(all)
    }
}

/// What was used of processors.
fn used(fields: &[String]) -> Duration {
    let number = |field: usize| fields[field].parse::<u64>().unwrap();
    // SAFETY: asks for a number.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Duration::from_millis((number(11) + number(12)) * 1000 / ticks)
}

/// How often a thread went to sleep of its own.
fn slept(thread: &Path) -> Option<u64> {
    let status = fs::read_to_string(thread.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
}

/// A state, and the fields from that one on (`proc_pid_stat(5)` counts them from 3 on).
fn stat(path: &str) -> Option<(char, Vec<String>)> {
    let text = fs::read_to_string(path).ok()?;
    // The name before may have anything in it.
    let fields: Vec<String> = text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect();
    Some((fields.first()?.chars().next()?, fields))
}

/// All processes with that mark.
fn marked(mark: &str) -> Vec<Process> {
    let is_marked = |id: &libc::pid_t| {
        let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment)
            .split('\0')
            .any(|variable| variable.starts_with(MARK) && variable.contains(mark))
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_marked)
        .filter_map(|id| Process::read(id, None))
        .collect()
}

/// What this process has of memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Its addresses.
    pub mapped: usize,
    /// What of it is in memory.
    pub resident: usize,
}

pub fn memory() -> Memory {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let mut bytes = statm.split_whitespace().map(|pages| pages.parse::<usize>().unwrap() * page);
    Memory { mapped: bytes.next().unwrap(), resident: bytes.next().unwrap() }
}

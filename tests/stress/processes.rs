//! What a process goes through while its threads allocate, register and drop services, and
//! look at the figures: forks from many threads, programs that take its place, daemons, and
//! its end.

use crate::{child, common, watch};
use dogtag::Service;
use std::cell::Cell;
#[cfg(target_os = "linux")]
use std::ffi::c_void;
use std::hint::black_box;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, exit};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::thread;

/// By those who come back, and by what is called at the end of a process, however it ends.
const SURVIVED: &str = "survived\n";
const AT_THE_END: &str = "the end\nthe end\nthe end\n";

/// Begun by others.
const EXECUTED: &str = "executed";

const HANGS: &str = "hangs";
const WORKS: &str = "works";

/// Does something in a process of its own, so many times, after which it has said that.
fn ends_well(test: &str, work: fn(), times: usize, said: &str) {
    match child::task() {
        Some(task) if task == EXECUTED => return executed(),
        Some(_) => return work(),
        None => {}
    }
    for time in 0..times {
        let output = child::run(test, "", "quarantine=4M");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // Killed if it hangs.
        let survived = output.status.success() && text.contains(said);
        assert!(survived, "time {time}: {}\n{text}", output.status);
    }
}

#[test]
fn fork_from_many_threads() {
    ends_well(here!(), fork_storm, 1, SURVIVED);
}

/// Held at its first allocation, at its second one, and so on, each time in a process of its own: in the first
/// registration all tables have to grow, those under locks, too.
#[test]
fn fork_while_the_first_service_is_registered() {
    if let Some(number) = child::task() {
        return fork_at_the_first_registration(number.parse().unwrap());
    }
    for number in 0.. {
        let output = child::run(here!(), &number.to_string(), "quarantine=4M");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // Killed if it hangs.
        assert!(output.status.success(), "allocation {number}: {}\n{text}", output.status);
        if text.contains(NOT_HELD) {
            assert!(number > 1 || is_registered_before(), "nothing was allocated for the registry");
            return;
        }
        assert!(text.contains(SURVIVED), "{text}");
    }
}

#[test]
fn fork_while_another_service_is_registered() {
    ends_well(here!(), fork_at_later_registrations, 1, SURVIVED);
}

/// The key that names are hashed with: a child would wait for ever for the thread that makes it.
#[cfg(target_os = "linux")]
#[test]
fn fork_while_the_registrys_key_is_made() {
    ends_well(here!(), fork_at_the_key, 1, SURVIVED);
}

/// A sandbox need not allow for that.
#[cfg(target_os = "linux")]
#[test]
fn fork_asks_for_no_random_numbers() {
    ends_well(here!(), fork_without_services, 1, SURVIVED);
}

#[test]
fn spawn_begins_programs() {
    ends_well(here!(), spawn, 1, SURVIVED);
}

#[test]
fn exec_begins_anew() {
    ends_well(here!(), execute, 5, SURVIVED);
}

#[test]
fn fork_as_a_daemon() {
    ends_well(here!(), daemon, 5, SURVIVED);
}

#[test]
fn exit_when_main_returns() {
    ends_well(here!(), main_returns, 10, AT_THE_END);
}

#[test]
fn exit_is_called() {
    ends_well(here!(), main_exits, 10, AT_THE_END);
}

#[test]
fn exit_is_called_by_another_thread() {
    ends_well(here!(), thread_exits, 10, AT_THE_END);
}

/// On which all other tests rest that are about hangs.
#[test]
fn who_hangs_is_killed_and_who_works_is_not() {
    const LOOKS: u32 = 2;

    match child::task() {
        Some(task) if task == HANGS => return hangs(),
        Some(_) => return works(),
        None => {}
    }
    let hanging = watch::output_within(&mut child::again(here!(), HANGS, ""), LOOKS);
    assert_eq!(hanging.status.signal(), Some(libc::SIGKILL), "{hanging:?}");
    let said = String::from_utf8(hanging.stderr).unwrap();
    assert!(said.contains("sleeps and does nothing else"), "{said}");
    let working = watch::output_within(&mut child::again(here!(), WORKS, ""), LOOKS);
    assert!(working.status.success(), "{working:?}");
}

/// In a child of its own session, which is killed, too: else nobody's output would end.
fn hangs() {
    let waits = || {
        // SAFETY: begins a session.
        unsafe { libc::setsid() };
        // As locks do that are held for long.
        loop {
            thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    wait_for(fork(waits, exit_now));
}

/// While its parent only waits.
fn works() {
    let is_done = || {
        let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: there is a place for the result.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut used) }, 0);
        used.tv_sec >= 4
    };
    wait_for(fork(|| while !is_done() {}, exit_now));
}

/// With neither a lock nor an allocation.
fn say(text: &str) {
    // SAFETY: the text is there.
    unsafe { libc::write(libc::STDOUT_FILENO, text.as_ptr().cast(), text.len()) };
}

/// What all services have under which nothing is left.
fn come_and_go(name: &str, tenant: &Service) {
    let service =
        Service::builder(name).parent(tenant).hard_limit(1 << 20).soft_limit(1 << 19).register().unwrap();
    let block = service.run(|| black_box(vec![0_u8; 100]));
    assert_eq!((service.usage().bytes(), service.headroom()), (100, Some((1 << 20) - 100)));
    assert_eq!(Service::by_name(name).as_ref(), Some(&service));
    drop(service);
    drop(block);
}

/// Threads that do all that there is to do until they are told to stop.
struct Noise {
    threads: Vec<thread::JoinHandle<()>>,
    tenant: Service,
}

static IS_QUIET: AtomicBool = AtomicBool::new(false);

impl Noise {
    fn begin() -> Self {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        static BEGUN: AtomicUsize = AtomicUsize::new(0);

        let tenant = Service::builder("tenant").hard_limit(1 << 30).register().unwrap();
        let noise = |thread: usize, tenant: Service| {
            move || {
                THREADS.fetch_add(1, SeqCst);
                let mut blocks = Vec::new();
                for number in 0.. {
                    if IS_QUIET.load(SeqCst) {
                        break;
                    }
                    come_and_go(&format!("{thread}/{number}"), &tenant);
                    blocks.push(tenant.run(|| vec![1_u8; number * 37 % 6_000 + 1]));
                    if number % 50 == 49 {
                        blocks.clear();
                        drop(dogtag::snapshot());
                        let _ = dogtag::totals();
                    }
                    #[cfg(feature = "memory-check")]
                    if number % 200 == 199 {
                        assert_eq!(dogtag::check::verify().violations, 0);
                    }
                    BEGUN.fetch_add(1, SeqCst);
                }
            }
        };
        let threads: Vec<_> = (0..3).map(|number| thread::spawn(noise(number, tenant.clone()))).collect();
        // In the midst of it.
        while BEGUN.load(SeqCst) < 100 || THREADS.load(SeqCst) < threads.len() {
            thread::yield_now();
        }
        Self { threads, tenant }
    }

    fn end(self) {
        IS_QUIET.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(self.tenant.usage_with_children().bytes(), 0);
    }
}

/// Forks; the child does its work and ends in that way.
fn fork(work: impl FnOnce(), end: unsafe fn(i32) -> !) -> libc::pid_t {
    // SAFETY: the child calls what dogtag says a child may call, and ends.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let is_well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_ok();
            end(i32::from(!is_well));
        }
        assert!(child > 0);
        child
    }
}

fn wait_for(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: `status` is a place for the result.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "how a child ended");
}

unsafe fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

unsafe fn exit_slowly(code: i32) -> ! {
    // SAFETY: ends the process, with what is to be done then.
    unsafe { libc::exit(code) }
}

/// Many threads fork; children fork again.
///
/// Nobody forks while a thread of std's begins or ends: std notes each in a table with a lock, which
/// then nobody gives back in the child, whose own threads would wait for it (1.95, `thread_info`).
fn fork_storm() {
    const FORKS: usize = if cfg!(feature = "memory-check") { 10 } else { 50 };
    const GENERATIONS: usize = 3;
    const FORKERS: usize = 3;

    allocate_at_exit();
    let noise = Noise::begin();
    let (tenant, barrier) = (&noise.tenant, &Barrier::new(FORKERS));
    thread::scope(|threads| {
        for thread in 0..FORKERS {
            threads.spawn(move || {
                barrier.wait();
                let service = Service::register(format!("forker {thread}")).unwrap();
                let blocks: Vec<_> = (1..200).map(|size| service.run(|| vec![7_u8; size * 31])).collect();
                let before = service.usage();
                for number in 0..FORKS {
                    let end = if number % 2 == 0 { exit_now } else { exit_slowly };
                    wait_for(fork(|| descend(GENERATIONS, &service, blocks.clone(), tenant), end));
                    // Whatever children do is theirs; the clones were freed by them.
                    assert_eq!(service.usage(), before);
                }
                drop(blocks);
                assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0));
                barrier.wait();
            });
        }
    });
    noise.end();
    say(SURVIVED);
}

/// What a child does with what it has inherited.
fn descend(generations: usize, service: &Service, blocks: Vec<Vec<u8>>, tenant: &Service) {
    // The copies are nobody's, or the parent's that is this one's parent.
    let (bytes, count) = (199 * 200 / 2 * 31, 199);
    let usage = service.usage();
    assert_eq!((usage.bytes(), usage.blocks()), (bytes, count), "begins as its parent");
    drop(service.run(|| black_box(blocks.clone())));
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (bytes, count));
    (0..20).for_each(|i| come_and_go(&format!("child/{i}"), tenant));
    let snapshot = dogtag::snapshot();
    let name = service.name();
    assert_eq!(snapshot.rows.iter().find(|row| row.name == name).unwrap().usage.bytes(), bytes);
    // It has threads of its own. (Joined, since a scope's end does not wait for a thread's: std's table of
    // threads is locked then, and would stay so in a child.)
    thread::scope(|threads| {
        let thread =
            threads.spawn(|| (0..5).for_each(|i| come_and_go(&format!("child's thread/{i}"), tenant)));
        thread.join().unwrap();
    });
    #[cfg(feature = "memory-check")]
    assert_eq!(dogtag::check::verify().violations, 0);
    if generations > 1 {
        wait_for(fork(|| descend(generations - 1, service, blocks, tenant), exit_now));
    }
}

/// What is done at the end of this process and its children, one after the other.
fn allocate_at_exit() {
    static PROCESS: AtomicI32 = AtomicI32::new(0);

    extern "C" fn at_exit() {
        let service = Service::register("at exit").unwrap();
        let block = service.run(|| black_box(vec![1_u8; 5_000]));
        assert_eq!(service.usage().bytes(), 5_000);
        drop(dogtag::snapshot());
        drop(block);
        assert_eq!(service.usage().bytes(), 0);
        // SAFETY: asks for a number.
        if unsafe { libc::getpid() } == PROCESS.load(SeqCst) {
            say("the end\n");
        }
    }
    // SAFETY: asks for a number.
    PROCESS.store(unsafe { libc::getpid() }, SeqCst);
    for _ in 0..3 {
        // SAFETY: the function lives as long as the process.
        assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
    }
}

fn main_returns() {
    allocate_at_exit();
    std::mem::forget(Noise::begin());
}

fn main_exits() {
    allocate_at_exit();
    let _noise = Noise::begin();
    exit(0);
}

fn thread_exits() {
    allocate_at_exit();
    let noise = Noise::begin();
    let tenant = noise.tenant.clone();
    thread::spawn(move || tenant.run(|| exit(0))).join().unwrap();
}

/// This program, which takes another one's place: any test of these.
fn myself() -> Command {
    let mut program = child::again("processes::exec_begins_anew", EXECUTED, "");
    program.process_group(0);
    program
}

/// A process of its own, which knows nothing of the one before.
fn executed() {
    assert_eq!(Service::by_name("tenant"), None);
    assert!(dogtag::totals().allocated_blocks < 10_000);
    let service = Service::register("tenant").unwrap();
    let block = service.run(|| black_box(vec![0_u8; 1_000]));
    assert_eq!((service.usage().allocated_bytes, service.usage().bytes()), (1_000, 1_000));
    drop(block);
    say(SURVIVED);
}

fn execute() {
    let noise = Noise::begin();
    panic!("{} in spite of {:?}", myself().exec(), noise.tenant);
}

fn spawn() {
    let noise = Noise::begin();
    for _ in 0..5 {
        let output = myself().output().unwrap();
        assert!(output.status.success() && output.stdout.ends_with(b"\n"));
        // With something to do in the child, so that it is forked.
        let mut command = myself();
        // SAFETY: it does nothing but what a child may do.
        unsafe {
            command.pre_exec(|| {
                drop(black_box(vec![0_u8; 1_000]));
                Ok(())
            })
        };
        assert!(command.output().unwrap().status.success());
    }
    noise.end();
    say(SURVIVED);
}

/// As `daemon` does: the second child has neither a parent that waits nor a terminal.
fn daemon() {
    let noise = Noise::begin();
    let service = Service::register("inherited").unwrap();
    let block = service.run(|| vec![0_u8; 12_345]);
    let mut pipe = [0; 2];
    // SAFETY: the array is as long as two descriptors.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    let tenant = noise.tenant.clone();
    let as_daemon = || {
        // Its parent's end is not its own.
        assert_eq!(service.usage().bytes(), 12_345);
        drop(block);
        assert_eq!(service.usage().bytes(), 0);
        (0..100).for_each(|i| come_and_go(&format!("daemon/{i}"), &tenant));
        // SAFETY: the text is there.
        unsafe { libc::write(pipe[1], "well".as_ptr().cast(), 4) };
    };
    wait_for(fork(
        || {
            // SAFETY: begins a session.
            assert!(unsafe { libc::setsid() } > 0);
            fork(as_daemon, exit_slowly);
        },
        exit_now,
    ));
    // SAFETY: they are this process's own.
    let mut reports = unsafe {
        libc::close(pipe[1]);
        std::fs::File::from_raw_fd(pipe[0])
    };
    let mut report = String::new();
    reports.read_to_string(&mut report).unwrap();
    assert_eq!(report, "well", "the daemon's last words");
    noise.end();
    say(SURVIVED);
}

/// The thread that is about to fork, once it is.
static FORKER: AtomicI32 = AtomicI32::new(0);
static IS_HELD: AtomicBool = AtomicBool::new(false);
static HAS_FORKED: AtomicBool = AtomicBool::new(false);

/// Holds the thread until another one has forked, or waits for this one.
fn hold() {
    IS_HELD.store(true, SeqCst);
    let forker = wait(|| Some(FORKER.load(SeqCst)).filter(|forker| *forker != 0));
    wait(|| (HAS_FORKED.load(SeqCst) || sleeps(forker)).then_some(()));
}

fn wait<T>(mut event: impl FnMut() -> Option<T>) -> T {
    loop {
        match event() {
            Some(happened) => return happened,
            None => thread::yield_now(),
        }
    }
}

/// Whether a thread sleeps, as the system says.
fn sleeps(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('S')
}

thread_local! {
    /// How many allocations pass before the thread is held at one.
    static PASSES: Cell<usize> = const { Cell::new(0) };
}

fn hold_later() {
    match PASSES.get() {
        0 => hold(),
        left => {
            PASSES.set(left - 1);
            common::at_next_entry(Some(hold_later));
        }
    }
}

/// Says that a thread came to the end without having been held.
const NOT_HELD: &str = "not held\n";

/// The profiler has registered its service before.
fn is_registered_before() -> bool {
    std::env::var_os("DOGTAG_PROFILE").is_some()
}

/// A child finds the registry whole, though another thread was just registering the first service.
fn fork_at_the_first_registration(number: usize) {
    let was_held = !is_registered_before() && fork_at_an_allocation(number);
    say(if was_held { SURVIVED } else { NOT_HELD });
}

/// The same of a later one, each at another allocation.
fn fork_at_later_registrations() {
    drop(Service::register("the first").unwrap());
    let held = (0..).take_while(|&number| fork_at_an_allocation(number)).count();
    assert!(held > 0, "nothing was allocated for a service");
    say(SURVIVED);
}

/// `false` if there are no more allocations in a registration than that.
fn fork_at_an_allocation(number: usize) -> bool {
    fork_meanwhile(format!("registered meanwhile {number}"), move || {
        PASSES.set(number);
        common::at_next_entry(Some(hold_later));
    })
}

#[cfg(target_os = "linux")]
fn fork_at_the_key() {
    let was_held = fork_meanwhile("registered meanwhile".to_owned(), || HOLDS_AT_KEY.set(true));
    assert!(was_held || is_registered_before(), "no key was made");
    say(SURVIVED);
}

#[cfg(target_os = "linux")]
thread_local! {
    /// Whether the thread is held when it asks for random numbers.
    static HOLDS_AT_KEY: Cell<bool> = const { Cell::new(false) };
    /// How often it has asked for some.
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

#[cfg(target_os = "linux")]
fn fork_without_services() {
    let before = ASKED.get();
    // Both make their own then.
    let register = || {
        assert_eq!(ASKED.get(), before);
        drop(Service::register("the first").unwrap());
        assert!(ASKED.get() > before || is_registered_before(), "nothing is counted");
    };
    wait_for(fork(register, exit_now));
    register();
    say(SURVIVED);
}

/// Where std has keys from, as this program has it.
///
/// # Safety
///
/// As for the C library's.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: u32) -> isize {
    ASKED.set(ASKED.get() + 1);
    if HOLDS_AT_KEY.replace(false) {
        hold();
    }
    // SAFETY: the arguments are the C library's own for `getrandom`, passed on unchanged.
    unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize }
}

/// Forks while a thread registers a service, which is held somewhere in that, as `prepare` has it; the child registers
/// the same, and another one. `false` if the thread was not held.
fn fork_meanwhile(name: String, prepare: impl FnOnce() + Send + 'static) -> bool {
    [&IS_HELD, &HAS_FORKED].into_iter().for_each(|event| event.store(false, SeqCst));
    FORKER.store(0, SeqCst);
    let same = name.clone();
    let registers = thread::spawn(move || {
        prepare();
        let service = Service::register(name).unwrap();
        common::at_next_entry(None);
        drop(service);
    });
    if !wait(|| (IS_HELD.load(SeqCst) || registers.is_finished()).then(|| IS_HELD.load(SeqCst))) {
        registers.join().unwrap();
        return false;
    }
    // SAFETY: asks for a number.
    FORKER.store(unsafe { libc::gettid() }, SeqCst);
    let register = |name: &str| drop(Service::register(name).unwrap());
    let child = fork(|| [same.as_str(), "child's"].into_iter().for_each(register), exit_now);
    HAS_FORKED.store(true, SeqCst);
    wait_for(child);
    registers.join().unwrap();
    true
}

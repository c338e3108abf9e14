//! What a signal handler may do, whatever it has interrupted: read the totals and the
//! services' figures, which allocates nothing, waits for nothing, and never shows less
//! than before.

use crate::random::Random;
use crate::{child, common};
use dogtag::{Service, Usage};
use std::alloc::Layout;
use std::cell::Cell;
use std::ffi::c_int;
use std::hint::black_box;
use std::os::unix::thread::JoinHandleExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;

const SERVICES: usize = 3;

/// The totals, and some services'.
type Figures = [Usage; 1 + SERVICES];

// Without a destructor, so that handlers may use it at any time.
thread_local! {
    static SEEN: Cell<Figures> = const { Cell::new([Usage::NONE; 1 + SERVICES]) };
}

static WATCHED: OnceLock<[Service; SERVICES]> = OnceLock::new();

static HANDLED: AtomicUsize = AtomicUsize::new(0);
static INTERRUPTED_BACKEND: AtomicUsize = AtomicUsize::new(0);

/// What must not happen.
static FAULTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
const ALLOCATED: usize = 0;
const NEGATIVE: usize = 1;
const FELL: usize = 2;
const ERRNO: usize = 3;

extern "C" fn handler(_: c_int) {
    // SAFETY: the calling thread's own.
    let errno = unsafe { *libc::__errno_location() };
    common::at_next_entry(Some(|| _ = FAULTS[ALLOCATED].fetch_add(1, Relaxed)));
    if let Some(services) = WATCHED.get() {
        let mut figures = [Usage::NONE; 1 + SERVICES];
        figures[0] = dogtag::totals();
        for (figure, service) in figures[1..].iter_mut().zip(services) {
            *figure = service.usage();
            black_box((service.name().len(), service.handle(), service.hard_limit(), service.soft_limit()));
        }
        for (now, before) in figures.iter().zip(SEEN.with(|seen| seen.replace(figures))) {
            if now.freed_bytes > now.allocated_bytes || now.freed_blocks > now.allocated_blocks {
                FAULTS[NEGATIVE].fetch_add(1, Relaxed);
            }
            let counters = |usage: &Usage| {
                [usage.allocated_bytes, usage.allocated_blocks, usage.freed_bytes, usage.freed_blocks]
            };
            if counters(now).iter().zip(counters(&before)).any(|(now, before)| *now < before) {
                FAULTS[FELL].fetch_add(1, Relaxed);
            }
        }
    }
    if common::is_entered() {
        INTERRUPTED_BACKEND.fetch_add(1, Relaxed);
    }
    common::at_next_entry(None);
    HANDLED.fetch_add(1, Relaxed);
    // SAFETY: the calling thread's own.
    unsafe {
        if *libc::__errno_location() != errno {
            FAULTS[ERRNO].fetch_add(1, Relaxed);
        }
    }
}

#[test]
fn signal_handlers_read_the_figures_in_a_storm() {
    alone!();
    reads_well(storm);
}

#[test]
fn signal_handlers_read_the_figures_of_short_threads() {
    alone!();
    reads_well(timer);
}

fn reads_well(task: fn()) {
    let services = ["first", "second", "third"].map(|name| Service::register(name).unwrap());
    services[1].set_hard_limit(Some(64 << 20));
    services[1].set_soft_limit(Some(1 << 20));
    WATCHED.set(services).unwrap();
    listen(libc::SIGUSR1);
    task();
    let faults = FAULTS.each_ref().map(|fault| fault.load(Relaxed));
    let [handled, interrupted] = [&HANDLED, &INTERRUPTED_BACKEND].map(|counter| counter.load(Relaxed));
    println!("{handled} signals, {interrupted} of them within the backend");
    assert_eq!(faults, [0; 4], "allocations, negative figures, figures that fell, changes of errno");
    assert!(interrupted > 0);
}

fn listen(signal: c_int) {
    // SAFETY: the handler has the right signature; zeros are an empty set of signals.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigfillset(&mut action.sa_mask);
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// Whatever allocates, in every way there is.
fn work(random: &mut Random, blocks: &mut Vec<Vec<u8>>) {
    let watched = WATCHED.get().unwrap();
    let size = random.size();
    match random.below(100) {
        0 => drop(dogtag::snapshot()),
        1 => drop(Service::by_name("first")),
        2..5 => {
            let guest = Service::builder(format!("guest {}", random.next()));
            let guest = guest.parent(&watched[2]).hard_limit(1 << 20).register().unwrap();
            blocks.push(guest.run(|| vec![1; size]));
        }
        5 if cfg!(not(feature = "memory-check")) => lose_a_block(&watched[0]),
        6 => assert!(watched[1].run(|| Vec::<u8>::new().try_reserve(65 << 20)).is_err()),
        7..50 => blocks.push(watched[random.below(SERVICES)].run(|| vec![0; size])),
        50..60 if !blocks.is_empty() => {
            let block = random.below(blocks.len());
            watched[random.below(SERVICES)].run(|| blocks[block].reserve_exact(size));
        }
        _ if !blocks.is_empty() => drop(blocks.swap_remove(random.below(blocks.len()))),
        _ => {}
    }
    if blocks.len() > 500 {
        blocks.truncate(100);
    }
}

/// A block whose owner something has overwritten: there is something to announce then, and
/// a signal comes before anybody does.
fn lose_a_block(owner: &Service) {
    let layout = Layout::from_size_align(40, 1).unwrap();
    // SAFETY: what is overwritten lies in the block's size class of 48 bytes; whose it is
    // cannot be told then, and it is freed all the same.
    unsafe {
        let block = owner.run(|| black_box(std::alloc::alloc(layout)));
        block.add(40).write_bytes(0xAB, 2);
        child::dealloc(block, layout);
        libc::raise(libc::SIGUSR1);
    }
}

/// A signal that comes within the backend for certain: the others do now and then.
fn interrupt_the_backend() {
    common::at_next_entry(Some(|| {
        // SAFETY: a signal that is handled.
        assert_eq!(unsafe { libc::raise(libc::SIGUSR1) }, 0);
    }));
    drop(black_box(Box::new(0)));
}

/// Signals to threads that work, as many as they can take.
fn storm() {
    const SIGNALS: usize = if cfg!(feature = "memory-check") { 1_000 } else { 10_000 };

    static IS_OVER: AtomicBool = AtomicBool::new(false);

    let workers: Vec<_> = (0..3)
        .map(|number| {
            thread::spawn(move || {
                interrupt_the_backend();
                let (mut random, mut blocks) = (Random::new(number), Vec::new());
                while !IS_OVER.load(Relaxed) {
                    work(&mut random, &mut blocks);
                }
            })
        })
        .collect();
    while HANDLED.load(Relaxed) < SIGNALS {
        for worker in &workers {
            // SAFETY: the thread is not joined yet.
            assert_eq!(unsafe { libc::pthread_kill(worker.as_pthread_t(), libc::SIGUSR1) }, 0);
        }
        thread::yield_now();
    }
    IS_OVER.store(true, Relaxed);
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

/// Signals to whichever thread is running: in its first allocation, or its last.
fn timer() {
    const SIGNALS: usize = if cfg!(feature = "memory-check") { 500 } else { 5_000 };

    listen(libc::SIGALRM);
    let interval = libc::timeval { tv_sec: 0, tv_usec: 100 };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: a timer whose signal is handled, and which this thread leaves to others: they
    // would all be its own.
    unsafe {
        let mut alarm: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut alarm, libc::SIGALRM);
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &alarm, std::ptr::null_mut()), 0);
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()), 0);
    }
    for round in 0.. {
        if HANDLED.load(Relaxed) >= SIGNALS {
            break;
        }
        let threads = (0..4).map(|number| {
            thread::spawn(move || {
                // SAFETY: the set is this thread's own, and zeros are a valid one; new threads begin
                // with their parent's set.
                unsafe {
                    let mut alarm: libc::sigset_t = std::mem::zeroed();
                    libc::sigaddset(&mut alarm, libc::SIGALRM);
                    libc::pthread_sigmask(libc::SIG_UNBLOCK, &alarm, std::ptr::null_mut());
                }
                interrupt_the_backend();
                let (mut random, mut blocks) = (Random::new(round * 4 + number), Vec::new());
                (0..200).for_each(|_| work(&mut random, &mut blocks));
            })
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    }
}

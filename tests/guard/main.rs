//! The guard of a process, under loads that need one. Each test has a process of its own, which gets near its
//! ceiling; nobody compares times.

#[macro_use]
#[path = "../child/mod.rs"]
mod child;
mod load;

use child::watch::{self, eventually};
use dogtag::guard::{
    CancelReason, Ceiling, Figures, Guard, GuardBuilder, GuardError, Policy, figures, on_pressure,
};
use dogtag::{Dogtag, Service};
use load::{MIB, SORTED, block, grows, query, sorts, spawn};
use std::fs;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// With memory-check what is freed would stay in memory for a while.
const SETTINGS: &str = "quarantine=0";

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

/// What this process has in memory.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * page
}

/// A ceiling so much above what there is now.
fn above(mib: usize) -> GuardBuilder {
    // Nobody is late because the machine has other things to do.
    let grace = Duration::from_secs(1000);
    Guard::builder().ceiling(Ceiling::bytes(resident() + (mib * MIB) as u64)).grace(grace)
}

/// Waits until the guard has done something.
fn until(what: &str, is_so: impl Fn(Figures) -> bool) -> Figures {
    eventually(|| Some(figures()).filter(|now| is_so(*now)).ok_or_else(|| format!("{what}: {:?}", figures())))
}

fn is_ceiling(reason: &CancelReason) -> bool {
    matches!(reason, CancelReason::Ceiling { used, ceiling, .. } if used >= ceiling)
}

#[test]
fn the_runaway_is_cancelled_and_nobody_else() {
    alone!(SETTINGS);
    let runtime = runtime();
    let guard = above(256).start().unwrap();
    let ceiling = until("a look", |now| now.ceiling > 0).ceiling;
    for run in 0..3 {
        let before = guard.figures();
        let others: Vec<_> = (0..7).map(|i| query(&format!("other {run} {i}"))).collect();
        let runaway = query(&format!("runaway {run}"));
        runtime.block_on(async {
            let tasks: Vec<_> =
                others.iter().map(|query| spawn(query, sorts(100_000, 10, &SORTED))).collect();
            // Somebody else's fault must not end the test machine.
            let grows = grows(MIB, 1 << 30, move |_| resident() > ceiling + 64 * MIB as u64);
            let cancelled = spawn(&runaway, grows).await.unwrap().unwrap_err();
            assert_eq!((&*cancelled.service, cancelled.handle), (runaway.name(), runaway.handle()));
            assert!(is_ceiling(&cancelled.reason), "{cancelled}");
            assert!(cancelled.usage.bytes() > 10 * MIB as u64, "{cancelled}");
            for task in tasks {
                assert_eq!(task.await.unwrap(), Ok(1_000_000));
            }
        });
        let after = until("all was given back", |now| {
            now.used < now.ceiling && now.given_back_bytes - before.given_back_bytes > 10 * MIB as u64
        });
        assert_eq!(after.cancelled - before.cancelled, 1, "{after:?}");
        assert!(after.purges > before.purges && after.polls > before.polls);
        assert_eq!((after.unresponsive, after.pressure_calls, after.failed_polls), (0, 0, 0));
        assert!(others.iter().all(|query| !query.is_cancelled()));
        assert!(runaway.usage().bytes() < MIB as u64);
    }
}

/// A cache is asked before anybody is cancelled; and one that panics keeps nobody from being asked.
#[test]
fn caches_shrink_before_anybody_is_cancelled() {
    alone!(SETTINGS);
    let cache: Arc<Mutex<Vec<u8>>> = Arc::new(Mutex::new(block(180 * MIB)));
    let asked = Arc::new(AtomicUsize::new(0));
    // (A panic's message has names, which take more memory than there is.)
    let _panics = on_pressure(|_| std::panic::resume_unwind(Box::new("on purpose")));
    let unregistered = on_pressure(|_| unreachable!("it is not registered any more"));
    let guard = Guard::builder()
        .ceiling(Ceiling::bytes(resident() + 100 * MIB as u64))
        .on_pressure({
            let (cache, asked) = (Arc::clone(&cache), Arc::clone(&asked));
            move |pressure| {
                assert!(pressure.wanted <= pressure.used && pressure.used * 16 >= pressure.ceiling * 12);
                drop(std::mem::take(&mut *cache.lock().unwrap()));
                asked.fetch_add(1, SeqCst);
            }
        })
        .start()
        .unwrap();
    drop(unregistered);
    let query = query("grows beside a cache");
    let ceiling = until("a look", |now| now.ceiling > 0).ceiling;
    let mut rows = Vec::new();
    query.run(|| {
        // Where it grows fast, they are asked earlier.
        while asked.load(SeqCst) == 0 && resident() < ceiling - ceiling / 16 + MIB as u64 {
            rows.push(block(MIB));
        }
    });
    eventually(|| if asked.load(SeqCst) > 0 { Ok(()) } else { Err("not asked") });
    until("it has helped", |now| now.used < now.ceiling - now.ceiling / 16);
    query.run(|| (0..50).for_each(|_| rows.push(block(MIB))));
    let polls = figures().polls;
    let after = until("another look", |now| now.polls > polls);
    assert_eq!((after.cancelled, after.helpless), (0, 0), "{after:?}");
    assert!(after.pressure_calls >= 1 && after.purges >= 1);
    assert!(!query.is_cancelled());
    // The guard's own callback ends with it.
    let kept = Arc::strong_count(&asked);
    drop(guard);
    eventually(|| if Arc::strong_count(&asked) < kept { Ok(()) } else { Err("the callback is kept") });
}

#[test]
fn one_that_does_not_react_is_told_once_and_the_next_one_is_cancelled() {
    alone!(SETTINGS);
    let runtime = runtime();
    let (deaf, other, small) = (query("deaf"), query("lets go"), query("holds little"));
    let _kept = deaf.run(|| block(150 * MIB));
    let _little = small.run(|| block(1000));
    let unmarked = Service::register("unmarked").unwrap();
    let _most = unmarked.run(|| block(200 * MIB));
    let (told, dispatch) = Told::new();
    let guard = tracing::dispatcher::with_default(&dispatch, || {
        above(64).grace(Duration::from_secs(1)).start().unwrap()
    });
    let ceiling = until("a look", |now| now.ceiling > 0).ceiling;
    runtime.block_on(async {
        let task = spawn(&other, grows(MIB, 1 << 30, move |_| resident() > ceiling + 10 * MIB as u64));
        let cancelled = task.await.unwrap().unwrap_err();
        assert!(is_ceiling(&cancelled.reason), "{cancelled}");
    });
    let after = until("all was given back", |now| now.used < now.ceiling);
    assert_eq!(after.cancelled, 2, "{after:?}");
    drop(guard);
    let text = told.until_now(&dispatch, "the end");
    let is_told = |service: &str| {
        text.matches(&format!("a cancelled service does not let go of its memory service=\"{service}\""))
            .count()
    };
    // On a busy machine the other one may be late, too.
    assert_eq!((is_told("deaf"), is_told("deaf") + is_told("lets go")), (1, figures().unresponsive as usize));
    assert!(deaf.is_cancelled() && !small.is_cancelled() && !unmarked.is_cancelled());
}

#[test]
fn who_is_not_marked_is_never_cancelled() {
    alone!(SETTINGS);
    let heavy = Service::register("not marked").unwrap();
    let no_more = query("was marked");
    no_more.set_cancellable(None);
    let small = query("holds little");
    let _little = small.run(|| block(1000));
    let _guard = above(32).start().unwrap();
    until("a look", |now| now.ceiling > 0);
    let blocks = [heavy.run(|| block(50 * MIB)), no_more.run(|| block(30 * MIB))];
    let after = until("it is helpless", |now| now.helpless > 0 && now.own == now.used);
    assert!(after.used >= after.ceiling && after.highest_over > 0);
    assert_eq!(after.cancelled, 0);
    drop(blocks);
    assert!([heavy, no_more, small].iter().all(|service| !service.is_cancelled()));
}

/// Two services, of which the policy has one cancelled.
fn one_of_two(policy: Policy, expected: &str) {
    let runtime = runtime();
    let _guard = above(64).policy(policy).start().unwrap();
    until("a look", |now| now.ceiling > 0);
    let begin = |name: &str, priority, mib: usize| {
        let service = Service::builder(name).cancellable(priority).register().unwrap();
        let held = async move {
            let _held = block(mib * MIB);
            std::future::pending::<()>().await;
        };
        let _runtime = runtime.enter();
        let task = spawn(&service, held);
        eventually(|| if service.usage().bytes() >= (mib * MIB) as u64 { Ok(()) } else { Err("not begun") });
        (service, task)
    };
    let (mut chosen, mut spared) = (begin("important", 7, 24), begin("unimportant", -7, 20));
    // (With memory-check a block is in memory before it is counted: so it is another one's that passes it.)
    let _others = block(30 * MIB);
    if expected != chosen.0.name() {
        std::mem::swap(&mut chosen, &mut spared);
    }
    let cancelled = runtime.block_on(chosen.1).unwrap().unwrap_err();
    assert_eq!(cancelled.service, expected);
    let after = until("all was given back", |now| now.used < now.ceiling);
    assert_eq!(after.cancelled, 1);
    assert!(!spared.0.is_cancelled());
}

/// The one that holds most is not the one that grows.
#[test]
fn the_one_that_has_grown_most_is_first() {
    alone!(SETTINGS);
    let (large, growing) = (query("large"), query("growing"));
    let mut blocks = vec![large.run(|| block(120 * MIB))];
    let _guard = above(64).policy(Policy::most_growth()).start().unwrap();
    // Half of the ceiling is used, so what they hold is known after a look.
    let polls = figures().polls;
    until("two looks", |now| now.polls > polls + 2);
    while !large.is_cancelled() && !growing.is_cancelled() && blocks.len() < 100 {
        blocks.push(growing.run(|| block(MIB)));
        std::thread::sleep(Duration::from_millis(1));
    }
    // It is above the ceiling by now, however seldom the guard gets its turn.
    until("somebody is cancelled", |now| now.cancelled > 0);
    assert!(growing.is_cancelled() && !large.is_cancelled());
}

/// A tenant is cancelled after its query, and the query's bytes are not counted twice.
#[test]
fn what_is_below_a_cancelled_service_counts_once() {
    alone!(SETTINGS);
    let tenant = query("tenant");
    let below = Service::builder("its query").parent(&tenant).cancellable(0).register().unwrap();
    let unmarked = Service::register("unmarked").unwrap();
    let guard = above(64).start().unwrap();
    // Its end alone would not be enough: 140 MiB are too much by 76.
    let rows = unmarked.run(|| block(60 * MIB));
    let its = below.run(|| block(50 * MIB));
    until("the query is cancelled", |now| now.cancelled == 1);
    // The tenant holds it before the system knows of it. (memory-check writes to what is not zeroed.)
    let mut own = tenant.run(|| vec![0_u8; 30 * MIB]);
    own.fill(1);
    until("the tenant is, too", |now| now.cancelled == 2);
    assert!(below.is_cancelled() && tenant.is_cancelled());
    // What the tenant holds is its query's, too: nothing was given back yet.
    let polls = figures().polls;
    let still = until("two looks", |now| now.polls > polls + 1);
    assert!(still.given_back_bytes < 10 * MIB as u64, "{still:?}");
    drop((its, own));
    let after = until("all was given back", |now| now.used < now.ceiling && now.given_back_bytes > 0);
    let given_back = until("it is counted", |now| now.given_back_bytes >= 80 * MIB as u64).given_back_bytes;
    assert!(given_back < 90 * MIB as u64, "{given_back}: {after:?}");
    drop((guard, rows));
}

/// Pages that jemalloc keeps for reuse are counted as what they are: given back, and no reason to cancel anybody.
#[cfg(feature = "jemalloc")]
#[test]
fn free_pages_are_given_back_first() {
    alone!(SETTINGS);
    let query = query("has freed much");
    drop(query.run(|| (0..100).map(|_| block(MIB)).collect::<Vec<_>>()));
    let _rows = query.run(|| block(10 * MIB));
    let used = resident();
    let (told, dispatch) = Told::new();
    let guard = tracing::dispatcher::with_default(&dispatch, || above(1).start().unwrap());
    let after = until("free pages were given back", |now| now.purges > 0 && now.purged_bytes > 0);
    // (jemalloc has given back a part by itself.)
    let least = 8 * MIB as u64;
    assert!(after.purged_bytes >= least && after.purged_bytes <= used, "{after:?}");
    let after = until("another look", |now| now.polls > after.polls + 1);
    assert!(after.used < used - least, "{after:?}");
    assert_eq!((after.cancelled, after.helpless), (0, 0));
    drop(guard);
    // The events say the same.
    let text = told.until_now(&dispatch, "the end");
    let given_back = |line: &str| -> u64 {
        let (_, bytes) = line.split_once(" given_back=").unwrap();
        bytes.split(' ').next().unwrap().parse().unwrap()
    };
    let purges = text.lines().filter(|line| line.contains("the allocator gave free pages back"));
    let purges: Vec<u64> = purges.map(given_back).collect();
    let figures = figures();
    assert_eq!((purges.len() as u64, purges.iter().sum()), (figures.purges, figures.purged_bytes), "{text}");
}

#[test]
fn the_lowest_priority_is_first() {
    alone!(SETTINGS);
    one_of_two(Policy::lowest_priority(), "unimportant");
}

#[test]
fn a_closure_says_who_is_first() {
    alone!(SETTINGS);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let policy = {
        let seen = Arc::clone(&seen);
        Policy::choose(move |all| {
            let names = || all.iter().map(|one| one.service.name().to_owned());
            *seen.lock().unwrap() = names().collect();
            names().position(|name| name == "important")
        })
    };
    one_of_two(policy, "important");
    assert_eq!(*seen.lock().unwrap(), ["important", "unimportant"]);
}

#[test]
fn wrong_settings_are_told_and_the_program_runs_on() {
    alone!(SETTINGS);
    let start = |ceiling| Guard::builder().ceiling(ceiling).start();
    for fraction in [0.0, -1.0, 1.5, f64::NAN] {
        assert!(matches!(start(Ceiling::physical(fraction)), Err(GuardError::Fraction { .. })));
    }
    let error = start(Ceiling::bytes(MIB as u64)).unwrap_err();
    assert!(matches!(error, GuardError::TooLow { ceiling: 0x10_0000, used, .. } if used > 0x10_0000));
    assert!(error.to_string().starts_with("the ceiling of 1.0 MiB is below the "), "{error}");
    // Whatever this machine has.
    match start(Ceiling::cgroup(1.0)) {
        Ok(guard) => assert!(guard.figures().ceiling < 1 << 60),
        Err(error) => {
            assert!(!matches!(error, GuardError::Fraction { .. } | GuardError::Running), "{error}");
            assert!(error.to_string().contains("Ceiling::"), "{error}");
        }
    }
    assert!(!figures().running);
    let guard = start(Ceiling::physical(1.0)).unwrap();
    assert!(guard.figures().running);
    assert!(matches!(start(Ceiling::physical(1.0)), Err(GuardError::Running)));
    assert!(figures().running);
    drop(guard);
    assert!(!figures().running);
    drop(start(Ceiling::physical(1.0)).unwrap());
}

/// How many threads this process has.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn its_thread_is_nobodys_and_ends_with_it() {
    alone!(SETTINGS);
    let service = Service::register("begins a guard").unwrap();
    let before = threads();
    for _ in 0..20 {
        let ceiling = resident() + 1000 * MIB as u64;
        let guard = service.run(|| above(1000).ceiling(Ceiling::bytes(ceiling)).start().unwrap());
        // Before the thread has looked, too.
        assert_eq!(figures().ceiling, ceiling);
        assert_eq!(threads(), before + 1);
        drop(guard);
        eventually(|| if threads() == before { Ok(()) } else { Err("its thread is there") });
    }
    let usage = service.usage();
    assert_eq!((usage.bytes(), usage.blocks()), (0, 0), "{usage:?}");
    // A closure of the program's may end it, on its own thread.
    let kept: Arc<Mutex<Option<Guard>>> = Arc::default();
    let guard = {
        let kept = Arc::clone(&kept);
        let ends = Policy::choose(move |_| {
            drop(kept.lock().unwrap().take());
            None
        });
        above(32).policy(ends).start().unwrap()
    };
    *kept.lock().unwrap() = Some(guard);
    let _much = query("passes the ceiling").run(|| block(50 * MIB));
    eventually(|| if figures().running { Err("it runs") } else { Ok(()) });
}

#[test]
fn a_forked_child_has_no_guard_and_may_begin_one() {
    alone!(SETTINGS);
    let guard = above(1000).start().unwrap();
    until("a look", |now| now.ceiling > 0);
    for _ in 0..20 {
        // SAFETY: the child asks dogtag, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // Of its parent's there is no thread to wait for.
            let had_none = !figures().running;
            let own = above(1000).start();
            let begins = own.is_ok() && figures().running;
            drop(own);
            let is_well = had_none && begins && !figures().running;
            // SAFETY: reads what is this child's own copy, which is dropped here alone.
            drop(unsafe { std::ptr::read(&guard) });
            // SAFETY: ends the process, without what others may have locked.
            unsafe { libc::_exit(i32::from(!is_well)) };
        }
        let status = watch::ended(child);
        assert!(status.success(), "{status}");
    }
    assert!(figures().running);
    drop(guard);
}

/// What the guard tells.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<u8>>>);

impl Told {
    /// With the subscriber that writes it.
    fn new() -> (Self, tracing::Dispatch) {
        let told = Self::default();
        let writer = {
            let told = told.clone();
            move || told.clone()
        };
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .with_writer(writer)
            .finish();
        (told, tracing::Dispatch::new(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// All that is told up to an event that is made here, with a name that no other has: what is told later comes
    /// after what was told before.
    fn until_now(&self, dispatch: &tracing::Dispatch, name: &str) -> String {
        tracing::dispatcher::with_default(dispatch, || query(name).cancel("now"));
        eventually(|| Some(self.text()).filter(|text| text.contains(name)).ok_or("it is not told"))
    }
}

impl std::io::Write for Told {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A file of the system's that says nothing for a while.
#[test]
fn what_cannot_be_read_is_counted_each_time_and_told_once() {
    alone!(SETTINGS);
    let (told, dispatch) = Told::new();
    let guard = tracing::dispatcher::with_default(&dispatch, || above(1000).start().unwrap());
    let is_its = |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|to| to.ends_with("statm"));
    let its = fs::read_dir("/proc/self/fd").unwrap().flatten().find(is_its).unwrap().file_name();
    let its: i32 = its.to_str().unwrap().parse().unwrap();
    let becomes = |path: &str| {
        let file = fs::File::open(path).unwrap();
        // SAFETY: the guard only reads from it, and finds another file there.
        assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), its) }, its);
    };
    for round in 1..=2 {
        let before = figures();
        becomes("/dev/null");
        until("it cannot be read", |now| now.failed_polls >= before.failed_polls + 3);
        becomes("/proc/self/statm");
        let failed = figures();
        until("it can be read", |now| now.polls - failed.polls > now.failed_polls - failed.failed_polls + 1);
        let text = told.until_now(&dispatch, &format!("the end of round {round}"));
        assert_eq!(text.matches("the guard cannot read what memory is used").count(), round, "{text}");
    }
    drop(guard);
}

/// What happens is told, in the order in which it is done.
#[test]
fn each_step_is_an_event() {
    alone!(SETTINGS);
    let _panics = on_pressure(|_| std::panic::resume_unwind(Box::new("on purpose")));
    let deaf = query("deaf");
    let (told, dispatch) = Told::new();
    let guard = tracing::dispatcher::with_default(&dispatch, || {
        above(64).grace(Duration::from_millis(20)).start().unwrap()
    });
    until("a look", |now| now.ceiling > 0);
    let _much = deaf.run(|| block(100 * MIB));
    // While that is so, those who registered are asked again a second later.
    until("nobody is left", |now| now.helpless > 0 && now.pressure_calls > 1);
    let steps = [
        "the allocator gave free pages back",
        "memory is short: those who registered are asked to let go of something",
        "a service was cancelled service=\"deaf\"",
        "a cancelled service does not let go of its memory service=\"deaf\"",
        "the ceiling is passed, and no service may be cancelled that holds enough",
    ];
    eventually(|| {
        let told = told.text();
        let mut rest = told.as_str();
        for step in steps {
            rest = rest.split_once(step).ok_or_else(|| format!("{step}, in\n{told}"))?.1;
        }
        // It is asked again, if this takes a second.
        let asks = told.matches(steps[1]).count();
        let panics = told.matches("a callback of the guard panicked").count();
        if panics == asks { Ok(()) } else { Err(format!("{panics} panics, {asks} asks, in\n{told}")) }
    });
    drop(guard);
}

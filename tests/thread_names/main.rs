//! Threads outside of scopes, in services named after them. Each case is a program of its own, with a
//! `main` that is not a test framework's: it has a start-up, and a main thread.

#[path = "../watch/mod.rs"]
mod watch;

use dogtag::{Dogtag, Service, thread::services_by_name};
use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const TASK: &str = "DOGTAG_TEST_TASK";

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        const CASES: &[(&str, fn())] = &[$((stringify!($case), $case)),*];
    };
}

cases! {
    start_up_and_main,
    nothing_without_the_call,
    numbered_threads_share_a_service,
    pools,
    threads_without_a_name,
    threads_that_run_already,
    threads_that_begin_in_a_scope,
    threads_that_go_on_in_a_span,
    threads_that_go_on_in_a_layers_span,
    threads_that_are_renamed,
    threads_that_were_handed_a_service,
    names_that_the_program_has_registered,
    names_that_begin_at_once,
    more_names_than_services,
    what_thread_locals_allocate_at_the_end,
    a_forked_child,
}

fn main() {
    if let Ok(task) = std::env::var(TASK) {
        let (_, case) = CASES.iter().find(|(name, _)| *name == task).expect("there is such a case");
        return case();
    }
    // As for the other test programs: what the names have to contain.
    let filters: Vec<String> = std::env::args().skip(1).filter(|text| !text.starts_with('-')).collect();
    for (case, _) in CASES {
        if !filters.is_empty() && !filters.iter().any(|filter| case.contains(filter.as_str())) {
            continue;
        }
        let output = watch::output(Command::new(std::env::current_exe().unwrap()).env(TASK, case));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{case}: {}\n{said}", output.status);
        println!("test {case} ... ok");
    }
}

/// Checks that what the calling thread allocates now is charged to the service of that name.
#[track_caller]
fn allocates_for(name: &str) {
    let service = Service::by_name(name).unwrap_or_else(|| {
        // Its first allocation.
        drop(black_box(Box::new(1)));
        Service::by_name(name).unwrap_or_else(|| panic!("{name:?}: {}", dogtag::snapshot()))
    });
    let before = service.usage();
    let block = black_box(vec![0_u8; 777]);
    let allocated = service.usage().since(&before);
    assert_eq!(Service::current(), service);
    if name != "unattributed" {
        // Others of that name may allocate meanwhile.
        assert!(allocated.allocated_bytes >= 777 && allocated.allocated_blocks > 0, "{name:?}");
    }
    drop(block);
}

fn named<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().name(name.to_owned()).spawn(work).unwrap()
}

/// Renames the calling thread, as the kernel has it.
fn rename(name: &std::ffi::CStr) {
    // SAFETY: reads up to the zero.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }, 0);
}

/// The live rows of services of that name.
fn rows(name: &str) -> usize {
    dogtag::snapshot().rows.iter().filter(|row| row.name == name && !row.is_retired).count()
}

fn start_up_and_main() {
    allocates_for("unattributed");
    services_by_name();
    allocates_for("startup");
    // Neither the registry nor a scope that allocates nothing is the first scope.
    let service = Service::register("first").unwrap();
    drop(service.enter());
    services_by_name();
    allocates_for("startup");
    // Inside of it there is no change.
    service.run(|| {
        allocates_for("first");
        Service::unattributed().run(|| allocates_for("unattributed"));
        allocates_for("first");
    });
    allocates_for("main");
    service.run(|| allocates_for("first"));
    services_by_name();
    // For as long as it runs.
    let blocks: Vec<_> = (0..1000).map(|_| black_box(vec![0_u8; 1000])).collect();
    drop(blocks);
    allocates_for("main");
    assert_eq!((rows("startup"), rows("main")), (1, 1));
}

fn nothing_without_the_call() {
    allocates_for("unattributed");
    named("worker-3", || allocates_for("unattributed")).join().unwrap();
    assert_eq!(Service::by_name("worker-*"), None);
}

fn numbered_threads_share_a_service() {
    services_by_name();
    let threads: Vec<_> = (0..20)
        .map(|number| {
            named(&format!("worker-{number}"), move || {
                let blocks: Vec<Vec<u8>> = (0..500).map(|_| vec![0; 1000]).collect();
                assert_eq!(Service::current().name(), "worker-*");
                blocks
            })
        })
        .collect();
    let blocks: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let workers = Service::by_name("worker-*").unwrap();
    assert_eq!(workers.usage().bytes(), 20 * 500 * (1000 + size_of::<Vec<u8>>() as u64));
    drop(blocks);
    assert_eq!(workers.usage().bytes(), 0);
    for (name, service) in [
        ("no number", "no number"),
        ("7", "*"),
        ("a1b22", "a1b*"),
        ("fifteen bytes, not 20", "fifteen bytes, "),
        ("unattributed", "unattributed"),
        ("ä", "ä"),
    ] {
        named(name, move || allocates_for(service)).join().unwrap();
    }
}

/// Tokio's and rayon's threads, and what runs there without a service of its own.
fn pools() {
    services_by_name();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let by_kernel = || {
        let mut name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        name.truncate(name.trim_end().len());
        name
    };
    let (name, block) =
        runtime.block_on(runtime.spawn(async move { (by_kernel(), vec![0_u8; 5000]) })).unwrap();
    assert!(name.starts_with("tokio"), "{name}");
    let workers = Service::by_name(&name).unwrap();
    let before = workers.usage().bytes();
    drop(block);
    // The runtime's own threads go on meanwhile.
    assert!(before >= 5000);
    runtime.block_on(runtime.spawn_blocking(move || allocates_for(&by_kernel()))).unwrap();
    drop(runtime);

    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).thread_name(|number| format!("rayon-{number}"));
    let pool = pool.build().unwrap();
    let blocks: Vec<Vec<u8>> = pool.broadcast(|_| black_box(vec![0; 6000]));
    assert!(Service::by_name("rayon-*").unwrap().usage().bytes() >= 18_000);
    let own = Service::register("own").unwrap();
    pool.install(|| own.run(|| allocates_for("own")));
    drop(blocks);
}

/// They have the name of the thread that began them.
fn threads_without_a_name() {
    services_by_name();
    rename(c"program");
    thread::spawn(|| allocates_for("program")).join().unwrap();
    named("parent-1", || thread::spawn(|| allocates_for("parent-*")).join().unwrap()).join().unwrap();
    // An empty name is none.
    let nameless = || {
        rename(c"");
        allocates_for("unattributed");
    };
    thread::spawn(nameless).join().unwrap();
    // The main thread's own name is not asked for.
    allocates_for("startup");
}

fn threads_that_run_already() {
    let service = Service::register("scope").unwrap();
    let (ready, is_ready) = channel();
    let is_called = Arc::new(Barrier::new(3));
    let idle = {
        let (ready, is_called) = (ready.clone(), Arc::clone(&is_called));
        named("idle", move || {
            let before = black_box(vec![0_u8; 300 << 10]);
            ready.send(()).unwrap();
            is_called.wait();
            allocates_for("idle");
            drop(before);
            allocates_for("idle");
        })
    };
    let busy = {
        let (service, is_called) = (service.clone(), Arc::clone(&is_called));
        named("busy-1", move || {
            allocates_for("unattributed");
            service.run(|| {
                allocates_for("scope");
                ready.send(()).unwrap();
                is_called.wait();
                allocates_for("scope");
            });
            allocates_for("busy-*");
        })
    };
    is_ready.recv().unwrap();
    is_ready.recv().unwrap();
    services_by_name();
    is_called.wait();
    idle.join().unwrap();
    busy.join().unwrap();
}

/// Whose first allocation is another service's, or the registry's.
fn threads_that_begin_in_a_scope() {
    services_by_name();
    let service = Service::register("scope").unwrap();
    for number in 0..10 {
        let service = service.clone();
        named(&format!("begins-{number}"), move || {
            match number % 3 {
                0 => service.run(|| allocates_for("scope")),
                1 => drop(Service::register(format!("new {number}")).unwrap()),
                _ => Service::unattributed().run(|| {
                    drop(black_box(vec![0_u8; 10]));
                    service.run(|| drop(black_box(vec![0_u8; 10])));
                    drop(black_box(vec![0_u8; 10]));
                }),
            }
            let before = Service::unattributed();
            drop(black_box(vec![0_u8; 10]));
            assert_ne!(Service::current(), before);
            allocates_for("begins-*");
        })
        .join()
        .unwrap();
    }
}

/// As a runtime's threads that were there before, and whose subscriber allocates for nobody.
fn threads_that_go_on_in_a_span() {
    #[cfg(feature = "tracing-layer")]
    {
        dogtag::attributed(tracing_subscriber::fmt().with_writer(std::io::sink).finish()).init();
        go_on_in_spans();
    }
}

fn threads_that_go_on_in_a_layers_span() {
    #[cfg(feature = "tracing-layer")]
    {
        use tracing_subscriber::prelude::*;

        tracing_subscriber::registry().with(dogtag::ServiceLayer::by_crate()).init();
        go_on_in_spans();
    }
}

#[cfg(feature = "tracing-layer")]
fn go_on_in_spans() {
    const THREADS: usize = 4;
    let (is_ready, is_called) = (Arc::new(Barrier::new(THREADS + 1)), Arc::new(Barrier::new(THREADS + 1)));
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let (is_ready, is_called) = (Arc::clone(&is_ready), Arc::clone(&is_called));
            named(&format!("goes-on-{number}"), move || {
                drop(black_box(vec![0_u8; 10]));
                is_ready.wait();
                is_called.wait();
                for _ in 0..2 {
                    let span = tracing::info_span!(target: "parser", "parse");
                    span.in_scope(|| {
                        tracing::info!(length = 10, "an event");
                        allocates_for("parser");
                    });
                    // Not dropped, so that nothing allocates for the subscriber at the end.
                    std::mem::forget(span);
                }
                drop(black_box(vec![0_u8; 10]));
                assert_ne!(Service::current(), Service::unattributed());
                allocates_for("goes-on-*");
            })
        })
        .collect();
    is_ready.wait();
    services_by_name();
    is_called.wait();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn threads_that_are_renamed() {
    services_by_name();
    let work = || {
        // Named after its first allocation.
        drop(black_box(vec![0_u8; 10]));
        rename(c"late");
        drop(black_box(vec![0_u8; 4096]));
        allocates_for("late");
        rename(c"later-1");
        (0..300).for_each(|_| drop(black_box(vec![0_u8; 1024])));
        allocates_for("later-*");
        rename(c"later-2");
        allocates_for("later-*");
    };
    named("early", work).join().unwrap();
}

fn threads_that_were_handed_a_service() {
    services_by_name();
    let service = Service::register("hands on").unwrap();
    let name = |text: &str| dogtag::thread::Builder::new().name(text.to_owned());
    let work = || {
        allocates_for("hands on");
        (0..300).for_each(|_| drop(black_box(vec![0_u8; 1024])));
        allocates_for("hands on");
    };
    service.run(|| name("worker-1").spawn(work).unwrap()).join().unwrap();
    // In no scope there is none to hand on.
    name("worker-1").spawn(|| allocates_for("worker-*")).unwrap().join().unwrap();
}

fn names_that_the_program_has_registered() {
    let own = Service::builder("worker-*").handle(7).hard_limit(1 << 20).register().unwrap();
    services_by_name();
    let (go, gone) = channel::<()>();
    let (ready, is_ready) = channel();
    let first = named("worker-1", move || {
        let block = black_box(vec![0_u8; 1000]);
        ready.send(()).unwrap();
        gone.recv().unwrap_err();
        drop(black_box(vec![0_u8; 10]));
        assert_eq!(Service::current().handle(), 7);
        block
    });
    is_ready.recv().unwrap();
    // From now on they are one.
    assert_eq!(Service::by_name("worker-*"), Some(own.clone()));
    drop(go);
    let block = first.join().unwrap();
    named("worker-2", || allocates_for("worker-*")).join().unwrap();
    assert_eq!(rows("worker-*"), 1);
    let retired = |row: &&dogtag::Row| row.name == "worker-*" && row.is_retired;
    let former = || dogtag::snapshot().rows.iter().find(retired).map_or(0, |row| row.usage.bytes());
    let live = former();
    drop(block);
    assert_eq!(live - former(), 1000);
    // What comes later finds the thread's.
    named("later-1", || drop(black_box(Box::new(1)))).join().unwrap();
    let later = Service::register("later-*").unwrap();
    assert!(later.usage().allocated_blocks > 0);
    drop((own, later));
    named("worker-3", || allocates_for("worker-*")).join().unwrap();
}

/// Each of many threads may be the first of its name.
fn names_that_begin_at_once() {
    const THREADS: u64 = 24;

    services_by_name();
    for round in 0..40_u8 {
        let name = format!("{}-at-once", (b'A' + round) as char);
        let barrier = Arc::new(Barrier::new(THREADS as usize));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let barrier = Arc::clone(&barrier);
                named(&name, move || {
                    barrier.wait();
                    black_box(vec![1_u8; 1000])
                })
            })
            .collect();
        let blocks: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(rows(&name), 1);
        let service = Service::by_name(&name).unwrap();
        assert_eq!(service.usage().bytes(), 1000 * THREADS);
        drop(blocks);
        assert_eq!(service.usage().bytes(), 0);
    }
    assert_eq!(dogtag::snapshot().lost.blocks, 0);
}

fn more_names_than_services() {
    const MOST: usize = 64;

    static TOLD: AtomicUsize = AtomicUsize::new(0);

    struct Counts;

    impl tracing::Subscriber for Counts {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            metadata.target() == "dogtag" && *metadata.level() == tracing::Level::WARN
        }

        fn event(&self, _: &tracing::Event<'_>) {
            TOLD.fetch_add(1, SeqCst);
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    tracing::subscriber::set_global_default(Counts).unwrap();
    services_by_name();
    let blocks: Vec<_> = (0..500)
        .map(|number| named(&format!("{number}-th"), || black_box(vec![0_u8; 1000])).join().unwrap())
        .collect();
    let snapshot = dogtag::snapshot();
    let bytes = |name: &str| snapshot.rows.iter().find(|row| row.name == name).map(|row| row.usage.bytes());
    let own = (0..500).filter(|number| bytes(&format!("{number}-th")) == Some(1000)).count();
    // The main thread has one, too.
    assert_eq!(own, MOST - 1);
    assert_eq!(bytes("other threads"), Some(1000 * (500 - own as u64)));
    named("0-th", || allocates_for("0-th")).join().unwrap();
    named("499-th", || allocates_for("other threads")).join().unwrap();
    while TOLD.load(SeqCst) == 0 {
        drop(dogtag::snapshot());
        thread::yield_now();
    }
    // Whatever else there is to be told a second later, this is not.
    named("498-th", || allocates_for("other threads")).join().unwrap();
    thread::sleep(std::time::Duration::from_millis(1100));
    drop(dogtag::snapshot());
    assert_eq!(TOLD.load(SeqCst), 1);
    drop(blocks);
}

fn what_thread_locals_allocate_at_the_end() {
    struct Late(std::sync::mpsc::Sender<(String, Vec<u8>)>);

    impl Drop for Late {
        fn drop(&mut self) {
            self.0.send((Service::current().name().to_owned(), vec![0; 1000])).unwrap();
        }
    }

    thread_local! {
        static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
    }

    services_by_name();
    let (send, late) = channel();
    named("ends-1", move || LATE.set(Some(Late(send)))).join().unwrap();
    let (name, block) = late.recv().unwrap();
    assert_eq!(name, "ends-*");
    assert!(Service::by_name("ends-*").unwrap().usage().bytes() >= 1000);
    drop(block);
}

fn a_forked_child() {
    services_by_name();
    named("before-1", || drop(black_box(vec![0_u8; 10]))).join().unwrap();
    // SAFETY: the child calls only what dogtag allows for.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let is_there = Service::by_name("before-*").is_some() && Service::current().name() == "startup";
        named("after-1", || allocates_for("after-*")).join().unwrap();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if is_there { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for a child, with a place for its status.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(rows("after-*"), 0);
}

//! What memory-check does about a crime, and what else it can tell; each in a
//! process of its own, since each sets a handler, or dies.
#![cfg(feature = "memory-check")]

mod child;

use child::{dealloc, watch};
use dogtag::check::{self, Reaction, Violation, ViolationKind};
use dogtag::{Dogtag, Service};
use std::alloc::{GlobalAlloc, Layout, alloc, realloc};
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// A child's name, what it does, its settings, whether it survives, and what it
/// must have said, on either stream.
type Task = (&'static str, fn(), &'static str, Ends, &'static [&'static str]);

enum Ends {
    Well,
    ByAbort,
}

/// What a call stack shows of lines: they are known where debug information is.
const LINES: &str = if cfg!(debug_assertions) { "tests/check.rs:" } else { "" };

const TASKS: [Task; 25] = [
    ("leak goes on", leak_goes_on, "", Ends::Well, &[]),
    ("handlers are closures and can be taken", closures, "", Ends::Well, &["double free"]),
    ("handlers are exchanged while they are called", exchanged_handlers, "reaction=leak", Ends::Well, &[]),
    ("a block that was told of is not told of again", told_once, "", Ends::Well, &[]),
    ("a block that was told of shrinks", shrinks_all_the_same, "", Ends::Well, &[]),
    ("a block that is freed by another allocator", freed_by_another, "", Ends::Well, &[]),
    ("threads that free the same block", race_to_free, "", Ends::Well, &[]),
    ("patterns", patterns, "", Ends::Well, &[]),
    ("no patterns", no_patterns, "fill=0", Ends::Well, &[]),
    ("a small quarantine", small_quarantine, "quarantine=1M", Ends::Well, &[]),
    ("few blocks in quarantine", few_blocks, "quarantine-blocks=64", Ends::Well, &[]),
    ("no quarantine", no_quarantine, "quarantine=0", Ends::Well, &[]),
    ("live blocks", live_blocks, "", Ends::Well, &[]),
    ("call stacks of live blocks", live_call_stacks, "backtrace=1", Ends::Well, &[]),
    (
        "call stacks of a crime",
        || twice(black_box(culprit())),
        "backtrace=1",
        Ends::ByAbort,
        &["allocated at", "check::culprit", "freed at", "met at", "check::twice", LINES],
    ),
    (
        "reaction by environment",
        || twice(culprit()),
        "reaction=leak,quarantine=lots, colour=red",
        Ends::Well,
        &[
            "double free",
            "\"quarantine=lots\" is no setting",
            "\"colour=red\" is no setting",
            "reaction=abort|leak",
        ],
    ),
    ("a handler that panics", handler_panics, "", Ends::ByAbort, &["double free", "the handler panicked"]),
    (
        "a crime while another is told",
        crime_in_handler,
        "",
        Ends::Well,
        &["invalid free of 0x70", "was met while another crime was being told"],
    ),
    (
        "an event for a crime",
        crime_with_subscriber,
        "",
        Ends::ByAbort,
        &["event dogtag ERROR", "crime=double free", "service=victim", "size=24", "freed_on=a_child"],
    ),
    ("a crime in a subscriber that holds a lock", crime_in_subscriber, "", Ends::ByAbort, &["double free"]),
    (
        "a crime in the registry",
        crime_in_registry,
        "",
        Ends::ByAbort,
        &["growing now", "overrun", "event dogtag ERROR"],
    ),
    ("a crime in a thread-local destructor", crime_in_destructor, "", Ends::ByAbort, &["double free"]),
    (
        "a crime after all destructors",
        crime_after_destructors,
        "",
        Ends::ByAbort,
        &["double free", "event dogtag"],
    ),
    ("forks while others look at blocks", forks, "quarantine-blocks=64", Ends::Well, &[]),
    (
        "lost blocks",
        lost_blocks,
        "",
        Ends::Well,
        &["underrun", "event dogtag ERROR", "whose owner had been overwritten"],
    ),
];

#[test]
fn every_task_ends_as_it_should() {
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for (name, _, settings, ends, said) in &TASKS {
            let failures = &failures;
            threads.spawn(move || {
                let output = child::run(name, settings);
                let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
                let ended = match ends {
                    Ends::Well => output.status.success() && text.contains("survived"),
                    Ends::ByAbort => output.status.signal() == Some(libc::SIGABRT),
                };
                let missing = said.iter().find(|said| !text.contains(**said));
                if !ended || missing.is_some() {
                    let status = output.status;
                    failures
                        .lock()
                        .unwrap()
                        .push(format!("{name}: {status}, {missing:?} is missing:\n{text}"));
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn a_child() {
    let Some(task) = child::task() else { return };
    let (_, work, ..) = TASKS.iter().find(|(name, ..)| *name == task).expect("a task");
    work();
    println!("survived");
}

const LAYOUT: Layout = Layout::new::<[u64; 3]>();

fn victim() -> Service {
    static VICTIM: LazyLock<Service> = LazyLock::new(|| Service::register("victim").unwrap());
    VICTIM.clone()
}

/// A block of the victim.
#[inline(never)]
fn culprit() -> *mut u8 {
    // SAFETY: the layout is not empty.
    let block = victim().run(|| unsafe { alloc(LAYOUT) });
    assert!(!block.is_null());
    block
}

#[inline(never)]
fn twice(block: *mut u8) {
    // SAFETY: none, the second time.
    unsafe {
        dealloc(block, LAYOUT);
        dealloc(block, LAYOUT);
    }
}

/// What a handler has met.
static MET: Mutex<Vec<(ViolationKind, usize)>> = Mutex::new(Vec::new());

fn note(violation: &Violation) -> Reaction {
    // The service that met it may have no room.
    Service::unattributed().run(|| MET.lock().unwrap().push((violation.kind(), violation.address())));
    Reaction::Leak
}

fn met() -> Vec<(ViolationKind, usize)> {
    std::mem::take(&mut *MET.lock().unwrap())
}

fn leak_goes_on() {
    check::set_handler(note);
    let victim = victim();
    let mut leaked = Vec::new();
    // SAFETY: none; the crimes are the point.
    unsafe {
        let block = culprit();
        block.add(24).write(0);
        dealloc(block, LAYOUT);
        leaked.push((ViolationKind::Overrun, block as usize));

        // What is left of the block moves along.
        let block = culprit();
        block.write_bytes(7, 24);
        block.sub(3).write(0);
        let moved = victim.run(|| realloc(block, LAYOUT, 48));
        assert_eq!(std::slice::from_raw_parts(moved, 24), [7; 24]);
        dealloc(moved, Layout::new::<[u64; 6]>());
        leaked.push((ViolationKind::Underrun, block as usize));

        let block = culprit();
        dealloc(block, Layout::new::<[u64; 4]>());
        leaked.push((ViolationKind::LayoutMismatch, block as usize));

        let block = culprit();
        twice(block);
        leaked.push((ViolationKind::DoubleFree, block as usize));

        // Not a block at all: nothing to resize.
        assert!(realloc(block.add(1), LAYOUT, 100).is_null());
        leaked.push((ViolationKind::InvalidFree, block as usize + 1));

        let block = culprit();
        dealloc(block, LAYOUT);
        block.write(0);
        assert_eq!(check::verify().violations, 1);
        leaked.push((ViolationKind::WriteAfterFree, block as usize));
    }
    assert_eq!(met(), leaked);
    assert_eq!((victim.usage().bytes(), victim.usage().blocks()), (0, 0));
    assert_eq!(dogtag::snapshot().lost.blocks, 0);
    // Through the whole quarantine several times, and nobody gets one of those.
    for _ in 0..300_000 {
        let block = culprit();
        assert!(
            !leaked
                .iter()
                .any(|(crime, address)| *crime != ViolationKind::DoubleFree && *address == block as usize)
        );
        // SAFETY: the block is live.
        unsafe { dealloc(block, LAYOUT) };
    }
    assert_eq!(met(), []);
}

fn told_once() {
    check::set_handler(note);
    let victim = victim();
    let (freed, resized) = (culprit(), culprit());
    // SAFETY: none; the bytes behind the blocks are not ours.
    unsafe {
        freed.add(30).write(0);
        resized.add(24).write(0);
        assert_eq!(check::verify().violations, 2);
        assert_eq!(met().len(), 2);
        assert_eq!(check::verify().violations, 0);
        assert_eq!(victim.usage().blocks(), 2);
        dealloc(freed, LAYOUT);
        assert!(realloc(resized, LAYOUT, isize::MAX as usize).is_null());
        let moved = victim.run(|| realloc(resized, LAYOUT, 10));
        assert_eq!(victim.usage().bytes(), 10);
        dealloc(moved, Layout::from_size_align(10, 8).unwrap());
        assert_eq!((met(), victim.usage().blocks()), (vec![], 0));
        // But it is freed now.
        dealloc(freed, LAYOUT);
        assert_eq!(met(), [(ViolationKind::DoubleFree, freed as usize)]);
    }
}

fn shrinks_all_the_same() {
    // The thread is in a service without room.
    check::set_handler(|violation| Service::unattributed().run(|| note(violation)));
    let victim = victim();
    let full = Service::builder("full").hard_limit(0).register().unwrap();
    // SAFETY: none; the bytes around the blocks are not ours.
    unsafe {
        let (told, lost, mismatched) = (culprit(), culprit(), culprit());
        told.add(24).write(0);
        lost.sub(32).write_bytes(0, 32);
        for (block, layout, crime) in [
            (told, LAYOUT, ViolationKind::Overrun),
            (lost, LAYOUT, ViolationKind::Underrun),
            (mismatched, Layout::from_size_align(20, 8).unwrap(), ViolationKind::LayoutMismatch),
        ] {
            let shrunk = full.run(|| realloc(block, layout, 10));
            assert!(!shrunk.is_null() && shrunk != block);
            assert_eq!(met(), [(crime, block as usize)]);
            dealloc(shrunk, Layout::from_size_align(10, 8).unwrap());
        }
        assert_eq!(met(), []);
    }
    // But for the one of which nobody knows whose it was.
    assert_eq!((victim.usage().blocks(), full.usage().denied, full.usage().allocated_blocks), (1, 0, 0));
}

fn freed_by_another() {
    static OTHER: Dogtag = Dogtag::new();
    check::set_handler(note);
    let block = culprit();
    // SAFETY: none; the block is the global allocator's.
    unsafe { OTHER.dealloc(block, LAYOUT) };
    assert_eq!(met(), [(ViolationKind::InvalidFree, block as usize)]);
    // For the program it is freed, and once only.
    assert_eq!(victim().usage().blocks(), 0);
    // SAFETY: none.
    unsafe { dealloc(block, LAYOUT) };
    assert_eq!(met(), [(ViolationKind::DoubleFree, block as usize)]);
}

fn race_to_free() {
    static DOUBLE: AtomicUsize = AtomicUsize::new(0);

    fn count(violation: &Violation) -> Reaction {
        assert_eq!(violation.kind(), ViolationKind::DoubleFree);
        assert!(violation.freed().is_some_and(|deed| deed.service() == "victim"));
        DOUBLE.fetch_add(1, Ordering::Relaxed);
        Reaction::Leak
    }

    check::set_handler(count);
    let victim = victim();
    for round in 1..=2000 {
        let block = culprit() as usize;
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    barrier.wait();
                    // SAFETY: for one of the two.
                    victim.run(|| unsafe { dealloc(block as *mut u8, LAYOUT) });
                });
            }
        });
        assert_eq!(DOUBLE.load(Ordering::Relaxed), round);
        assert_eq!(victim.usage().blocks(), 0);
    }
}

fn patterns() {
    let block = culprit();
    // SAFETY: none, once the block is freed; but its memory is there.
    unsafe {
        assert_eq!(std::slice::from_raw_parts(block, 24), [0xCD; 24]);
        dealloc(block, LAYOUT);
        assert_eq!(std::slice::from_raw_parts(block, 24), [0xDD; 24]);
        for around in (-16..0).chain(24..40) {
            assert!((0xF5..=0xFC).contains(&block.offset(around).read()));
        }
    }
    assert_eq!(*black_box(vec![0_u8; 100]), [0; 100]);
}

fn no_patterns() {
    check::set_handler(note);
    let block = culprit();
    // SAFETY: none, once the block is freed; but its memory is there.
    unsafe {
        block.write_bytes(7, 24);
        dealloc(block, LAYOUT);
        assert_eq!(std::slice::from_raw_parts(block, 24), [7; 24]);
        block.write(0);
        assert_eq!(check::verify().violations, 0);
        block.add(24).write(0);
        assert_eq!(check::verify().violations, 1);
    }
    assert_eq!(met(), [(ViolationKind::WriteAfterFree, block as usize)]);
}

fn quarantine() -> (u64, u64) {
    let quarantine = dogtag::snapshot().quarantine.expect("with memory-check");
    (quarantine.bytes, quarantine.blocks)
}

fn small_quarantine() {
    let victim = victim();
    let mut most = 0;
    for size in (0..3000_usize).map(|i| 1 + i * 7919 % 30_000) {
        drop(black_box(victim.run(|| vec![1_u8; size])));
        assert_eq!(victim.usage().blocks(), 0, "what is in quarantine is not live");
        most = most.max(quarantine().0);
    }
    // This thread's magazine comes on top.
    assert!((900 << 10..(1 << 20) + (300 << 10)).contains(&most), "{most}");
    // A block that is larger than all of it does not make the others leave.
    let before = quarantine();
    drop(black_box(vec![1_u8; 2 << 20]));
    assert!(quarantine().1 >= before.1);
}

fn few_blocks() {
    for _ in 0..1000 {
        drop(black_box(vec![1_u8; 50]));
    }
    let (_, blocks) = quarantine();
    assert!((64..64 + 2 * 32).contains(&blocks), "{blocks}");
    assert!(dogtag::snapshot().to_string().contains("quarantine: "), "the table shows it");
}

fn no_quarantine() {
    for _ in 0..1000 {
        drop(black_box(vec![1_u8; 50]));
    }
    assert_eq!(quarantine(), (0, 0));
    // Crimes to live blocks are still found, and a second free is not followed.
    check::set_handler(note);
    let (block, other) = (culprit(), culprit());
    // SAFETY: none.
    unsafe {
        block.add(24).write(0);
        dealloc(block, LAYOUT);
        twice(other);
    }
    assert_eq!(
        met(),
        [(ViolationKind::Overrun, block as usize), (ViolationKind::InvalidFree, other as usize)]
    );
}

fn live_blocks() {
    let victim = victim();
    check::assert_no_leaks(&victim);
    let begin = std::time::Instant::now();
    let blocks = black_box(victim.run(|| [vec![0_u8; 10], vec![0_u8; 3000], vec![0_u8; 10]]));
    std::thread::sleep(std::time::Duration::from_millis(50));
    let live = check::live_blocks(&victim);
    let most = begin.elapsed().as_millis() + 50;
    let sizes: Vec<_> = live.blocks.iter().map(|block| block.layout.size()).collect();
    assert_eq!(sizes, [3000, 10, 10]);
    assert_eq!(live.blocks[0].address, blocks[1].as_ptr() as usize);
    for block in &live.blocks {
        let age = block.age.as_millis();
        assert!((40..=most).contains(&age) && block.backtrace.is_none() && block.thread > 0, "{block:?}");
    }
    let shown = live.to_string();
    assert!(
        shown.starts_with("victim has 3 live blocks, 3020 bytes in sum\n  1 live block, 3000 bytes;"),
        "{shown}"
    );
    assert!(shown.contains("\n  2 live blocks, 20 bytes;"), "{shown}");
    assert!(format!("{live:.1}").ends_with("  and 2 live blocks more, 20 bytes in sum\n"), "{live:.1}");
    drop(blocks);
    check::assert_no_leaks(&victim);
    assert_eq!(check::live_blocks(&victim).to_string(), "victim has no live blocks\n");
}

fn live_call_stacks() {
    let one = culprit();
    // The count is unknown to the compiler, so that the three are made by one call.
    let more: Vec<_> = (0..black_box(3)).map(|_| culprit()).collect();
    let live = check::live_blocks(&victim());
    assert_eq!(live.blocks.len(), 4);
    assert!(live.blocks.iter().all(|block| block.backtrace.is_some_and(|stack| stack.addresses().len() > 3)));
    let shown = live.to_string();
    // The three have their call stack in common.
    assert!(shown.contains("\n  3 live blocks, 72 bytes;"), "{shown}");
    assert!(shown.contains("1: check::culprit") && shown.contains(": check::live_call_stacks"), "{shown}");
    // SAFETY: the blocks are live.
    more.into_iter().chain([one]).for_each(|block| unsafe { dealloc(block, LAYOUT) });
}

fn handler_panics() {
    check::set_handler(|_| panic!("on purpose"));
    twice(culprit());
}

fn crime_in_handler() {
    check::set_handler(|violation| {
        note(violation);
        // SAFETY: none.
        unsafe { dealloc(black_box(std::ptr::without_provenance_mut(0x70)), LAYOUT) };
        Reaction::Leak
    });
    let block = culprit();
    twice(block);
    assert_eq!(met(), [(ViolationKind::DoubleFree, block as usize)]);
}

/// Prints events; commits a crime in one if it is told to, with a lock held.
struct Printer {
    lock: Mutex<()>,
}

impl tracing::Subscriber for Printer {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    // Not those of services that come and go: what they need is in the registry's
    // service too.
    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::INFO)
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);

        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!(" {field}={value:?}");
            }
            fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
                self.0 += &format!(" {field}={value}");
            }
        }

        let _held = self.lock.lock();
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        println!("event {} {}{}", event.metadata().target(), event.metadata().level(), fields.0);
        if fields.0.contains("had been overwritten") {
            IS_LOSS_TOLD.store(true, Ordering::Relaxed);
        }
        if fields.0.contains("commit") {
            twice(culprit());
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

static IS_LOSS_TOLD: AtomicBool = AtomicBool::new(false);

fn subscribe() {
    tracing::subscriber::set_global_default(Printer { lock: Mutex::default() }).unwrap();
}

fn crime_with_subscriber() {
    // One that only this thread has will do too.
    let dispatch = tracing::Dispatch::new(Printer { lock: Mutex::default() });
    tracing::dispatcher::with_default(&dispatch, || twice(culprit()));
}

fn crime_in_subscriber() {
    subscribe();
    tracing::info!("commit");
}

/// The registry's map frees a table, whose end was overwritten, while it grows
/// and is locked.
fn crime_in_registry() {
    subscribe();
    let register = |range: std::ops::Range<usize>| {
        for i in range {
            std::mem::forget(Service::register(format!("service {i}")).unwrap());
        }
    };
    let list = || check::live_blocks(&Service::unattributed()).blocks;
    let is_in = |list: &[check::LiveBlock], address| list.iter().any(|block| block.address == address);
    let known = list();
    register(0..2000);
    // What a list held while it grew is not in the next one.
    let first = list();
    let lists = [known.as_ptr() as usize, first.as_ptr() as usize];
    for block in list() {
        let is_new = is_in(&first, block.address) && !is_in(&known, block.address);
        // The maps' tables: the names of services are shorter.
        if is_new && !lists.contains(&block.address) && (100..10_000).contains(&block.layout.size()) {
            // SAFETY: none.
            unsafe { (block.address as *mut u8).add(block.layout.size()).write(0) };
        }
    }
    println!("growing now");
    register(2000..100_000);
}

struct Late(*mut u8);

impl Drop for Late {
    fn drop(&mut self) {
        twice(self.0);
    }
}

fn crime_in_destructor() {
    thread_local! {
        static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
    }
    subscribe();
    let late = || LATE.with(|late| *late.borrow_mut() = Some(Late(culprit())));
    std::thread::spawn(late).join().unwrap();
}

/// A pthread key's destructor that runs when dogtag's has run.
fn crime_after_destructors() {
    static KEY: std::sync::OnceLock<libc::pthread_key_t> = std::sync::OnceLock::new();

    unsafe extern "C" fn destructor(rounds: *mut libc::c_void) {
        match rounds as usize {
            1 => twice(culprit()),
            // SAFETY: the key exists; a value keeps the destructor coming.
            rounds => unsafe {
                libc::pthread_setspecific(*KEY.get().unwrap(), std::ptr::without_provenance(rounds - 1));
            },
        }
    }

    subscribe();
    let key = KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: `key` is a place for the result.
        assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(destructor)) }, 0);
        key
    });
    let last = || {
        drop(black_box(Box::new(1)));
        // SAFETY: the key exists; the value is never followed.
        unsafe { libc::pthread_setspecific(*key, std::ptr::without_provenance(3)) };
    };
    std::thread::scope(|threads| threads.spawn(last).join().unwrap());
}

/// In a child the threads are gone that held blocks when it was forked.
fn forks() {
    let blocks: Vec<_> = (0..1000).map(|_| culprit() as usize).collect();
    let stop = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while stop.load(Ordering::Relaxed) == 0 {
                    check::verify();
                }
            });
        }
        for _ in 0..200 {
            // SAFETY: the child uses nothing but the allocator, and ends at once.
            let child = unsafe { libc::fork() };
            if child == 0 {
                for _ in 0..2 {
                    victim().run(|| drop(black_box(vec![0_u8; 100])));
                }
                // SAFETY: the child has these blocks to itself.
                blocks.iter().for_each(|&block| unsafe { dealloc(block as *mut u8, LAYOUT) });
                let code = i32::from(victim().usage().blocks() != 0 || check::verify().violations != 0);
                // SAFETY: ends the child without what belongs to its parent.
                unsafe { libc::_exit(code) };
            }
            let mut status = 0;
            // SAFETY: `status` is a place for the result.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0);
        }
        stop.store(1, Ordering::Relaxed);
    });
}

fn lost_blocks() {
    subscribe();
    check::set_handler(|violation| {
        println!("{violation}");
        Reaction::Leak
    });
    let victim = victim();
    let block = culprit();
    // SAFETY: none. What is known of the block is overwritten.
    unsafe {
        block.sub(40).write_bytes(0xAA, 40);
        dealloc(block, LAYOUT);
    }
    let lost = dogtag::snapshot().lost;
    assert_eq!((lost.bytes, lost.blocks), (24, 1));
    assert_eq!(victim.usage().bytes(), 24, "it stays in its service's figures");
    // The event comes from another thread.
    watch::eventually(|| if IS_LOSS_TOLD.load(Ordering::Relaxed) { Ok(()) } else { Err("nothing is told") });
}

fn closures() {
    let found = Arc::new(AtomicUsize::new(0));
    let counting = |by: usize| {
        let found = Arc::clone(&found);
        move |_: &Violation| {
            found.fetch_add(by, Ordering::Relaxed);
            Reaction::Leak
        }
    };
    // Nobody has set one: what is taken is the default.
    let default = check::take_handler();
    check::set_handler(counting(1));
    twice(culprit());
    assert_eq!(found.load(Ordering::Relaxed), 1);
    check::set_handler(counting(10));
    assert_eq!(Arc::strong_count(&found), 2, "the former one is kept");
    let former = check::take_handler();
    // One that asks another one, and is replaced while it runs.
    check::set_handler(move |violation| {
        check::set_handler(|_| Reaction::Leak);
        let _: Reaction = default(violation);
        former(violation)
    });
    twice(culprit());
    assert_eq!(found.load(Ordering::Relaxed), 11);
    assert_eq!(Arc::strong_count(&found), 1, "it was not dropped when it returned");
    twice(culprit());
    assert_eq!(found.load(Ordering::Relaxed), 11);
}

fn exchanged_handlers() {
    const CRIMES: usize = 300;

    /// What a handler has captured, which is whole as long as it may be called.
    struct Captured(Arc<AtomicUsize>, Vec<u8>);

    impl Drop for Captured {
        fn drop(&mut self) {
            self.1.fill(0);
        }
    }

    let (found, is_over) = (Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
    let set = || {
        let captured = Captured(Arc::clone(&found), vec![7; 100]);
        check::set_handler(move |_| {
            assert!(captured.1.iter().all(|byte| *byte == 7), "the handler was dropped");
            captured.0.fetch_add(1, Ordering::Relaxed);
            Reaction::Leak
        });
    };
    set();
    std::thread::scope(|threads| {
        let criminals = [(); 2].map(|()| {
            threads.spawn(|| {
                for _ in 0..CRIMES {
                    twice(culprit());
                }
            })
        });
        threads.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                set();
                let taken = check::take_handler();
                check::set_handler(move |violation| taken(violation));
            }
        });
        criminals.into_iter().for_each(|criminal| criminal.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
    });
    // Some have met nobody's, which reports.
    let found = found.load(Ordering::Relaxed);
    assert!((1..=2 * CRIMES).contains(&found), "{found}");
}

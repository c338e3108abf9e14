//! How a violation is reported, wherever it is found.

use super::{LAYOUT, LINES, culprit, met, note, twice, victim};
use crate::child::dealloc;
use crate::watch;
use dogtag::Service;
use dogtag::check::{self, Reaction, ViolationKind};
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Prints events; commits a violation in one that says so, with a lock held.
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

#[test]
fn report_has_call_stacks() {
    aborts!(
        "backtrace=1,patience=1000",
        "allocated at",
        "check::culprit",
        "freed at",
        "met at",
        "check::twice",
        LINES
    );
    twice(black_box(culprit()));
}

/// Nobody waits for names then.
#[test]
fn without_patience_a_report_has_addresses() {
    aborts!(
        "backtrace=1,patience=0",
        "allocated at\n        0x",
        "freed at\n        0x",
        "met at\n        0x"
    );
    twice(black_box(culprit()));
}

#[test]
fn reaction_by_environment() {
    survives!(
        "reaction=leak,quarantine=lots, colour=red",
        "double free",
        "\"quarantine=lots\" is no setting",
        "\"colour=red\" is no setting",
        "reaction=abort|leak"
    );
    twice(culprit());
}

#[test]
fn handler_that_panics() {
    aborts!("", "double free", "the handler panicked");
    check::set_handler(|_| panic!("on purpose"));
    twice(culprit());
}

#[test]
fn handler_that_commits_a_crime() {
    survives!("", "invalid free of 0x70", "was met while another violation was being reported");
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

#[test]
fn event_of_a_crime() {
    aborts!(
        "",
        "event dogtag ERROR",
        "violation=double free",
        "service=victim",
        "size=24",
        // Of a thread's name the system keeps 15 bytes.
        &format!("freed_on={:.15}", here!())
    );
    // One that only this thread has will do too.
    let dispatch = tracing::Dispatch::new(Printer { lock: Mutex::default() });
    tracing::dispatcher::with_default(&dispatch, || twice(culprit()));
}

#[test]
fn event_while_the_subscriber_holds_a_lock() {
    aborts!("", "double free");
    subscribe();
    tracing::info!("commit");
}

/// The registry's map frees a table, whose end was overwritten, while it grows
/// and is locked.
#[test]
fn event_of_a_crime_in_the_registry() {
    aborts!("", "growing now", "overrun", "event dogtag ERROR");
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

#[test]
fn report_from_a_thread_local_destructor() {
    aborts!("", "double free");
    thread_local! {
        static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
    }
    subscribe();
    let late = || LATE.with(|late| *late.borrow_mut() = Some(Late(culprit())));
    std::thread::spawn(late).join().unwrap();
}

/// A pthread key's destructor that runs when dogtag's has run.
#[test]
fn report_after_all_destructors() {
    aborts!("", "double free", "event dogtag");
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
#[test]
fn fork_while_others_verify() {
    survives!("quarantine-blocks=64");
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

#[test]
fn event_of_a_lost_block() {
    survives!("", "underrun", "event dogtag ERROR", "whose owner had been overwritten");
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

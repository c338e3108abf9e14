//! Each violation in a process of its own, with the report that it ends with.

use super::{
    LAYOUT, PAGE, PLACES, Place, SIZE, allocates, commits, crime_needs_free, every_block, frees, part, report,
};
use crate::child;
use dogtag::Service;
use dogtag::sampled_guard::{Reaction, figures, is_guarded};
use std::alloc::Layout;
use std::hint::black_box;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

/// The child's part: `crime/place`.
fn commit(task: &'static str, reaction: Reaction) -> bool {
    let (crime, place) = task.split_once('/').unwrap();
    let place = Place::parse(place);
    let victim = Service::register("victim").unwrap();
    let culprit = Service::register("culprit").unwrap();
    every_block().reaction(reaction).start().unwrap();
    let named = std::thread::Builder::new().name("committer".into());
    let thread = named.spawn(move || {
        let block = victim.run(|| allocates(place));
        // SAFETY: the block is live.
        unsafe { block.write_bytes(1, SIZE) };
        let is_freed = crime_needs_free(crime);
        if is_freed {
            frees(block, LAYOUT, place);
        }
        culprit.run(|| commits(crime, block, place));
        if !is_freed && crime != "inner free" {
            frees(block, LAYOUT, place);
        }
        let usage = victim.usage();
        usage.bytes().is_multiple_of(SIZE as u64)
    });
    let task = thread.unwrap();
    task.join().unwrap()
}

#[test]
fn each_violation_ends_the_process_with_its_report() {
    if let Some(task) = child::task() {
        commit(task.leak(), Reaction::Abort);
        return;
    }
    use Place::*;
    // What is found, how, and the wrong byte.
    let cases: &[(&str, &[Place], &str, &str, &str)] = &[
        ("write after free", &PLACES, "use after free: something wrote to", "a write", "byte 10\n"),
        ("read after free", &PLACES, "use after free: something read", "a read", "byte 10\n"),
        ("overrun by 1", &[End], "overrun: something wrote past", "a write", "byte 100, the first one past"),
        (
            "overrun by 1",
            &[NearEnd, Beginning, Table],
            "overrun: something wrote past",
            "dealloc",
            "byte 100, the",
        ),
        ("overrun by 32", &[End], "overrun: something wrote past", "a write", "byte 100, the first one past"),
        ("overrun by 32", &[NearEnd], "overrun: something wrote past", "a write", "byte 102, 2 bytes past"),
        ("overrun by 32", &[Table], "overrun: something wrote past", "a write", "byte 104, 4 bytes past"),
        (
            "overrun by 32",
            &[Beginning],
            "overrun: something wrote past",
            "dealloc",
            "byte 100, the first one past",
        ),
        ("read past", &[NearEnd, Table], "overrun: something read past", "a read", "byte 120, 20 bytes past"),
        (
            "underrun",
            &[Beginning],
            "underrun: something wrote in front",
            "a write",
            "byte -1, 1 byte in front",
        ),
        (
            "underrun",
            &[End, NearEnd, Table],
            "underrun: something wrote in front",
            "dealloc",
            "byte -1, 1 byte in",
        ),
        (
            "read in front",
            &[Beginning],
            "underrun: something read in front",
            "a read",
            "byte -3, 3 bytes in front",
        ),
        ("double free", &PLACES, "double free: a block that is freed already", "dealloc", ""),
        ("inner free", &PLACES, "invalid free: a pointer is freed", "dealloc", "byte 8\n"),
    ];
    let test = here!();
    for &(crime, places, headline, found, wrong) in cases {
        for place in places {
            let output = child::run(test, &format!("{crime}/{place:?}"), "");
            let report = report(&output);
            let context = format!("{crime} at {place:?}: {report}");
            assert!(report.contains(&format!("dogtag: {headline}")), "{context}");
            assert!(report.contains(&format!(", in {found}\n")), "{context}");
            assert!(report.contains(wrong), "{context}");
            assert!(report.contains(", 100 bytes aligned to 1\n"), "{context}");
            let who = |what: &str| {
                report.lines().find(|line| line.starts_with(&format!("  {what:<10} by "))).unwrap_or("")
            };
            let is_by = |what: &str, service: &str| {
                let line = who(what);
                line.contains(&format!("by {service} (")) && line.contains(" \"committer\"")
            };
            assert!(is_by("allocated", "victim"), "{context}");
            assert!(part(&report, "allocated").contains("sampled_guard::allocates"), "{context}");
            let met_by = if found != "dealloc" || crime_needs_free(crime) || crime == "inner free" {
                "culprit"
            } else {
                // Found when the block was freed.
                "unattributed"
            };
            assert!(is_by("met", met_by), "{context}");
            let function =
                if met_by == "culprit" { "sampled_guard::commits" } else { "sampled_guard::frees" };
            assert!(part(&report, "met").contains(function), "{context}");
            assert_eq!(report.contains("  freed at\n"), crime_needs_free(crime), "{context}");
            if crime_needs_free(crime) {
                assert!(is_by("freed", "unattributed"), "{context}");
                assert!(part(&report, "freed").contains("sampled_guard::frees"), "{context}");
            }
        }
    }
}

#[test]
fn the_process_goes_on_if_it_is_to() {
    if let Some(task) = child::task() {
        // Events of all threads, on standard output.
        tracing_subscriber::fmt().with_ansi(false).init();
        assert!(commit(task.leak(), Reaction::Continue));
        assert_eq!(figures().caught, 1, "the access is let through once");
        println!("went on");
        return;
    }
    let test = here!();
    for crime in ["write after free", "read after free", "overrun by 32", "double free"] {
        for place in PLACES {
            let output = child::run(test, &format!("{crime}/{place:?}"), "");
            let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
            let text = format!("{crime} at {place:?}: {}\n{out}{err}", output.status);
            assert!(output.status.success() && out.contains("went on") && err.contains("dogtag: "), "{text}");
            let event = out.lines().find(|line| line.contains("the sampled guard found a violation"));
            let event = event.unwrap_or_else(|| panic!("no event: {text}"));
            let kind = match crime {
                "overrun by 32" => "overrun",
                "double free" => crime,
                _ => "use after free",
            };
            for field in [&*format!("violation={kind}"), "size=100", "service=victim", "met_on=committer"] {
                assert!(event.contains(field), "{field}: {event}");
            }
        }
    }
}

#[test]
fn a_forked_child_keeps_its_guarded_blocks_and_guards_more() {
    if let Some(task) = child::task() {
        let service = Service::register("forks").unwrap();
        every_block().start().unwrap();
        let block = service.run(|| allocates(Place::End));
        // SAFETY: the child does what any program does that has one thread.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            frees(block, LAYOUT, Place::End);
            let own = allocates(Place::Beginning);
            assert_eq!(service.usage().bytes() % SIZE as u64, 0);
            frees(own, LAYOUT, Place::Beginning);
            commits(&task, if task == "underrun" { own } else { block }, Place::End);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for the child.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(libc::WTERMSIG(status), libc::SIGABRT);
        assert!(is_guarded(block), "the child's free is not the parent's");
        frees(block, LAYOUT, Place::End);
        return;
    }
    for crime in ["read after free", "double free"] {
        let output = child::run(here!(), crime, "");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{err}");
        let kind = if crime == "double free" { crime } else { "use after free" };
        assert!(err.contains(&format!("dogtag: {kind}: ")) && err.contains("by forks ("), "{err}");
        // No names, but addresses.
        assert!(part(&err, "freed").contains("        0x"), "{err}");
    }
}

#[test]
fn without_patience_a_report_has_addresses() {
    if child::task().is_some() {
        every_block().patience(Duration::ZERO).start().unwrap();
        let block = allocates(Place::End);
        frees(block, LAYOUT, Place::End);
        commits("read after free", block, Place::End);
        return;
    }
    // The thread that writes reports could be as fast, once.
    for _ in 0..20 {
        let report = report(&child::run(here!(), "read after free", ""));
        assert_eq!(report.matches("dogtag: ").count(), 1, "{report}");
        assert!(report.contains("dogtag: use after free: something read a block of 100 bytes"), "{report}");
        assert!(part(&report, "freed").contains("        0x"), "{report}");
    }
}

/// The child is not told of what another thread of the parent's had found, and reports what it finds itself.
#[test]
fn a_child_that_was_forked_during_a_report_reports_its_own() {
    /// Where the report thread is while it emits an event: 1 there, 2 it may go on.
    static STEP: AtomicU32 = AtomicU32::new(0);

    struct Waits;

    impl std::io::Write for Waits {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            STEP.store(1, Ordering::Release);
            while STEP.load(Ordering::Acquire) != 2 {
                std::thread::yield_now();
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    if child::task().is_some() {
        tracing_subscriber::fmt().with_writer(|| Waits).init();
        let guard = every_block().reaction(Reaction::Continue).start().unwrap();
        let freed = || {
            let block = allocates(Place::Table);
            frees(block, LAYOUT, Place::Table);
            block.expose_provenance()
        };
        let blocks = [freed(), freed()];
        // What reports allocate takes none of their slots.
        guard.stop();
        let reads =
            |block| commits("read after free", std::ptr::with_exposed_provenance_mut(block), Place::Table);
        std::thread::scope(|threads| {
            threads.spawn(|| reads(blocks[0]));
            while STEP.load(Ordering::Acquire) != 1 {
                std::thread::yield_now();
            }
            // SAFETY: the child commits a violation, and ends.
            unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    reads(blocks[1]);
                    libc::_exit(i32::from(figures().caught != 2));
                }
                let mut status = 0;
                libc::waitpid(pid, &mut status, 0);
                STEP.store(2, Ordering::Release);
                assert_eq!(status, 0);
            }
        });
        assert_eq!(figures().caught, 1);
        return;
    }
    let output = child::run(here!(), "read after free", "");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && err.matches("dogtag: use after free: ").count() == 2, "{output:?}");
}

/// What is known of a freed block stays until another one takes its slot.
#[test]
fn a_block_that_does_not_fit_leaves_the_slot_as_it_was() {
    if child::task().is_some() {
        every_block().slots(1).start().unwrap();
        // A cookie has no place behind it, wherever it stands.
        let large = Layout::from_size_align(PAGE - 1, 8).unwrap();
        let block = allocates(Place::End);
        frees(block, LAYOUT, Place::End);
        let refused = figures().refused;
        // SAFETY: the layout is not empty.
        let other = black_box(unsafe { std::alloc::alloc(large) });
        assert!(!is_guarded(other) && figures().refused == refused + 1);
        commits("read after free", block, Place::End);
        return;
    }
    let report = report(&child::run(here!(), "read after free", ""));
    assert!(report.contains("dogtag: use after free: something read a block of 100 bytes"), "{report}");
    assert!(part(&report, "freed").contains("sampled_guard::frees"), "{report}");
}

/// A handler of `SIGABRT` commits the next one, while the first is being told.
#[test]
fn a_violation_within_another_ends_the_process() {
    static FREED: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

    extern "C" fn reads(_: i32) {
        commits("read after free", FREED.load(Ordering::Relaxed), Place::Table);
    }

    if child::task().is_some() {
        // SAFETY: sets a handler.
        unsafe { libc::signal(libc::SIGABRT, reads as *const () as usize) };
        every_block().start().unwrap();
        let block = allocates(Place::Table);
        FREED.store(block, Ordering::Relaxed);
        frees(block, LAYOUT, Place::Table);
        frees(block, LAYOUT, Place::Table);
        return;
    }
    let report = report(&child::run(here!(), "double free", ""));
    assert_eq!(report.matches("dogtag: ").count(), 1, "{report}");
}

//! The sampled guard: each violation in a process of its own, with the report that it ends with; books, bounds,
//! shares, forks, and other handlers of its signals.

use crate::child;
use crate::watch::random::Random;
use dogtag::__private::sampled_guard::wait_longer;
use dogtag::sampled_guard::{Reaction, SampledGuard, figures, is_guarded};
use dogtag::{DefaultBackend, Dogtag, OwnerTable, Service};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

const PAGE: usize = 4096;
const SIZE: usize = 100;
const LAYOUT: Layout = Layout::new::<[u8; SIZE]>();

/// Its blocks have no cookies.
static TABLE: Dogtag<DefaultBackend, OwnerTable> = Dogtag::with_owner_table();

/// Where a block stands in its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the end; behind it is a page that can be read.
    End,
    /// At the end but for the mark behind it.
    NearEnd,
    Beginning,
    /// At the end, without a mark.
    Table,
}

const PLACES: [Place; 4] = [Place::End, Place::NearEnd, Place::Beginning, Place::Table];

impl Place {
    fn parse(text: &str) -> Self {
        *PLACES.iter().find(|place| format!("{place:?}") == text).unwrap()
    }

    fn of(block: *mut u8) -> Self {
        match block.addr() % PAGE {
            0 => Self::Beginning,
            offset if offset + SIZE == PAGE => Self::End,
            _ => Self::NearEnd,
        }
    }
}

/// A guarded block in such a place. The others that it gets on the way are leaked.
#[inline(never)]
fn allocates(place: Place) -> *mut u8 {
    for _ in 0..1000 {
        // SAFETY: the layout is not empty.
        let (block, is_there) = unsafe {
            if place == Place::Table {
                let block = TABLE.alloc(LAYOUT);
                // The table's blocks are aligned to 8.
                (block, block.addr() % PAGE == (PAGE - SIZE) / 8 * 8)
            } else {
                let block = std::alloc::alloc(LAYOUT);
                (block, Place::of(block) == place)
            }
        };
        if is_guarded(block) && is_there {
            return black_box(block);
        }
    }
    panic!("no block is guarded at {place:?}");
}

#[inline(never)]
fn frees(block: *mut u8, layout: Layout, place: Place) {
    // SAFETY: a block of that allocator's, or a violation is committed.
    unsafe {
        if place == Place::Table {
            TABLE.dealloc(black_box(block), layout)
        } else {
            child::dealloc(block, layout)
        }
    }
    black_box(());
}

#[inline(never)]
fn commits(crime: &str, block: *mut u8, place: Place) {
    let write = |at: isize| {
        // SAFETY: none: this is the violation.
        unsafe { block.offset(at).write_volatile(0xAB) };
    };
    let read = |at: isize| {
        // SAFETY: none: this is the violation.
        black_box(unsafe { block.offset(at).read_volatile() });
    };
    match crime {
        "overrun by 1" => write(SIZE as isize),
        "overrun by 32" => (0..32).for_each(|i| write(SIZE as isize + i)),
        "read past" => read(SIZE as isize + 20),
        "underrun" => write(-1),
        "read in front" => read(-3),
        "write after free" => write(10),
        "read after free" => read(10),
        "double free" => frees(block, LAYOUT, place),
        "inner free" => {
            let layout = Layout::from_size_align(SIZE - 8, 1).unwrap();
            frees(block.wrapping_add(8), layout, place);
        }
        _ => unreachable!("{crime}"),
    }
    black_box(());
}

/// The child's part: `crime/place`.
fn commit(task: &'static str, reaction: Reaction) -> bool {
    let (crime, place) = task.split_once('/').unwrap();
    let place = Place::parse(place);
    let victim = Service::register("victim").unwrap();
    let culprit = Service::register("culprit").unwrap();
    // However slow the machine is: the report is to have names.
    wait_longer(100);
    SampledGuard::builder().rate(1).reaction(reaction).start().unwrap();
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

fn crime_needs_free(crime: &str) -> bool {
    crime.contains("after free") || crime == "double free"
}

#[track_caller]
fn report(output: &Output) -> String {
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The functions' names of a part of a report.
#[track_caller]
fn part<'a>(report: &'a str, name: &str) -> &'a str {
    let start = report.find(&format!("  {name} at\n")).unwrap_or_else(|| panic!("no {name}: {report}"));
    let rest = &report[start + 5..];
    let end =
        ["  allocated at\n", "  freed at\n", "  met at\n"].iter().filter_map(|next| rest.find(next)).min();
    &rest[..end.unwrap_or(rest.len())]
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
        }
    }
}

/// Whoever had the signals before is called for all that is not in the pool.
#[test]
fn other_handlers_are_called_as_they_asked() {
    const CODE: i32 = 42;

    extern "C" fn with_info(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: reads what the system has passed, and the thread's own mask.
        unsafe {
            let mut mask = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
            let is_right = signal == libc::SIGSEGV
                && (*info).si_addr().addr() == 64
                && libc::sigismember(&mask, libc::SIGUSR1) == 1;
            libc::_exit(if is_right { CODE } else { 1 });
        }
    }

    extern "C" fn without_info(signal: i32) {
        // SAFETY: ends the process.
        unsafe { libc::_exit(if signal == libc::SIGSEGV { CODE } else { 1 }) };
    }

    static PROTECTED: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

    extern "C" fn lets_through(_: i32) {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the block's only page.
        unsafe { libc::mprotect(PROTECTED.load(Ordering::Relaxed).cast(), PAGE, access) };
    }

    fn overflow(depth: u64) -> u64 {
        let large = black_box([depth; 1000]);
        if depth == u64::MAX { 0 } else { overflow(depth + 1) + black_box(large)[7] }
    }

    if let Some(task) = child::task() {
        // SAFETY: sets handlers, and then commits what they are for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaddset(&mut action.sa_mask, libc::SIGUSR1);
            match task.as_str() {
                "info" => {
                    action.sa_sigaction = with_info as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO;
                }
                "plain" => action.sa_sigaction = without_info as *const () as usize,
                "ignored" => action.sa_sigaction = libc::SIG_IGN,
                "barrier" => action.sa_sigaction = lets_through as *const () as usize,
                _ => {}
            }
            if task != "overflow" {
                libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
            }
            SampledGuard::builder().rate(1).start().unwrap();
            match task.as_str() {
                "jump" => {
                    let block = allocates(Place::Beginning);
                    std::mem::transmute::<*mut u8, extern "C" fn()>(block)();
                }
                "protected" | "barrier" => {
                    let block = black_box(std::alloc::alloc(Layout::from_size_align(PAGE, PAGE).unwrap()));
                    assert!(is_guarded(block));
                    PROTECTED.store(block, Ordering::Relaxed);
                    libc::mprotect(block.cast(), PAGE, libc::PROT_READ);
                    block.write_volatile(1);
                    println!("went on");
                }
                "overflow" => _ = black_box(overflow(0)),
                "sent" => _ = libc::raise(libc::SIGSEGV),
                "ignored" => {
                    libc::raise(libc::SIGSEGV);
                    println!("went on");
                }
                _ => std::ptr::with_exposed_provenance_mut::<u8>(64).write_volatile(1),
            }
        }
        return;
    }
    let test = here!();
    let run = |task| child::run(test, task, "");
    for task in ["info", "plain"] {
        assert_eq!(run(task).status.code(), Some(CODE), "{task}");
    }
    // A jump into a guarded block, and an access to one that the program has protected, are not the guard's.
    for task in ["default", "sent", "jump", "protected"] {
        assert_eq!(run(task).status.signal(), Some(libc::SIGSEGV), "{task}");
    }
    for task in ["ignored", "barrier"] {
        assert!(run(task).status.success(), "{task}");
    }
    let overflown = run("overflow");
    assert!(String::from_utf8_lossy(&overflown.stderr).contains("has overflowed its stack"), "{overflown:?}");
}

#[test]
fn a_forked_child_keeps_its_guarded_blocks_and_guards_more() {
    if let Some(task) = child::task() {
        let service = Service::register("forks").unwrap();
        SampledGuard::builder().rate(1).start().unwrap();
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

/// In the child nobody goes on with what another thread of the parent's was at.
#[test]
fn a_child_can_start_and_stop_whatever_others_did_at_the_fork() {
    alone!();
    SampledGuard::builder().start().unwrap();
    let is_over = AtomicBool::new(false);
    let again = || {
        if let Some(guard) = SampledGuard::running() {
            guard.stop();
        }
        _ = SampledGuard::builder().start();
    };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                again();
            }
        });
        for _ in 0..200 {
            // SAFETY: the child does no more than change what is sampled, and ends.
            unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    again();
                    libc::_exit(0);
                }
                let mut status = 0;
                libc::waitpid(pid, &mut status, 0);
                assert_eq!(status, 0);
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// Who starts the guard is not charged with what that takes.
#[test]
fn a_start_is_nobodys() {
    alone!();
    let service = Service::register("starts").unwrap();
    service.run(|| SampledGuard::builder().start().unwrap());
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (0, 0));
}

/// What is known of a freed block stays until another one takes its slot.
#[test]
fn a_block_that_does_not_fit_leaves_the_slot_as_it_was() {
    if child::task().is_some() {
        wait_longer(100);
        SampledGuard::builder().rate(1).slots(1).start().unwrap();
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
        wait_longer(100);
        // SAFETY: sets a handler.
        unsafe { libc::signal(libc::SIGABRT, reads as *const () as usize) };
        SampledGuard::builder().rate(1).start().unwrap();
        let block = allocates(Place::Table);
        FREED.store(block, Ordering::Relaxed);
        frees(block, LAYOUT, Place::Table);
        frees(block, LAYOUT, Place::Table);
        return;
    }
    let report = report(&child::run(here!(), "double free", ""));
    assert_eq!(report.matches("dogtag: ").count(), 1, "{report}");
}

/// Blocks are guarded while there are slots, and the slot that was freed first is used again first.
#[test]
fn the_pool_is_bounded_and_freed_slots_wait_for_longest() {
    alone!();
    const SLOTS: usize = 32;
    let guard = SampledGuard::builder().rate(1).slots(SLOTS).start().unwrap();
    assert_eq!((guard.rate(), guard.slots(), SampledGuard::running()), (1, SLOTS, Some(guard)));
    assert!(SampledGuard::builder().start().is_err());
    // SAFETY: blocks of that layout, each freed once.
    unsafe {
        let blocks: Vec<*mut u8> = (0..100).map(|_| std::alloc::alloc(LAYOUT)).collect();
        let at_most = |figures: dogtag::sampled_guard::Figures| figures.guarded as usize <= SLOTS;
        assert!(at_most(figures()) && figures().refused >= 50, "{:?}", figures());
        blocks.iter().for_each(|&block| child::dealloc(block, LAYOUT));
        // Others come and go, but the slots of these wait for their turn.
        let mut last = BTreeMap::new();
        for turn in 0..200 {
            let block = std::alloc::alloc(LAYOUT);
            if is_guarded(block)
                && let Some(before) = last.insert(block.addr() / PAGE, turn)
            {
                assert!(turn - before >= SLOTS / 3, "{last:?}");
            }
            child::dealloc(block, LAYOUT);
        }
        assert!(last.len() >= SLOTS / 3, "{last:?}");
    }
    let snapshot = dogtag::snapshot();
    assert!(snapshot.regions.iter().any(|region| region.name == "dogtag::sampled_guard"));
    guard.stop();
    assert_eq!(SampledGuard::running(), None);
    let block = Box::new([0_u8; SIZE]);
    assert!(!is_guarded(block.as_ptr()));
    // There may be fewer slots then, not more.
    assert!(SampledGuard::builder().slots(SLOTS + 1).start().is_err());
    assert!(SampledGuard::builder().slots(SLOTS).start().is_ok());
}

/// Whatever is guarded, all is charged and refunded to the byte; contents stay.
#[test]
fn books_are_exact_with_every_block_guarded() {
    alone!();
    SampledGuard::builder().rate(1).slots(64).start().unwrap();
    let services: Vec<Service> = (0..3).map(|i| Service::register(format!("books {i}")).unwrap()).collect();
    struct Block(*mut u8, Layout, u8, usize);
    // SAFETY: the test's, and freed once.
    unsafe impl Send for Block {}
    let common = Mutex::new(Vec::<Block>::new());
    std::thread::scope(|threads| {
        for seed in 0..2_u64 {
            let (services, common) = (&services, &common);
            threads.spawn(move || {
                let mut random = Random::new(seed + 1);
                for turn in 0..20_000_u32 {
                    let which = random.below(3);
                    let most_size = if random.once_in(4) { 6000 } else { 300 };
                    let size = 1 + random.below(most_size);
                    let most_align = if random.once_in(9) { 13 } else { 5 };
                    let align = 1_usize << random.below(most_align);
                    let layout = Layout::from_size_align(size, align).unwrap();
                    let allocator: &dyn GlobalAlloc = if which == 2 { &TABLE } else { &crate::ALLOC };
                    let fill = turn as u8;
                    let taken = {
                        let mut common = common.lock().unwrap();
                        let at = random.below(common.len().max(1));
                        if common.len() > 60 || random.below(3) == 0 {
                            (!common.is_empty()).then(|| common.swap_remove(at))
                        } else {
                            None
                        }
                    };
                    // SAFETY: blocks of that allocator's and layout.
                    unsafe {
                        match taken {
                            Some(Block(block, old, fill, owner)) => {
                                assert!((0..old.size()).all(|i| *block.add(i) == fill));
                                let allocator: &dyn GlobalAlloc =
                                    if owner == 2 { &TABLE } else { &crate::ALLOC };
                                if random.below(2) == 0 {
                                    allocator.dealloc(block, old);
                                    continue;
                                }
                                let new = services[owner].run(|| allocator.realloc(block, old, size));
                                assert!((0..old.size().min(size)).all(|i| *new.add(i) == fill));
                                new.write_bytes(fill, size);
                                let layout = Layout::from_size_align(size, old.align()).unwrap();
                                common.lock().unwrap().push(Block(new, layout, fill, owner));
                            }
                            None => {
                                let block = services[which].run(|| {
                                    if fill.is_multiple_of(2) {
                                        allocator.alloc_zeroed(layout)
                                    } else {
                                        allocator.alloc(layout)
                                    }
                                });
                                assert!(block.addr().is_multiple_of(align));
                                assert!(!fill.is_multiple_of(2) || (0..size).all(|i| *block.add(i) == 0));
                                block.write_bytes(fill, size);
                                common.lock().unwrap().push(Block(block, layout, fill, which));
                            }
                        }
                    }
                }
            });
        }
    });
    let left = common.into_inner().unwrap();
    for (which, service) in services.iter().enumerate() {
        let own = || left.iter().filter(|block| block.3 == which);
        let usage = service.usage();
        assert_eq!(usage.blocks() as usize, own().count());
        assert_eq!(usage.bytes() as usize, own().map(|block| block.1.size()).sum::<usize>());
    }
    for Block(block, layout, _, owner) in left {
        let allocator: &dyn GlobalAlloc = if owner == 2 { &TABLE } else { &crate::ALLOC };
        // SAFETY: a block of that allocator's.
        unsafe { allocator.dealloc(block, layout) };
    }
    assert!(services.iter().all(|service| service.usage().bytes() == 0 && service.usage().blocks() == 0));
    let figures = figures();
    assert!(figures.ever > 1000 && figures.caught == 0, "{figures:?}");
}

/// One allocation in so many is guarded, whatever its size, on any thread, in any service.
#[test]
fn the_share_of_guarded_blocks_is_the_rate() {
    alone!();
    const RATE: u64 = 100;
    const N: u64 = 60_000;
    SampledGuard::builder().rate(RATE).start().unwrap();
    let other = Service::register("share").unwrap();
    let sizes = [8_usize, 33, 200, 2000];
    let mut guarded = [0_u64; 4];
    for turn in 0..N {
        let which = (turn % 4) as usize;
        let layout = Layout::from_size_align(sizes[which], 1).unwrap();
        let _scope = (turn % 3 == 0).then(|| other.enter());
        // SAFETY: a block of that layout.
        unsafe {
            let block = black_box(std::alloc::alloc(layout));
            guarded[which] += u64::from(is_guarded(block));
            std::alloc::dealloc(block, layout);
        }
    }
    let expected = (N / 4) as f64 / RATE as f64;
    for guarded in guarded {
        // Seven standard errors.
        assert!((guarded as f64 - expected).abs() < 7.0 * expected.sqrt(), "{guarded} of {expected}");
    }
    assert_eq!(figures().refused, 0);
}

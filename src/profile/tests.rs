//! Sampling end to end: what the tables hold of blocks that come and go.

use super::Origin;
use super::collect::{self, Collected};
use crate::{Dogtag, Service};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Of the process there is but one profiler.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

static ALLOC: Dogtag<System> = Dogtag::with_backend(System);

/// What was sampled of a service: samples, and estimates of objects and bytes.
fn of(collected: &Collected, service: &Service) -> (u64, f64, f64) {
    let rows = collected.rows.iter().filter(|row| *collected.services[row.service].name == *service.name());
    rows.fold((0, 0.0, 0.0), |(samples, objects, bytes), row| {
        (samples + row.samples, objects + row.objects, bytes + row.bytes)
    })
}

fn live(service: &Service) -> (u64, f64, f64) {
    of(&collect::live(), service)
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// Blocks, and what frees them in whatever way.
struct Blocks(Vec<(*mut u8, Layout)>);

// SAFETY: addresses, each one's own.
unsafe impl Send for Blocks {}

impl Blocks {
    fn of(service: &Service, sizes: impl IntoIterator<Item = usize>) -> Self {
        // SAFETY: no size is 0.
        let alloc = |size| (unsafe { ALLOC.alloc(layout(size)) }, layout(size));
        Self(sizes.into_iter().map(|size| service.run(|| alloc(size))).collect())
    }

    fn resize(&mut self, service: &Service, to: impl Fn(usize) -> usize) {
        for (block, old) in &mut self.0 {
            let new = to(old.size());
            // SAFETY: live, with that layout; the new size is not 0.
            *block = service.run(|| unsafe { ALLOC.realloc(*block, *old, new) });
            *old = layout(new);
        }
    }

    fn free(self) {
        for (block, layout) in self.0 {
            // SAFETY: live, with that layout.
            unsafe { ALLOC.dealloc(block, layout) };
        }
    }
}

#[test]
fn every_allocation_is_sampled_and_no_sample_is_left() {
    let _alone = alone();
    let profiler = super::Profiler::builder().interval(1).start().unwrap();
    let [one, other] = ["sampled: one", "sampled: other"].map(|name| Service::register(name).unwrap());
    let sizes = || (1..200).chain([4000, 4095, 4096, 5000, 100_000, 3 << 20]);
    let total: usize = sizes().sum();
    let count = sizes().count() as u64;
    let mut blocks = Blocks::of(&one, sizes());
    assert_eq!(live(&one), (count, count as f64, total as f64));
    assert_eq!(one.usage().bytes(), total as u64);
    // Grown and shrunk by another service, across all boundaries.
    for to in [5000, 4096, 4093, 10, 20, 70_000, 1] {
        blocks.resize(&other, |_| to);
        assert_eq!(live(&one).0, 0);
        assert_eq!(live(&other), (count, count as f64, (count as usize * to) as f64));
        assert_eq!(other.usage().bytes(), count * to as u64);
    }
    std::thread::spawn(|| blocks.free()).join().unwrap();
    assert_eq!((live(&one).0, live(&other).0), (0, 0));
    // And all of it was counted.
    let (samples, _, bytes) = of(&collect::allocated(), &other);
    assert_eq!((samples, bytes as u64), (7 * count, other.usage().allocated_bytes));
    assert_eq!(other.usage().bytes(), 0);
    profiler.stop();
}

/// By how much longer it takes: `DOGTAG_EFFORT`.
fn effort() -> usize {
    std::env::var("DOGTAG_EFFORT").ok().and_then(|effort| effort.parse().ok()).unwrap_or(1)
}

/// The mean over many rounds is the truth, whatever the sizes, on one thread and by turns of services.
/// `DOGTAG_EFFORT=10` finds a bias of 2 %.
#[test]
fn estimates_are_without_bias() {
    let _alone = alone();
    let interval = 16 << 10;
    let profiler = super::Profiler::builder().interval(interval).start().unwrap();
    let service = Service::register("sampled: estimates").unwrap();
    let others: Vec<_> = (0..3).map(|i| Service::register(format!("sampled: turn {i}")).unwrap()).collect();
    for size in [16, 500, 4000, 20_000, 300_000] {
        // The mean of so many has a standard error of 1 %, and of ten times as many one of 0.3 %.
        let samples = 10_000.0 * 2.0;
        let p = -f64::exp_m1(-(size as f64) / interval as f64);
        let blocks_needed = (samples / p).min(400_000.0) as usize * effort();
        let error = ((1.0 - p) / (p * blocks_needed as f64)).sqrt();
        let (mut objects, mut rounds) = (0.0, 0);
        let before = of(&collect::allocated(), &service).1;
        while rounds < blocks_needed {
            let blocks = Blocks::of(&service, (0..1000).map(|_| size));
            let turns = Blocks::of(&others[rounds / 1000 % 3], [size, 3 * size]);
            objects += live(&service).1;
            rounds += 1000;
            blocks.free();
            turns.free();
        }
        let mean = objects / rounds as f64;
        assert!((mean - 1.0).abs() < 5.0 * error + 1e-9, "{size}: {mean}, standard error {error}");
        // What was allocated is the same.
        let allocated = of(&collect::allocated(), &service).1 - before;
        assert!((allocated / objects - 1.0).abs() < 1e-9, "{allocated} {objects}");
    }
    profiler.stop();
}

#[test]
fn a_stopped_profiler_samples_nothing_and_starts_again() {
    let _alone = alone();
    let service = Service::register("sampled: stopped").unwrap();
    let profiler = super::Profiler::builder().interval(1).start().unwrap();
    assert_eq!(super::Profiler::builder().start(), Err(super::ProfileError::Running));
    // What is wrong with settings is told before that: who asks for samples from outside depends on it.
    let refused = |settings| super::Profiler::from_settings(settings).unwrap_err();
    assert!(matches!(refused("interval=none"), super::ProfileError::Setting { .. }));
    assert_eq!(refused("interval=0"), super::ProfileError::NoInterval);
    assert_eq!(refused("interval=64K"), super::ProfileError::Running);
    assert_eq!(super::Profiler::running(), Some(profiler));
    let first = Blocks::of(&service, [100; 10]);
    profiler.stop();
    assert_eq!((super::Profiler::running(), profiler.interval()), (None, 0));
    let second = Blocks::of(&service, [100; 1000]);
    assert_eq!(live(&service).0, 10);
    let profiler = super::Profiler::builder().interval(1 << 40).start().unwrap();
    let third = Blocks::of(&service, [100; 1000]);
    assert_eq!(live(&service).0, 10);
    profiler.set_interval(1).unwrap();
    let fourth = Blocks::of(&service, [100; 5]);
    assert_eq!(live(&service).0, 15);
    let collected = collect::live();
    let total = collected.services.iter().find(|total| *total.name == *service.name()).unwrap();
    assert_eq!((total.bytes, total.blocks), (201_500, 2015));
    // The second start was after the second thousand.
    assert_eq!((total.bytes_before, total.blocks_before), (101_000, 1010));
    profiler.stop();
    // What was allocated while nothing was sampled has no call stack.
    let fifth = Blocks::of(&service, [100; 50_000]);
    let profile = super::Profile::new(collect::live());
    let rows = || profile.rows.iter().filter(|row| row.service == service.name());
    let by_stack: i64 =
        rows().filter(|row| matches!(row.origin, Origin::Stack(_))).map(|row| row.bytes).sum();
    assert_eq!((by_stack, rows().map(|row| row.bytes).sum::<i64>()), (1500, 5_201_500));
    // And of what was allocated, a new run knows its own.
    let profiler = super::Profiler::builder().interval(1).start().unwrap();
    let sixth = Blocks::of(&service, [100; 7]);
    assert_eq!(of(&collect::allocated(), &service), (7, 7.0, 700.0));
    profiler.stop();
    [first, second, third, fourth, fifth, sixth].into_iter().for_each(Blocks::free);
    assert_eq!(live(&service).0, 0);
}

#[inline(never)]
fn small(service: &Service) -> Blocks {
    std::hint::black_box(Blocks::of(service, (0..30_000).map(|i| 16 + i % 97)))
}

#[inline(never)]
fn mixed(service: &Service) -> Blocks {
    // Sizes from 64 B to 64 KiB, each doubling as often as the others.
    std::hint::black_box(Blocks::of(service, (0..800).map(|i| (64 << (i % 11)) + i)))
}

#[inline(never)]
fn large(service: &Service) -> Blocks {
    std::hint::black_box(Blocks::of(service, [8 << 20, 1 << 20, 300_000]))
}

/// The rows of a service, by which of these has allocated them.
const KINDS: [fn(&Service) -> Blocks; 3] = [small, mixed, large];

fn kind(stack: &[usize]) -> Option<usize> {
    let after = |function: fn(&Service) -> Blocks| {
        let nearest = stack.iter().map(|address| address.wrapping_sub(function as usize)).min();
        nearest.filter(|distance| *distance < 1024)
    };
    (0..KINDS.len()).filter_map(|kind| Some((after(KINDS[kind])?, kind))).min().map(|(_, kind)| kind)
}

/// Each stack's own, whatever it had before.
#[test]
fn what_was_allocated_between_is_by_stack() {
    let _alone = alone();
    let profiler = super::Profiler::builder().interval(1).start().unwrap();
    let service = Service::register("between").unwrap();
    let (mut all, mut profiles) = (Vec::new(), Vec::new());
    // By the same stacks both times.
    for round in 0..std::hint::black_box(2) {
        all.push(mixed(&service));
        (round..3).for_each(|_| all.push(small(&service)));
        profiles.push(super::Profile::new(collect::allocated()));
    }
    let between = profiles[1].difference(&profiles[0]);
    let mut found = [0; KINDS.len()];
    for row in between.rows.iter().filter(|row| row.service == service.name()) {
        if let Origin::Stack(stack) = &row.origin {
            found[kind(stack).expect("nobody else allocates there")] += row.bytes;
        }
    }
    let bytes = |blocks: &Blocks| blocks.0.iter().map(|(_, layout)| layout.size() as i64).sum();
    assert_eq!(found, [2 * bytes(&all[1]), bytes(&all[0]), 0]);
    profiler.stop();
    all.into_iter().for_each(Blocks::free);
}

#[test]
fn stacks_have_as_many_frames_as_were_asked_for() {
    let _alone = alone();
    let service = Service::register("sampled: depth").unwrap();
    for depth in [2, 5] {
        let profiler = super::Profiler::builder().interval(1).depth(depth).start().unwrap();
        let blocks = mixed(&service);
        let live = collect::live();
        let rows = live.rows.iter().filter(|row| *live.services[row.service].name == *service.name());
        let stacks: Vec<_> = rows.map(|row| row.stack.len()).collect();
        assert!(stacks.iter().all(|frames| *frames <= depth) && stacks.contains(&depth), "{stacks:?}");
        blocks.free();
        profiler.stop();
    }
}

#[test]
fn what_ended_services_have_allocated_stays() {
    let _alone = alone();
    let profiler = super::Profiler::builder().interval(1).start().unwrap();
    let service = Service::register("sampled: ended").unwrap();
    let blocks = mixed(&service);
    let bytes: usize = blocks.0.iter().map(|(_, layout)| layout.size()).sum();
    blocks.free();
    drop(service);
    let profile = super::Profile::new(collect::allocated());
    assert!(profile.rows.iter().all(|row| row.service != "sampled: ended"), "{profile}");
    let ended = profile.rows.iter().filter(|row| {
        let is_its = matches!(&row.origin, Origin::Stack(stack) if kind(stack) == Some(1));
        is_its && row.service == "[ended services]"
    });
    assert_eq!(ended.map(|row| row.bytes as usize).sum::<usize>(), bytes, "{profile}");
    profiler.stop();
}

/// Over many runs each row is right in the mean, and as wrong as it says. `DOGTAG_EFFORT=10` for a thousand.
#[test]
fn rows_are_right_in_the_mean_and_as_wrong_as_they_say() {
    let _alone = alone();
    let runs = 100 * effort();
    let profiler = super::Profiler::builder().interval(32 << 10).start().unwrap();
    let services = ["one", "two", "three"].map(|name| Service::register(format!("right: {name}")).unwrap());
    let mut found = vec![(Vec::new(), 0); services.len() * KINDS.len()];
    let mut truth = vec![0; found.len()];
    for run in 0..runs {
        let mut all = Vec::new();
        for (i, service) in services.iter().enumerate() {
            for (kind, allocate) in KINDS.iter().enumerate() {
                let blocks = allocate(service);
                truth[i * KINDS.len() + kind] = blocks.0.iter().map(|(_, layout)| layout.size()).sum();
                all.push(blocks);
            }
        }
        let profile = super::Profile::new(collect::live());
        for (i, service) in services.iter().enumerate() {
            let rows: Vec<_> = profile.rows.iter().filter(|row| row.service == service.name()).collect();
            let sum: i64 = rows.iter().map(|row| row.bytes).sum();
            assert_eq!(sum as u64, service.usage().bytes(), "run {run}");
            for kind_of_row in 0..KINDS.len() {
                let of_kind = rows.iter().filter(
                    |row| matches!(&row.origin, Origin::Stack(stack) if kind(stack) == Some(kind_of_row)),
                );
                let (bytes, variance) = of_kind.fold((0.0, 0.0), |(bytes, variance), row| {
                    (bytes + row.bytes as f64, variance + row.standard_error * row.standard_error)
                });
                let place = i * KINDS.len() + kind_of_row;
                let (all, within) = &mut found[place];
                all.push(bytes);
                *within += usize::from((bytes - truth[place] as f64).abs() <= 1.96 * variance.sqrt() + 1.0);
            }
        }
        // Freed by another thread, where they have grown or shrunk before.
        std::thread::scope(|threads| {
            let elsewhere = &services[run % 3];
            threads.spawn(move || {
                for mut blocks in all {
                    blocks.resize(elsewhere, |size| size / 2 + 40);
                    blocks.free();
                }
            });
        });
    }
    for ((bytes, within), truth) in found.into_iter().zip(truth) {
        let mean = bytes.iter().sum::<f64>() / runs as f64;
        let squares = bytes.iter().map(|it| (it - mean) * (it - mean)).sum::<f64>();
        let error = (squares / (runs * runs) as f64).sqrt();
        let part = within as f64 / runs as f64;
        println!(
            "{:.4} of {truth}, standard error {:.4}, {part:.3} within",
            mean / truth as f64,
            error / truth as f64
        );
        assert!(
            (mean - truth as f64).abs() <= 5.0 * error + truth as f64 / 1e4,
            "{mean} instead of {truth}, error {error}"
        );
        assert!(part > 0.85, "only {part} of the intervals have it");
    }
    profiler.stop();
}

//! Families as deep as anybody makes them: what is done with them takes time in proportion to
//! their size, and no stack. Each in a child process that may use so much CPU and no more: what
//! is done for each service and all above it would take hours.
#![allow(unsafe_code, reason = "the bound of CPU time")]

use dogtag::Service;

fn deep() -> usize {
    match crate::child::is_every_block_sampled() {
        true => 50_000,
        false if cfg!(feature = "memory-check") => 100_000,
        false => 300_000,
    }
}

/// Does it on a thread with little more than the least of a stack, and so much CPU time.
fn bounded(work: fn()) {
    let most = libc::rlimit { rlim_cur: 60, rlim_max: 60 };
    // SAFETY: bounds this process's CPU time, in seconds.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CPU, &most) }, 0);
    std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn family_as_deep_as_anybody_makes_it() {
    alone!();
    bounded(a_deep_family);
}

#[test]
fn hard_limit_far_above() {
    alone!();
    bounded(limits_far_above);
}

#[test]
fn hard_limit_that_comes_and_goes() {
    alone!();
    bounded(a_limit_that_comes_and_goes);
}

#[cfg(feature = "serde")]
#[test]
fn snapshot_of_a_deep_family_from_elsewhere() {
    alone!();
    bounded(from_elsewhere);
}

/// The root, and the last of its line, which holds all between.
fn line(length: usize) -> (Service, Service) {
    let root = Service::register("root").unwrap();
    let mut last = root.clone();
    for i in 1..length {
        last = Service::builder(format!("child {i}")).parent(&last).register().unwrap();
    }
    (root, last)
}

fn width(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap()
}

fn a_deep_family() {
    let (root, last) = line(deep());
    let block = last.run(|| vec![0_u8; 1000]);
    assert_eq!(root.usage_with_children().bytes(), 1000);
    let snapshot = dogtag::snapshot();
    assert!(snapshot.rows.len() >= deep());
    let row = snapshot.rows.iter().find(|row| row.name == "root").unwrap();
    assert_eq!((row.usage.bytes(), row.usage_with_children.bytes()), (0, 1000));
    for text in [snapshot.to_string(), format!("{snapshot:#}")] {
        assert!(width(&text) < 200, "{}", width(&text));
    }
    drop(block);
    // All of them end.
    drop((root, last));
    assert!(dogtag::snapshot().rows.len() < 10);
}

fn limits_far_above() {
    let (root, _first) = line(2);
    root.set_hard_limit(Some(1 << 20));
    let mut last = root.clone();
    for i in 0..deep() {
        last = Service::builder(format!("below {i}")).parent(&last).register().unwrap();
    }
    let near = Service::builder("near").parent(&last).hard_limit(1 << 19).register().unwrap();
    assert_eq!((last.headroom(), near.headroom()), (Some(1 << 20), Some(1 << 19)));
    let grow = |service: &Service, bytes| {
        let mut block = Vec::<u8>::new();
        service.run(|| block.try_reserve_exact(bytes)).map(|()| block)
    };
    assert!(grow(&near, 600_000).is_err(), "past its own limit");
    let block = grow(&near, 500_000).unwrap();
    assert!(grow(&last, 600_000).is_err(), "past the limit that is far above");
    assert_eq!(last.usage().denied, 1);
    let other = grow(&last, 300_000).unwrap();
    drop((block, other));
    drop(grow(&last, 1_000_000).unwrap());
}

/// Each child is below a limit as long as there is one.
fn a_limit_that_comes_and_goes() {
    let (root, last) = line(100);
    let middle = (0..50).fold(last.clone(), |service, _| service.parent().unwrap());
    let is_denied = |service: &Service| service.run(|| Vec::<u8>::new().try_reserve(2 << 20)).is_err();
    for limited in [&root, &middle, &last] {
        assert!(!is_denied(&last) && last.headroom().is_none());
        limited.set_hard_limit(Some(1 << 20));
        let child = Service::builder("comes later").parent(&last).register().unwrap();
        assert!(is_denied(&last) && is_denied(&child) && child.headroom() == Some(1 << 20));
        limited.set_hard_limit(None);
        assert!(!is_denied(&last) && !is_denied(&child) && child.headroom().is_none());
    }
    // Two of them, the lower one first, then the upper one alone.
    middle.set_hard_limit(Some(4 << 20));
    root.set_hard_limit(Some(3 << 20));
    assert_eq!(last.headroom(), Some(3 << 20));
    middle.set_hard_limit(None);
    assert_eq!(last.headroom(), Some(3 << 20));
    root.set_soft_limit(Some(1));
    root.set_hard_limit(None);
    assert!(!is_denied(&last));
}

/// Parents that are nobody, or a row's own descendants, and names and figures of any kind.
#[cfg(feature = "serde")]
fn from_elsewhere() {
    use dogtag::Snapshot;

    let row = serde_json::to_value(dogtag::Row::default()).unwrap();
    let snapshot = |parent: fn(usize) -> Option<usize>| -> Snapshot {
        let rows: Vec<_> = (0..deep())
            .map(|i| {
                let mut row = row.clone();
                row["name"] = if i == 7 { "x\n".repeat(1 << 20).into() } else { format!("q{i}").into() };
                row["handle"] = 5.into();
                row["parent"] = parent(i).into();
                row["usage"]["allocated_bytes"] = u64::MAX.into();
                row["usage"]["freed_bytes"] = i.into();
                row["usage_with_children"]["denied"] = u64::MAX.into();
                row
            })
            .collect();
        let mut value = serde_json::to_value(Snapshot::default()).unwrap();
        value["rows"] = rows.into();
        serde_json::from_value(value).unwrap()
    };
    let parents: [fn(usize) -> Option<usize>; 6] = [
        |i| i.checked_sub(1),
        |i| Some(i + 1),
        |i| Some((i + 1) % deep()),
        |i| Some(i),
        |i| Some(i / 2),
        |_| Some(usize::MAX),
    ];
    for parent in parents {
        let snapshot = snapshot(parent);
        let tree = format!("{snapshot:#}");
        assert!(width(&tree) < 200, "{}", width(&tree));
        let is_row = |line: &&str| line.trim_start().starts_with(['q', '(', 'x']);
        assert_eq!(tree.lines().filter(is_row).count(), deep(), "each is shown once");
        assert!(width(&snapshot.to_string()) < 200);
        assert!(!format!("{snapshot:.3}").is_empty());
    }
}

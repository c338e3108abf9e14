//! Blocks in quarantine, and live ones.

use super::{LAYOUT, culprit, met, note, twice, victim};
use crate::child::dealloc;
use crate::watch;
use dogtag::check::{self, ViolationKind};
use std::fmt::Write;
use std::hint::black_box;
use std::sync::{Arc, Barrier};

fn quarantine() -> (u64, u64) {
    let quarantine = dogtag::snapshot().quarantine.expect("with memory-check");
    (quarantine.bytes, quarantine.blocks)
}

#[test]
fn quarantine_of_few_bytes() {
    survives!("quarantine=1M");
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
    drop(black_box(vec![1_u8; 66 << 20]));
    assert!(quarantine().1 >= before.1);
}

#[test]
fn quarantine_of_few_blocks() {
    survives!("quarantine-blocks=64");
    for _ in 0..1000 {
        drop(black_box(vec![1_u8; 50]));
    }
    let (_, blocks) = quarantine();
    assert!((64..64 + 2 * 32).contains(&blocks), "{blocks}");
    assert!(dogtag::snapshot().to_string().contains("quarantine: "), "the table shows it");
}

/// What the documentation says of how long a freed block is kept.
#[test]
fn quarantine_by_default() {
    survives!("");
    for _ in 0..40_000 {
        drop(black_box(vec![1_u8; 50]));
    }
    let (_, blocks) = quarantine();
    assert!((16_384..16_384 + 2 * 32).contains(&blocks), "{blocks}");
    for _ in 0..100 {
        drop(black_box(vec![1_u8; 1 << 20]));
    }
    let (bytes, _) = quarantine();
    assert!((14 << 20..(16 << 20) + (300 << 10)).contains(&bytes), "{bytes}");
}

#[test]
fn quarantine_of_nothing() {
    survives!("quarantine=0");
    for _ in 0..1000 {
        drop(black_box(vec![1_u8; 50]));
    }
    assert_eq!(quarantine(), (0, 0));
    // Violations of live blocks are still found, and a second free is not followed.
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

#[test]
fn live_blocks_are_listed() {
    survives!("");
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

/// Who looks names up holds a lock of a library's, which in a child of another thread's nobody gives back.
#[test]
fn a_child_that_was_forked_while_names_are_looked_up_shows_call_stacks() {
    /// Waits at the first text that it gets: inside the look-up.
    struct Waits(Option<Barriers>);
    type Barriers = Arc<[Barrier; 2]>;

    impl Write for Waits {
        fn write_str(&mut self, _: &str) -> std::fmt::Result {
            self.0
                .take()
                .into_iter()
                .for_each(|barriers| barriers.iter().for_each(|barrier| _ = barrier.wait()));
            Ok(())
        }
    }

    alone!("backtrace=1");
    let block = culprit();
    let stack = check::live_blocks(&victim()).blocks[0].backtrace.unwrap();
    let barriers: Barriers = Arc::new([Barrier::new(2), Barrier::new(2)]);
    std::thread::scope(|threads| {
        let mut waits = Waits(Some(barriers.clone()));
        threads.spawn(move || write!(waits, "{stack}").unwrap());
        barriers[0].wait();
        // SAFETY: the child asks dogtag, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let shown = stack.to_string();
            // SAFETY: ends the process, without what others may have locked.
            unsafe { libc::_exit(i32::from(shown.lines().count() != stack.addresses().len())) };
        }
        let status = watch::ended(child);
        barriers[1].wait();
        assert!(status.success(), "{status}");
    });
    // SAFETY: the block is live.
    unsafe { dealloc(block, LAYOUT) };
}

/// Three blocks by one call: the compiler knows neither their number nor where they go.
#[inline(never)]
fn some() -> Vec<*mut u8> {
    let mut blocks = Vec::with_capacity(3);
    while blocks.len() < black_box(3) {
        blocks.push(black_box(culprit()));
    }
    blocks
}

#[test]
fn live_blocks_have_call_stacks() {
    survives!("backtrace=1");
    let one = culprit();
    let more = some();
    let live = check::live_blocks(&victim());
    assert_eq!(live.blocks.len(), 4);
    assert!(live.blocks.iter().all(|block| block.backtrace.is_some_and(|stack| stack.addresses().len() > 3)));
    let shown = live.to_string();
    // The three have their call stack in common.
    assert!(shown.contains("\n  3 live blocks, 72 bytes;"), "{shown}");
    assert!(shown.contains("1: all::check::culprit") && shown.contains("check::quarantine::some"), "{shown}");
    // SAFETY: the blocks are live.
    more.into_iter().chain([one]).for_each(|block| unsafe { dealloc(block, LAYOUT) });
}

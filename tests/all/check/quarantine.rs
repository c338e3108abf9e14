//! Blocks in quarantine, and live ones.

use super::{LAYOUT, culprit, met, note, twice, victim};
use crate::child::dealloc;
use dogtag::check::{self, ViolationKind};
use std::hint::black_box;

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
    drop(black_box(vec![1_u8; 2 << 20]));
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

#[test]
fn live_blocks_have_call_stacks() {
    survives!("backtrace=1");
    let one = culprit();
    // The count is unknown to the compiler, so that the three are made by one call.
    let more: Vec<_> = (0..black_box(3)).map(|_| culprit()).collect();
    let live = check::live_blocks(&victim());
    assert_eq!(live.blocks.len(), 4);
    assert!(live.blocks.iter().all(|block| block.backtrace.is_some_and(|stack| stack.addresses().len() > 3)));
    let shown = live.to_string();
    // The three have their call stack in common.
    assert!(shown.contains("\n  3 live blocks, 72 bytes;"), "{shown}");
    assert!(
        shown.contains("1: all::check::culprit") && shown.contains("::live_blocks_have_call_stacks"),
        "{shown}"
    );
    // SAFETY: the blocks are live.
    more.into_iter().chain([one]).for_each(|block| unsafe { dealloc(block, LAYOUT) });
}

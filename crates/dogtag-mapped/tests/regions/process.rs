//! What the process sees of its regions: snapshots and the balance, forked children, memory-check.

use crate::{PAGE, SetOnDrop, layout, watch};
use allocator_api2::vec::Vec as RegionVec;
use dogtag_mapped::MappedRegion;
use std::alloc::GlobalAlloc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[test]
fn snapshots_and_the_balance_know_of_regions() {
    let region = MappedRegion::builder(1 << 20).name("on show").map().unwrap();
    let mut bytes = RegionVec::with_capacity_in(100_000, &region);
    bytes.resize(100_000, 1_u8);
    let snapshot = dogtag::snapshot();
    let shown = snapshot.regions.iter().find(|other| other.name == "on show").unwrap();
    assert_eq!(shown.stats, region.stats());
    let text = snapshot.to_string();
    let line = text.lines().find(|line| line.starts_with("on show")).unwrap();
    let words: Vec<_> = line.split_whitespace().skip(2).collect();
    // With memory-check there are guards around the block; or a page in front, and the rest of one behind.
    let kibibytes = |bytes: usize| format!("{:.1} KiB", bytes as f64 / 1024.0);
    let [used, free] = [shown.stats.used, shown.stats.largest_free].map(kibibytes);
    let most = 100_000 + if cfg!(feature = "memory-check") { 2 * 4096 } else { 500 };
    assert!((100_000..most).contains(&shown.stats.used), "{text}");
    assert_eq!(words.join(" "), format!("1.0 MiB {used} {used} 1 1 {free} 0"), "{text}");
    assert!(text.contains("largest free"), "{text}");
    drop(bytes);
    // Free pages that were touched are the region's. (With memory-check the block may be kept back in them.)
    let balance = dogtag::balance();
    assert!((90_000..10 << 20).contains(&(balance.regions + balance.quarantine)), "{balance}");
    let sum: i64 = balance.lines().iter().map(|line| line.bytes).sum();
    assert_eq!(Some(sum as u64), balance.resident);
    drop(region);
    assert!(!dogtag::snapshot().to_string().contains("on show"));

    // Live blocks in regions are not taken for the heap's.
    let region = MappedRegion::anonymous(50 << 20).unwrap();
    let mut bytes = RegionVec::with_capacity_in(40 << 20, &region);
    bytes.resize(40 << 20, 1_u8);
    let balance = dogtag::balance();
    assert!(balance.services + balance.unattributed >= 40 << 20, "{balance}");
    assert!(balance.rounding < 10 << 20 && balance.unexplained().abs() < 20 << 20, "{balance}");
}

/// A child finds each region consistent, whatever other threads were doing to it.
#[test]
fn forked_children_can_allocate() {
    alone!();
    let region = MappedRegion::anonymous(1 << 20).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while !is_over.load(Relaxed) {
                    // SAFETY: the block is freed once, with its own layout.
                    unsafe { region.dealloc(region.alloc(layout(100, 8)), layout(100, 8)) };
                }
            });
        }
        // The threads end even if this fails.
        let _end = SetOnDrop(&is_over);
        for _ in 0..200 {
            // SAFETY: the child only calls the region, whose lock is free in a child, and ends.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    let block = region.alloc(layout(1000, 8));
                    region.dealloc(block, layout(1000, 8));
                    libc::_exit(i32::from(block.is_null()));
                }
                assert!(child > 0);
                assert_eq!(watch::ended(child).code(), Some(0));
            }
        }
    });
}

/// A shared region is the same memory in parent and child, and a write to a guard page ends a process.
#[test]
fn forked_children_see_what_is_shared_and_no_guard() {
    alone!();
    let shared = MappedRegion::builder(PAGE).shared().guard_pages().populate().map().unwrap();
    let private = MappedRegion::anonymous(PAGE).unwrap();
    let [seen, unseen] = [&shared, &private].map(|region| region.at::<u32>(8).unwrap());
    let end_of = |child: &dyn Fn()| {
        // SAFETY: the child only writes, which takes no lock, and ends.
        unsafe {
            let id = libc::fork();
            if id == 0 {
                libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                child();
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(id, &raw mut status, 0), id);
            status
        }
    };
    // SAFETY: both places are aligned, in the windows, and of no block.
    let status = end_of(&|| unsafe {
        seen.write(7);
        unseen.write(7);
    });
    // SAFETY: both places are aligned, in the windows, and hold zeros or what was written.
    assert_eq!((status, unsafe { (seen.read(), unseen.read()) }), (0, (7, 0)));
    let start = shared.start().unwrap();
    for guard in [-1, PAGE as isize] {
        // SAFETY: the address is in a guard page, where no memory of Rust's is: the write can only end
        // the child.
        let status = end_of(&|| unsafe { start.offset(guard).write_volatile(1) });
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status}");
    }
}

/// Dropping a region with live blocks is a violation.
#[cfg(feature = "memory-check")]
#[test]
fn a_region_with_live_blocks_is_not_unmapped() {
    use dogtag::check::{self, Operation, Reaction, Violation, ViolationKind};

    static MET: std::sync::Mutex<Vec<(ViolationKind, Operation, usize)>> = std::sync::Mutex::new(Vec::new());
    fn note(violation: &Violation) -> Reaction {
        MET.lock().unwrap().push((violation.kind(), violation.operation(), violation.address()));
        Reaction::Leak
    }

    alone!();
    check::set_handler(note);
    for _ in 0..2 {
        let region = MappedRegion::anonymous(PAGE).unwrap();
        let mut list = RegionVec::new_in(&region);
        list.push(1);
        drop(list);
        drop(region);
    }
    assert_eq!(*MET.lock().unwrap(), [], "a block in quarantine is not live");
    let region = MappedRegion::anonymous(PAGE).unwrap();
    let start = region.start().unwrap();
    // SAFETY: the block is written to after its region was dropped, which is the violation that is
    // tested: the handler's answer keeps the memory mapped.
    unsafe {
        let block = region.alloc(layout(100, 8));
        drop(region);
        block.write_bytes(1, 100);
    }
    assert_eq!(*MET.lock().unwrap(), [(ViolationKind::RegionInUse, Operation::Unmap, start.addr().get())]);
}

//! Regions of mapped memory: what they are, what they refuse, and who stands behind them.

#[path = "../../../tests/watch/mod.rs"]
mod watch;

use allocator_api2::vec::Vec as RegionVec;
use dogtag::{Dogtag, Service};
use dogtag_mapped::{Fallback, HugePages, MapError, MappedRegion, Owns, Protection};
use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const PAGE: usize = 4096;

/// A file that is nowhere.
fn file(len: u64) -> File {
    let name = CString::new("window").unwrap();
    // SAFETY: the name ends with a zero; the descriptor is nobody else's.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len).unwrap();
    file
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

#[test]
fn blocks_are_placed_merged_and_counted() {
    let region = MappedRegion::anonymous(10 * PAGE - 100).unwrap();
    assert_eq!(region.len(), 10 * PAGE, "whole pages");
    let empty = region.stats();
    assert_eq!((empty.size, empty.free, empty.largest_free), (10 * PAGE, 10 * PAGE, 10 * PAGE));
    assert_eq!((empty.used, empty.blocks, empty.free_ranges, empty.peak), (0, 0, 1, 0));
    let sizes = [1, 16, 17, 1000, 5000, 100];
    // SAFETY: the layouts are not empty, and each block is freed as it was allocated.
    unsafe {
        let blocks = sizes.map(|size| (region.alloc(layout(size, 8)), layout(size, 8)));
        let used: usize = sizes.iter().map(|size| size.next_multiple_of(16)).sum();
        let stats = region.stats();
        assert_eq!((stats.used, stats.free, stats.blocks), (used, 10 * PAGE - used, 6));
        assert!(region.alloc(layout(10 * PAGE, 1)).is_null());
        assert!(region.alloc(layout(1, 1 << 40)).is_null());
        assert_eq!(region.stats().refused, 2);
        for i in [1, 3, 5, 0, 2, 4] {
            let (block, layout) = blocks[i];
            assert!(region.contains(block) && region.owns(block));
            assert_eq!(region.at(region.offset_of(block).unwrap()).map(NonNull::as_ptr), Some(block));
            region.dealloc(block, layout);
        }
    }
    let mut emptied = region.stats();
    assert!(emptied.peak > 6000 && emptied.refused == 2);
    (emptied.peak, emptied.refused) = (0, 0);
    assert_eq!(emptied, empty);
    assert!(!region.contains(&raw const empty));
    // All of a value must be in the window, where such a value can be.
    assert!(region.at::<u64>(8).is_some() && region.at::<u64>(12).is_none());
    assert!(region.at::<u64>(10 * PAGE - 8).is_some() && region.at::<u64>(10 * PAGE).is_none());
    assert!(region.slice_at::<u16>(PAGE, 9 * PAGE / 2).is_some());
    assert!(region.slice_at::<u16>(PAGE, 9 * PAGE / 2 + 1).is_none());
    assert!(region.slice_at::<u64>(8, usize::MAX).is_none() && region.at::<u8>(usize::MAX).is_none());
}

#[test]
fn blocks_grow_and_shrink_where_they_are() {
    let region = MappedRegion::anonymous(PAGE).unwrap();
    // SAFETY: the blocks are freed as they were allocated last.
    unsafe {
        let one = region.alloc(layout(100, 8));
        one.write_bytes(7, 100);
        assert_eq!(region.realloc(one, layout(100, 8), 2000), one);
        let other = region.alloc(layout(100, 8));
        assert_eq!(region.realloc(one, layout(2000, 8), 200), one);
        assert_eq!(region.realloc(one, layout(200, 8), 1900), one);
        // There is another one behind it.
        assert!(region.realloc(one, layout(1900, 8), 3000).is_null());
        let moved = region.realloc(other, layout(100, 8), 1000);
        assert_eq!(moved, other);
        assert_eq!(std::slice::from_raw_parts(one, 100), [7; 100]);
        region.dealloc(one, layout(1900, 8));
        let moved = region.realloc(other, layout(1000, 8), 3000);
        assert!(moved.is_null(), "it would have to be in two places at once");
        region.dealloc(other, layout(1000, 8));
    }
    assert_eq!((region.stats().free_ranges, region.stats().used), (1, 0));
}

/// Blocks that were freed a moment ago can be allocated again like any others.
#[test]
fn what_was_just_freed_is_free() {
    let region = MappedRegion::anonymous(PAGE).unwrap();
    let [small, whole] = [layout(100, 8), layout(PAGE, 8)];
    // SAFETY: the blocks are freed as they were allocated last.
    unsafe {
        let blocks: Vec<_> = (0..20).map(|_| region.alloc(small)).collect();
        blocks.iter().for_each(|block| region.dealloc(*block, small));
        let all = region.alloc(whole);
        assert!(!all.is_null());
        region.dealloc(all, whole);

        let [one, other] = [(); 2].map(|()| region.alloc(small));
        region.dealloc(other, small);
        assert_eq!(region.realloc(one, small, PAGE), one);
        region.dealloc(one, whole);

        let [one, other] = [(); 2].map(|()| region.alloc(small));
        region.dealloc(other, small);
        assert_eq!(region.trim(), 0);
        region.dealloc(one, small);
        assert_eq!((region.trim(), region.trim()), (PAGE, 0));

        // One that is not where an aligned one could be is not taken for it.
        let [one, other] = [(); 2].map(|()| region.alloc(layout(16, 1)));
        region.dealloc(other, layout(16, 1));
        let aligned = region.alloc(layout(16, 512));
        assert!(aligned.addr().is_multiple_of(512));
        region.dealloc(aligned, layout(16, 512));
        region.dealloc(one, layout(16, 1));
    }
    assert_eq!(region.stats().free_ranges, 1);
}

#[test]
fn zeroed_memory_is_zero_and_pristine_memory_untouched() {
    let region = MappedRegion::anonymous(1 << 20).unwrap();
    let resident = || {
        let mut pages = vec![0_u8; (1 << 20) / PAGE];
        let start = region.start().unwrap().as_ptr();
        // SAFETY: there is a byte for each page.
        assert_eq!(unsafe { libc::mincore(start.cast(), 1 << 20, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    };
    // SAFETY: the blocks are freed as they were allocated; what is read is as large.
    unsafe {
        let large = layout(500_000, 16);
        let block = region.alloc_zeroed(large);
        assert_eq!(resident(), 0, "nobody has cleared what is zero");
        assert!(std::slice::from_raw_parts(block, 500_000).iter().all(|byte| *byte == 0));
        block.write_bytes(0xEE, 500_000);
        region.dealloc(block, large);
        // What was used is cleared, also where only a part was.
        let larger = layout(700_000, 16);
        let block = region.alloc_zeroed(larger);
        assert!(std::slice::from_raw_parts(block, 700_000).iter().all(|byte| *byte == 0));
        block.write_bytes(0xEE, 700_000);
        region.dealloc(block, larger);
        // What was given back to the system is zero again.
        let kept = region.alloc(layout(PAGE, PAGE));
        kept.write_bytes(0xEE, PAGE);
        let trimmed = region.trim();
        assert!((690_000 / PAGE * PAGE..=1 << 20).contains(&trimmed), "{trimmed}");
        assert_eq!((region.trim(), resident()), (0, 1));
        assert_eq!(std::slice::from_raw_parts(kept, PAGE), [0xEE; PAGE]);
        let block = region.alloc_zeroed(larger);
        assert!(std::slice::from_raw_parts(block, 700_000).iter().all(|byte| *byte == 0));
        region.dealloc(block, larger);
        region.dealloc(kept, layout(PAGE, PAGE));
    }
}

#[test]
fn files_are_shared_or_not() {
    let mut file = file(8 * PAGE as u64);
    file.write_all(b"in the file").unwrap();
    // SAFETY: nobody else has the file, and only one of the first two can be allocated from; the
    // third sees its own copy.
    let [shared, again, private] = unsafe {
        [
            MappedRegion::builder(4 * PAGE).file(&file, 0),
            MappedRegion::builder(4 * PAGE).file(&file, 0).protection(Protection::Read),
            MappedRegion::builder(PAGE).file(&file, PAGE as u64).private(),
        ]
    }
    .map(|builder| builder.map().unwrap());
    assert_eq!([&shared, &again, &private].map(MappedRegion::len), [4 * PAGE, 4 * PAGE, PAGE]);
    // What is in a file is not zero.
    // SAFETY: the blocks are freed as they were allocated; what is read is in the regions.
    unsafe {
        let block = shared.alloc_zeroed(layout(100, 1));
        assert_eq!(
            (shared.offset_of(block), std::slice::from_raw_parts(block, 100)),
            (Some(0), &[0; 100][..])
        );
        block.write_bytes(7, 100);
        let seen = again.slice_at::<u8>(shared.offset_of(block).unwrap(), 100).unwrap();
        assert_eq!(seen.as_ref(), [7; 100]);
        assert!(again.alloc(layout(1, 1)).is_null(), "it can only be read");
        private.start().unwrap().write_bytes(9, PAGE);
        assert_eq!(shared.at::<u8>(PAGE).unwrap().read(), 0);
        shared.dealloc(block, layout(100, 1));
    }
    let mut text = [0; 100];
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_exact(&mut text).unwrap();
    assert_eq!(text, [7; 100]);
}

#[test]
fn what_is_free_is_taken_out_of_a_file() {
    let file = file(1 << 20);
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    // SAFETY: nobody else has the file.
    let region = unsafe { MappedRegion::file(&file, 0, 1 << 20) }.unwrap();
    let [large, small] = [layout(500_000, 1), layout(100, 1)];
    // SAFETY: the blocks are freed as they were allocated; what is read is as large.
    unsafe {
        let (block, kept) = (region.alloc(large), region.alloc(small));
        block.write_bytes(7, large.size());
        kept.write_bytes(8, small.size());
        let before = blocks();
        region.dealloc(block, large);
        // What was never written to is given back, too: of a file it is not known what is there.
        assert!(region.trim() > 900_000);
        assert!(blocks() < before && blocks() <= 16, "{before} {}", blocks());
        assert_eq!(std::slice::from_raw_parts(kept, small.size()), [8; 100]);
        let block = region.alloc_zeroed(large);
        assert!(std::slice::from_raw_parts(block, large.size()).iter().all(|byte| *byte == 0));
        region.dealloc(block, large);
        region.dealloc(kept, small);
    }
}

/// A device does not say how long it is.
#[test]
fn devices_can_be_mapped() {
    let device = File::options().read(true).write(true).open("/dev/zero").unwrap();
    // SAFETY: each mapping of this device is another memory.
    let region = unsafe { MappedRegion::file(&device, 0, 3 * PAGE) }.unwrap();
    let mut bytes = RegionVec::new_in(&region);
    bytes.extend_from_slice(&[7_u8; 10_000]);
    assert_eq!((region.len(), &bytes[..]), (3 * PAGE, &[7; 10_000][..]));
}

/// Where a file ends within a page, nobody keeps or shares what is behind its end.
#[test]
fn nothing_is_placed_behind_the_end_of_a_file() {
    let file = file(PAGE as u64 + 100);
    // SAFETY: nobody else has the file.
    let region = unsafe { MappedRegion::file(&file, 0, PAGE + 50) }.unwrap();
    assert_eq!((region.len(), region.stats().size), (PAGE + 100, PAGE + 100));
    assert_eq!(region.stats().free, PAGE + 96);
    let mut blocks = Vec::new();
    // SAFETY: the blocks are freed as they were allocated.
    unsafe {
        while let Some(block) = NonNull::new(region.alloc_zeroed(layout(32, 1))) {
            assert!(region.offset_of(block.as_ptr()).unwrap() + 32 <= PAGE + 100);
            blocks.push(block);
        }
        assert_eq!(blocks.len(), (PAGE + 96) / 32);
        blocks.iter().for_each(|block| region.dealloc(block.as_ptr(), layout(32, 1)));
    }
    region.trim();
    assert_eq!(region.stats().free_ranges, 1);
}

#[test]
fn guards_names_and_the_rest_of_the_builder() {
    if !is_alone("guards_names_and_the_rest_of_the_builder") {
        return;
    }
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
    let region = MappedRegion::builder(4 * PAGE)
        .name("the window")
        .guard_pages()
        .populate()
        .lock()
        .huge_pages(HugePages::Transparent)
        .granularity(256)
        .map()
        .unwrap();
    let start = region.start().unwrap().addr().get();
    let line = |address: usize| {
        let text = maps();
        let found = text.lines().find(|line| {
            let (from, rest) = line.split_once('-').unwrap();
            let to = rest.split(' ').next().unwrap();
            let number = |hex| usize::from_str_radix(hex, 16).unwrap();
            (number(from)..number(to)).contains(&address)
        });
        found.map(str::to_owned).unwrap_or_default()
    };
    assert!(line(start).contains(" rw-p "), "{}", line(start));
    assert!(line(start - 1).contains(" ---p ") && line(start + 4 * PAGE).contains(" ---p "));
    let named = line(start);
    assert!(named.contains("[anon:the_window]") || !maps().contains("[anon:"), "{named}");
    // SAFETY: the block is freed as it was allocated.
    unsafe {
        let block = region.alloc(layout(1, 1));
        assert_eq!(region.stats().used, 256);
        region.dealloc(block, layout(1, 1));
    }
    let window = start..start + 4 * PAGE;
    drop(region);
    assert_eq!([window.start - 1, window.start, window.end].map(line), ["", "", ""]);
}

#[test]
fn what_cannot_be_mapped_says_why_and_leaves_nothing_behind() {
    if !is_alone("what_cannot_be_mapped_says_why_and_leaves_nothing_behind") {
        return;
    }
    let short = file(100);
    let program = File::open("/proc/self/exe").unwrap();
    let directory = File::open(".").unwrap();
    let builder = MappedRegion::builder(PAGE);
    let before = mapped_bytes();
    let error = |result: Result<MappedRegion, MapError>| result.expect_err("this cannot be mapped");
    // SAFETY: nothing is mapped.
    let of_file = |file, offset, len| unsafe { MappedRegion::file(file, offset, len) };
    assert!(matches!(error(MappedRegion::anonymous(0)), MapError::Empty));
    assert!(matches!(
        error(of_file(&short, 0, PAGE)),
        MapError::BeyondFile { offset: 0, len: PAGE, file_len: 100 }
    ));
    assert!(matches!(error(of_file(&short, u64::MAX - 4095, PAGE)), MapError::BeyondFile { .. }));
    assert!(matches!(error(of_file(&short, 50, 10)), MapError::MisalignedOffset { offset: 50, .. }));
    assert!(matches!(error(of_file(&program, 0, PAGE)), MapError::Permission { .. }));
    // SAFETY: nothing is mapped.
    let of_directory = unsafe { builder.protection(Protection::Read).file(&directory, 0) };
    assert!(matches!(error(of_directory.map()), MapError::System { call: "mmap", .. }));
    for granularity in [0, 3, 1 << 20] {
        let error = error(builder.granularity(granularity).map());
        assert!(matches!(error, MapError::Granularity { bytes } if bytes == granularity));
    }
    for len in [usize::MAX, usize::MAX / 2, 1 << 60] {
        for builder in [MappedRegion::builder(len), MappedRegion::builder(len).guard_pages()] {
            assert!(matches!(error(builder.map()), MapError::OutOfMemory { .. }), "{len}");
        }
    }
    let huge = MappedRegion::builder(1 << 40).huge_pages(HugePages::Reserved1GiB);
    for builder in [huge, huge.guard_pages()] {
        let error = error(builder.map());
        assert!(matches!(error, MapError::NoHugePages { page: 0x4000_0000, .. }), "{error}");
        assert!(error.to_string().contains("nr_hugepages") && std::error::Error::source(&error).is_some());
    }
    // SAFETY: the name ends with a zero.
    let descriptor = unsafe { libc::memfd_create(c"huge".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_HUGETLB) };
    if descriptor >= 0 {
        // SAFETY: it is nobody else's.
        let file = unsafe { File::from_raw_fd(descriptor) };
        file.set_len(1 << 40).unwrap();
        // Its pages are told by the file.
        let error = error(of_file(&file, 0, 1 << 40));
        assert!(matches!(error, MapError::NoHugePages { page, .. } if page > PAGE), "{error}");
        let error = of_file(&file, PAGE as u64, 1).unwrap_err();
        assert!(matches!(error, MapError::MisalignedOffset { page, .. } if page > PAGE), "{error}");
    }
    assert_eq!(mapped_bytes(), before);
}

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
    assert_eq!(words.join(" "), "1.0 MiB 97.7 KiB 97.7 KiB 1 1 926.3 KiB 0", "{text}");
    assert!(text.contains("largest free"), "{text}");
    drop(bytes);
    // What was touched and is free is the region's.
    let balance = dogtag::balance();
    assert!((90_000..10 << 20).contains(&balance.regions), "{balance}");
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

/// A child finds each region whole, whatever other threads were doing to it.
#[test]
fn forked_children_can_allocate() {
    if !is_alone("forked_children_can_allocate") {
        return;
    }
    let region = MappedRegion::anonymous(1 << 20).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while !is_over.load(Relaxed) {
                    // SAFETY: it is freed as it was allocated.
                    unsafe { region.dealloc(region.alloc(layout(100, 8)), layout(100, 8)) };
                }
            });
        }
        // So that they end if this fails.
        let _end = Over(&is_over);
        for _ in 0..200 {
            // SAFETY: the child does nothing but allocate, free and end.
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

/// Ends what other threads do.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The crime of dropping it.
#[cfg(feature = "memory-check")]
#[test]
fn a_region_with_live_blocks_is_not_unmapped() {
    use dogtag::check::{self, Operation, Reaction, Violation, ViolationKind};

    static MET: std::sync::Mutex<Vec<(ViolationKind, Operation, usize)>> = std::sync::Mutex::new(Vec::new());
    fn note(violation: &Violation) -> Reaction {
        MET.lock().unwrap().push((violation.kind(), violation.operation(), violation.address()));
        Reaction::Leak
    }

    if !is_alone("a_region_with_live_blocks_is_not_unmapped") {
        return;
    }
    check::set_handler(note);
    for _ in 0..2 {
        let region = MappedRegion::anonymous(PAGE).unwrap();
        let mut list = RegionVec::new_in(&region);
        list.push(1);
        drop(list);
        drop(region);
    }
    assert_eq!(*MET.lock().unwrap(), [], "what is in quarantine is not live");
    let region = MappedRegion::anonymous(PAGE).unwrap();
    let start = region.start().unwrap();
    // SAFETY: none, once the region is dropped; but its memory is there.
    unsafe {
        let block = region.alloc(layout(100, 8));
        drop(region);
        block.write_bytes(1, 100);
    }
    assert_eq!(*MET.lock().unwrap(), [(ViolationKind::RegionInUse, Operation::Unmap, start.addr().get())]);
}

/// Bytes of this process's addresses.
fn mapped_bytes() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|line| line.starts_with("VmSize:")).unwrap().to_owned()
}

/// Whether this is a process for that test alone. Otherwise there has been one.
fn is_alone(test: &str) -> bool {
    const TASK: &str = "DOGTAG_TEST_ALONE";
    if std::env::var_os(TASK).is_some() {
        return true;
    }
    let mut program = Command::new(std::env::current_exe().unwrap());
    let output = watch::output(program.args(["--exact", test, "--nocapture"]).env(TASK, "1"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// Offsets have 32 bits, and granules grow where these are not enough.
#[test]
fn windows_can_be_very_large() {
    for (len, granule) in [(33_usize << 30, 16), (40 << 30, 32), (100 << 30, 64)] {
        // A file has no pages before they are written to, so nobody is asked to promise so many.
        let file = file(len as u64);
        // SAFETY: nobody else has the file.
        let region = match unsafe { MappedRegion::file(&file, 0, len) } {
            Ok(region) => region,
            // Whoever has few addresses (`ulimit -v`).
            Err(MapError::OutOfMemory { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        let [small, large] = [layout(1, 8192), layout(len / 2 + 1, 16)];
        // SAFETY: the blocks are freed as they were allocated.
        unsafe {
            let (block, more) = (region.alloc(small), region.alloc(large));
            assert!(block.addr().is_multiple_of(8192) && !more.is_null());
            assert!(region.alloc(large).is_null());
            assert_eq!(region.stats().used, granule + (len / 2 + granule) / granule * granule);
            region.dealloc(block, small);
            region.dealloc(more, large);
        }
        let stats = region.stats();
        assert_eq!((stats.free_ranges, stats.largest_free, stats.free), (1, len, len));
    }
    assert!(matches!(MappedRegion::anonymous(10 << 40), Err(MapError::OutOfMemory { .. })));
}

/// Written to by one process, seen by the other; and what touches a guard ends.
#[test]
fn forked_children_see_what_is_shared_and_no_guard() {
    if !is_alone("forked_children_see_what_is_shared_and_no_guard") {
        return;
    }
    let shared = MappedRegion::builder(PAGE).shared().guard_pages().populate().map().unwrap();
    let private = MappedRegion::anonymous(PAGE).unwrap();
    let [seen, unseen] = [&shared, &private].map(|region| region.at::<u32>(8).unwrap());
    let end_of = |child: &dyn Fn()| {
        // SAFETY: the child does nothing but write, and end.
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
    // SAFETY: both are in the windows, where nothing else is.
    let status = end_of(&|| unsafe {
        seen.write(7);
        unseen.write(7);
    });
    // SAFETY: as above.
    assert_eq!((status, unsafe { (seen.read(), unseen.read()) }), (0, (7, 0)));
    let start = shared.start().unwrap();
    for guard in [-1, PAGE as isize] {
        // SAFETY: none: it is a crime.
        let status = end_of(&|| unsafe { start.offset(guard).write_volatile(1) });
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status}");
    }
}

/// Machine code that says how it was called.
#[cfg(target_arch = "x86_64")]
#[test]
fn what_may_be_executed_can_be() {
    let region = MappedRegion::builder(PAGE).protection(Protection::ReadWriteExecute).map().unwrap();
    let mut code = RegionVec::new_in(&region);
    code.extend_from_slice(&[0x8d_u8, 0x47, 0x01, 0xc3]); // lea eax, [rdi + 1]; ret
    // SAFETY: that is such a function.
    let next: extern "C" fn(i32) -> i32 = unsafe { std::mem::transmute(std::hint::black_box(code.as_ptr())) };
    assert_eq!(next(41), 42);
}

/// Where the machine has some.
#[test]
fn reserved_huge_pages_are_whole() {
    const HUGE: usize = 2 << 20;
    let region = match MappedRegion::builder(HUGE).huge_pages(HugePages::Reserved2MiB).map() {
        Ok(region) => region,
        Err(MapError::NoHugePages { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let half = layout(HUGE / 2, 1);
    // SAFETY: the blocks are freed as they were allocated; what is read is as large.
    unsafe {
        let (one, other) = (region.alloc(half), region.alloc(half));
        one.write_bytes(7, HUGE / 2);
        region.dealloc(one, half);
        assert_eq!(region.trim(), 0, "half a page is not given back");
        let one = region.alloc_zeroed(half);
        assert!(std::slice::from_raw_parts(one, HUGE / 2).iter().all(|byte| *byte == 0));
        region.dealloc(one, half);
        region.dealloc(other, half);
        assert_eq!(region.trim(), HUGE);
        // However little of it was touched.
        let one = region.alloc(layout(100, 1));
        one.write_bytes(7, 100);
        region.dealloc(one, layout(100, 1));
        assert_eq!(region.trim(), HUGE);
        let one = region.alloc_zeroed(layout(100, 1));
        assert_eq!(std::slice::from_raw_parts(one, 100), [0; 100]);
        region.dealloc(one, layout(100, 1));
    }
}

/// Its limits are lower.
#[test]
fn limits_of_the_system_are_told() {
    if !is_alone("limits_of_the_system_are_told") {
        return;
    }
    let limit = |resource, bytes| {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: it is read only.
        assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
    };
    limit(libc::RLIMIT_MEMLOCK, PAGE as u64);
    // SAFETY: this is about this process alone. Whoever is root may lock what they like.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!(libc::setuid(65534), 0);
        }
    }
    let before = mapped_bytes();
    let error = MappedRegion::builder(64 * PAGE).lock().guard_pages().map().unwrap_err();
    assert!(matches!(error, MapError::NotLocked { .. }), "{error}");
    assert_eq!(mapped_bytes(), before);
    limit(libc::RLIMIT_AS, 4 << 30);
    let error = MappedRegion::anonymous(5 << 30).unwrap_err();
    assert!(matches!(error, MapError::OutOfMemory { source: Some(_), .. }), "{error}");
    // A region that cannot be mapped at its first use refuses everything.
    let deferred = Fallback::new(MappedRegion::deferred(5 << 30), System);
    assert_eq!(deferred.primary().stats().size, 0);
    // SAFETY: it is freed as it was allocated.
    unsafe {
        let block = deferred.alloc(layout(100, 8));
        assert!(!block.is_null() && !deferred.primary().contains(block));
        deferred.dealloc(block, layout(100, 8));
    }
    assert_eq!((deferred.primary().len(), deferred.stats().secondary_blocks), (0, 1));
    assert!(
        matches!(deferred.primary().ensure_mapped(), Err(MapError::OutOfMemory { len, .. }) if len == 5 << 30)
    );
    let deferred = MappedRegion::deferred(100);
    assert!(deferred.is_empty() && deferred.ensure_mapped().is_ok() && deferred.len() == PAGE);
}

#[test]
fn collections_are_charged_like_all_others() {
    let service = Service::register("mapped collections").unwrap();
    let region = MappedRegion::anonymous(1 << 20).unwrap();
    let mut numbers = service.run(|| RegionVec::<u64, _>::with_capacity_in(1000, &region));
    assert_eq!((service.usage().bytes(), service.usage().blocks()), (8000, 1));
    numbers.extend(0..1000);
    assert!(region.contains(numbers.as_ptr()));
    assert!(numbers.try_reserve(1 << 20).is_err());
    service.run(|| numbers.extend(0..10_000));
    assert!(numbers.iter().copied().eq((0..1000).chain(0..10_000)));
    assert_eq!(service.usage().bytes(), numbers.capacity() as u64 * 8);
    service.run(|| numbers.truncate(10));
    service.run(|| numbers.shrink_to_fit());
    assert_eq!(service.usage().bytes(), 80);
    drop(numbers);
    assert_eq!(service.usage().bytes(), 0);
    // What is in quarantine is not free yet.
    assert!(region.stats().used == 0 || cfg!(feature = "memory-check"));
    // As a backend it counts nothing by itself.
    let counted = Dogtag::with_backend(region);
    // SAFETY: it is freed as it was allocated.
    service.run(|| unsafe {
        let block = counted.alloc(layout(1000, 8));
        assert_eq!(service.usage().bytes(), 1000);
        counted.dealloc(block, layout(1000, 8));
    });
    assert_eq!(service.usage().bytes(), 0);
}

/// What a collection may ask of its allocator beside blocks that grow.
#[test]
fn blocks_of_no_bytes_and_other_alignments() {
    use allocator_api2::alloc::Allocator;

    let service = Service::register("odd sizes").unwrap();
    let region = MappedRegion::anonymous(4 * PAGE).unwrap();
    let region = &region;
    let held = || (service.usage().bytes(), service.usage().blocks());
    // SAFETY: each block is given back as it was allocated last; what is read is as large.
    service.run(|| unsafe {
        let (nothing, some, more) = (layout(0, 64), layout(100, 8), layout(1000, 256));
        let first = region.allocate(layout(0, 8)).unwrap().cast::<u8>();
        let first = region.grow(first, layout(0, 8), some).unwrap().cast::<u8>();
        assert!(region.contains(first.as_ptr()));
        let block = region.allocate(nothing).unwrap().cast::<u8>();
        assert!(block.addr().get().is_multiple_of(64));
        assert_eq!(held(), (100, 1));
        let block = region.grow_zeroed(block, nothing, some).unwrap().cast::<u8>();
        assert_eq!((held(), std::slice::from_raw_parts(block.as_ptr(), 100)), ((200, 2), &[0; 100][..]));
        block.write_bytes(7, 100);
        // Another one, and what is behind it has been used before.
        let behind = region.allocate(layout(500, 8)).unwrap().cast::<u8>();
        behind.write_bytes(9, 500);
        region.deallocate(behind, layout(500, 8));
        let block = region.grow_zeroed(block, some, layout(500, 8)).unwrap().cast::<u8>();
        let bytes = std::slice::from_raw_parts(block.as_ptr(), 500);
        assert!(bytes[..100].iter().all(|byte| *byte == 7) && bytes[100..].iter().all(|byte| *byte == 0));
        // Where it stands would not do.
        let block = region.grow(block, layout(500, 8), more).unwrap().cast::<u8>();
        assert!(block.addr().get().is_multiple_of(256));
        assert_eq!((held(), *block.as_ptr()), ((1100, 2), 7));
        let block = region.shrink(block, more, nothing).unwrap().cast::<u8>();
        assert_eq!(held(), (100, 1));
        region.deallocate(block, nothing);
        let first = region.shrink(first, some, layout(0, 8)).unwrap().cast::<u8>();
        assert_eq!(held(), (0, 0));
        region.deallocate(first, layout(0, 8));
    });
}

#[test]
fn whoever_owns_it_gets_it_back() {
    let [near, far] = [2 * PAGE, 4 * PAGE].map(|len| MappedRegion::anonymous(len).unwrap());
    let all = Fallback::new(near, Fallback::new(far, System));
    let one = layout(PAGE, 8);
    // SAFETY: the blocks are freed as they were allocated last.
    unsafe {
        let blocks: Vec<_> = (1..=8_u8)
            .map(|i| {
                let block = all.alloc_zeroed(one);
                block.write_bytes(i, PAGE);
                block
            })
            .collect();
        let regions = || (all.primary().stats().blocks, all.secondary().primary().stats().blocks);
        assert_eq!(regions(), (2, 4));
        assert_eq!((all.stats().secondary_blocks, all.secondary().stats().secondary_blocks), (6, 2));
        assert_eq!(all.stats().secondary_bytes, 6 * PAGE as u64);
        // What does not fit moves on.
        let moved = all.realloc(blocks[0], one, 3 * PAGE);
        assert!(!all.primary().contains(moved));
        assert_eq!(std::slice::from_raw_parts(moved, PAGE), [1; PAGE]);
        assert_eq!(regions(), (1, 4));
        assert!(all.realloc(blocks[1], one, 1 << 62).is_null(), "and stays if it fits nowhere");
        assert_eq!(std::slice::from_raw_parts(blocks[1], PAGE), [2; PAGE]);
        assert_eq!((regions(), all.stats().failures), ((1, 4), 1));
        let more = all.realloc(moved, layout(3 * PAGE, 8), 4 * PAGE);
        assert!(!more.is_null() && all.realloc(more, layout(4 * PAGE, 8), 1 << 62).is_null());
        let less = all.realloc(blocks[1], one, 100);
        assert_eq!(less, all.realloc(less, layout(100, 8), PAGE));
        let moved = more;
        let (stats, pages) = (all.stats(), |bytes| bytes / PAGE as u64);
        assert_eq!((stats.primary_blocks, stats.primary_bytes), (2, 3 * PAGE as u64 - 100));
        assert_eq!((stats.secondary_blocks, pages(stats.secondary_bytes)), (7, 10));
        assert_eq!((stats.moved_blocks, stats.failures), (1, 2));
        all.dealloc(moved, layout(4 * PAGE, 8));
        for (i, block) in (1..).zip(&blocks).skip(1) {
            assert_eq!(std::slice::from_raw_parts(*block, PAGE), [i; PAGE]);
            all.dealloc(*block, one);
        }
        assert_eq!(regions(), (0, 0));
    }
}

/// Ten million operations by several threads, which know what is theirs; and one that gives
/// back what is not.
#[test]
fn nothing_overlaps_and_all_is_merged_in_the_end() {
    const THREADS: u64 = 4;
    let region = MappedRegion::anonymous(8 << 20).unwrap();
    let work = |thread: u64| {
        let mut random = thread + 1;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((random >> 33) % below) as usize
        };
        let mut blocks: Vec<(*mut u8, Layout, u8)> = Vec::new();
        // The ends tell whether somebody else has been there.
        let fill = |(block, layout, value): (*mut u8, Layout, u8)| {
            let end = layout.size().min(512);
            // SAFETY: the block is as large.
            unsafe {
                block.write_bytes(value, end);
                block.add(layout.size() - end).write_bytes(value, end);
            }
        };
        let check = |(block, layout, value): (*mut u8, Layout, u8)| {
            let end = layout.size().min(512);
            // SAFETY: the block is as large.
            let [first, last] = unsafe {
                [block, block.add(layout.size() - end)].map(|at| std::slice::from_raw_parts(at, end))
            };
            assert!(first.iter().chain(last).all(|byte| *byte == value));
        };
        // SAFETY: the blocks are freed and resized as they were allocated last.
        for i in 0..10_000_000 / THREADS {
            let value = (i % 251) as u8 + 1;
            match next(8) {
                0..4 if blocks.len() < 1500 => {
                    let size = 1 + if next(20) == 0 { next(20_000) } else { next(300) };
                    let layout = layout(size, 1 << if next(10) == 0 { next(13) } else { next(5) });
                    let is_zeroed = next(4) == 0;
                    // SAFETY: as above.
                    let block =
                        unsafe { if is_zeroed { region.alloc_zeroed(layout) } else { region.alloc(layout) } };
                    if block.is_null() {
                        continue;
                    }
                    assert!(block.addr().is_multiple_of(layout.align()));
                    if is_zeroed {
                        // SAFETY: the block is as large, and zeroed.
                        let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
                        assert!(bytes.iter().all(|byte| *byte == 0));
                    }
                    blocks.push((block, layout, value));
                    fill((block, layout, value));
                }
                4 if !blocks.is_empty() => {
                    let place = next(blocks.len() as u64);
                    let (block, old, former) = blocks[place];
                    check((block, old, former));
                    let size = 1 + next(600);
                    // SAFETY: as above.
                    let moved = unsafe { region.realloc(block, old, size) };
                    if moved.is_null() {
                        continue;
                    }
                    // SAFETY: so much was kept.
                    let kept = unsafe { std::slice::from_raw_parts(moved, old.size().min(size).min(512)) };
                    assert!(kept.iter().all(|byte| *byte == former));
                    blocks[place] = (moved, layout(size, old.align()), value);
                    fill(blocks[place]);
                }
                _ if !blocks.is_empty() => {
                    let (block, layout, value) = blocks.swap_remove(next(blocks.len() as u64));
                    check((block, layout, value));
                    // SAFETY: as above.
                    unsafe { region.dealloc(block, layout) };
                }
                _ => {}
            }
        }
        blocks
    };
    let is_over = AtomicBool::new(false);
    let left: Vec<(usize, Layout)> = std::thread::scope(|threads| {
        threads.spawn(|| {
            while !is_over.load(Relaxed) {
                region.trim();
                let stats = region.stats();
                assert_eq!(stats.used + stats.free, stats.size);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                threads.spawn(move || {
                    work(thread)
                        .into_iter()
                        .map(|(block, layout, _)| (block.addr(), layout))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let _end = Over(&is_over);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let used: usize = left.iter().map(|(_, layout)| layout.size().next_multiple_of(16)).sum();
    let stats = region.stats();
    assert_eq!((stats.used, stats.blocks, stats.free), (used, left.len(), (8 << 20) - used));
    for (address, layout) in left {
        let block = region.at(address - region.start().unwrap().addr().get()).unwrap();
        // SAFETY: as above.
        unsafe { region.dealloc(block.as_ptr(), layout) };
    }
    let stats = region.stats();
    assert_eq!((stats.used, stats.blocks, stats.free_ranges, stats.largest_free), (0, 0, 1, 8 << 20));
}

//! What can be mapped: files, devices, protections, huge pages; and the errors for what cannot.

use crate::{PAGE, file, layout, mapped_bytes};
use allocator_api2::vec::Vec as RegionVec;
use dogtag_mapped::{Fallback, HugePages, MapError, MappedRegion, Protection};
use std::alloc::{GlobalAlloc, System};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::ptr::NonNull;

#[test]
fn files_are_shared_or_not() {
    let mut file = file(8 * PAGE as u64);
    file.write_all(b"in the file").unwrap();
    // SAFETY: no one else has the file, and only one of the first two can be allocated from; the third
    // has a copy of its own.
    let [shared, again, private] = unsafe {
        [
            MappedRegion::builder(4 * PAGE).file(&file, 0),
            MappedRegion::builder(4 * PAGE).file(&file, 0).protection(Protection::Read),
            MappedRegion::builder(PAGE).file(&file, PAGE as u64).private(),
        ]
    }
    .map(|builder| builder.map().unwrap());
    assert_eq!([&shared, &again, &private].map(MappedRegion::len), [4 * PAGE, 4 * PAGE, PAGE]);
    // A file's bytes are not taken to be zero.
    // SAFETY: the blocks are freed once, with their own layouts; reads stay within the regions.
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
    // SAFETY: no one else has the file.
    let region = unsafe { MappedRegion::file(&file, 0, 1 << 20) }.unwrap();
    let [large, small] = [layout(500_000, 1), layout(100, 1)];
    // SAFETY: the blocks are freed once, with their own layouts; reads stay within their sizes.
    unsafe {
        let (block, kept) = (region.alloc(large), region.alloc(small));
        block.write_bytes(7, large.size());
        kept.write_bytes(8, small.size());
        let before = blocks();
        region.dealloc(block, large);
        // Pages that were never written to are given back, too: the file may have had bytes there.
        assert!(region.trim() > 900_000);
        assert!(blocks() < before && blocks() <= 16, "{before} {}", blocks());
        assert_eq!(std::slice::from_raw_parts(kept, small.size()), [8; 100]);
        let block = region.alloc_zeroed(large);
        assert!(std::slice::from_raw_parts(block, large.size()).iter().all(|byte| *byte == 0));
        region.dealloc(block, large);
        region.dealloc(kept, small);
    }
}

/// A device has no length to compare with.
#[test]
fn devices_can_be_mapped() {
    let device = File::options().read(true).write(true).open("/dev/zero").unwrap();
    // SAFETY: each mapping of this device is memory of its own.
    let region = unsafe { MappedRegion::file(&device, 0, 3 * PAGE) }.unwrap();
    let mut bytes = RegionVec::new_in(&region);
    bytes.extend_from_slice(&[7_u8; 10_000]);
    assert_eq!((region.len(), &bytes[..]), (3 * PAGE, &[7; 10_000][..]));
}

/// Bytes behind a file's end, in its last page, are neither kept nor shared.
#[test]
fn nothing_is_placed_behind_the_end_of_a_file() {
    let file = file(PAGE as u64 + 100);
    // SAFETY: no one else has the file.
    let region = unsafe { MappedRegion::file(&file, 0, PAGE + 50) }.unwrap();
    assert_eq!((region.len(), region.stats().size), (PAGE + 100, PAGE + 100));
    assert_eq!(region.stats().free, PAGE + 96);
    let mut blocks = Vec::new();
    // SAFETY: the blocks are freed once, with their own layouts.
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
    alone!();
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
    // SAFETY: the block is freed once, with its own layout.
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
    alone!();
    let short = file(100);
    let program = File::open("/proc/self/exe").unwrap();
    let directory = File::open(".").unwrap();
    let builder = MappedRegion::builder(PAGE);
    let before = mapped_bytes();
    let error = |result: Result<MappedRegion, MapError>| result.expect_err("this cannot be mapped");
    // SAFETY: each call fails, so no file is mapped that others could write to.
    let of_file = |file, offset, len| unsafe { MappedRegion::file(file, offset, len) };
    assert!(matches!(error(MappedRegion::anonymous(0)), MapError::Empty));
    assert!(matches!(
        error(of_file(&short, 0, PAGE)),
        MapError::BeyondFile { offset: 0, len: PAGE, file_len: 100 }
    ));
    assert!(matches!(error(of_file(&short, u64::MAX - 4095, PAGE)), MapError::BeyondFile { .. }));
    assert!(matches!(error(of_file(&short, 50, 10)), MapError::MisalignedOffset { offset: 50, .. }));
    assert!(matches!(error(of_file(&program, 0, PAGE)), MapError::Permission { .. }));
    // SAFETY: the call fails, so no file is mapped that others could write to.
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
        // SAFETY: the descriptor is new, so the file owns it alone.
        let file = unsafe { File::from_raw_fd(descriptor) };
        file.set_len(1 << 40).unwrap();
        // The file says how large its pages are.
        let error = error(of_file(&file, 0, 1 << 40));
        assert!(matches!(error, MapError::NoHugePages { page, .. } if page > PAGE), "{error}");
        let error = of_file(&file, PAGE as u64, 1).unwrap_err();
        assert!(matches!(error, MapError::MisalignedOffset { page, .. } if page > PAGE), "{error}");
    }
    assert_eq!(mapped_bytes(), before);
}

/// A function in a region, as machine code.
#[cfg(target_arch = "x86_64")]
#[test]
fn what_may_be_executed_can_be() {
    let region = MappedRegion::builder(PAGE).protection(Protection::ReadWriteExecute).map().unwrap();
    let mut code = RegionVec::new_in(&region);
    code.extend_from_slice(&[0x8d_u8, 0x47, 0x01, 0xc3]); // lea eax, [rdi + 1]; ret
    // SAFETY: the bytes are such a function for this processor, and stay mapped while it is called.
    let next: extern "C" fn(i32) -> i32 = unsafe { std::mem::transmute(std::hint::black_box(code.as_ptr())) };
    assert_eq!(next(41), 42);
}

/// Does nothing where the system has no huge pages reserved.
#[test]
fn reserved_huge_pages_are_whole() {
    const HUGE: usize = 2 << 20;
    let region = match MappedRegion::builder(HUGE).huge_pages(HugePages::Reserved2MiB).map() {
        Ok(region) => region,
        Err(MapError::NoHugePages { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let half = layout(HUGE / 2, 1);
    // SAFETY: the blocks are freed once, with their own layouts; reads stay within their sizes.
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
        // A page is given back however little of it was touched.
        let one = region.alloc(layout(100, 1));
        one.write_bytes(7, 100);
        region.dealloc(one, layout(100, 1));
        assert_eq!(region.trim(), HUGE);
        let one = region.alloc_zeroed(layout(100, 1));
        assert_eq!(std::slice::from_raw_parts(one, 100), [0; 100]);
        region.dealloc(one, layout(100, 1));
    }
}

/// The process lowers its limits, so it is a process of its own.
#[test]
fn limits_of_the_system_are_told() {
    alone!();
    let limit = |resource, bytes| {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: the call only reads the struct, which is valid.
        assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
    };
    limit(libc::RLIMIT_MEMLOCK, PAGE as u64);
    // Root may lock as much as it likes.
    // SAFETY: changes the user of this process, which is of this test alone.
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
    // SAFETY: the block is freed once, with its own layout.
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

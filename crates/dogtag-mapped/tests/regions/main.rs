//! Mapped regions: where blocks are placed, what can be mapped, what the process sees of it, and the
//! collections and allocators on top. A module for each.

#[macro_use]
#[path = "../../../../tests/child/mod.rs"]
mod child;

mod collections;
mod mapping;
mod placement;
mod process;

use child::watch;
use dogtag::Dogtag;
use std::alloc::Layout;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

const PAGE: usize = 4096;

/// Makes a file that has no name, and ends with its last descriptor.
fn file(len: u64) -> File {
    // SAFETY: the name ends with a zero; the descriptor is new, so the file owns it alone.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"window".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len).unwrap();
    file
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// Reads how many bytes of addresses this process has mapped, as the system prints them.
fn mapped_bytes() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|line| line.starts_with("VmSize:")).unwrap().to_owned()
}

/// Sets a flag when it is dropped, also by a panic, so that threads which wait for it end.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

//! What memory-check does about a violation, and what else it can report; each in a
//! process of its own, since each sets a handler, or dies.

use crate::child;
use crate::child::dealloc;
use dogtag::Service;
use dogtag::check::{Reaction, Violation, ViolationKind};
use std::alloc::{Layout, alloc};
use std::os::unix::process::ExitStatusExt;
use std::sync::{Barrier, LazyLock, Mutex};
use std::thread;

/// What a call stack shows of lines: they are known where debug information is.
const LINES: &str = if cfg!(debug_assertions) { "tests/all/check/" } else { "" };

/// Begins a test of memory-check, in a process of its own with those settings, which survives and says
/// all of that.
macro_rules! survives {
    ($settings:expr $(, $said:expr)*) => {
        if $crate::check::has_ended(here!(), $settings, None, &[$($said),*]) {
            return;
        }
    };
}

/// Begins a test of memory-check, in a process of its own with those settings, which is aborted and
/// says all of that.
macro_rules! aborts {
    ($settings:expr $(, $said:expr)*) => {
        if $crate::check::has_ended(here!(), $settings, Some(libc::SIGABRT), &[$($said),*]) {
            return;
        }
    };
}

mod crimes;
mod handlers;
mod instances;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod libraries;
mod looks;
mod protection;
mod quarantine;
mod reactions;
mod reports;
#[cfg(all(feature = "jemalloc", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod wild_accesses;
mod zero_sized;

/// Runs a test in a process of its own; `false` in that process.
fn has_ended(test: &str, settings: &str, signal: Option<i32>, said: &[&str]) -> bool {
    if child::task().is_some() {
        return false;
    }
    let output = child::run(test, "", settings);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let ended = output.status.signal() == signal && (signal.is_some() || text.contains("1 passed"));
    let missing = said.iter().find(|said| !text.contains(**said));
    assert!(ended && missing.is_none(), "{}, {missing:?} is missing:\n{text}", output.status);
    true
}

const LAYOUT: Layout = Layout::new::<[u64; 3]>();

fn victim() -> Service {
    static VICTIM: LazyLock<Service> = LazyLock::new(|| Service::register("victim").unwrap());
    VICTIM.clone()
}

/// A block of the victim.
#[inline(never)]
fn culprit() -> *mut u8 {
    // SAFETY: the layout is not empty.
    let block = victim().run(|| unsafe { alloc(LAYOUT) });
    assert!(!block.is_null());
    block
}

#[inline(never)]
fn twice(block: *mut u8) {
    // SAFETY: none, the second time.
    unsafe {
        dealloc(block, LAYOUT);
        dealloc(block, LAYOUT);
    }
}

/// What the handler was called for.
static MET: Mutex<Vec<(ViolationKind, usize)>> = Mutex::new(Vec::new());

fn note(violation: &Violation) -> Reaction {
    // The service that found it may be at its limit.
    Service::unattributed().run(|| MET.lock().unwrap().push((violation.kind(), violation.address())));
    Reaction::Leak
}

fn met() -> Vec<(ViolationKind, usize)> {
    std::mem::take(&mut *MET.lock().unwrap())
}

fn read(address: *mut u8) -> u8 {
    // SAFETY: whoever has no access to it is told of, or has it from then on.
    unsafe { address.read_volatile() }
}

fn write(address: *mut u8) {
    // SAFETY: as for `read`.
    unsafe { address.write_volatile(1) };
}

/// Whether a block is told of when it is read, by a handler that goes on, as that violation.
fn is_told_as(kind: ViolationKind, block: *mut u8) -> bool {
    assert_eq!(met(), []);
    read(block);
    match *met() {
        [] => false,
        [found] if found == (kind, block as usize) => true,
        ref other => panic!("{other:?}"),
    }
}

/// Has each address read by a thread, all at once.
fn read_by_threads<const THREADS: usize>(addresses: [usize; THREADS]) {
    let barrier = &Barrier::new(THREADS);
    thread::scope(|threads| {
        for address in addresses {
            threads.spawn(move || {
                barrier.wait();
                read(address as *mut u8);
            });
        }
    });
}

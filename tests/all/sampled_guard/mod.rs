//! The sampled guard: what it does about each violation, and to whom it leaves signals; that it is bounded, and the
//! books exact.

mod pool;
mod signals;
mod violations;

use crate::child;
use dogtag::sampled_guard::{SampledGuard, SampledGuardBuilder, is_guarded};
use dogtag::{DefaultBackend, Dogtag, OwnerTable};
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::time::Duration;

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

/// Every block is guarded that there is a slot for, however many a second, and reports have names, however slow the machine is.
fn every_block() -> SampledGuardBuilder {
    SampledGuard::builder().rate(1).per_second(0).patience(Duration::from_secs(1000))
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

fn crime_needs_free(crime: &str) -> bool {
    crime.contains("after free") || crime == "double free"
}

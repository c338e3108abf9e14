//! The names in heap profiles, and what it takes to look them up.
//!
//! CI builds this with `debug = "line-tables-only"` as well, which has no paths of what was inlined.
#![cfg(all(feature = "profile", target_os = "linux"))]

#[macro_use]
#[path = "../child/mod.rs"]
mod child;

use dogtag::profile::{self, Origin, Profile, Profiler};
use dogtag::{Dogtag, Service};
use std::hint::black_box;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

mod deep {
    pub mod er {
        /// Inlined into the next one, with what the standard library has inlined here.
        #[inline(always)]
        pub fn inlined(count: usize) -> Vec<Vec<u8>> {
            let mut blocks = Vec::with_capacity(count);
            for _ in 0..count {
                blocks.push(Vec::with_capacity(1000));
            }
            blocks
        }

        #[inline(never)]
        pub fn outer(count: usize) -> Vec<Vec<u8>> {
            std::hint::black_box(inlined(count))
        }
    }
}

/// Samples every allocation from here on.
fn start() {
    if Profiler::running().is_none() {
        Profiler::builder().interval(1).start().unwrap();
    }
}

/// The functions of the stacks of a service, each with its inlined ones, innermost first.
fn stacks<'a>(profile: &'a Profile, service: &str) -> Vec<Vec<&'a str>> {
    let rows = profile.rows.iter().filter(|row| row.service == service);
    rows.map(|row| profile.frames(row).iter().map(|frame| &*frame.function).collect()).collect()
}

#[test]
fn own_code_is_told_from_the_allocator_and_the_standard_library() {
    alone!();
    start();
    let service = Service::register("names").unwrap();
    let blocks = service.run(|| deep::er::outer(100));
    let live = profile::live();
    let all = live.by_own_code();
    let rows: Vec<_> = all.rows.iter().filter(|row| row.service == "names").collect();
    assert_eq!(rows.iter().map(|row| row.bytes).sum::<i64>(), service.usage().bytes() as i64, "{live}");
    for row in &rows {
        assert!(row.function.starts_with("names::"), "{live}");
        assert!(row.file.as_ref().unwrap().ends_with("tests/names/main.rs"), "{live}");
        assert!((20..30).contains(&row.line.unwrap()), "{live}");
    }
    for stack in stacks(&live, "names") {
        // Of the allocator nothing is left, and what it was called by has its path.
        let is_allocator = |function: &&str| {
            let of =
                ["dogtag::allocator::", "dogtag::ledger::", "dogtag::profile::", "alloc::alloc::", "__rust"];
            of.iter().any(|path| function.contains(path))
        };
        assert!(!stack.iter().any(is_allocator), "{stack:?}");
        assert!(stack.contains(&"names::deep::er::outer"), "{stack:?}");
        assert!(stack[0].starts_with("alloc::vec::") || stack[0].starts_with("names::"), "{stack:?}");
    }
    drop(blocks);
}

#[test]
fn what_profiles_take_is_in_a_row_of_its_own_and_names_are_looked_up_once() {
    alone!();
    start();
    let own = Service::by_name("dogtag::profile").unwrap();
    let taken = || own.usage().allocated_bytes;
    let show = || {
        let before = taken();
        let live = profile::live();
        let text = live.to_string();
        assert!(text.contains("names::") && text.contains("::inlined"), "{text}");
        taken() - before
    };
    let before = profile::allocated();
    let blocks = deep::er::outer(100);
    let first = show();
    // The first times there may still be new ones: of the test's harness, and of what shows it.
    let later = (0..10).map(|_| show()).min().unwrap();
    assert!(first > 1 << 20 && later < first / 10, "{first} B, then {later} B");
    let between = profile::allocated().difference(&before);
    let rows = || between.rows.iter();
    for row in rows().filter(|row| row.service == "dogtag::profile") {
        assert_eq!(row.origin, Origin::NotSampled);
        assert!(row.bytes >= first as i64, "{between}");
    }
    assert_eq!(rows().filter(|row| row.service == "dogtag::profile").count(), 1, "{between}");
    // The program's own is all that is left of the others: its blocks, and the text.
    let program: i64 = rows().filter(|row| row.service == "unattributed").map(|row| row.bytes).sum();
    assert!(program >= 100 * 1000 && program < (first / 2) as i64, "{between}");
    for stack in stacks(&between, "unattributed") {
        let of_reading =
            |function: &&str| ["addr2line::", "gimli::", "object::"].iter().any(|it| function.contains(it));
        assert!(!stack.iter().any(of_reading), "{stack:?}");
    }
    drop(black_box(blocks));
}

//! Every violation at every size and alignment, each in a process of its own, whose
//! report is read field by field.
#![allow(clippy::undocumented_unsafe_blocks, reason = "every test violates an invariant on purpose")]

use crate::child;
use crate::child::dealloc;
use dogtag::__private::blocks::{Accessor, check_access, check_accesses};
use dogtag::{Service, check};
use std::alloc::{Layout, alloc, realloc};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;

const SIZES: [usize; 11] = [1, 7, 8, 16, 24, 64, 100, 1000, 4096, 65536, 4 << 20];
const ALIGNS: [usize; 4] = [1, 8, 64, 4096];

/// What is done, and what the report must say.
struct Crime {
    /// Commits it to a block of that layout.
    commit: unsafe fn(*mut u8, Layout),
    /// No violation for layouts that it cannot be committed with.
    says: fn(Layout) -> Says,
}

#[derive(Default)]
struct Says {
    kind: &'static str,
    operation: &'static str,
    /// The wrong byte that is named.
    wrong: Option<isize>,
    /// How many bytes are marked.
    marked: usize,
    /// The thread that freed the block, and in which service.
    freed: Option<(&'static str, &'static str)>,
    /// What the block was taken for.
    given: Option<Layout>,
    /// How far into the block the pointer points.
    inside: Option<usize>,
    /// Whether the report is about no block.
    no_block: bool,
}

fn says(kind: &'static str, operation: &'static str) -> Says {
    Says { kind, operation, ..Says::default() }
}

fn past_the_end(layout: Layout, offset: usize) -> Option<isize> {
    Some((layout.size() + offset) as isize)
}

const MAIN: (&str, &str) = ("culprit", "criminal");

macro_rules! crimes {
    ($($name:ident { commit: $commit:expr, says: $says:expr, })*) => {
        $(
            #[test]
            fn $name() {
                Crime { commit: $commit, says: $says }.is_caught(here!());
            }
        )*
    };
}

crimes! {
    overrun_by_a_bit_of_the_first_byte {
        commit: |block, layout| unsafe {
            *block.add(layout.size()) ^= 1;
            dealloc(block, layout);
        },
        says: |layout| Says { wrong: past_the_end(layout, 0), marked: 1, ..says("overrun", "dealloc") },
    }
    overrun_by_a_bit_of_the_sixteenth_byte {
        commit: |block, layout| unsafe {
            *block.add(layout.size() + 15) ^= 0x80;
            dealloc(block, layout);
        },
        says: |layout| Says { wrong: past_the_end(layout, 15), marked: 1, ..says("overrun", "dealloc") },
    }
    overrun_by_a_loop_to_the_sixteenth_byte {
        commit: |block, layout| unsafe {
            block.write_bytes(0, layout.size() + 16);
            let _ = black_box(realloc(block, layout, layout.size() * 2));
        },
        // The second byte is zero anyway.
        says: |layout| Says { wrong: past_the_end(layout, 0), marked: 15, ..says("overrun", "realloc") },
    }
    overrun_by_text_met_by_verify {
        commit: |block, layout| unsafe {
            block.add(layout.size() + 2).copy_from_nonoverlapping(b"text".as_ptr(), 4);
            check::verify();
        },
        says: |layout| Says { wrong: past_the_end(layout, 2), marked: 4, ..says("overrun", "verify") },
    }
    underrun_by_a_bit_of_the_byte_in_front {
        commit: |block, layout| unsafe {
            *block.sub(1) ^= 4;
            dealloc(block, layout);
        },
        says: |_| Says { wrong: Some(-1), marked: 1, ..says("underrun", "dealloc") },
    }
    underrun_by_a_bit_of_the_sixteenth_byte {
        commit: |block, layout| unsafe {
            *block.sub(16) ^= 0x20;
            dealloc(block, layout);
        },
        says: |_| Says { wrong: Some(-16), marked: 1, ..says("underrun", "dealloc") },
    }
    underrun_by_sixteen_bytes_met_by_realloc {
        commit: |block, layout| unsafe {
            block.sub(16).write_bytes(0xff, 16);
            let _ = black_box(realloc(block, layout, 1));
        },
        says: |_| Says { wrong: Some(-1), marked: 16, ..says("underrun", "realloc") },
    }
    copy_over_the_end {
        commit: |block, layout| touch(block, layout.size() + 1, &WRITER),
        says: |layout| Says { wrong: past_the_end(layout, 0), ..says("overrun", "memcpy") },
    }
    copy_from_the_last_byte_over_the_end {
        commit: |block, layout| unsafe { touch(block.add(layout.size() - 1), 2 << 20, &WRITER) },
        says: |layout| Says {
            wrong: past_the_end(layout, 0),
            inside: Some(layout.size() - 1).filter(|inside| *inside != 0),
            ..says("overrun", "memcpy")
        },
    }
    copy_past_the_end {
        commit: |block, layout| unsafe { touch(block.add(layout.size() + 3), 4, &WRITER) },
        says: |layout| Says {
            wrong: past_the_end(layout, 3),
            inside: Some(layout.size() + 3),
            ..says("overrun", "memcpy")
        },
    }
    copy_in_front {
        commit: |block, _| unsafe { touch(block.sub(8), 4, &WRITER) },
        says: |_| Says { wrong: Some(-5), inside: Some(8), ..says("underrun", "memcpy") },
    }
    copy_of_what_is_past_the_end {
        commit: |block, layout| touch(block, layout.size() + 32, &READER),
        says: |layout| Says { wrong: past_the_end(layout, 0), ..says("overread", "memcpy") },
    }
    copy_of_what_is_in_front {
        commit: |block, layout| unsafe { touch(block.sub(16), layout.size(), &READER) },
        says: |layout| Says {
            wrong: Some(if layout.size() < 16 { layout.size() as isize - 17 } else { -1 }),
            inside: Some(16),
            ..says("overread", "memcpy")
        },
    }
    copy_to_a_freed_block {
        commit: |block, layout| unsafe {
            dealloc(block, layout);
            touch(block.add(layout.size() / 2), 1, &WRITER);
        },
        says: |layout| Says {
            freed: Some(MAIN),
            wrong: Some(layout.size() as isize / 2),
            inside: Some(layout.size() / 2).filter(|inside| *inside != 0),
            ..says("write after free", "memcpy")
        },
    }
    copy_of_a_freed_block {
        commit: |block, layout| unsafe {
            dealloc(block, layout);
            touch(block, layout.size(), &READER);
        },
        says: |_| Says { freed: Some(MAIN), wrong: Some(0), ..says("read after free", "memcpy") },
    }
    copies_within_a_block_before_a_double_free {
        commit: |block, layout| unsafe {
            for accessor in [&READER, &WRITER] {
                touch(block, layout.size(), accessor);
                touch(block.add(layout.size() / 2), layout.size().div_ceil(2), accessor);
                touch(block.add(layout.size()), 0, accessor);
                touch((&raw const accessor).cast_mut().cast(), 8, accessor);
            }
            dealloc(block, layout);
            dealloc(block, layout);
        },
        says: |_| Says { freed: Some(MAIN), ..says("double free", "dealloc") },
    }
    double_free_at_once {
        commit: |block, layout| unsafe {
            dealloc(block, layout);
            dealloc(block, layout);
        },
        says: |_| Says { freed: Some(MAIN), ..says("double free", "dealloc") },
    }
    double_free_after_others {
        commit: |block, layout| unsafe {
            dealloc(block, layout);
            (0..1000).for_each(|_| drop(black_box(vec![0_u8; 1000])));
            dealloc(block, layout);
        },
        says: |_| Says { freed: Some(MAIN), ..says("double free", "dealloc") },
    }
    double_free_after_another_threads {
        commit: |block, layout| unsafe {
            on_another_thread(block, layout);
            dealloc(block, layout);
        },
        says: |_| Says { freed: Some(("janitor", "janitor")), ..says("double free", "dealloc") },
    }
    double_free_by_realloc {
        commit: |block, layout| unsafe {
            dealloc(block, layout);
            let _ = black_box(realloc(block, layout, 10));
        },
        says: |_| Says { freed: Some(MAIN), ..says("double free", "realloc") },
    }
    write_after_free_to_the_first_byte {
        commit: |block, layout| unsafe {
            dealloc(block, layout);
            *block ^= 1;
            check::verify();
        },
        says: |layout| match layout.size() {
            // There is no access to it.
            LARGE.. => Says { freed: Some(MAIN), wrong: Some(0), ..says("write after free", "an access") },
            _ => Says { freed: Some(MAIN), wrong: Some(0), marked: 1, ..says("write after free", "verify") },
        },
    }
    write_after_free_met_when_the_block_leaves_the_quarantine {
        commit: |block, layout| unsafe {
            on_another_thread(block, layout);
            block.add(layout.size() - 1).write(0);
            push_out(layout);
        },
        says: |layout| match layout.size() {
            LARGE.. => Says {
                freed: Some(("janitor", "janitor")),
                wrong: Some(layout.size() as isize - 1),
                inside: Some(layout.size() - 1),
                ..says("write after free", "an access")
            },
            _ => Says {
                freed: Some(("janitor", "janitor")),
                wrong: Some(layout.size() as isize - 1),
                marked: 1,
                ..says("write after free", "leaving the quarantine")
            },
        },
    }
    read_after_free {
        commit: |block, layout| unsafe {
            dealloc(block, layout);
            black_box(block.add(layout.size() / 2).read_volatile());
        },
        says: |layout| match layout.size() {
            LARGE.. => Says {
                freed: Some(MAIN),
                wrong: Some(layout.size() as isize / 2),
                inside: Some(layout.size() / 2),
                ..says("read after free", "an access")
            },
            // Not found.
            _ => Says { kind: "", ..Says::default() },
        },
    }
    overrun_by_a_bit_at_the_end_of_the_last_page {
        commit: |block, layout| unsafe {
            *block.add(end_of_page(layout) - 1) ^= 1;
            dealloc(block, layout);
        },
        says: |layout| match layout.size() {
            LARGE.. => Says {
                wrong: Some(end_of_page(layout) as isize - 1),
                marked: 1,
                ..says("overrun", "dealloc")
            },
            // Some are another's bytes.
            _ => Says { kind: "", ..Says::default() },
        },
    }
    layout_mismatch_of_size {
        commit: |block, layout| unsafe {
            dealloc(block, Layout::from_size_align(layout.size() + 1, layout.align()).unwrap());
        },
        says: |layout| Says {
            given: Some(Layout::from_size_align(layout.size() + 1, layout.align()).unwrap()),
            ..says("layout mismatch", "dealloc")
        },
    }
    layout_mismatch_of_alignment {
        commit: |block, layout| unsafe {
            let other = Layout::from_size_align(layout.size(), layout.align() * 2).unwrap();
            let _ = black_box(realloc(block, other, 5));
        },
        says: |layout| Says {
            given: Some(Layout::from_size_align(layout.size(), layout.align() * 2).unwrap()),
            ..says("layout mismatch", "realloc")
        },
    }
    invalid_free_of_the_stack {
        commit: |_, layout| unsafe {
            let mut array = [0_u128; 4];
            dealloc(black_box((&raw mut array).cast()), layout);
        },
        says: |_| Says { no_block: true, ..says("invalid free", "dealloc") },
    }
    invalid_free_of_a_static {
        commit: |_, layout| unsafe {
            static ARRAY: [u128; 4] = [0; 4];
            dealloc((&raw const ARRAY).cast_mut().cast(), layout);
        },
        says: |_| Says { no_block: true, ..says("invalid free", "dealloc") },
    }
    invalid_free_of_mallocs {
        commit: |_, layout| unsafe {
            dealloc(libc::malloc(layout.size()).cast(), layout);
        },
        says: |_| Says { no_block: true, ..says("invalid free", "dealloc") },
    }
    invalid_free_of_a_pointer_that_never_was {
        commit: |_, layout| unsafe {
            let _ = black_box(realloc(std::ptr::without_provenance_mut(0xdead_bee0), layout, 8));
        },
        says: |_| Says { no_block: true, ..says("invalid free", "realloc") },
    }
    invalid_free_of_the_interior {
        commit: |block, layout| unsafe {
            dealloc(block.add(layout.size() / 2), layout);
        },
        says: |layout| match layout.size() / 2 {
            // Not the interior: the block itself, twice.
            0 => Says { kind: "", ..Says::default() },
            inside => Says { inside: Some(inside), ..says("invalid free", "dealloc") },
        },
    }
}

/// Blocks from this size on share their pages with nobody.
const LARGE: usize = 16 * PAGE;
const PAGE: usize = if cfg!(target_arch = "x86_64") { 4 << 10 } else { 64 << 10 };

/// How many bytes there are from a large block's beginning to the end of its last page.
fn end_of_page(layout: Layout) -> usize {
    (layout.size() + 64).next_multiple_of(PAGE)
}

const READER: Accessor = Accessor { function: "memcpy", is_write: false };
const WRITER: Accessor = Accessor { function: "memcpy", is_write: true };

/// Has memory looked at as dogtag-c does before a copy.
fn touch(address: *mut u8, length: usize, by: &'static Accessor) {
    check_accesses();
    check_access(address.addr(), length, by);
}

/// # Safety
///
/// The block must be live.
unsafe fn on_another_thread(block: *mut u8, layout: Layout) {
    let address = block as usize;
    let service = Service::register("janitor").unwrap();
    let work = move || service.run(|| unsafe { dealloc(address as *mut u8, layout) });
    std::thread::Builder::new().name("janitor".to_owned()).spawn(work).unwrap().join().unwrap();
}

/// Fills the quarantine with blocks of the same size, until those that were in
/// it have left.
fn push_out(layout: Layout) {
    let enough = 300_000.min((100 << 20) / layout.size());
    let push = move || {
        // The magazine of the thread that freed the block goes to a new one.
        for _ in 0..enough.max(40) {
            unsafe { dealloc(black_box(alloc(layout)), layout) };
        }
    };
    std::thread::spawn(push).join().unwrap();
}

impl Crime {
    /// At every size and alignment, in a process of its own.
    fn is_caught(&self, test: &str) {
        if let Some(layout) = child::task() {
            let (size, align) = layout.split_once('/').unwrap();
            let layout = Layout::from_size_align(size.parse().unwrap(), align.parse().unwrap()).unwrap();
            let commit = self.commit;
            // A thread with a name that reports can show.
            let criminal = std::thread::Builder::new().name("criminal".to_owned());
            criminal.spawn(move || run(commit, layout)).unwrap().join().unwrap();
            return;
        }
        let layouts = SIZES.iter().flat_map(|&size| ALIGNS.map(|align| (size, align)));
        for (size, align) in layouts {
            let layout = Layout::from_size_align(size, align).unwrap();
            let says = (self.says)(layout);
            if says.kind.is_empty() {
                continue;
            }
            if let Err(problem) = investigate(test, layout, &says) {
                panic!("{layout:?}: {problem}");
            }
        }
    }
}

/// Commits the violation in a process of its own, and reads the report.
fn investigate(test: &str, layout: Layout, says: &Says) -> Result<(), String> {
    let output = child::run(test, &format!("{}/{}", layout.size(), layout.align()), "");
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    let problem = |what: String| Err(format!("{what} in\n{report}"));
    if output.status.signal() != Some(libc::SIGABRT) {
        return problem(format!("{}", output.status));
    }
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some(address) = told.lines().find_map(|line| line.strip_prefix("block ")) else {
        return problem(format!("no block was made: {told}"));
    };
    if report.matches("dogtag:").count() != 1 {
        return problem("not one report".to_owned());
    }
    let fields: BTreeMap<&str, &str> = report
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name, value.trim()))
        .collect();
    let aligned = |layout: Layout| {
        let unit = if layout.size() == 1 { "byte" } else { "bytes" };
        format!("{} {unit} aligned to {}", layout.size(), layout.align())
    };
    let mut expected = BTreeMap::new();
    if !says.no_block {
        expected.insert("block", format!("{address}, {}", aligned(layout)));
        expected.insert("allocated", "by victim (0x00000007), on thread # \"criminal\"".to_owned());
    }
    if let Some((service, thread)) = says.freed {
        expected.insert("freed", format!("by {service}, on thread # {thread:?}"));
    }
    expected
        .insert("met", format!("by culprit (0x00000008), on thread # \"criminal\", in {}", says.operation));
    if let Some(given) = says.given {
        expected.insert("taken", format!("for  {}", aligned(given)));
    }
    for name in ["block", "allocated", "freed", "taken"] {
        // `taken` is reported for whatever layout is not the block's.
        let is_expected = expected.contains_key(name) || (name == "taken" && says.no_block);
        if fields.contains_key(name) && !is_expected {
            return problem(format!("{name} should not be there"));
        }
    }
    if !report.starts_with(&format!("dogtag: {}: ", says.kind)) {
        return problem(format!("not {:?}", says.kind));
    }
    for (name, expected) in expected {
        // Handles that were assigned, and numbers of threads, are any.
        let found = fields.get(name).copied().unwrap_or_default();
        let mut found = mask(found, "on thread ", |c| c.is_ascii_digit());
        if name == "freed" {
            found = found.replace(" (0x00000008)", "").replace(" (0x80000000)", "");
        }
        // The thread that pushes a block out of quarantine is another.
        let any_thread = says.operation == "leaving the quarantine" && name == "met";
        if found != expected && !any_thread {
            return problem(format!("{name} is {found:?}, not {expected:?}"));
        }
    }
    let wrong = fields.get("wrong").map(|wrong| wrong.trim_start_matches("byte "));
    let wrong = wrong.and_then(|wrong| wrong.split(',').next()).map(|offset| offset.parse::<isize>());
    if wrong != says.wrong.map(Ok) {
        return problem(format!("the wrong byte is {wrong:?}, not {:?}", says.wrong));
    }
    if marked(&report) != says.marked {
        return problem(format!("{} bytes are marked, not {}", marked(&report), says.marked));
    }
    let inside = fields.get("pointer").and_then(|pointer| pointer.split(", ").nth(1));
    let inside = inside.and_then(|inside| inside.split(' ').next()?.parse::<usize>().ok());
    if inside != says.inside {
        return problem(format!("{inside:?} bytes into the block, not {:?}", says.inside));
    }
    Ok(())
}

/// Puts a # for what follows `before`.
fn mask(text: &str, before: &str, is_masked: impl Fn(char) -> bool) -> String {
    match text.split_once(before) {
        Some((start, rest)) => format!("{start}{before}#{}", rest.trim_start_matches(is_masked)),
        None => text.to_owned(),
    }
}

/// How many bytes of the hexdump stand in brackets.
fn marked(report: &str) -> usize {
    let rows = report.lines().filter_map(|line| line.trim_start().split_once(' '));
    rows.filter(|(offset, _)| offset.starts_with(['+', '-']) && offset.parse::<isize>().is_ok())
        .map(|(_, bytes)| {
            let hexdump: String = bytes.chars().take(49).collect();
            hexdump
                .split('[')
                .skip(1)
                .filter_map(|rest| rest.split(']').next())
                .map(|inside| inside.split_whitespace().count())
                .sum::<usize>()
        })
        .sum()
}

fn run(commit: unsafe fn(*mut u8, Layout), layout: Layout) {
    let victim = Service::builder("victim").handle(7).register().unwrap();
    let culprit = Service::builder("culprit").handle(8).register().unwrap();
    // SAFETY: the layout is not empty. After that, none.
    unsafe {
        let block = victim.run(|| alloc(layout));
        assert!(!block.is_null());
        println!("\nblock {block:p}");
        culprit.run(|| commit(block, layout));
    }
}

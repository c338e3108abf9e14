//! Violations by the hundred thousand, in processes that go on: which of them are caught, and whether each report
//! says what was committed.

use dogtag::sampled_guard::{Reaction, SampledGuard, figures, is_guarded};
use dogtag::{DefaultBackend, Dogtag, OwnerTable, Service};
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{ptr, thread};

const RATE: u64 = 1000;
/// Committed by one process: a slot is not used again when an access to it was let through.
const A_PROCESS: u64 = 25_000;
const PAGE: usize = 4096;

/// Its blocks have no cookies.
static TABLE: Dogtag<DefaultBackend, OwnerTable> = Dogtag::with_owner_table();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crime {
    OverrunBy1,
    OverrunBy32,
    ReadAfterFree,
    WriteAfterFree,
}

impl Crime {
    const ALL: [Self; 4] = [Self::OverrunBy1, Self::OverrunBy32, Self::ReadAfterFree, Self::WriteAfterFree];

    fn label(self) -> &'static str {
        match self {
            Self::OverrunBy1 => "overrun by 1",
            Self::OverrunBy32 => "overrun by 32",
            Self::ReadAfterFree => "read after free",
            Self::WriteAfterFree => "write after free",
        }
    }

    fn parse(text: &str) -> Self {
        *Self::ALL.iter().find(|crime| crime.label() == text).expect("it is one of them")
    }

    fn headline(self) -> &'static str {
        match self {
            Self::OverrunBy1 | Self::OverrunBy32 => "overrun: something wrote past the end",
            Self::ReadAfterFree => "use after free: something read",
            Self::WriteAfterFree => "use after free: something wrote to",
        }
    }

    /// The function that commits it.
    fn culprit(self) -> &'static str {
        match self {
            Self::OverrunBy1 | Self::OverrunBy32 => "crimes::overruns",
            Self::ReadAfterFree => "crimes::reads",
            Self::WriteAfterFree => "crimes::writes",
        }
    }

    fn is_after_free(self) -> bool {
        matches!(self, Self::ReadAfterFree | Self::WriteAfterFree)
    }
}

#[inline(never)]
fn allocates(allocator: &dyn GlobalAlloc, layout: Layout) -> *mut u8 {
    // SAFETY: the layout is not empty.
    black_box(unsafe { allocator.alloc(layout) })
}

#[inline(never)]
fn frees(allocator: &dyn GlobalAlloc, block: *mut u8, layout: Layout) {
    // SAFETY: a block of that allocator's.
    unsafe { allocator.dealloc(black_box(block), layout) };
    black_box(());
}

#[inline(never)]
fn overruns(end: *mut u8, length: usize) {
    for i in 0..length {
        // SAFETY: none: this is the violation.
        unsafe { end.add(i).write_volatile(0xAB) };
    }
    black_box(());
}

#[inline(never)]
fn reads(at: *mut u8) {
    // SAFETY: none: this is the violation.
    black_box(unsafe { at.read_volatile() });
}

#[inline(never)]
fn writes(at: *mut u8) {
    // SAFETY: none: this is the violation.
    unsafe { at.write_volatile(0xAB) };
    black_box(());
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

/// The part of a process of its own: `SEED NUMBER`. Prints a line for each violation that the guard should have
/// reported, or has.
pub fn commit_all(task: &str) {
    let (seed, number) = task.split_once(' ').expect("a seed and a number");
    let (seed, number): (u64, u64) = (seed.parse().unwrap(), number.parse().unwrap());
    let services = (0..8).map(|i| Service::register(format!("owner {i}")).unwrap()).collect::<Vec<_>>();
    let culprit = Service::register("culprit").unwrap();
    // However slow the machine is.
    let patience = Duration::from_secs(1000);
    // The share is the rate, however many come in a second.
    let guard = SampledGuard::builder().rate(RATE).per_second(0);
    guard.reaction(Reaction::Continue).patience(patience).start().unwrap();
    let thread = thread::Builder::new().name("criminal".into()).spawn(move || {
        let allocator: &dyn GlobalAlloc = if seed.is_multiple_of(2) { &crate::ALLOC } else { &TABLE };
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut committed = [0_u64; 4];
        for _ in 0..number {
            let which = random.below(4);
            committed[which] += 1;
            commit(Crime::ALL[which], allocator, &mut random, &services, &culprit);
        }
        for (crime, number) in Crime::ALL.iter().zip(committed) {
            println!("committed|{}|{number}", crime.label());
        }
        assert_eq!((figures().refused, figures().throttled), (0, 0), "there are slots enough");
    });
    thread.unwrap().join().unwrap();
}

fn commit(
    crime: Crime,
    allocator: &dyn GlobalAlloc,
    random: &mut Random,
    services: &[Service],
    culprit: &Service,
) {
    let layout = Layout::from_size_align(8 + random.below(2000), 1 << random.below(5)).unwrap();
    let (size, owner) = (layout.size(), random.below(services.len()));
    let block = services[owner].run(|| allocates(allocator, layout));
    let (is_guarded, before) = (is_guarded(block), figures().caught);
    // SAFETY: the block's end.
    let end = unsafe { block.add(size) };
    let (found, offset);
    if crime.is_after_free() {
        frees(allocator, block, layout);
        // Others come and go meanwhile.
        for _ in 0..random.below(20) {
            let other = Layout::from_size_align(1 + random.below(3000), 1).unwrap();
            frees(allocator, allocates(allocator, other), other);
        }
        let at = random.below(size);
        let access = if crime == Crime::ReadAfterFree { reads } else { writes };
        culprit.run(|| access(block.wrapping_add(at)));
        found = if crime == Crime::ReadAfterFree { "a read" } else { "a write" };
        offset = at;
    } else {
        let length = if crime == Crime::OverrunBy1 { 1 } else { 32 };
        // So that nothing but the violation is wrong with memory that nobody guards: it is as it was when
        // the block is freed.
        let mut saved = [0; 32];
        // SAFETY: it is the cookie's, or another block's.
        let save =
            |saved: &mut [u8; 32]| unsafe { ptr::copy_nonoverlapping(end, saved.as_mut_ptr(), length) };
        if !is_guarded {
            save(&mut saved);
        }
        culprit.run(|| overruns(end, length));
        if !is_guarded {
            // SAFETY: as above.
            unsafe { ptr::copy_nonoverlapping(saved.as_ptr(), end, length) };
        }
        frees(allocator, block, layout);
        let page_end = (block.addr() + 1).next_multiple_of(PAGE);
        let is_met_at_once = end.addr() + length > page_end;
        found = if is_met_at_once { "a write" } else { "dealloc" };
        offset = if is_met_at_once { page_end - block.addr() } else { size };
    }
    let reports = figures().caught - before;
    if is_guarded || reports > 0 {
        let (sampled, align) = (u8::from(is_guarded), layout.align());
        println!(
            "met|{}|{sampled}|{reports}|{size}|{align}|{owner}|{found}|{offset}|{:#x}",
            crime.label(),
            block.addr()
        );
    }
}

#[derive(Clone, Copy, Default)]
struct Sum {
    committed: u64,
    sampled: u64,
    caught: u64,
    /// Caught, with a report that is right in every part.
    right: u64,
}

/// Commits so many. Whether all is as promised.
pub fn measure(number: u64) -> bool {
    let mut sums = [Sum::default(); 4];
    let mut is_well = true;
    for process in 0..number.div_ceil(A_PROCESS) {
        let part = A_PROCESS.min(number - process * A_PROCESS);
        is_well &= one_process(process + 1, part, &mut sums);
    }
    println!("\n| of a million, at 1 in {RATE} | committed | sampled | caught | reports all right | share |");
    println!("| --- | --: | --: | --: | --: | --: |");
    let mut all = Sum::default();
    let rows = Crime::ALL.iter().map(|crime| crime.label()).zip(sums);
    for (_, sum) in rows.clone() {
        all.committed += sum.committed;
        all.sampled += sum.sampled;
        all.caught += sum.caught;
        all.right += sum.right;
    }
    for (label, sum) in rows.chain([("all", all)]) {
        let expected = sum.committed as f64 / RATE as f64;
        let error = (expected * (1.0 - 1.0 / RATE as f64)).sqrt();
        let away = (sum.caught as f64 - expected) / error;
        println!(
            "| {label} | {} | {} | {} | {} | expected {expected:.0} ± {error:.1}: {away:+.1} standard errors |",
            sum.committed, sum.sampled, sum.caught, sum.right
        );
        is_well &= sum.sampled == sum.caught && sum.caught == sum.right && away.abs() < 5.0;
    }
    is_well
}

/// Runs one process, and compares what it has committed with what was reported.
fn one_process(seed: u64, number: u64, sums: &mut [Sum; 4]) -> bool {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.env("DOGTAG_CRIMES_TASK", format!("{seed} {number}")).stdin(Stdio::null());
    let output = program.output().unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    if !output.status.success() {
        println!("seed {seed}: {}\n{err}", output.status);
        return false;
    }
    let mut reports = err.split("dogtag: ").skip(1);
    let mut is_well = true;
    for line in out.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let crime = Crime::parse(fields[1]);
        let sum = &mut sums[crime as usize];
        if fields[0] == "committed" {
            sum.committed += fields[2].parse::<u64>().unwrap();
            continue;
        }
        let number = |at: usize| fields[at].parse::<u64>().unwrap();
        sum.sampled += number(2);
        sum.caught += number(3);
        if (number(2), number(3)) != (1, 1) {
            println!("seed {seed}: sampled {}, reported {}: {line}", fields[2], fields[3]);
            is_well = false;
        }
        for _ in 0..number(3) {
            let report = reports.next().unwrap_or("");
            match wrong(crime, &fields, report) {
                None => sum.right += 1,
                Some(wrong) => {
                    println!("seed {seed}: {line}\nis reported without {wrong:?}:\n{report}");
                    is_well = false;
                }
            }
        }
    }
    if let Some(more) = reports.next() {
        println!("seed {seed}: nobody has committed this:\n{more}");
        is_well = false;
    }
    is_well
}

/// What a report lacks.
fn wrong(crime: Crime, fields: &[&str], report: &str) -> Option<String> {
    let [size, align, owner, found, offset, block] = fields[4..] else { panic!("{fields:?}") };
    let stack = |name: &str| {
        let rest = report.split(&format!("  {name} at\n")).nth(1).unwrap_or("");
        rest.split(" at\n").next().unwrap_or("").to_owned()
    };
    let on_thread = |line: &str| report.lines().any(|it| it.starts_with(line) && it.contains("\"criminal\""));
    let lines = [format!("  allocated  by owner {owner} ("), {
        let by = if found == "dealloc" { "unattributed" } else { "culprit" };
        format!("  met        by {by} (")
    }];
    let freed = "  freed      by unattributed (";
    let texts = [
        crime.headline().to_owned(),
        format!("a block of {size} bytes"),
        format!("  block      {block}, {size} bytes aligned to {align}\n"),
        format!(", in {found}\n"),
        format!("  wrong      byte {offset}"),
    ];
    let met = if found == "dealloc" { "crimes::frees" } else { crime.culprit() };
    if let Some(text) = texts.iter().find(|text| !report.contains(*text)) {
        return Some(text.clone());
    }
    if let Some(line) = lines.iter().find(|line| !on_thread(line)) {
        return Some(line.clone());
    }
    if on_thread(freed) != crime.is_after_free() {
        return Some(freed.to_owned());
    }
    if crime.is_after_free() && !stack("freed").contains("crimes::frees") {
        return Some("freed at".to_owned());
    }
    [("allocated", "crimes::allocates"), ("met", met)]
        .into_iter()
        .find(|(name, function)| !stack(name).contains(function))
        .map(|(name, function)| format!("{name} at {function}"))
}

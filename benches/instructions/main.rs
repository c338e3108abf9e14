//! How many instructions dogtag adds to an operation, which are as many each
//! time, and whether they have become more.
//!
//! `cargo bench --bench instructions [-- --record | --required]`
//!
//! valgrind counts the instructions of the programs `bare` and `dogtag` (see
//! `benches/overhead`) while they do an operation so many times, and twice as many
//! times: the difference is that of the operations alone. What is compared with
//! the recorded `baseline.csv` is how many more dogtag's are than bare jemalloc's, so
//! that another jemalloc changes little. 3 % more is an error, where that is more than
//! one instruction, and where dogtag's own became more: bare jemalloc's `realloc` takes a few
//! instructions less now and then. Rows that begin with "table" are the program `owner_table`'s. The last column is dogtag with the feature `profile` and the profiler on,
//! where nothing is sampled meanwhile: more than without is an error.
//!
//! `--record` writes the baseline, after a change that is worth its instructions
//! or with a new compiler, to be committed with the reason. Without valgrind
//! nothing is counted, and with another compiler nothing is compared, which are
//! errors where it is `--required`.
//!
//! (Of the crates that do this, gungraun is the best kept. It needs a runner of
//! the very same version installed, and keeps baselines with paths of the machine
//! they were measured on, so it is not used here.)

#[path = "../programs/builder.rs"]
mod programs;

use programs::fail;
use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// With cookies, and with an owner table what of it depends on where owners are.
const OPERATIONS: [&str; 14] = [
    "pair-64",
    "pair-4096",
    "zeroed-64",
    "realloc-64-128",
    "freed-elsewhere-64",
    "scope-run",
    "scope-enter",
    "scope-by-turns",
    "future-poll",
    "table pair-64",
    "table pair-4096",
    "table zeroed-64",
    "table realloc-64-128",
    "table freed-elsewhere-64",
];

const TIMES: u64 = 150_000;

/// Jemalloc looks at the clock now and then; the least of so many counts is without, and so are two that agree.
const ROUNDS: usize = 3;

/// Which part more is too much; and how many instructions are none.
const TOLERANCE: f64 = 0.03;
const NOISE: f64 = 1.0;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let is = |option: &str| arguments.iter().any(|argument| argument == option);
    if let Some(other) =
        arguments.iter().find(|argument| !["--record", "--required"].contains(&argument.as_str()))
    {
        fail(&format!("{other:?} is no option: --record, --required"));
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        let message = "valgrind is not installed, so no instruction was counted";
        if is("--required") || is("--record") {
            fail(message);
        }
        return println!("{message}");
    }
    programs::build(&["--features", "dogtag", "--bin", "dogtag", "--bin", "owner_table"]);
    programs::build(&["--features", "profile", "--bin", "profiled"]);
    let folder = programs::build(&["--bin", "bare"]);

    let baseline = Baseline::read();
    let compiler = compiler();
    let mut recorded = format!("{compiler}\noperation,bare,dogtag,added\n");
    let mut worse = Vec::new();
    let mut bare_by_operation = HashMap::new();
    println!(
        "{:<24} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "instructions", "bare", "dogtag", "added", "recorded", "profiled"
    );
    for operation in OPERATIONS {
        let (own, done) = match operation.strip_prefix("table ") {
            Some(done) => ("owner_table", done),
            None => ("dogtag", operation),
        };
        let each = |program: &str| each(&folder.join(program), done);
        let bare = *bare_by_operation.entry(done).or_insert_with(|| each("bare"));
        let dogtag = each(own);
        let profiled = (own == "dogtag").then(|| each("profiled"));
        let added = dogtag - bare;
        let before = baseline.added(operation);
        let shown = before.map_or("none".into(), |before| format!("{before:.1}"));
        let with_profiler = profiled.map_or(String::new(), |profiled| format!("{profiled:.1}"));
        println!("{operation:<24} {bare:>8.1} {dogtag:>8.1} {added:>8.1} {shown:>9} {with_profiler:>9}");
        let _ = writeln!(recorded, "{operation},{bare:.1},{dogtag:.1},{added:.1}");
        let own = baseline.own(operation);
        let is_more = |now: f64, before: Option<f64>| {
            before.is_none_or(|before| now > before + NOISE.max(before.abs() * TOLERANCE))
        };
        // Of dogtag's own every instruction counts: they are the same each time.
        if is_more(added, before) && own.is_none_or(|own| dogtag > own + NOISE) {
            worse.push(format!("{operation} adds {added:.1} instructions, recorded are {shown}"));
        }
        // Threads that wait for each other make the last one vary.
        if let Some(profiled) = profiled
            && profiled > dogtag + NOISE.max(dogtag * TOLERANCE)
            && operation != "freed-elsewhere-64"
        {
            worse.push(format!("{operation} has {profiled:.1} with the profiler on, {dogtag:.1} without"));
        }
    }

    if is("--record") {
        std::fs::write(Baseline::path(), recorded)
            .unwrap_or_else(|error| fail(&format!("the baseline cannot be written: {error}")));
        return println!("\nrecorded");
    }
    if baseline.compiler != compiler {
        let message = format!(
            "\nnot compared: recorded with {}, this is {compiler}; record it anew",
            baseline.compiler
        );
        if is("--required") {
            fail(&message);
        }
        println!("{message}");
    } else if !worse.is_empty() {
        fail(&format!(
            "\nmore than 3 % more instructions than recorded:\n  {}\nIf the change is worth it: cargo bench --bench instructions -- --record",
            worse.join("\n  ")
        ));
    }
}

/// Instructions for one operation.
fn each(program: &Path, operation: &str) -> f64 {
    let least = |number| {
        let mut counts = Vec::new();
        while counts.len() < ROUNDS {
            let count = count(program, operation, number);
            if counts.contains(&count) {
                break;
            }
            counts.push(count);
        }
        counts.into_iter().min().unwrap_or(0)
    };
    (least(2 * TIMES) - least(TIMES)) as f64 / TIMES as f64
}

fn count(program: &Path, operation: &str, number: u64) -> i64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["count", operation, &number.to_string()])
        // Far more than is allocated: the program `profiled` samples, and meets no sample.
        .env("DOGTAG_PROFILE", "interval=1024G")
        .output()
        .unwrap_or_else(|error| fail(&format!("valgrind: {error}")));
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match collected {
        Some(instructions) if output.status.success() => instructions,
        _ => fail(&format!("{} count {operation}: {text}", program.display())),
    }
}

/// What was recorded.
struct Baseline {
    compiler: String,
    /// The operations: dogtag's own instructions, and what it adds.
    rows: Vec<(String, f64, f64)>,
}

impl Baseline {
    fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/baseline.csv")
    }

    fn read() -> Self {
        let text = std::fs::read_to_string(Self::path()).unwrap_or_default();
        let mut lines = text.lines();
        let compiler = lines.next().unwrap_or("nothing").to_owned();
        let row = |line: &str| {
            let [operation, _, own, added] = line.split(',').collect::<Vec<_>>().try_into().ok()?;
            Some((operation.to_owned(), own.parse().ok()?, added.parse().ok()?))
        };
        Self { compiler, rows: lines.filter_map(row).collect() }
    }

    fn added(&self, operation: &str) -> Option<f64> {
        self.rows.iter().find(|(name, ..)| name == operation).map(|(_, _, added)| *added)
    }

    fn own(&self, operation: &str) -> Option<f64> {
        self.rows.iter().find(|(name, ..)| name == operation).map(|(_, own, _)| *own)
    }
}

/// The compiler's version and machine.
fn compiler() -> String {
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into())).arg("--version").output();
    let version = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let version = version.unwrap_or_else(|error| fail(&format!("rustc cannot be started: {error}")));
    format!("{version} {}", std::env::consts::ARCH)
}

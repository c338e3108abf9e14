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
//! instructions less now and then. Rows that begin with "table" are the program `owner_table`'s. The last column
//! is dogtag with the feature `profile` and the profiler on, where nothing is sampled meanwhile: more than without
//! is an error.
//!
//! `--record` writes the baseline, after a change that is worth its instructions
//! or with a new compiler, to be committed with the reason. Without valgrind
//! nothing is counted, and with another compiler nothing is compared, which are
//! errors where it is `--required`.
//!
//! (Of the crates that do this, gungraun is the best kept. It needs a runner of
//! the very same version installed, and keeps baselines with paths of the machine
//! they were measured on, so it is not used here.)

mod counted;
#[path = "../programs/builder.rs"]
mod programs;

use counted::{Baseline, NOISE, Options, TOLERANCE, each, valgrind};
use programs::fail;
use std::collections::HashMap;
use std::path::Path;

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

fn main() {
    let options = Options::read();
    if !options.can_count() {
        return;
    }
    programs::build(&["--features", "dogtag", "--bin", "dogtag", "--bin", "owner_table"]);
    programs::build(&["--features", "profile", "--bin", "profiled"]);
    let folder = programs::build(&["--bin", "bare"]);

    let mut baseline =
        Baseline::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/baseline.csv"));
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
        let each = |program: &str| {
            each(|number| {
                let mut counts = valgrind();
                counts.arg(folder.join(program)).args(["count", done, &number.to_string()]);
                // Far more than is allocated: the program `profiled` samples, and meets no sample.
                counts.env("DOGTAG_PROFILE", "interval=1024G");
                counts
            })
        };
        let bare = *bare_by_operation.entry(done).or_insert_with(|| each("bare"));
        let dogtag = each(own);
        let profiled = (own == "dogtag").then(|| each("profiled"));
        let with_profiler = profiled.map_or(String::new(), |profiled| format!("{profiled:.1}"));
        baseline.compare(operation, bare, dogtag, &with_profiler);
        // Threads that wait for each other make the last one vary.
        if let Some(profiled) = profiled
            && profiled > dogtag + NOISE.max(dogtag * TOLERANCE)
            && operation != "freed-elsewhere-64"
        {
            let message = format!("{operation} has {profiled:.1} with the profiler on, {dogtag:.1} without");
            baseline.worse.push(message);
        }
    }
    baseline.end(&options, "--bench instructions");
}

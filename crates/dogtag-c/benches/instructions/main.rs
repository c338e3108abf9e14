//! How many instructions the preloaded library adds to C's functions, beside jemalloc preloaded, and whether
//! they have become more; with memory-check, too.
//!
//! `cargo bench -p dogtag-c --bench c_instructions [-- --record | --required]`
//!
//! As `cargo bench --bench instructions` counts and compares them, with a `baseline.csv` of its own. Rows that begin
//! with "checked" are those of memory-check, whose quarantine is full by then.

#[path = "../../../../benches/programs/builder.rs"]
mod builder;
#[path = "../../../../benches/instructions/counted.rs"]
mod counted;
#[path = "../libraries/mod.rs"]
mod libraries;

use builder::fail;
use counted::{Baseline, Options, each, valgrind};
use libraries::{compile, contestants};
use std::path::Path;
use std::{env, fs, process};

const OPERATIONS: [&str; 4] = ["pair-64", "pair-4096", "zeroed-64", "realloc-64-128"];
/// Those that are counted with memory-check, too, which takes valgrind a while.
const CHECKED: [&str; 1] = ["pair-64"];

fn main() {
    let options = Options::read();
    if !options.can_count() {
        return;
    }
    let folder = env::temp_dir().join(format!("dogtag-instructions-{}", process::id()));
    fs::create_dir_all(&folder).unwrap_or_else(|error| fail(&format!("{}: {error}", folder.display())));
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions");
    let [jemalloc, _, dogtag, checked] = contestants(&folder).map(|(_, library)| library);
    let program = compile(&folder, &sources.join("count.c"));
    let each = |library: &Path, operation: &str| {
        each(|number| {
            let mut counts = valgrind();
            counts.arg(&program).args([operation, &number.to_string()]).env("LD_PRELOAD", library);
            counts
        })
    };

    let mut baseline = Baseline::read(sources.join("baseline.csv"));
    println!("{:<24} {:>8} {:>8} {:>8} {:>9}", "instructions", "jemalloc", "dogtag", "added", "recorded");
    for operation in OPERATIONS {
        let bare = each(&jemalloc, operation);
        baseline.compare(operation, bare, each(&dogtag, operation), "");
        if CHECKED.contains(&operation) {
            baseline.compare(&format!("checked {operation}"), bare, each(&checked, operation), "");
        }
    }
    let _ = fs::remove_dir_all(folder);
    baseline.end(&options, "-p dogtag-c --bench c_instructions");
}

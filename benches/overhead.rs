//! What knowing the owner of every byte costs, beside the others that count.
//!
//! `cargo bench --bench overhead [-- --rounds N] [-- WORKLOAD ...]`
//!
//! Each contestant is a program of its own (`benches/programs`) with the
//! allocator installed globally, built as users build: release, no LTO, the
//! allocator in a crate of its own, on top of jemalloc as that allocator's users
//! have it (dogtag's with statistics, which its snapshots show). `memory_check` is
//! dogtag with that feature. Every
//! measurement is a fresh process. The contestants take turns within a round,
//! and what is printed is the median over the rounds: nanoseconds for an
//! operation, and the ratio to bare jemalloc in the same round.

use std::path::{Path, PathBuf};
use std::process::Command;

const CONTESTANTS: [&str; 7] =
    ["bare", "dogtag", "memory_check", "tracking_allocator", "cap", "stats_alloc", "skynet"];

const WORKLOADS: [(&str, &str); 10] = [
    ("pair-16", "pair, 16 B"),
    ("pair-64", "pair, 64 B"),
    ("pair-1024", "pair, 1024 B"),
    ("small-1k-live", "1–128 B, 1 k live"),
    ("two-threads", "1–256 B, 1 k live, 2 threads"),
    ("hand-over", "producer/consumer, 48 B"),
    ("cold", "1–1024 B, 100 k live (cold)"),
    ("vec-growth", "Vec growth, per push"),
    ("realloc-doubling", "realloc by doubling, 16 B–8 KiB"),
    ("json", "JSON program, per byte"),
];

fn main() {
    let mut rounds = 15;
    let mut only: Vec<String> = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What cargo passes to every bench.
            "--bench" => {}
            "--rounds" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                rounds = number
                    .filter(|&rounds| rounds > 0)
                    .unwrap_or_else(|| fail("--rounds takes a number from 1 on"));
            }
            name if WORKLOADS.iter().any(|(known, _)| *known == name) => only.push(argument),
            other => {
                fail(&format!("{other:?} is no workload: {}", WORKLOADS.map(|(name, _)| name).join(", ")))
            }
        }
    }

    // One by one: what dogtag asks of jemalloc is not asked for the others.
    build(&["--features", "dogtag", "--bin", "dogtag"]);
    build(&["--features", "memory-check", "--bin", "memory_check"]);
    let programs = build(&[]);
    println!("ns per operation and ratio to bare jemalloc; medians of {rounds} interleaved rounds\n");
    print!("| {:<31} ", "workload");
    CONTESTANTS.iter().for_each(|name| print!("| {name:>18} "));
    println!("|\n|{}|{}", "-".repeat(33), format!("{}:|", "-".repeat(19)).repeat(CONTESTANTS.len()));
    for (workload, label) in WORKLOADS {
        if !only.is_empty() && !only.iter().any(|name| name == workload) {
            continue;
        }
        let measured: Vec<Vec<f64>> = (0..rounds)
            .map(|_| CONTESTANTS.iter().map(|program| measure(&programs.join(program), workload)).collect())
            .collect();
        print!("| {label:<31} ");
        for contestant in 0..CONTESTANTS.len() {
            let time = median(measured.iter().map(|round| round[contestant]));
            let ratio = median(measured.iter().map(|round| round[contestant] / round[0]));
            print!("| {:>18} ", format!("{time:.2}  {ratio:.2}×"));
        }
        println!("|");
    }
}

/// Builds programs and says where they are.
fn build(choice: &[&str]) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/programs/Cargo.toml");
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--release",
            "--quiet",
            "--message-format=json-render-diagnostics",
            "--manifest-path",
        ])
        .arg(&manifest)
        .args(choice)
        .stderr(std::process::Stdio::inherit())
        .output()
        .unwrap_or_else(|error| fail(&format!("cargo cannot be started: {error}")));
    if !built.status.success() {
        fail("the programs do not build");
    }
    // Cargo names each executable it built, wherever the target folder is.
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| Some(Path::new(message["executable"].as_str()?).parent()?.to_owned()))
        .unwrap_or_else(|| fail("cargo named no program"))
}

fn measure(program: &Path, workload: &str) -> f64 {
    let output = Command::new(program)
        .arg(workload)
        .output()
        .unwrap_or_else(|error| fail(&format!("{}: {error}", program.display())));
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim()
        .parse()
        .unwrap_or_else(|_| fail(&format!("{} {workload}: {}", program.display(), output.status)))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(2)
}

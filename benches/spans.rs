//! What spans cost with a `ServiceLayer`, without, and with tracking-allocator's layer.
//!
//! `cargo bench --bench spans`
//!
//! Two programs of `benches/programs`, run in turn; each compares its layers with the
//! registry alone.

#[path = "programs/builder.rs"]
mod builder;

use builder::{build, fail};
use std::path::Path;
use std::process::Command;

const ROUNDS: usize = 15;
const PROGRAMS: [&str; 2] = ["spans", "spans_tracking_allocator"];

fn main() {
    let [ours, theirs] = PROGRAMS.map(|name| build(&["--bin", name, "--features", name]).join(name));
    let mut figures: Vec<Figure> = Vec::new();
    for _ in 0..ROUNDS {
        for program in [&ours, &theirs] {
            for (row, name, time) in run(program) {
                let known = figures.iter_mut().find(|figure| {
                    (&figure.program, &figure.row, &figure.name) == (&program.as_path(), &row, &name)
                });
                match known {
                    Some(figure) => figure.times.push(time),
                    None => figures.push(Figure { program, row, name, times: vec![time] }),
                }
            }
        }
    }
    println!("medians of {ROUNDS} runs of each program, in turn; × the registry alone in the same program\n");
    let mut rows: Vec<&str> = Vec::new();
    for figure in &figures {
        if !rows.contains(&&*figure.row) {
            rows.push(&figure.row);
        }
    }
    for row in rows {
        println!("{row}");
        for figure in figures.iter().filter(|figure| figure.row == row) {
            let base = figures.iter().find(|base| {
                base.program == figure.program && base.row == row && base.name == "the registry alone"
            });
            let time = median(&figure.times);
            let base = base.map_or(time, |base| median(&base.times));
            println!(
                "    {:<30} {time:>8.1} ns  {:>5.2}×  {:>+7.1} ns",
                figure.name,
                time / base,
                time - base
            );
        }
    }
}

struct Figure<'a> {
    program: &'a Path,
    row: String,
    name: String,
    times: Vec<f64>,
}

/// Row, contestant, and nanoseconds for one operation.
fn run(program: &Path) -> Vec<(String, String, f64)> {
    let output = match Command::new(program).output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => fail(&format!("{}: {}", program.display(), output.status)),
        Err(error) => fail(&format!("{}: {error}", program.display())),
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let mut parts = line.split('\t');
            Some((parts.next()?.to_owned(), parts.next()?.to_owned(), parts.next()?.parse().ok()?))
        })
        .collect()
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

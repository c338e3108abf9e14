//! What knowing the owner of every byte costs, beside the others that count.
//!
//! `cargo bench --bench overhead [-- --rounds N] [--out FOLDER] [WORKLOAD ...]`
//!
//! Each contestant is a program of its own (`benches/programs`) with the
//! allocator installed globally, built as users build: release, no LTO, the
//! allocator in a crate of its own, on top of jemalloc as that allocator's users
//! have it (dogtag's with statistics, which its snapshots show). Every
//! measurement is a fresh process. The contestants take turns within a round, and
//! what counts is the ratio to bare jemalloc in the same round: its median over the
//! rounds, and between which two values half of them are.
//!
//! Ends by writing `overhead.csv` and the pictures (`speed-*.svg`, `memory-*.svg`)
//! to the folder, `target/overhead` unless told otherwise; but not when workloads
//! are named.

mod picture;
#[path = "../programs/builder.rs"]
mod programs;
mod workloads;

use picture::{Mark, Picture, Row};
use programs::{build, fail};
use std::path::{Path, PathBuf};
use std::process::Command;
use workloads::{Group, Workload};

/// Program, and what it is called. The first is what all are measured by.
const CONTESTANTS: [(&str, &str); 11] = [
    ("bare", "bare jemalloc"),
    ("dogtag", "dogtag"),
    ("owner_table", "dogtag, owner table"),
    ("memory_check", "dogtag, memory-check"),
    ("vector", "as Vector does"),
    ("saluki", "as Saluki does"),
    ("tracking_allocator", "tracking-allocator"),
    ("skynet", "as skynet did"),
    ("cap", "cap"),
    ("stats_alloc", "stats_alloc"),
    ("system", "the system’s"),
];

fn main() {
    let options = Options::read();
    // One by one: what dogtag asks of jemalloc is not asked for the others.
    build(&["--features", "dogtag", "--bin", "dogtag", "--bin", "owner_table"]);
    build(&["--features", "memory-check", "--bin", "memory_check"]);
    let programs = build(&[]);

    let mut results: Vec<Measured> = Vec::new();
    for group in Group::ALL {
        let workloads: Vec<&Workload> = workloads::of(group)
            .filter(|workload| {
                options.only.is_empty() || options.only.iter().any(|name| name == workload.name)
            })
            .collect();
        if workloads.is_empty() {
            continue;
        }
        let contestants = &CONTESTANTS[..group.contestants()];
        println!("\n{}\n", group.title());
        header(contestants);
        for workload in workloads {
            let rounds = options.rounds.min(group.most_rounds());
            let measured = Measured::new(&programs, workload, contestants, rounds);
            measured.print();
            results.push(measured);
        }
    }
    conclusions(&results);
    if options.only.is_empty() {
        publish(&options.out, &results, options.rounds).unwrap_or_else(|error| {
            fail(&format!("{} cannot be written: {error}", options.out.display()));
        });
        println!("\nwrote {}", options.out.display());
    }
}

struct Options {
    rounds: usize,
    out: PathBuf,
    only: Vec<String>,
}

impl Options {
    fn read() -> Self {
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("overhead");
        let mut options = Self { rounds: 15, out, only: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // What cargo passes to every bench.
                "--bench" => {}
                "--rounds" => {
                    let number = arguments.next().and_then(|number| number.parse().ok());
                    options.rounds = number
                        .filter(|&rounds| rounds > 0)
                        .unwrap_or_else(|| fail("--rounds takes a number from 1 on"));
                }
                "--out" => {
                    let folder = arguments.next().unwrap_or_else(|| fail("--out takes a folder"));
                    options.out = folder.into();
                }
                name if workloads::ALL.iter().any(|workload| workload.name == name) => {
                    options.only.push(argument);
                }
                other => {
                    let known: Vec<_> = workloads::ALL.iter().map(|workload| workload.name).collect();
                    fail(&format!("{other:?} is no workload: {}", known.join(", ")))
                }
            }
        }
        options
    }
}

/// What was measured of one workload, a sample for each contestant.
struct Measured {
    workload: &'static Workload,
    samples: Vec<Samples>,
}

/// What was measured of one contestant, a value for each round.
struct Samples {
    program: &'static str,
    label: &'static str,
    nanoseconds: Vec<f64>,
    ratios: Vec<f64>,
    peak_rss: Vec<f64>,
    rss_ratios: Vec<f64>,
}

impl Measured {
    fn new(
        programs: &Path,
        workload: &'static Workload,
        contestants: &[(&'static str, &'static str)],
        rounds: usize,
    ) -> Self {
        let mut samples: Vec<Samples> =
            contestants.iter().map(|(program, label)| Samples::new(program, label)).collect();
        for round in 0..rounds {
            // Everybody comes first, and last, as often as all others.
            let order = (0..contestants.len()).map(|i| (i + round) % contestants.len());
            for contestant in order {
                let (time, rss) = run(&programs.join(contestants[contestant].0), workload.name);
                samples[contestant].nanoseconds.push(time);
                samples[contestant].peak_rss.push(rss);
            }
            let (time, rss) = (samples[0].nanoseconds[round], samples[0].peak_rss[round]);
            for sample in &mut samples {
                sample.ratios.push(sample.nanoseconds[round] / time);
                sample.rss_ratios.push(sample.peak_rss[round] / rss);
            }
        }
        Self { workload, samples }
    }

    fn print(&self) {
        print!("| {:<31} ", self.workload.label);
        for sample in &self.samples {
            if self.workload.group == Group::Footprint {
                print!("| {:>20} ", format!("{:.2}×", median(&sample.rss_ratios)));
            } else if sample.program == CONTESTANTS[0].0 {
                print!("| {:>20} ", format!("{:.2} ns", median(&sample.nanoseconds)));
            } else {
                let (low, high) = middle_half(&sample.ratios);
                print!("| {:>20} ", format!("{:.2}× ({low:.2}–{high:.2})", median(&sample.ratios)));
            }
        }
        println!("|");
    }

    fn of(&self, program: &str) -> Option<&Samples> {
        self.samples.iter().find(|sample| sample.program == program)
    }
}

impl Samples {
    fn new(program: &'static str, label: &'static str) -> Self {
        let [nanoseconds, ratios, peak_rss, rss_ratios] = Default::default();
        Self { program, label, nanoseconds, ratios, peak_rss, rss_ratios }
    }
}

fn header(contestants: &[(&str, &str)]) {
    print!("| {:<31} ", "");
    contestants.iter().for_each(|(_, label)| print!("| {label:>20} "));
    println!("|\n|{}|{}", "-".repeat(33), format!("{}:|", "-".repeat(21)).repeat(contestants.len()));
}

/// The figures that sum it up.
fn conclusions(results: &[Measured]) {
    let programs: Vec<_> = results.iter().filter(|row| row.workload.group == Group::Programs).collect();
    if !programs.is_empty() {
        println!("\nprograms: geometric mean of the time (the worst), and of the peak RSS\n");
        for (program, label) in &CONTESTANTS[1..] {
            let each = |of: fn(&Samples) -> &Vec<f64>| -> Vec<f64> {
                programs.iter().filter_map(|row| Some(median(of(row.of(program)?)))).collect()
            };
            let (times, rss) = (each(|sample| &sample.ratios), each(|sample| &sample.rss_ratios));
            let worst = times.iter().copied().fold(0.0, f64::max);
            let (time, rss) = (geometric_mean(&times), geometric_mean(&rss));
            println!("{label:<22} {time:>5.2}× ({worst:.2}×)  {rss:>5.2}×");
        }
    }
    let footprint = results.iter().filter(|row| row.workload.group == Group::Footprint);
    let worst = |program: &str| {
        let size = |row: &&Measured| row.of(program).map_or(0.0, |sample| median(&sample.rss_ratios));
        footprint
            .clone()
            .max_by(|a, b| size(a).total_cmp(&size(b)))
            .map(|row| (row.workload.label, size(&row)))
    };
    if let Some((label, ratio)) = worst("dogtag") {
        println!("\nlive blocks, worst size of dogtag: {label}, {ratio:.2}×");
    }
}

/// Writes the figures and the pictures of them.
fn publish(folder: &Path, results: &[Measured], rounds: usize) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    let mut table = String::from(
        "group,workload,contestant,rounds,nanoseconds,ratio,ratio_lower_quartile,ratio_upper_quartile,\
         peak_rss_bytes,peak_rss_ratio\n",
    );
    for row in results {
        for sample in &row.samples {
            let (low, high) = middle_half(&sample.ratios);
            table += &format!(
                "{:?},{},{},{},{:.3},{:.4},{low:.4},{high:.4},{:.0},{:.4}\n",
                row.workload.group,
                row.workload.name,
                sample.program,
                sample.ratios.len(),
                median(&sample.nanoseconds),
                median(&sample.ratios),
                median(&sample.peak_rss),
                median(&sample.rss_ratios),
            );
        }
    }
    std::fs::write(folder.join("overhead.csv"), table)?;

    let machine = format!("{}; medians of {rounds} rounds", machine());
    let speed = Picture {
        title: "Time, as a multiple of bare jemalloc’s",
        note: &machine,
        contestants: &CONTESTANTS.map(|(_, label)| label)[1..],
        range: 0.7..40.0,
        ticks: &[1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0],
        rows: rows(results, |group| group != Group::Footprint, |sample| &sample.ratios),
    };
    let memory = Picture {
        title: "Peak RSS, as a multiple of bare jemalloc’s",
        range: 0.8..6.0,
        ticks: &[1.0, 1.5, 2.0, 3.0, 5.0],
        rows: rows(
            results,
            |group| matches!(group, Group::Programs | Group::Footprint),
            |sample| &sample.rss_ratios,
        ),
        ..speed
    };
    speed.write(folder, "speed")?;
    memory.write(folder, "memory")
}

fn rows(results: &[Measured], is_shown: fn(Group) -> bool, of: fn(&Samples) -> &Vec<f64>) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    let mut last = None;
    for row in results.iter().filter(|row| is_shown(row.workload.group)) {
        let group = row.workload.group;
        if last.replace(group) != Some(group) {
            rows.push(Row::Heading(group.title()));
        }
        let mark = |sample: &Samples| {
            let (low, high) = middle_half(of(sample));
            let contestant = CONTESTANTS[1..].iter().position(|(_, label)| *label == sample.label)?;
            Some(Mark { contestant, middle: median(of(sample)), low, high })
        };
        let marks = row.samples.iter().filter_map(mark).collect();
        rows.push(Row::Workload { label: row.workload.label, marks });
    }
    rows
}

/// The kind of machine, and the day.
fn machine() -> String {
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let date = Command::new("date").arg("+%F").output().ok();
    let date = date.map(|date| String::from_utf8_lossy(&date.stdout).trim().to_owned()).unwrap_or_default();
    format!("{date}, {} × {}, {}", cores, model.unwrap_or("CPU").trim(), std::env::consts::OS)
}

/// Nanoseconds for one operation, and the process's peak RSS in bytes.
fn run(program: &Path, workload: &str) -> (f64, f64) {
    let output = Command::new(program)
        .arg(workload)
        .output()
        .unwrap_or_else(|error| fail(&format!("{}: {error}", program.display())));
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(time)), Some(Ok(rss))) => (time, rss),
        _ => fail(&format!("{} {workload}: {}", program.display(), output.status)),
    }
}

fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Between which values the middle half of them are.
fn middle_half(values: &[f64]) -> (f64, f64) {
    (quantile(values, 0.25), quantile(values, 0.75))
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}

fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

//! Counts a program's instructions by valgrind, and compares them with what was recorded.

use super::fail;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

pub const TIMES: u64 = 150_000;

/// Jemalloc looks at the clock now and then; the least of so many counts is without, and so are two that agree.
const ROUNDS: usize = 3;

/// Which part more is too much; and how many instructions are none.
pub const TOLERANCE: f64 = 0.03;
pub const NOISE: f64 = 1.0;

/// What the command line asks for.
pub struct Options {
    records: bool,
    requires: bool,
}

impl Options {
    /// Ends the process where an option is none.
    pub fn read() -> Self {
        let arguments: Vec<String> =
            std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
        let is = |option: &str| arguments.iter().any(|argument| argument == option);
        if let Some(other) =
            arguments.iter().find(|argument| !["--record", "--required"].contains(&argument.as_str()))
        {
            fail(&format!("{other:?} is no option: --record, --required"));
        }
        Self { records: is("--record"), requires: is("--required") }
    }

    /// Whether instructions can be counted here. Ends the process if they cannot and have to.
    pub fn can_count(&self) -> bool {
        let is_installed = Command::new("valgrind").arg("--version").output().is_ok();
        if !is_installed {
            let message = "valgrind is not installed, so no instruction was counted";
            if self.requires || self.records {
                fail(message);
            }
            println!("{message}");
        }
        is_installed
    }
}

/// Instructions for one operation of a program that `command` has do so many.
pub fn each(command: impl Fn(u64) -> Command) -> f64 {
    let least = |number| {
        let mut counts = Vec::new();
        while counts.len() < ROUNDS {
            let count = count(command(number));
            if counts.contains(&count) {
                break;
            }
            counts.push(count);
        }
        counts.into_iter().min().unwrap_or(0)
    };
    (least(2 * TIMES) - least(TIMES)) as f64 / TIMES as f64
}

/// A command that counts the instructions of a program.
pub fn valgrind() -> Command {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind
}

fn count(mut command: Command) -> i64 {
    let output = command.output().unwrap_or_else(|error| fail(&format!("valgrind: {error}")));
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match collected {
        Some(instructions) if output.status.success() => instructions,
        _ => fail(&format!("{command:?}: {text}")),
    }
}

/// What was recorded, and what is counted now.
pub struct Baseline {
    path: PathBuf,
    recorded_with: String,
    /// The operations: dogtag's own instructions, and what it adds.
    rows: Vec<(String, f64, f64)>,
    now: String,
    pub worse: Vec<String>,
}

impl Baseline {
    pub fn read(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        let recorded_with = lines.next().unwrap_or("nothing").to_owned();
        let row = |line: &str| {
            let [operation, _, own, added] = line.split(',').collect::<Vec<_>>().try_into().ok()?;
            Some((operation.to_owned(), own.parse().ok()?, added.parse().ok()?))
        };
        let rows = lines.filter_map(row).collect();
        Self { path, recorded_with, rows, now: "operation,bare,dogtag,added\n".into(), worse: Vec::new() }
    }

    /// Prints a row, and notes it where more was added than recorded.
    pub fn compare(&mut self, operation: &str, bare: f64, dogtag: f64, beside: &str) {
        let added = dogtag - bare;
        let before = self.rows.iter().find(|(name, ..)| name == operation);
        let shown = before.map_or("none".into(), |(.., added)| format!("{added:.1}"));
        println!("{operation:<24} {bare:>8.1} {dogtag:>8.1} {added:>8.1} {shown:>9} {beside:>9}");
        let _ = writeln!(self.now, "{operation},{bare:.1},{dogtag:.1},{added:.1}");
        let is_worse = before.is_none_or(|(_, own, before)| {
            // Of dogtag's own every instruction counts: they are the same each time.
            added > before + NOISE.max(before.abs() * TOLERANCE) && dogtag > own + NOISE
        });
        if is_worse {
            self.worse.push(format!("{operation} adds {added:.1} instructions, recorded are {shown}"));
        }
    }

    /// Records what was counted, if that is asked for, or tells what is worse, and ends the process then. `bench` is
    /// how Cargo is asked for the bench.
    pub fn end(self, options: &Options, bench: &str) {
        let compiler = compiler();
        if options.records {
            std::fs::write(&self.path, format!("{compiler}\n{}", self.now))
                .unwrap_or_else(|error| fail(&format!("the baseline cannot be written: {error}")));
            return println!("\nrecorded");
        }
        if self.recorded_with != compiler {
            let message = format!(
                "\nnot compared: recorded with {}, this is {compiler}; record it anew",
                self.recorded_with
            );
            if options.requires {
                fail(&message);
            }
            println!("{message}");
        } else if !self.worse.is_empty() {
            fail(&format!(
                "\nmore than 3 % more instructions than recorded:\n  {}\nIf the change is worth it: cargo bench {bench} -- --record",
                self.worse.join("\n  ")
            ));
        }
    }
}

/// The compiler's version and machine.
fn compiler() -> String {
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into())).arg("--version").output();
    let version = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let version = version.unwrap_or_else(|error| fail(&format!("rustc cannot be started: {error}")));
    format!("{version} {}", std::env::consts::ARCH)
}

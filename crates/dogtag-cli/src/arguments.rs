//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Says who holds the memory of a program: any program, live, at its end, or as a page.
#[derive(Debug, Parser)]
#[command(
    name = "dogtag",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  dogtag run -- python3 script.py      run a program; then: who held its memory
  dogtag top                           what runs, and who holds its memory now
  dogtag check -- ./program            find overruns, double frees and alike
  dogtag report dogtag.python3.json --html report.html"
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Run(Run),
    Check(Check),
    Top(Top),
    Profile(Profile),
    Report(Report),
    Diff(Diff),
}

/// Runs a program, and says at its end who held its memory.
#[derive(Debug, Args)]
#[command(after_help = "\
Threads whose names differ in numbers alone are one: worker-1 and worker-2 are worker-*.

The program's output and status are as without dogtag. Its children are counted as well: each writes
a report of its own to the same file. While it runs, `dogtag top` shows it.

Examples:
  dogtag run -- python3 -c 'x = list(range(10**6))'
  dogtag run --every 1s -o web.json -- nginx -g 'daemon off;'
  dogtag run --profile -- redis-server")]
pub struct Run {
    /// Check each block too: overruns, double frees, writes to freed memory.
    #[arg(long)]
    pub check: bool,
    /// Take a heap profile; a sample each so many bytes (K, M, G).
    #[arg(long, value_name = "BYTES", num_args = 0..=1, require_equals = true, default_missing_value = "512K",
          value_parser = bytes)]
    pub profile: Option<String>,
    /// Whose memory it is: each thread's by name, or all the program's.
    #[arg(long, value_enum, default_value_t = By::Thread)]
    pub by: By,
    /// Report each time that so much has passed (ms, s, m, h), for charts.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub every: Option<String>,
    /// Where reports go; with %p in it, a file for each process
    /// [default: dogtag.PROGRAM.json].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Begin no thread in the program for dogtag top and dogtag profile.
    #[arg(long)]
    pub no_top: bool,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    Thread,
    Main,
}

/// Runs a program with each block checked; status 1 if it did anything forbidden.
#[derive(Debug, Args)]
#[command(after_help = "\
Overruns, underruns, double frees, frees of what was never allocated, and writes to freed memory are
reported with call stacks, and the program goes on. Its children are checked as well.

Status: 1 if there were violations, else the program's; 2 if nothing of it can be checked.

Examples:
  dogtag check -- ./program --its-option
  dogtag check --json violations.json -- ctest")]
pub struct Check {
    /// Write what was found to a file as JSON; - is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Freed bytes that are kept back, to find writes to them (K, M, G).
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = bytes)]
    pub quarantine: String,
    /// End at the first violation, by SIGABRT.
    #[arg(long)]
    pub abort: bool,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

/// Shows who holds the memory of a process, as it changes.
#[derive(Debug, Args)]
#[command(after_help = "\
Of programs that dogtag run has started, and of programs with dogtag inside that are started with
DOGTAG_REPORT=socket. Without PID: the only one that there is, or a list. Inside, ? lists the keys.

Examples:
  dogtag top 1234
  dogtag top --once 1234 > figures.txt")]
pub struct Top {
    /// The process.
    pub pid: Option<u32>,
    /// Milliseconds between two readings of all services [default: 1000; where that would cost the process more
    /// than 0.1 % of its time, only those on the screen, and some of the others in turn].
    #[arg(short, long, value_name = "MILLISECONDS",
          value_parser = clap::value_parser!(u64).range(50..=3_600_000))]
    pub delay: Option<u64>,
    /// Print a table once, with the balance.
    #[arg(long)]
    pub once: bool,
    /// Print all services' figures once, as a line of JSON.
    #[arg(long, conflicts_with = "once")]
    pub json: bool,
}

/// Takes a heap profile of a process: which code holds its memory.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dogtag profile 1234                        of a program that dogtag run --profile has started
  dogtag profile 1234 --for 30s              of any other: what is allocated meanwhile
  dogtag profile 1234 -o heap.folded         for flamegraph.pl, inferno and alike
  go tool pprof -top heap.1234.pb.gz")]
pub struct Profile {
    /// The process; without it, the only one that there is.
    pub pid: Option<u32>,
    /// The file: pprof, or folded stacks if it ends in .folded [default: heap.PID.pb.gz].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Take samples for so long (ms, s, m, h) if the process takes none.
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub sample_for: Option<String>,
    /// A sample each so many bytes (K, M, G), with --for.
    #[arg(long, value_name = "BYTES", default_value = "512K", value_parser = bytes)]
    pub interval: String,
}

/// Shows reports that were written: as tables, as JSON, or as a page.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dogtag report dogtag.python3.json
  dogtag report dogtag.redis-server.json dogtag.redis-server.heap.17.pb.gz --html report.html
  dogtag report --json web.json | jq .processes[0].reports[-1].totals")]
pub struct Report {
    /// Reports as lines of JSON, and heap profiles (pprof) for the page.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The process that is shown in full.
    #[arg(long)]
    pub pid: Option<u32>,
    /// Services that are shown [default: 30, of a page 500].
    #[arg(long, value_name = "NUMBER")]
    pub rows: Option<usize>,
    /// Print all as one JSON document.
    #[arg(long, conflicts_with = "html")]
    pub json: bool,
    /// Write a page that needs nothing else; - is standard output.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Compares two runs, or two moments.
#[derive(Debug, Args)]
#[command(after_help = "\
Of each file the last report counts, of the process that the file's last line is about.

Examples:
  dogtag diff before.json after.json
  dogtag diff --json before.json after.json | jq '.services[0]'")]
pub struct Diff {
    /// Reports as lines of JSON: before.
    #[arg(value_name = "BEFORE")]
    pub before: PathBuf,
    /// Reports as lines of JSON: after.
    #[arg(value_name = "AFTER")]
    pub after: PathBuf,
    /// Rows of the table.
    #[arg(long, value_name = "NUMBER", default_value_t = 30)]
    pub rows: usize,
    /// Print the differences as one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// Takes a number of bytes as the library's settings have it.
fn bytes(text: &str) -> Result<String, String> {
    let digits = text.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G']).unwrap_or(text);
    match digits.parse::<u32>() {
        Ok(_) if !digits.starts_with('+') => Ok(text.to_owned()),
        _ => Err("a number, perhaps with K, M or G behind it, as in 512K".to_owned()),
    }
}

/// Takes a time as the library's settings have it.
fn time(text: &str) -> Result<String, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let is_unit = matches!(&text[digits.len()..], "" | "ms" | "s" | "m" | "h");
    match digits.parse::<u32>() {
        Ok(number) if number > 0 && is_unit && !digits.starts_with('+') => Ok(text.to_owned()),
        _ => Err("a number with ms, s, m or h behind it, as in 500ms".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_stands_behind_the_program_is_its_own() {
        let parsed = Arguments::parse_from(["dogtag", "run", "--profile", "ls", "--check", "-o", "x"]);
        let Command::Run(run) = parsed.command else { panic!("{parsed:?}") };
        assert_eq!(run.program, ["ls", "--check", "-o", "x"]);
        assert_eq!((run.check, run.output, run.profile.as_deref()), (false, None, Some("512K")));
    }

    #[test]
    fn settings_are_the_librarys() {
        for (text, is_good) in [("512K", true), ("1", true), ("", false), ("1.5M", false), ("+1", false)] {
            assert_eq!(bytes(text).is_ok(), is_good, "{text}");
        }
        for (text, is_good) in [("1s", true), ("50ms", true), ("0s", false), ("1d", false), ("s", false)] {
            assert_eq!(time(text).is_ok(), is_good, "{text}");
        }
    }
}

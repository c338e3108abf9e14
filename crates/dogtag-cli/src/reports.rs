//! Reports that the library wrote: lines of JSON, by process.

use crate::failure::{Context, Failure};
use crate::size::{bytes, grouped, printable};
use dogtag::{Row, Snapshot, Usage};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::cmp::Reverse;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// The reports of some files.
#[derive(Debug, Default)]
pub struct Reports {
    /// In the order of their last lines: a program ends after its children, mostly.
    pub processes: Vec<Process>,
}

/// What one process reported, the last report last.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    pub program: String,
    /// At least one, in the order of time.
    pub reports: Vec<Report>,
}

/// One report.
#[derive(Debug)]
pub struct Report {
    /// Milliseconds since 1970.
    pub time: u64,
    pub occasion: String,
    pub program: String,
    pub pid: u32,
    pub snapshot: Snapshot,
    /// As it was written.
    pub line: Box<RawValue>,
}

/// What each report has, and nothing else.
#[derive(Deserialize)]
struct Head {
    time: u64,
    occasion: String,
    program: String,
    pid: u32,
    #[serde(rename = "rows")]
    _rows: Vec<IgnoredAny>,
    #[serde(rename = "totals")]
    _totals: IgnoredAny,
}

impl Report {
    /// Reads a line of JSON.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        let Head { time, occasion, program, pid, .. } = serde_json::from_str(line)?;
        let snapshot = serde_json::from_str(line)?;
        let line = RawValue::from_string(line.to_owned())?;
        Ok(Self { time, occasion, program, pid, snapshot, line })
    }

    /// The most bytes that were live at once, as far as is known: a total's peak is that of its
    /// readings, and a service's is as exact as one thread can have it.
    pub fn peak(&self) -> u64 {
        let services = self.snapshot.rows.iter().map(|row| row.usage.peak_bytes);
        services.chain([self.snapshot.totals.peak_bytes]).max().unwrap_or(0)
    }

    /// The services by what they hold, or at the end of the program by what they held.
    pub fn services(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.snapshot.rows.iter().collect();
        if self.is_last() {
            rows.sort_by_key(|row| Reverse(row.usage.peak_bytes));
        } else {
            rows.sort_by_key(|row| Reverse(row.usage.bytes()));
        }
        rows
    }

    /// Whether it is of the program's end.
    pub fn is_last(&self) -> bool {
        self.occasion == "exit"
    }

    /// Says why it was written.
    pub fn when(&self) -> &'static str {
        match self.occasion.as_str() {
            "exit" => "at its exit",
            "signal" => "at a signal",
            "interval" => "by the clock",
            _ => "as asked for",
        }
    }

    /// Writes the heading, the services and the balance.
    pub fn table(&self, most: usize) -> String {
        let Self { program, pid, snapshot, .. } = self;
        let rows = self.services();
        let (shown, hidden) = rows.split_at(rows.len().min(most));
        let names: Vec<String> = shown.iter().map(|row| title(row)).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(20);
        let rule = "─".repeat(width + 59);
        let program = printable(program, 200);
        let mut text = format!(
            "dogtag: {program} (pid {pid}) {}\n\n{:<width$}  {:>11}  {:>11}  {:>13}  {:>11}\n{rule}\n",
            self.when(),
            "service",
            "live",
            "peak",
            "blocks",
            "allocated",
        );
        // A string takes all that is written.
        let line = |text: &mut String, name: &str, usage: &Usage, peak: Option<u64>| {
            let _ = writeln!(
                text,
                "{name:<width$}  {:>11}  {:>11}  {:>13}  {:>11}",
                bytes(usage.bytes()),
                peak.map_or("–".to_owned(), bytes),
                grouped(usage.blocks()),
                bytes(usage.allocated_bytes),
            );
        };
        for (name, row) in names.iter().zip(shown) {
            line(&mut text, name, &row.usage, Some(row.usage.peak_bytes));
        }
        if !hidden.is_empty() {
            let sum = hidden.iter().map(|row| row.usage).sum();
            line(&mut text, &format!("({} more)", hidden.len()), &sum, None);
        }
        if snapshot.ended != Usage::default() {
            line(&mut text, "(ended)", &snapshot.ended, None);
        }
        let _ = writeln!(text, "{rule}");
        line(&mut text, "total", &snapshot.totals, Some(self.peak()));
        if snapshot.totals.denied > 0 {
            let _ = writeln!(text, "\n{} allocations were denied", grouped(snapshot.totals.denied));
        }
        if snapshot.lost.blocks > 0 {
            let (blocks, lost) = (grouped(snapshot.lost.blocks), bytes(snapshot.lost.bytes));
            let _ = writeln!(
                text,
                "\n{blocks} blocks ({lost}) were freed whose owner had been overwritten: dogtag check finds who"
            );
        }
        if let Some(balance) = &snapshot.balance {
            let _ = write!(text, "\n{balance}");
        }
        text
    }
}

impl Process {
    pub fn last(&self) -> &Report {
        // There is at least one.
        &self.reports[self.reports.len() - 1]
    }

    pub fn name(&self) -> String {
        base_name(&self.program)
    }

    /// The most bytes that were live at once, as far as reports say.
    pub fn peak(&self) -> u64 {
        self.reports.iter().map(Report::peak).max().unwrap_or(0)
    }
}

/// Whether a file's bytes are compressed, as those of heap profiles are.
pub fn is_profile(content: &[u8]) -> bool {
    content.starts_with(&[0x1f, 0x8b])
}

impl Reports {
    /// Reads files of reports.
    pub fn read(files: &[PathBuf]) -> Result<Self, Failure> {
        let mut reports = Self::default();
        for file in files {
            let content = fs::read(file).context(file.display())?;
            reports.add(file, &content)?;
        }
        reports.sort();
        Ok(reports)
    }

    /// Reads the files of a run: one that is not there, or has nothing in it, has no reports.
    pub fn read_existing(files: &[PathBuf]) -> Result<Self, Failure> {
        let is_there = |file: &&PathBuf| fs::metadata(file).is_ok_and(|found| found.len() > 0);
        Self::read(&files.iter().filter(is_there).cloned().collect::<Vec<_>>())
    }

    /// Adds the reports of a file.
    pub fn add(&mut self, file: &Path, content: &[u8]) -> Result<(), Failure> {
        let shown = file.display();
        let no_report = |why: &str| Failure::new(format!("{shown} is no report of dogtag's: {why}"));
        let content = str::from_utf8(content).map_err(|_| no_report("it is no text"))?;
        let mut is_empty = true;
        for (line, number) in content.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
            is_empty = false;
            let report = Report::parse(line).map_err(|error| match error.classify() {
                serde_json::error::Category::Eof => {
                    Failure::new(format!("{shown} is cut off in line {number}: {error}"))
                }
                _ if number == 1 && line.starts_with("dogtag: ") => {
                    no_report("it is one for people; those for dogtag are written with json in DOGTAG_REPORT")
                }
                _ => no_report(&format!("line {number}: {error}")),
            })?;
            self.push(report);
        }
        if is_empty {
            return Err(no_report("it is empty"));
        }
        Ok(())
    }

    fn push(&mut self, report: Report) {
        let is_same = |process: &Process| process.pid == report.pid && process.program == report.program;
        let mut process = match self.processes.iter().rposition(is_same) {
            Some(place) => self.processes.remove(place),
            None => Process { pid: report.pid, program: report.program.clone(), reports: Vec::new() },
        };
        process.reports.push(report);
        self.processes.push(process);
    }

    /// Brings reports of many files into the order of time.
    ///
    /// What comes after the one of the exit is left out: it is of what dogtag itself does then.
    pub fn sort(&mut self) {
        for process in &mut self.processes {
            process.reports.sort_by_key(|report| report.time);
            if let Some(end) = process.reports.iter().position(Report::is_last) {
                process.reports.truncate(end + 1);
            }
        }
    }

    /// Returns the process of a number, or the one that wrote last.
    pub fn chosen(&self, pid: Option<u32>) -> Result<&Process, Failure> {
        match pid {
            None => self.processes.last().ok_or_else(|| Failure::new("there is no report")),
            Some(pid) => self.processes.iter().rfind(|process| process.pid == pid).ok_or_else(|| {
                let known: Vec<String> =
                    self.processes.iter().take(20).map(|process| process.pid.to_string()).collect();
                Failure::new(format!("there is no report of process {pid}; there are {}", known.join(", ")))
            }),
        }
    }
}

/// A service's name, as tables have it.
pub fn title(row: &Row) -> String {
    let name = printable(&row.name, 40);
    if row.is_retired { name + " (retired)" } else { name }
}

/// A program's name without its folder.
pub fn base_name(program: &str) -> String {
    let name = Path::new(program).file_name().unwrap_or(program.as_ref());
    printable(&name.to_string_lossy(), 40)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pid: u32, time: u64) -> String {
        let occasion = if time == 5 { "exit" } else { "interval" };
        format!(
            r#"{{"time":{time},"occasion":"{occasion}","program":"/bin/a","pid":{pid},"rows":[],"totals":{{"peak_bytes":{time}}}}}"#
        )
    }

    fn read(text: &str) -> Result<Reports, Failure> {
        let mut reports = Reports::default();
        reports.add(Path::new("x.json"), text.as_bytes())?;
        reports.sort();
        Ok(reports)
    }

    #[test]
    fn another_program_with_the_same_number_is_another_process() {
        let line = |program: &str| {
            format!(
                r#"{{"time":1,"occasion":"interval","program":"{program}","pid":7,"rows":[],"totals":{{}}}}"#
            )
        };
        let mut reports = Reports::default();
        reports.add(Path::new("x"), [line("a"), line("b"), line("a")].join("\n").as_bytes()).unwrap();
        let found: Vec<_> =
            reports.processes.iter().map(|process| (process.name(), process.reports.len())).collect();
        assert_eq!(found, [("b".to_owned(), 1), ("a".to_owned(), 2)]);
    }

    #[test]
    fn processes_have_their_reports_in_the_order_of_time() {
        let text = [line(1, 5), line(2, 6), line(1, 4), line(1, 7)].join("\n");
        let reports = read(&text).unwrap();
        let pids: Vec<u32> = reports.processes.iter().map(|process| process.pid).collect();
        assert_eq!(pids, [2, 1]);
        assert_eq!(reports.processes[1].reports.len(), 2);
        assert_eq!(reports.chosen(None).unwrap().peak(), 5);
        assert_eq!(reports.chosen(Some(2)).unwrap().name(), "a");
        assert!(reports.chosen(Some(3)).unwrap_err().message.ends_with("there are 2, 1"));
    }

    #[test]
    fn what_is_no_report_is_told() {
        let whole = line(1, 5);
        for (text, expected) in [
            ("", "x.json is no report of dogtag's: it is empty"),
            ("\n\n", "x.json is no report of dogtag's: it is empty"),
            (&whole[..30], "x.json is cut off in line 1"),
            ("{}", "x.json is no report of dogtag's: line 1: missing field"),
            ("[1]", "x.json is no report of dogtag's: line 1"),
            ("dogtag: a (pid 1) at its exit", "it is one for people"),
            ("\u{0}", "x.json is no report of dogtag's: line 1"),
        ] {
            let failure = read(text).unwrap_err();
            assert!(failure.message.contains(expected) && failure.status == 2, "{text:?}: {failure}");
        }
        let cut = format!("{whole}\n{}", &whole[..whole.len() - 1]);
        assert!(read(&cut).unwrap_err().message.contains("cut off in line 2"));
        assert!(Reports::default().add(Path::new("x"), b"\xff").is_err());
    }

    #[test]
    fn any_cut_is_told() {
        let whole = line(1, 5);
        for end in 1..whole.len() {
            assert!(read(&whole[..end]).unwrap_err().message.contains("cut off"), "{}", &whole[..end]);
        }
    }
}

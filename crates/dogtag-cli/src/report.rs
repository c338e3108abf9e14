//! `dogtag report`: what was written, as tables, as JSON, or as a page.

use crate::arguments::Report as Arguments;
use crate::failure::{Context, Failure};
use crate::page::page;
use crate::pprof::Profile;
use crate::reports::{Process, Reports, is_profile};
use crate::size::bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

/// Services in a table, and on a page, unless the number is given.
const TABLE_ROWS: usize = 30;
const PAGE_ROWS: usize = 500;

/// Processes in the list.
const PROCESSES: usize = 30;

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut reports = Reports::default();
    let mut profiles = Vec::new();
    for file in &arguments.files {
        let content = fs::read(file).context(file.display())?;
        if is_profile(&content) {
            profiles.push((file.display().to_string(), Profile::read(file.display(), &content)?));
        } else {
            reports.add(file, &content)?;
        }
    }
    reports.sort();
    if let (Some((file, _)), None) = (profiles.first(), &arguments.html) {
        return Err(Failure::new(format!(
            "{file} is a heap profile: --html draws it, go tool pprof lists it"
        )));
    }
    if let Some(path) = &arguments.html {
        let chosen = reports.chosen(arguments.pid)?;
        let page = page(chosen, &reports.processes, &profiles, arguments.rows.unwrap_or(PAGE_ROWS));
        return if path == Path::new("-") {
            print(&page)
        } else {
            fs::write(path, page).context(path.display())
        };
    }
    let text = if arguments.json { json(&reports)? } else { tables(&reports, arguments)? };
    print(&text)
}

/// Writes a text to standard output.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("standard output")
}

fn tables(reports: &Reports, arguments: &Arguments) -> Result<String, Failure> {
    let chosen = reports.chosen(arguments.pid)?;
    let mut text = chosen.last().table(arguments.rows.unwrap_or(TABLE_ROWS));
    if reports.processes.len() > 1 {
        text.push('\n');
        text.push_str(&list(&reports.processes));
    }
    Ok(text)
}

/// Lists the processes, the one with the highest peak first.
fn list(processes: &[Process]) -> String {
    let mut processes: Vec<&Process> = processes.iter().collect();
    processes.sort_by_key(|process| std::cmp::Reverse(process.peak()));
    let (shown, hidden) = processes.split_at(processes.len().min(PROCESSES));
    let mut text =
        format!("{:<24}  {:>9}  {:>8}  {:>11}  {:>11}\n", "process", "pid", "reports", "live", "peak");
    text.push_str(&"─".repeat(71));
    text.push('\n');
    for process in shown {
        let totals = &process.last().snapshot.totals;
        // A string takes all that is written.
        let _ = writeln!(
            text,
            "{:<24}  {:>9}  {:>8}  {:>11}  {:>11}",
            process.name(),
            process.pid,
            process.reports.len(),
            bytes(totals.bytes()),
            bytes(process.peak()),
        );
    }
    if !hidden.is_empty() {
        let _ = writeln!(text, "({} more)", hidden.len());
    }
    text
}

fn json(reports: &Reports) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct One<'a> {
        program: &'a str,
        pid: u32,
        reports: Vec<&'a RawValue>,
    }
    #[derive(Serialize)]
    struct Document<'a> {
        processes: Vec<One<'a>>,
    }

    let processes = reports.processes.iter().map(|process| One {
        program: &process.program,
        pid: process.pid,
        reports: process.reports.iter().map(|report| &*report.line).collect(),
    });
    let document = Document { processes: processes.collect() };
    Ok(serde_json::to_string(&document).context("JSON")? + "\n")
}

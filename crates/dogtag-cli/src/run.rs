//! `dogtag run`: a program, and at its end who held its memory.

use crate::arguments::{By, Run};
use crate::child;
use crate::failure::{Context, Failure};
use crate::launch::{Launch, file_setting};
use crate::library::Library;
use crate::program::Program;
use crate::reports::{Process, Reports};
use crate::say::{say, write};
use crate::size::{bytes, printable};
use crate::violations::Log;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

/// Services in the table at the end.
const ROWS: usize = 20;

/// Runs the program; returns only if that fails.
pub fn run(run: &Run) -> Result<(), Failure> {
    let program = Program::find(&run.program[0])?;
    for finding in program.obstacle.iter().chain(&program.doubt) {
        say(finding);
    }
    let library = if run.check { Library::Checked } else { Library::Plain };
    let mut launch = Launch::new(&program, &run.program, library)?;
    let output = Output::new(run)?;
    let mut settings = OsString::from(if run.no_top { "exit,json," } else { "exit,json,socket," });
    if let Some(time) = &run.every {
        settings.push(format!("every={time},"));
    }
    settings.push(file_setting(&output.reports)?);
    launch.set("DOGTAG_REPORT", settings);
    if run.by == By::Thread {
        launch.set("DOGTAG_SERVICE", "thread");
    }
    if let Some(interval) = &run.profile {
        let mut settings = OsString::from(format!("interval={interval},"));
        settings.push(file_setting(&output.profiles)?);
        launch.set("DOGTAG_PROFILE", settings);
    }
    let log = if run.check { Some(Log::new()?) } else { None };
    if let Some(log) = &log {
        launch
            .set("DOGTAG_CHECK", "backtrace=1,reaction=leak,patience=60")
            .set("DOGTAG_CHECK_LOG", log.path());
    }
    let (pid, status) = launch.run()?;
    // Whatever can be told of it, the program has ended as it has.
    output.tell(pid, status, &program).unwrap_or_else(say);
    if let Some(log) = log {
        log.read().map_or_else(say, say);
    }
    child::end_as(status)
}

/// The files of a run.
struct Output {
    /// With `%p` there is one for each process.
    reports: PathBuf,
    profiles: PathBuf,
    begun: SystemTime,
}

impl Output {
    fn new(run: &Run) -> Result<Self, Failure> {
        let reports = match &run.output {
            Some(path) => path.clone(),
            None => create_numbered(&run.program[0])?,
        };
        if !has_process(&reports) {
            // A former run's are not these.
            fs::write(&reports, "").context(reports.display())?;
        }
        let stem = reports.file_stem().unwrap_or_default().to_string_lossy().replace(".%p", "");
        let profiles = reports.with_file_name(format!("{stem}.heap.%p.pb.gz"));
        // File systems have the time of the last tick.
        let begun = SystemTime::now() - Duration::from_millis(20);
        Ok(Self { reports, profiles, begun })
    }

    /// Prints the program's report, and where all of them are.
    fn tell(&self, pid: u32, status: ExitStatus, program: &Program) -> Result<(), Failure> {
        let files = if has_process(&self.reports) {
            written(&self.reports, self.begun)?
        } else {
            vec![self.reports.clone()]
        };
        let reports = Reports::read_existing(&files)?;
        let profiles = written(&self.profiles, self.begun)?;
        match reports.processes.iter().find(|process| process.pid == pid) {
            Some(process) => write(format_args!("\n{}", process.last().table(ROWS))),
            None => {
                let why = match &program.obstacle {
                    Some(_) => "the library was not in it".to_owned(),
                    None => format!(
                        "it {}, and not by a return from main or by exit; --every TIME has reports before that",
                        child::words(status)
                    ),
                };
                say(format_args!("no report of the program itself: {why}"));
            }
        }
        let others: Vec<&Process> = reports.processes.iter().filter(|process| process.pid != pid).collect();
        if !others.is_empty() {
            say(summary(&others));
        }
        if reports.processes.is_empty() {
            // Nothing was counted, so nobody wants to see the file.
            files.iter().for_each(|file| drop(fs::remove_file(file)));
            return Ok(());
        }
        let names: Vec<String> = files.iter().chain(&profiles).map(|path| quoted(path)).collect();
        say(format_args!("written to {}", names.join(" ")));
        say(format_args!("a page of it: dogtag report {} --html report.html", names.join(" ")));
        Ok(())
    }
}

/// Says which other processes there were.
fn summary(others: &[&Process]) -> String {
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    for process in others {
        *numbers.entry(printable(&process.name(), 40)).or_default() += 1;
    }
    let mut names: Vec<(String, usize)> = numbers.into_iter().collect();
    names.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    let rest = names.len().saturating_sub(5);
    let mut list: Vec<String> = names
        .into_iter()
        .take(5)
        .map(|(name, number)| if number == 1 { name } else { format!("{name} ({number})") })
        .collect();
    if rest > 0 {
        list.push(format!("{rest} more"));
    }
    let peak = |process: &&&Process| process.peak();
    let largest = others.iter().max_by_key(peak).map_or(String::new(), |process| {
        format!(
            "; the most was held by {} (pid {}): {} at once",
            process.name(),
            process.pid,
            bytes(process.peak())
        )
    });
    let are =
        if others.len() == 1 { "one other process" } else { &format!("{} other processes", others.len()) };
    format!("{are} reported: {}{largest}", list.join(", "))
}

/// Makes `dogtag.PROGRAM.json`, or the first one with a number that is not there yet.
fn create_numbered(program: &OsString) -> Result<PathBuf, Failure> {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().replace([',', '%'], "_");
    for number in 1..10_000 {
        let path = match number {
            1 => format!("dogtag.{name}.json"),
            number => format!("dogtag.{name}.{number}.json"),
        };
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => return Ok(path.into()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Failure::new(format!("{path}: {error}; -o says where reports go"))),
        }
    }
    Err(Failure::new(format!("there are too many dogtag.{name}.json here; -o says where reports go")))
}

fn has_process(path: &Path) -> bool {
    path.as_os_str().as_bytes().windows(2).any(|bytes| bytes == b"%p")
}

/// The files that were written for a path with `%p` since then, in the order of their numbers.
fn written(path: &Path, begun: SystemTime) -> Result<Vec<PathBuf>, Failure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((before, after)) = name.split_once("%p") else { return Ok(Vec::new()) };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).context(folder.display())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        // A former run's are not these.
        let is_new = entry.metadata().and_then(|found| found.modified()).is_ok_and(|time| time >= begun);
        if let Some(number) = number.and_then(|number| number.parse::<u32>().ok())
            && is_new
        {
            found.push((number, path.with_file_name(name)));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=@%".contains(c);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_shells() {
        assert_eq!(quoted(Path::new("a/b-c.json")), "a/b-c.json");
        assert_eq!(quoted(Path::new("it's")), "'it'\\''s'");
    }
}

//! `dogtag check`: a program with each of its blocks checked.

use crate::arguments::Check;
use crate::child;
use crate::failure::{Context, Failure};
use crate::launch::Launch;
use crate::library::Library;
use crate::program::Program;
use crate::say::say;
use crate::violations::{Found, Log};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

/// Runs the program; returns only if that fails.
pub fn run(check: &Check) -> Result<(), Failure> {
    let program = Program::find(&check.program[0])?;
    if let Some(obstacle) = &program.obstacle {
        return Err(Failure::new(format!("{obstacle}: nothing of it can be checked")));
    }
    if let Some(doubt) = &program.doubt {
        say(format_args!("{doubt}, nor checked"));
    }
    let log = Log::new()?;
    let reaction = if check.abort { "abort" } else { "leak" };
    // More blocks than by default: who checks a program on purpose has time.
    let settings = format!(
        "backtrace=1,patience=60,reaction={reaction},quarantine={},quarantine-blocks=65536",
        check.quarantine
    );
    let mut launch = Launch::new(&program, &check.program, Library::Checked)?;
    launch.set("DOGTAG_CHECK", settings).set("DOGTAG_CHECK_LOG", log.path());
    let (_, status) = launch.run()?;
    let found = log.read()?;
    drop(log);
    if let Some(path) = &check.json {
        write_json(path, check, status, &found)?;
    }
    if found.processes == 0 && found.lines_cut_off == 0 {
        return Err(Failure::new("nothing was checked: the library was not in the program"));
    }
    if found.violations.is_empty() && found.lines_cut_off > 0 {
        // One of them may be a violation's.
        return Err(Failure::new(found.to_string()));
    }
    say(&found);
    if !found.violations.is_empty() {
        std::process::exit(1);
    }
    child::end_as(status)
}

fn write_json(path: &Path, check: &Check, status: ExitStatus, found: &Found) -> Result<(), Failure> {
    let program: Vec<String> = check.program.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let document = json!({
        "program": program,
        "status": status.code(),
        "signal": status.signal(),
        "processes": found.processes,
        "violations": found.violations,
        "lines_cut_off": found.lines_cut_off,
    });
    let text = format!("{document:#}\n");
    if path == Path::new("-") {
        return std::io::stdout().write_all(text.as_bytes()).context("standard output");
    }
    fs::write(path, text).context(path.display())
}

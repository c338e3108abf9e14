//! `dogtag profile`: which code holds the memory of a process that runs.

use crate::arguments::Profile as Arguments;
use crate::failure::{Context, Failure};
use crate::pprof::Profile;
use crate::process::Process;
use crate::say::say;
use crate::size::bytes;
use crate::stop;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut process = Process::chosen(arguments.pid)?;
    let pid = process.pid;
    let mut is_ours = false;
    if let Some(time) = &arguments.sample_for {
        // Before there is something to be stopped.
        stop::heed();
        is_ours = process.sample(&arguments.interval)?;
        let until = Instant::now() + duration(time);
        while Instant::now() < until && stop::signal().is_none() {
            sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(100)));
        }
    } else if !process.hello()?.is_profiled {
        return Err(Failure::new(format!(
            "process {pid} takes no samples: dogtag profile {pid} --for 30s does so for a while, and dogtag run \
             --profile from the beginning"
        )));
    }
    let taken = process.heap();
    if is_ours {
        process.stop()?;
    }
    let file = taken?;
    let profile = Profile::read(format_args!("the profile of process {pid}"), &file)?;
    let path = arguments.output.clone().unwrap_or_else(|| PathBuf::from(format!("heap.{pid}.pb.gz")));
    let is_folded = path.extension().is_some_and(|extension| extension == OsStr::new("folded"));
    let content = if is_folded { profile.folded().into_bytes() } else { file };
    fs::write(&path, content).context(path.display())?;
    let live: i64 = profile.stacks.iter().map(|stack| stack.live_bytes).sum();
    let live = bytes(u64::try_from(live).unwrap_or(0));
    say(format_args!("{live} in {} call stacks: {}", profile.stacks.len(), path.display()));
    Ok(())
}

/// A time as the command line has it, which was checked there.
fn duration(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_lowercase()).len());
    let milliseconds = match unit {
        "ms" => 1,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 1000,
    };
    Duration::from_millis(number.parse::<u64>().unwrap_or(0) * milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, milliseconds) in
            [("50ms", 50), ("2s", 2000), ("2", 2000), ("3m", 180_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Duration::from_millis(milliseconds), "{text}");
        }
    }
}

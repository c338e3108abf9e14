//! `dogtag`: runs any program and says who holds its memory.

mod arguments;
mod check;
mod child;
mod diff;
mod failure;
mod figures;
mod launch;
mod library;
mod page;
mod pprof;
mod process;
mod profile;
mod program;
mod report;
mod reports;
mod run;
mod say;
mod size;
mod stop;
mod top;
mod tree;
mod violations;

use arguments::{Arguments, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.command {
        Command::Run(run) => run::run(run),
        Command::Check(check) => check::run(check),
        Command::Top(top) => top::run(top),
        Command::Profile(profile) => profile::run(profile),
        Command::Report(report) => report::run(report),
        Command::Diff(diff) => diff::run(diff),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say::say(&failure);
            ExitCode::from(failure.status)
        }
    }
}

//! Starts a program with the library preloaded, and what the library is to do.

use crate::child;
use crate::failure::{Context, Failure};
use crate::library::{Library, preload};
use crate::program::Program;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// A program that is to be run.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    name: OsString,
}

impl Launch {
    /// Prepares a program with its arguments to be run with the library. None of the library's
    /// variables is left as it was: what this command says, holds.
    pub fn new(program: &Program, words: &[OsString], library: Library) -> Result<Self, Failure> {
        let mut command = Command::new(&program.path);
        let [name, arguments @ ..] = words else { return Err(Failure::new("there is no program to run")) };
        command.arg0(name).args(arguments);
        for variable in
            ["DOGTAG_REPORT", "DOGTAG_SERVICE", "DOGTAG_PROFILE", "DOGTAG_CHECK", "DOGTAG_CHECK_LOG"]
        {
            command.env_remove(variable);
        }
        command.env("LD_PRELOAD", preload(&library.path()?));
        Ok(Self { command, name: name.clone() })
    }

    /// Sets a variable of the library.
    pub fn set(&mut self, variable: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.command.env(variable, value);
        self
    }

    /// Runs the program to its end; returns its process's number, too.
    pub fn run(self) -> Result<(u32, ExitStatus), Failure> {
        let name = self.name.display();
        let child = child::start(self.command).map_err(|error| {
            let status = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            Failure::with_status(status, format!("{name} cannot be run: {error}"))
        })?;
        let pid = child.id();
        let status =
            child::end(child).context(format_args!("{name} runs, and its end cannot be waited for"))?;
        Ok((pid, status))
    }
}

/// Returns the setting that names a file; settings are separated by commas.
pub fn file_setting(path: &Path) -> Result<OsString, Failure> {
    let path = std::path::absolute(path).context(path.display())?;
    if path.as_os_str().as_bytes().contains(&b',') {
        let message = format!("{}: choose a path without commas, by -o", path.display());
        return Err(Failure::new(message));
    }
    let mut setting = OsString::from("file=");
    setting.push(path);
    Ok(setting)
}

//! What whoever starts the program asks for, by the environment: services by threads' names, a heap
//! profile, reports.

use super::error::ReportError;
use super::of_settings;
use super::settings::{names_threads, variable};
use crate::sys::stderr;
use crate::thread::services_by_name;

/// Does what the environment asks for, and goes on whatever that is: the one line of a program that says
/// nothing else of reports. Call it first in `main`.
///
/// | variable | |
/// | --- | --- |
/// | `DOGTAG_REPORT` | [when reports are written](from_env): `exit,SIGUSR2,every=60s` |
/// | `DOGTAG_SERVICE` | `thread`: threads outside of scopes work for services named after them ([`services_by_name`]) |
/// | `DOGTAG_PROFILE` | `1`, or settings of a heap profile, which is part of each report (feature `profile`) |
///
/// What it does not understand, or cannot have, is a line on standard error, and the rest holds.
/// [`from_env`] returns it as an error instead. Without the variables it does nothing.
///
/// ```
/// #[global_allocator]
/// static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
///
/// fn main() {
///     dogtag::report::init();
///     // … the program …
/// }
/// ```
///
/// ```sh
/// DOGTAG_REPORT=exit DOGTAG_SERVICE=thread ./server
/// ```
pub fn init() {
    for (name, done) in followed() {
        if let Err(error) = done {
            stderr::print(format_args!("dogtag: {name}: {error}\n"));
        }
    }
}

/// Does what the environment asks for, and returns whether that is reports.
///
/// `DOGTAG_REPORT` asks for them:
///
/// | in it, separated by commas | |
/// | --- | --- |
/// | `exit` | a report at the end of the process |
/// | `SIGUSR2`, or another signal of [`on_signal`](super::on_signal) | one whenever the process gets the signal |
/// | `every=60s` (`ms`, `s`, `m`, `h`) | one each time that so much time has passed |
/// | `file=PATH` | to the end of that file instead of standard error; `%p` in it is the process's number |
/// | `json` | as lines of JSON |
/// | `socket` | [`dogtag top` and others](super::ReportBuilder::on_socket) of the same user may look at the process |
///
/// `DOGTAG_SERVICE=thread` calls [`services_by_name`], and `DOGTAG_PROFILE` starts a heap profiler if none
/// runs, as `Profiler::from_env` does (feature `profile`).
///
/// The variables are read by this call and by [`init`] alone, at the beginning of `main`: a library does
/// not change what a program does at signals, nor what it writes, unless the program says so. (A program
/// that has `dogtag-c` preloaded cannot say so: there the library reads them.) Processes with more rights
/// than the user who runs them (setuid) ignore the variables.
///
/// # Errors
///
/// Returns [`ReportError`] if a setting is not understood, or if the reports or the profile cannot be had.
/// That variable changes nothing then, and the others hold.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() {
/// if let Err(error) = dogtag::report::from_env() {
///     eprintln!("no reports: {error}");
/// }
/// # }
/// ```
pub fn from_env() -> Result<bool, ReportError> {
    let mut is_reporting = false;
    let mut first_error = None;
    for (_, done) in followed() {
        match done {
            Ok(is_report) => is_reporting |= is_report,
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(is_reporting), Err)
}

/// Follows each variable, whatever becomes of the others, and returns whether it asks for reports.
fn followed() -> [(&'static str, Result<bool, ReportError>); 3] {
    // The profiler first: it begins in a scope of its own, and `startup` lasts until main's first scope.
    [
        ("DOGTAG_PROFILE", profile as fn(&[u8]) -> _),
        ("DOGTAG_SERVICE", services),
        ("DOGTAG_REPORT", of_settings),
    ]
    .map(|(name, follow)| (name, variable(name).map_or(Ok(false), |text| follow(&text))))
}

fn services(text: &[u8]) -> Result<bool, ReportError> {
    match names_threads(text) {
        Some(true) => services_by_name(),
        Some(false) => {}
        None => return Err(ReportError::Service { value: String::from_utf8_lossy(text).into_owned() }),
    }
    Ok(false)
}

#[cfg(feature = "profile")]
fn profile(text: &[u8]) -> Result<bool, ReportError> {
    use crate::profile::Profiler;

    // The program's own, which may have been started by the same variable.
    if Profiler::running().is_none() {
        Profiler::from_settings(&String::from_utf8_lossy(text)).map_err(ReportError::Profile)?;
    }
    Ok(false)
}

#[cfg(not(feature = "profile"))]
fn profile(text: &[u8]) -> Result<bool, ReportError> {
    match text.trim_ascii() {
        b"" | b"0" => Ok(false),
        _ => Err(ReportError::NoProfiler),
    }
}

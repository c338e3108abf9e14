//! Reports of a running program: who holds its memory, in one line of code.
//!
//! ```
//! #[global_allocator]
//! static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//!
//! fn main() -> Result<(), dogtag::report::ReportError> {
//!     dogtag::report::at_exit()
//!     // … the program …
//! }
//! ```
//!
//! When the program ends, the table of all services and the balance are on standard error, and the heap
//! profile, if the profiler runs. [`on_signal`] and [`every`] write the same while it runs;
//! [`builder`] has choices: a file, `tracing`, a closure, JSON. [`init`] leaves all that to whoever starts
//! the program, by the environment variable `DOGTAG_REPORT`, and [`serve`] shows a page in the browser.
//! With a [socket](ReportBuilder::on_socket) `dogtag top` shows the same in a terminal.
//!
//! Reports at signals and at intervals are written by a thread of dogtag's own; a signal handler only
//! wakes it. What reports allocate is charged to the service `unattributed`.

mod builder;
mod connections;
mod destination;
mod environment;
pub(crate) mod error;
#[cfg(feature = "profile")]
mod flame_graph;
mod json;
mod kept_stderr;
mod page;
pub(crate) mod path;
pub(crate) mod reporter;
mod serve;
pub(crate) mod settings;
mod signals;
#[cfg(target_os = "linux")]
mod socket;
mod taken;

pub use builder::ReportBuilder;
pub use environment::{from_env, init};
pub use error::ReportError;
#[doc(no_inline)]
pub use libc::{SIGHUP, SIGUSR1, SIGUSR2};
pub use page::{Answer, get, json, page};
pub use serve::{serve, serve_to_anyone};
use std::time::Duration;
pub use taken::{Occasion, Report, take};

/// Writes a report to standard error when the program ends: the table, the balance, and the profile if
/// the profiler runs.
///
/// The program ends by a return from `main`, also by a panic, or by `std::process::exit`; one that is
/// killed, aborts or calls `_exit` writes nothing. Forked children write their own.
///
/// # Errors
///
/// Returns [`ReportError::Twice`] if it was called before, and [`ReportError::NoMemory`] where the system
/// has none for the handler.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::report::ReportError> {
/// dogtag::report::at_exit()?;
/// # Ok(())
/// # }
/// ```
pub fn at_exit() -> Result<(), ReportError> {
    builder().at_exit().start()
}

/// Writes a report to standard error whenever the process gets a signal: [`SIGUSR2`], [`SIGUSR1`], or
/// another one that programs can do without.
///
/// The others are `SIGHUP`, `SIGQUIT`, `SIGURG`, `SIGVTALRM`, `SIGPROF`, `SIGWINCH`, `SIGIO` and
/// `SIGPWR`, as `libc` numbers them. Of signals that come while a report is written, one more report
/// is written.
///
/// # Errors
///
/// Returns [`ReportError::Signal`] for other signals, [`ReportError::SignalTaken`] if the program
/// handles the signal, and [`ReportError::Twice`] if this was called for it before.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// use dogtag::report;
///
/// # fn main() -> Result<(), dogtag::report::ReportError> {
/// report::on_signal(report::SIGUSR2)?;        // kill -USR2 1234
/// # Ok(())
/// # }
/// ```
pub fn on_signal(signal: i32) -> Result<(), ReportError> {
    builder().on_signal(signal).start()
}

/// Writes a report to standard error each time that so much time has passed.
///
/// # Errors
///
/// Returns [`ReportError::Interval`] for zero, and [`ReportError::Twice`] if it was called before.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::report::ReportError> {
/// dogtag::report::every(std::time::Duration::from_secs(60))?;
/// # Ok(())
/// # }
/// ```
pub fn every(interval: Duration) -> Result<(), ReportError> {
    builder().every(interval).start()
}

/// Returns a builder of reports, to say when they are wanted, where they go, and what is in them.
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
/// # fn main() -> Result<(), dogtag::report::ReportError> {
/// dogtag::report::builder().at_exit().json().to_tracing().start()?;
/// # Ok(())
/// # }
/// ```
pub fn builder() -> ReportBuilder {
    ReportBuilder::new()
}

/// Writes reports as settings, in the form of [`DOGTAG_REPORT`](from_env), ask for them, and returns
/// whether they do: for programs that have them from elsewhere, such as the command line.
///
/// # Errors
///
/// Returns [`ReportError`] if a setting is not understood, or if the reports cannot be had, and reports
/// nothing then.
///
/// ```
/// use dogtag::report;
///
/// assert!(report::from_settings("sometimes").is_err());
/// assert!(!report::from_settings("").expect("nothing is asked for"));
/// ```
pub fn from_settings(settings: &str) -> Result<bool, ReportError> {
    of_settings(settings.as_bytes())
}

fn of_settings(settings: &[u8]) -> Result<bool, ReportError> {
    let mut unknown = None;
    let builder = settings::parse(settings, |setting| {
        unknown.get_or_insert_with(|| String::from_utf8_lossy(setting).into_owned());
    });
    match unknown {
        Some(setting) => Err(ReportError::Setting { setting }),
        None if settings.iter().all(|byte| byte.is_ascii_whitespace() || *byte == b',') => Ok(false),
        None => builder.start().map(|()| true),
    }
}

//! What reports are asked for.

use super::destination::{Destination, Format, Place};
use super::error::ReportError;
use super::reporter::{self, Task};
use super::signals;
use super::taken::{Parts, Report};
use crate::ledger::slots::UNATTRIBUTED;
use crate::service::Scope;
use std::ffi::c_int;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Says when reports are wanted, where they go, and what is in them: [`builder`](super::builder()).
///
/// Without more, they go to standard error as text, with all that there is.
///
/// ```no_run
/// use std::time::Duration;
///
/// # fn main() -> Result<(), dogtag::report::ReportError> {
/// dogtag::report::builder()
///     .every(Duration::from_secs(60))
///     .at_exit()
///     .json()
///     .to_file("/var/log/server.%p.json")
///     .start()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is reported before `start`"]
pub struct ReportBuilder {
    at_exit: bool,
    signals: Vec<c_int>,
    interval: Option<Duration>,
    has_socket: bool,
    destination: Destination,
    format: Format,
    parts: Parts,
}

impl ReportBuilder {
    pub(crate) fn new() -> Self {
        Self {
            at_exit: false,
            signals: Vec::new(),
            interval: None,
            has_socket: false,
            destination: Destination::Stderr(None),
            format: Format::Text,
            parts: Parts::ALL,
        }
    }

    /// Has a report written when the program ends: by a return from `main`, also by a panic, or by
    /// `std::process::exit`.
    ///
    /// A process that is killed, aborts or calls `_exit` writes none.
    pub fn at_exit(self) -> Self {
        Self { at_exit: true, ..self }
    }

    /// Has a report written whenever the process gets a signal: [`SIGUSR1`](super::SIGUSR1),
    /// [`SIGUSR2`](super::SIGUSR2), or another one that programs can do without.
    ///
    /// A program that handles the signal itself later gets it instead.
    pub fn on_signal(mut self, signal: i32) -> Self {
        let _scope = Scope::enter(&UNATTRIBUTED);
        if !self.signals.contains(&signal) {
            self.signals.push(signal);
        }
        self
    }

    /// Has a report written each time that so much time has passed.
    pub fn every(self, interval: Duration) -> Self {
        Self { interval: Some(interval), ..self }
    }

    /// Lets tools of the same user, or root's, look at the process while it runs: `dogtag top` and
    /// `dogtag profile` (crate `dogtag-cli`). Linux only.
    ///
    /// A thread of dogtag's own waits at a Unix socket with an abstract name, and does nothing until
    /// somebody asks. The system says who that is; others' connections are closed. Forked children have a
    /// socket of their own. A process has one, whatever its reports are.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::report::ReportError> {
    /// # #[cfg(target_os = "linux")]
    /// dogtag::report::builder().on_socket().start()?;        // dogtag top 1234
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_socket(self) -> Self {
        Self { has_socket: true, ..self }
    }

    /// Sends reports to standard error, as it is now: that is the default. It is kept open under a
    /// number from 500 on, so a report arrives even if the program closes its own.
    pub fn to_stderr(self) -> Self {
        Self { destination: Destination::Stderr(None), ..self }
    }

    /// Sends reports to the end of a file, which is made if it is not there. `%p` in the path is the
    /// process's number, also of each forked child.
    ///
    /// A report that cannot be written gives a line on standard error, and the program goes on.
    pub fn to_file(self, path: impl AsRef<Path>) -> Self {
        let _scope = Scope::enter(&UNATTRIBUTED);
        // The program may change its working directory.
        let path = std::path::absolute(&path).unwrap_or_else(|_| path.as_ref().to_owned());
        Self { destination: Destination::File(path, None), ..self }
    }

    /// Sends reports to the `tracing` subscriber: an event of the level info and the target `dogtag`
    /// with the report in its field `report`, and `occasion`, `live_bytes` and `live_blocks`.
    ///
    /// The subscriber is that of the thread that calls [`start`](Self::start), if it has one then; else
    /// the global one, which may come later.
    pub fn to_tracing(self) -> Self {
        Self { destination: Destination::Tracing(None), ..self }
    }

    /// Calls `receive` with each report, on a thread of dogtag's own.
    ///
    /// If it panics, that ends there. At the exit the program waits for it ten seconds at most.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::report::ReportError> {
    /// dogtag::report::builder()
    ///     .at_exit()
    ///     .to(|report| println!("{} services at the end", report.snapshot.rows.len()))
    ///     .start()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn to(self, receive: impl Fn(&Report) + Send + Sync + 'static) -> Self {
        let _scope = Scope::enter(&UNATTRIBUTED);
        Self { destination: Destination::Closure(Box::new(receive)), ..self }
    }

    /// Writes each report as a [line of JSON](Report::to_json) instead of text.
    pub fn json(self) -> Self {
        Self { format: Format::Json, ..self }
    }

    /// Leaves the balance out, for which `/proc/self/smaps` is read: some milliseconds in a large
    /// process ([`balance`](crate::balance())).
    pub fn without_balance(self) -> Self {
        Self { parts: Parts { balance: false, ..self.parts }, ..self }
    }

    /// Leaves the heap profile out, which is there if the profiler runs (feature `profile`). Names of
    /// functions are looked up for it.
    pub fn without_profile(self) -> Self {
        Self { parts: Parts { profile: false, ..self.parts }, ..self }
    }

    /// Has the reports written from now on, until the process ends.
    ///
    /// Reports at signals and at intervals are written by a thread of dogtag's own, which waits
    /// otherwise; a forked child has one, too. There may be many reports, of different
    /// occasions and to different places.
    ///
    /// # Errors
    ///
    /// Returns [`ReportError`] if there is no occasion, if the interval, the signal, the file or
    /// the thread cannot be had, or if the same reports were asked for before. Nothing is reported then.
    /// A [socket](Self::on_socket) that cannot be had is an error, too, and leaves the reports.
    ///
    /// ```
    /// use dogtag::report::{self, ReportError};
    ///
    /// let refused = report::builder().at_exit().to_file("/no/such/folder/report").start();
    /// assert!(matches!(refused, Err(ReportError::File { .. })));
    /// println!("{}", refused.unwrap_err());
    /// ```
    pub fn start(self) -> Result<(), ReportError> {
        if !self.has_occasion() {
            return Err(ReportError::NoOccasion);
        }
        let _scope = Scope::enter(&UNATTRIBUTED);
        self.destination.check()?;
        self.start_unchecked()
    }

    /// [`start`](Self::start) for a program that may make the file's folder later, and that perhaps
    /// wants no report.
    pub(crate) fn start_unchecked(self) -> Result<(), ReportError> {
        if !self.has_occasion() {
            return Ok(());
        }
        let _scope = Scope::enter(&UNATTRIBUTED);
        let Self { at_exit, signals, interval, has_socket, destination, format, parts } = self;
        if let Some(interval) = interval
            && (interval.is_zero() || Instant::now().checked_add(interval).is_none())
        {
            return Err(ReportError::Interval { interval });
        }
        if let Some(&signal) = signals.iter().find(|signal| !signals::is_allowed(**signal)) {
            return Err(ReportError::Signal { signal });
        }
        let open = || match has_socket {
            #[cfg(target_os = "linux")]
            true => super::socket::start(),
            #[cfg(not(target_os = "linux"))]
            true => Err(ReportError::Socket(std::io::ErrorKind::Unsupported.into())),
            false => Ok(()),
        };
        if !at_exit && signals.is_empty() && interval.is_none() {
            return open();
        }
        let place = destination.place(format);
        let runs_foreign_code = matches!(place, Place::Subscriber(_) | Place::Nameless);
        let destination = destination.opened();
        reporter::add(Task {
            at_exit,
            signals,
            interval,
            place,
            runs_foreign_code,
            work: Box::new(move |occasion| destination.write(&Report::take(occasion, parts), format)),
        })?;
        open()
    }

    fn has_occasion(&self) -> bool {
        self.at_exit || !self.signals.is_empty() || self.interval.is_some() || self.has_socket
    }
}

impl fmt::Debug for ReportBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at_exit, signals, interval, has_socket, destination, format, parts } = self;
        f.debug_struct("ReportBuilder")
            .field("at_exit", at_exit)
            .field("signals", signals)
            .field("interval", interval)
            .field("has_socket", has_socket)
            .field("place", &destination.place(*format))
            .field("parts", parts)
            .finish()
    }
}

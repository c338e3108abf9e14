//! Where reports go.

use super::error::ReportError;
use super::kept_stderr::KeptStderr;
use super::path;
use super::taken::Report;
use crate::contained::drop_contained;
use crate::events::{self, WeakSubscriber};
use crate::sys::stderr;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where reports go. What is `None` is found when reports begin ([`opened`](Self::opened)).
pub(super) enum Destination {
    Stderr(Option<KeptStderr>),
    /// A file's path with its `%p`, and where to complain.
    File(PathBuf, Option<KeptStderr>),
    Tracing(Option<WeakSubscriber>),
    Closure(Box<dyn Fn(&Report) + Send + Sync>),
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
}

/// What tells two places apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Stderr(Format),
    File(PathBuf, Format),
    Subscriber(Format),
    /// Equal to no other one.
    Nameless,
}

impl Place {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        !matches!(self, Self::Nameless) && self == other
    }
}

impl Destination {
    /// Returns why nothing can be written there, as far as can be known before.
    pub(super) fn check(&self) -> Result<(), ReportError> {
        let Self::File(path, _) = self else { return Ok(()) };
        let path = of_this_process(path);
        path::check(&path).map_err(|error| ReportError::File { path, error })
    }

    pub(super) fn place(&self, format: Format) -> Place {
        match self {
            Self::Stderr(_) => Place::Stderr(format),
            Self::File(path, _) => Place::File(path.clone(), format),
            Self::Tracing(_) => Place::Subscriber(format),
            Self::Closure(_) => Place::Nameless,
        }
    }

    pub(super) fn opened(self) -> Self {
        match self {
            Self::Stderr(_) => Self::Stderr(Some(KeptStderr::keep())),
            Self::File(path, _) => Self::File(path, Some(KeptStderr::note())),
            Self::Tracing(_) => Self::Tracing(Some(events::weak_subscriber())),
            Self::Closure(receive) => Self::Closure(receive),
        }
    }

    /// Writes a report; one that cannot be written to a file gives a line on standard error.
    pub(super) fn write(&self, report: &Report, format: Format) {
        match self {
            Self::Stderr(kept) => {
                if let Some(descriptor) = kept.as_ref().and_then(KeptStderr::get) {
                    stderr::print_to(descriptor, format_args!("{}", text(report, format)));
                }
            }
            Self::File(path, kept) => {
                let path = of_this_process(path);
                let written = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&path)
                    .and_then(|mut file| file.write_all(text(report, format).as_bytes()));
                if let (Err(error), Some(descriptor)) = (written, kept.as_ref().and_then(KeptStderr::get)) {
                    let path = path.display();
                    stderr::print_to(descriptor, format_args!("dogtag: no report in {path}: {error}\n"));
                }
            }
            Self::Tracing(subscriber) => {
                let Some(subscriber) = subscriber.as_ref().and_then(WeakSubscriber::upgrade) else { return };
                subscriber.receives(|| emit(report, format));
                // This may be the last one who has it.
                drop_contained(subscriber);
            }
            Self::Closure(receive) => receive(report),
        }
    }
}

fn of_this_process(path: &Path) -> PathBuf {
    path::numbered(path.as_os_str(), &[(b'p', std::process::id())])
}

/// A report with the end of its last line.
fn text(report: &Report, format: Format) -> String {
    match format {
        Format::Text => report.to_string(),
        Format::Json => report.to_json() + "\n",
    }
}

fn emit(report: &Report, format: Format) {
    let totals = &report.snapshot.totals;
    tracing::info!(
        target: "dogtag",
        occasion = report.occasion.name(),
        live_bytes = totals.bytes(),
        live_blocks = totals.blocks(),
        report = text(report, format).trim_end(),
        "a report of the program's memory",
    );
}

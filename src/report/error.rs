//! The errors of reports.

use crate::format::beginning;
use std::ffi::c_int;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::{fmt, io};

/// Says why reports could not be had, and in its message what to do about it.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReportError {
    /// Nothing says when reports are wanted.
    NoOccasion,
    /// The time between two reports is zero, or longer than a clock can count.
    #[non_exhaustive]
    Interval {
        /// The time that was asked for.
        interval: std::time::Duration,
    },
    /// The signal is none that a program can do without, so no report may be had at it.
    #[non_exhaustive]
    Signal {
        /// The signal's number.
        signal: c_int,
    },
    /// The program has a handler for the signal already.
    #[non_exhaustive]
    SignalTaken {
        /// The signal's number.
        signal: c_int,
    },
    /// The file cannot be written.
    #[non_exhaustive]
    File {
        /// The path, with its `%p` filled in.
        path: PathBuf,
        /// What the system says about it.
        error: io::Error,
    },
    /// The same reports were asked for before: on the same occasion, to the same place.
    Twice,
    /// The system gives no thread that would write reports, or no memory for that.
    NoMemory,
    /// The settings, of the environment variable `DOGTAG_REPORT` or from elsewhere, have one that does
    /// not exist, or that cannot have this value.
    #[non_exhaustive]
    Setting {
        /// The setting.
        setting: String,
    },
    /// The environment variable `DOGTAG_SERVICE` has a value that does not exist.
    #[non_exhaustive]
    Service {
        /// The value.
        value: String,
    },
    /// The heap profiler that the environment variable `DOGTAG_PROFILE` asks for cannot be had.
    #[cfg(feature = "profile")]
    Profile(crate::profile::ProfileError),
    /// The environment variable `DOGTAG_PROFILE` asks for a heap profiler, and the program was built
    /// without the feature `profile`.
    NoProfiler,
    /// The address is not one of this machine alone.
    #[non_exhaustive]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be had.
    Address(io::Error),
    /// The socket for tools of the same user cannot be had.
    Socket(io::Error),
}

impl fmt::Display for ReportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOccasion => f.write_str(
                "nothing says when reports are wanted; \
                 there are at_exit, on_signal and every, and in DOGTAG_REPORT exit, SIGUSR2 and every=60s",
            ),
            Self::Interval { interval } => {
                write!(f, "there can be no report every {interval:?}; a minute is Duration::from_secs(60)")
            }
            Self::Signal { signal } => write!(
                f,
                "signal {signal} has a meaning of its own, or does not exist; \
                 SIGUSR1 and SIGUSR2 are a program's own, and those that may be ignored, such as SIGHUP"
            ),
            Self::SignalTaken { signal } => write!(
                f,
                "the program handles signal {signal} itself; choose another one, \
                 or call report::take in that place"
            ),
            Self::File { path, error } => write!(f, "no report can be written to {path:?}: {error}"),
            Self::Twice => f.write_str(
                "the same reports were asked for before: on the same occasion, to the same place; \
                 one call is enough",
            ),
            Self::NoMemory => {
                f.write_str("the system gives no thread that would write reports; report::take needs none")
            }
            Self::Setting { setting } => write!(
                f,
                "{:?} is no setting of reports; there are {KNOWN_SETTINGS}, separated by commas",
                beginning(setting, 100)
            ),
            Self::Service { value } => write!(
                f,
                "{:?} says nothing of services; there is {KNOWN_SERVICES}, for services named after threads",
                beginning(value, 100)
            ),
            #[cfg(feature = "profile")]
            Self::Profile(error) => error.fmt(f),
            Self::NoProfiler => f.write_str(
                "there is no heap profiler in this program; \
                 with the feature `profile` of dogtag in its Cargo.toml there is",
            ),
            Self::NotLoopback { address } => write!(
                f,
                "{address} can be reached by other machines, which may not see this program's memory; \
                 127.0.0.1:0 cannot, and serve_to_anyone allows it"
            ),
            Self::Socket(error) => {
                write!(f, "there is no socket for dogtag top, since the system refuses it: {error}")
            }
            Self::Address(error) => write!(f, "the page cannot be served at this address: {error}"),
        }
    }
}

/// The value that `DOGTAG_SERVICE` may have, for messages.
pub const KNOWN_SERVICES: &str = "thread";

/// The settings in `DOGTAG_REPORT`, for messages.
pub const KNOWN_SETTINGS: &str =
    "exit, the name of a signal such as SIGUSR2, every=60s, file=PATH, json, socket";

impl std::error::Error for ReportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { error, .. } | Self::Address(error) | Self::Socket(error) => Some(error),
            #[cfg(feature = "profile")]
            Self::Profile(error) => Some(error),
            _ => None,
        }
    }
}

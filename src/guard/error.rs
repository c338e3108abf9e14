//! The errors of guards.

use crate::format::Bytes;
use std::path::PathBuf;
use std::{fmt, io};

/// Says why there is no guard, and in its message what to do about it. The program runs on without one.
#[derive(Debug)]
#[non_exhaustive]
pub enum GuardError {
    /// The fraction is not above 0, or is above 1.
    #[non_exhaustive]
    Fraction {
        /// The fraction that was asked for.
        fraction: f64,
    },
    /// The process has no cgroup that counts memory.
    NoCgroup,
    /// Neither the process's cgroup nor one above it has a limit of memory.
    #[non_exhaustive]
    NoLimit {
        /// The directory of the cgroup.
        path: PathBuf,
    },
    /// A file of the system's cannot be read, or has not the form that is known.
    #[non_exhaustive]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says about it.
        error: io::Error,
    },
    /// As much is used already.
    #[non_exhaustive]
    TooLow {
        /// The ceiling, in bytes.
        ceiling: u64,
        /// The bytes that are used.
        used: u64,
    },
    /// There is a guard already.
    Running,
    /// The system gives no thread, or no memory for one.
    NoThread,
}

impl fmt::Display for GuardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fraction { fraction } => {
                write!(f, "{fraction} is no fraction of memory; nine tenths are 0.9, and all of it is 1.0")
            }
            Self::NoCgroup => f.write_str(
                "the process has no cgroup that counts memory; \
                 there are Ceiling::physical, of the machine's memory, and Ceiling::bytes",
            ),
            Self::NoLimit { path } => write!(
                f,
                "neither the cgroup {path:?} nor one above it has a limit of memory; \
                 set memory.max (or memory.limit_in_bytes), a container's limit for instance, \
                 or take Ceiling::physical or Ceiling::bytes"
            ),
            Self::Unreadable { path, error } => write!(
                f,
                "{path:?} does not tell what memory is used: {error}; mount it where the process can read it, \
                 or take Ceiling::bytes, which needs /proc/self/statm alone"
            ),
            Self::TooLow { ceiling, used } => write!(
                f,
                "the ceiling of {} is below the {} that are used already; raise it, or begin the guard earlier",
                Bytes(*ceiling),
                Bytes(*used)
            ),
            Self::Running => f.write_str("the process has a guard already; drop that one first, or keep it"),
            Self::NoThread => f.write_str(
                "the system gives no thread for a guard; raise the limit of threads (ulimit -u, pids.max)",
            ),
        }
    }
}

impl std::error::Error for GuardError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { error, .. } => Some(error),
            _ => None,
        }
    }
}

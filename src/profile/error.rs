//! The errors of the profiler.

use crate::format::beginning;
use std::fmt;

/// Says why sampling could not begin or change, and in its message what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfileError {
    /// The interval is 0 bytes.
    NoInterval,
    /// The depth is 0, or larger than [`Profiler::MOST_FRAMES`](super::Profiler::MOST_FRAMES).
    #[non_exhaustive]
    Depth {
        /// The depth that was asked for.
        depth: usize,
    },
    /// The profiler is running already.
    Running,
    /// The settings, of the environment variable `DOGTAG_PROFILE` or from elsewhere, have one that does
    /// not exist, or that cannot have this value.
    #[non_exhaustive]
    Setting {
        /// The setting.
        setting: String,
    },
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoInterval => f.write_str(
                "the interval of samples is 0 bytes; \
                 1 samples every allocation, 524288 is the default, and to stop there is Profiler::stop",
            ),
            Self::Depth { depth } => write!(
                f,
                "{depth} frames of a call stack cannot be kept; there may be 1 to {}",
                super::Profiler::MOST_FRAMES
            ),
            Self::Running => f.write_str(
                "the profiler is running; Profiler::running returns it, to change its interval or to stop it",
            ),
            Self::Setting { setting } => write!(
                f,
                "{:?} is no setting of the heap profiler; there are interval=BYTES (K, M, G) and depth=FRAMES, \
                 separated by commas, and 1 for the defaults",
                beginning(setting, 100)
            ),
        }
    }
}

impl std::error::Error for ProfileError {}

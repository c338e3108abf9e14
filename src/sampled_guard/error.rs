//! The errors of the sampled guard.

use crate::format::beginning;
use std::fmt;

/// Says why the sampled guard could not begin, and in its message what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SampledGuardError {
    /// The rate is one in 0.
    NoRate,
    /// There cannot be so many slots: 0, or more than [`SampledGuard::MOST_SLOTS`](super::SampledGuard::MOST_SLOTS),
    /// or more than the pool has that an earlier start has made.
    #[non_exhaustive]
    Slots {
        /// The number that was asked for.
        slots: usize,
        /// The most that there can be.
        most: usize,
    },
    /// It is running already.
    Running,
    /// The system refuses the pool.
    #[non_exhaustive]
    NoMemory {
        /// The number of slots that it should have.
        slots: usize,
    },
    /// The program is built with the feature `memory-check`, which looks at every block.
    MemoryCheck,
    /// The settings, of the environment variable `DOGTAG_SAMPLED_GUARD` or from elsewhere, have one that does
    /// not exist, or that cannot have this value.
    #[non_exhaustive]
    Setting {
        /// The setting.
        setting: String,
    },
}

impl fmt::Display for SampledGuardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRate => f.write_str(
                "the rate is one allocation in 0; 1 guards every allocation, 5000 is the default, and to stop \
                 there is SampledGuard::stop",
            ),
            Self::Slots { slots, most } => {
                write!(f, "there cannot be {slots} guarded blocks at once; there may be 1 to {most}")
            }
            Self::Running => f.write_str("the sampled guard is running; SampledGuard::running returns it, to stop it"),
            Self::NoMemory { slots } => {
                write!(f, "the system gives no addresses for {slots} guarded blocks; try fewer slots")
            }
            Self::MemoryCheck => f.write_str(
                "the program is built with memory-check, which looks at every block; build it without, to \
                 guard a sample",
            ),
            Self::Setting { setting } => write!(
                f,
                "{:?} is no setting of the sampled guard; there are rate=ALLOCATIONS, per-second=BLOCKS, \
                 slots=BLOCKS, reaction=abort|continue and patience=SECONDS, separated by commas, and 1 for the \
                 defaults",
                beginning(setting, 100)
            ),
        }
    }
}

impl std::error::Error for SampledGuardError {}

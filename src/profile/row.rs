//! A row of a profile, and the figures of a service.

/// Holds the exact figures of one service in a [`Profile`](super::Profile).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct ProfileService {
    /// The service's name.
    pub name: String,
    /// The service's handle.
    pub handle: u32,
    /// Blocks; negative only in a difference.
    pub objects: i64,
    /// Requested bytes; negative only in a difference.
    pub bytes: i64,
}

/// Holds what one service allocated with one call stack: a row of a [`Profile`](super::Profile).
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct ProfileRow {
    /// The service's name.
    pub service: String,
    /// The service's handle.
    pub handle: u32,
    /// The call stack, or why there is none.
    pub origin: Origin,
    /// Blocks, estimated; negative only in a difference.
    pub objects: i64,
    /// Requested bytes, estimated; negative only in a difference.
    pub bytes: i64,
    /// The standard error of the bytes: about two thirds of all rows are wrong by less, and 95 % by
    /// less than twice as much.
    pub standard_error: f64,
    /// Samples that the estimate is made of.
    pub samples: u64,
    /// Before it was calibrated.
    pub(super) estimate: Estimate,
}

/// Says where a row's memory was allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Origin {
    /// A call stack: return addresses, innermost first. [`Profile::frames`](super::Profile::frames) has the names.
    Stack(Vec<usize>),
    /// It was allocated before sampling began.
    BeforeSampling,
    /// There is no sample of what the service allocated.
    #[default]
    NotSampled,
}

/// What the samples of a row say by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub(super) struct Estimate {
    pub(super) objects: f64,
    pub(super) bytes: f64,
    pub(super) objects_variance: f64,
    pub(super) bytes_variance: f64,
}

impl Origin {
    /// Returns what stands in place of a function's name where there is no call stack:
    /// `[not sampled]` or `[allocated before sampling began]`; `[no call stack]` for an empty one.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Stack(_) => "[no call stack]",
            Self::BeforeSampling => "[allocated before sampling began]",
            Self::NotSampled => "[not sampled]",
        }
    }

    pub(super) fn stack(&self) -> &[usize] {
        if let Self::Stack(stack) = self { stack } else { &[] }
    }
}

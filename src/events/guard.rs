//! The guard's events.

use tracing::level_filters::LevelFilter;

/// A step of the guard's, in plain numbers. (That a service is cancelled is an event of its own.)
pub(crate) enum GuardEvent {
    /// The allocator gave free pages back.
    Purged { used: u64, ceiling: u64, given_back: u64 },
    /// Those who registered are asked to let go of something.
    Asked { used: u64, ceiling: u64, wanted: u64 },
    /// One of them panicked.
    Panicked,
    /// A service that was cancelled has not let go.
    Unresponsive { name: String, handle: u32, bytes: u64 },
    /// No service can be cancelled.
    Helpless { used: u64, ceiling: u64 },
    /// What is used cannot be read.
    Unreadable { error: std::io::Error },
}

impl GuardEvent {
    pub(super) fn level(&self) -> LevelFilter {
        match self {
            Self::Purged { .. } => LevelFilter::DEBUG,
            Self::Asked { .. } => LevelFilter::INFO,
            Self::Unresponsive { .. } | Self::Helpless { .. } => LevelFilter::WARN,
            Self::Panicked | Self::Unreadable { .. } => LevelFilter::ERROR,
        }
    }

    pub(super) fn emit(self) {
        match self {
            Self::Purged { used, ceiling, given_back } => {
                tracing::debug!(target: "dogtag", used, ceiling, given_back, "the allocator gave free pages back");
            }
            Self::Asked { used, ceiling, wanted } => {
                tracing::info!(
                    target: "dogtag",
                    used,
                    ceiling,
                    wanted,
                    "memory is short: those who registered are asked to let go of something",
                );
            }
            Self::Panicked => {
                tracing::error!(target: "dogtag", "a callback of the guard panicked");
            }
            Self::Unresponsive { name, handle, bytes } => {
                tracing::warn!(
                    target: "dogtag",
                    service = name,
                    handle,
                    bytes,
                    "a cancelled service does not let go of its memory",
                );
            }
            Self::Helpless { used, ceiling } => {
                tracing::warn!(
                    target: "dogtag",
                    used,
                    ceiling,
                    "the ceiling is passed, and no service may be cancelled that holds enough",
                );
            }
            Self::Unreadable { error } => {
                tracing::error!(
                    target: "dogtag",
                    error = &error as &dyn std::error::Error,
                    "the guard cannot read what memory is used, and goes on trying",
                );
            }
        }
    }
}

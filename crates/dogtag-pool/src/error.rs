//! The errors of pools.

use std::borrow::Cow;
use std::fmt;

/// The reason why a pool returns no memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolError {
    /// The allocator returned none: the system has none, or the pool's service is at its hard
    /// limit.
    #[non_exhaustive]
    NoMemory {
        /// The name of the pool, if it has one.
        pool: Option<Cow<'static, str>>,
        /// The number of bytes that were asked for.
        bytes: usize,
    },
    /// The [limit](crate::PoolBuilder::limit) of the pool, or of a pool above it, would be
    /// exceeded.
    #[non_exhaustive]
    Limit {
        /// The name of the pool with the limit, if it has one.
        pool: Option<Cow<'static, str>>,
        /// The number of bytes that were asked for.
        bytes: usize,
        /// The number of bytes that the pool with the limit may hold, together with the pools
        /// below it.
        limit: usize,
        /// The number of bytes that they hold.
        held: usize,
    },
    /// The size in bytes is larger than any allocation can be.
    #[non_exhaustive]
    TooLarge {
        /// The number of elements that were asked for.
        count: usize,
        /// The size of an element in bytes.
        size: usize,
    },
    /// The alignment is not a power of two.
    #[non_exhaustive]
    Alignment {
        /// The alignment that was asked for.
        align: usize,
    },
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory { pool, bytes } => {
                let pool = Named(pool);
                write!(
                    f,
                    "{pool} gets no memory for {bytes} bytes: the allocator gives none, \
                     or the hard limit of the pool's service is reached"
                )
            }
            Self::Limit { pool, bytes, limit, held } => {
                let pool = Named(pool);
                write!(
                    f,
                    "{pool} is limited to {limit} bytes and holds {held}: {bytes} more do not fit; \
                     clear it or what is below it, or build it with a higher one"
                )
            }
            Self::TooLarge { count, size } => {
                write!(f, "{count} times {size} bytes is more than there are addresses for; ask for less")
            }
            Self::Alignment { align } => write!(f, "an alignment is a power of two, and {align} is not"),
        }
    }
}

impl std::error::Error for PoolError {}

/// Displays a pool's name in a sentence.
struct Named<'a>(&'a Option<Cow<'static, str>>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "the pool {name:?}"),
            None => write!(f, "a pool"),
        }
    }
}

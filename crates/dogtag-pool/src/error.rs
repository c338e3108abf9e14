//! Why a pool has no memory for somebody.

use std::borrow::Cow;
use std::fmt;

/// Why a pool does not give memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolError {
    /// The allocator gives none: the system has none, or the pool's service has reached its
    /// hard limit.
    NoMemory {
        /// The pool's name, if it has one.
        pool: Option<Cow<'static, str>>,
        /// Bytes that were asked for.
        bytes: usize,
    },
    /// The limit of the pool, or of one above it, does not allow for it.
    Limit {
        /// The name of the pool with the limit, if it has one.
        pool: Option<Cow<'static, str>>,
        /// Bytes that were asked for.
        bytes: usize,
        /// Bytes that it may hold, together with the pools below it.
        limit: usize,
        /// Bytes that they hold.
        held: usize,
    },
    /// No address space has room for so much.
    TooLarge {
        /// Things that were asked for.
        count: usize,
        /// Bytes of each.
        size: usize,
    },
    /// The alignment is not a power of two.
    Alignment {
        /// The one that was asked for.
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
                write!(f, "{count} times {size} bytes is more than there are addresses for")
            }
            Self::Alignment { align } => write!(f, "an alignment is a power of two, and {align} is not"),
        }
    }
}

impl std::error::Error for PoolError {}

struct Named<'a>(&'a Option<Cow<'static, str>>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "the pool {name:?}"),
            None => write!(f, "a pool"),
        }
    }
}

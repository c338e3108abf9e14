//! Why a region cannot be mapped, and what to do about it.

use std::fmt;
use std::io;

/// An error of mapping a region. Nothing stays mapped then.
#[derive(Debug)]
#[non_exhaustive]
pub enum MapError {
    /// A region of no bytes was asked for.
    Empty,
    /// The region would reach beyond the end of the file, where touching it is a bus error.
    BeyondFile {
        /// Where in the file the region was to begin.
        offset: u64,
        /// Bytes that were asked for.
        len: usize,
        /// Bytes that the file has.
        file_len: u64,
    },
    /// The place in the file is not a multiple of the page size.
    MisalignedOffset {
        /// Where in the file the region was to begin.
        offset: u64,
        /// Bytes of a page.
        page: usize,
    },
    /// The granularity is not a power of two, or larger than a page.
    Granularity {
        /// The one that was asked for.
        bytes: usize,
    },
    /// The file is not opened for the wanted protection, or the system forbids the mapping.
    Permission {
        /// What the system said.
        source: io::Error,
    },
    /// The system has no huge pages of that size, or not enough that are free.
    NoHugePages {
        /// Bytes of such a page.
        page: usize,
        /// Bytes that were asked for.
        len: usize,
        /// What the system said.
        source: io::Error,
    },
    /// There is not enough address space in the process, or the system does not promise so much memory.
    OutOfMemory {
        /// Bytes that were asked for.
        len: usize,
        /// What the system said; `None` if no address space is so large.
        source: Option<io::Error>,
    },
    /// The pages cannot be locked in memory.
    NotLocked {
        /// Bytes that were to be locked.
        len: usize,
        /// What the system said.
        source: io::Error,
    },
    /// Another system call failed.
    System {
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a region of no bytes cannot be mapped; ask for at least one"),
            Self::BeyondFile { offset, len, file_len } => write!(
                f,
                "{len} bytes from {offset} on reach beyond the end of the file, which has {file_len}: \
                 make it longer (`File::set_len`) or ask for less"
            ),
            Self::MisalignedOffset { offset, page } => write!(
                f,
                "a region cannot begin at {offset} in a file: a multiple of the page size, {page}, is needed"
            ),
            Self::Granularity { bytes } => {
                write!(f, "the granularity is a power of two, up to the page size, and {bytes} is not")
            }
            Self::Permission { source } => write!(
                f,
                "the system does not permit that: {source}; a file must be open for reading, and for a \
                 shared region that is written to for writing"
            ),
            Self::NoHugePages { page, len, source } => write!(
                f,
                "there are not enough huge pages of {page} bytes for {len} bytes: {source}; reserve some \
                 (/proc/sys/vm/nr_hugepages), and map no file but one of hugetlbfs's; or ask for transparent ones"
            ),
            Self::OutOfMemory { len, source } => {
                write!(f, "there is no memory for {len} bytes")?;
                if let Some(source) = source {
                    write!(f, ": {source}")?;
                }
                write!(
                    f,
                    "; ask for less, or raise the limit of addresses (`ulimit -v`) or of what is promised"
                )
            }
            Self::NotLocked { len, source } => {
                write!(f, "{len} bytes cannot be locked in memory: {source}; raise `ulimit -l`")
            }
            Self::System { call, source } => write!(f, "{call} failed: {source}"),
        }
    }
}

impl std::error::Error for MapError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Permission { source }
            | Self::NoHugePages { source, .. }
            | Self::NotLocked { source, .. }
            | Self::System { source, .. }
            | Self::OutOfMemory { source: Some(source), .. } => Some(source),
            _ => None,
        }
    }
}

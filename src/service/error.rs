//! The errors of registration.

use crate::format::beginning;
use crate::ledger::slots;
use std::fmt;

/// The longest name, in bytes.
///
/// A name is any text from 1 byte to this length, whether Rust or C registers it or a span or a
/// thread names it. Names are written into
/// logs, tables and labels. Prometheus rejects a whole scrape in which one label is
/// longer than its `label_value_length_limit`, if one is set, and other databases cut or
/// refuse labels at 1 or 2 KiB. Most file systems have the same bound for names.
pub(super) const MAX_NAME_LEN: usize = 255;

/// Says why a service could not be registered, and in its message what to do about it.
///
/// More reasons may come, and more details of those that there are.
///
/// ```
/// use dogtag::{RegisterError, Service};
///
/// let launcher = Service::builder("launcher").handle(8).register()?;
/// let error = Service::builder("launcher").handle(9).register().unwrap_err();
/// assert!(matches!(error, RegisterError::NameTaken { handle: 8, requested: 9, .. }));
/// assert!(error.to_string().ends_with("ask for that handle or for none, or choose another name"));
/// # Ok::<(), RegisterError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegisterError {
    /// The name is empty.
    NoName,
    /// The name is longer than [`Service::MAX_NAME_LEN`](crate::Service::MAX_NAME_LEN).
    #[non_exhaustive]
    NameTooLong {
        /// Its beginning.
        beginning: String,
        /// Its length, in bytes.
        len: usize,
    },
    /// A living service has the name, with another handle than the one asked for.
    #[non_exhaustive]
    NameTaken {
        /// The name.
        name: String,
        /// The handle that the living service has.
        handle: u32,
        /// The handle that was asked for.
        requested: u32,
    },
    /// A living service has the handle, with another name.
    #[non_exhaustive]
    HandleTaken {
        /// The handle that the living service has.
        handle: u32,
        /// The name.
        name: String,
    },
    /// A living service has the name, with another parent than the one asked for.
    #[non_exhaustive]
    OtherParent {
        /// The name.
        name: String,
        /// The name of the living service's parent, if it has one.
        parent: Option<String>,
    },
    /// A living service has the name, with other limits than those asked for.
    #[non_exhaustive]
    OtherLimits {
        /// The name.
        name: String,
        /// The living service's hard limit, if it has one.
        hard_limit: Option<u64>,
        /// The living service's soft limit, if it has one.
        soft_limit: Option<u64>,
        /// Where the living service is cancelled, if it is (feature `guard`).
        cancel_at: Option<u64>,
    },
    /// All slots (over 16 million) are in use.
    Full,
    /// There is no memory for another service in the tables.
    NoMemory,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoName => f.write_str(
                "a service without a name cannot be told from others: give it one, or none to the span",
            ),
            Self::NameTooLong { beginning, len } => write!(
                f,
                "a service's name has no more than {} bytes, and the one that begins with {beginning:?} has {len}: \
                 shorten it, for instance to a hash of what it stands for",
                MAX_NAME_LEN,
            ),
            Self::NameTaken { name, handle, requested } => write!(
                f,
                "service {name:?} is registered with handle {handle:#010x}, not {requested:#010x}: \
                 ask for that handle or for none, or choose another name",
            ),
            Self::HandleTaken { handle, name } => write!(
                f,
                "handle {handle:#010x} belongs to service {name:?}: choose another, or let one be assigned",
            ),
            Self::OtherParent { name, parent } => {
                write!(f, "service {name:?} is registered ")?;
                match parent {
                    Some(parent) => write!(f, "as a child of {parent:?}")?,
                    None => f.write_str("without a parent")?,
                }
                f.write_str(": ask for that, or choose another name")
            }
            Self::OtherLimits { name, hard_limit, soft_limit, cancel_at } => {
                let limit = |limit: &Option<u64>| limit.map_or("none".to_owned(), |bytes| bytes.to_string());
                write!(
                    f,
                    "service {name:?} is registered with other limits (hard: {}, soft: {}{}): ask for those or \
                     for none, and change them with set_hard_limit, set_soft_limit or set_cancel_at",
                    limit(hard_limit),
                    limit(soft_limit),
                    cancel_at.map_or(String::new(), |bytes| format!(", cancelled at: {bytes}")),
                )
            }
            Self::Full => write!(
                f,
                "all {} services of this process are in use: register fewer, or group what they stand for",
                slots::CAPACITY,
            ),
            Self::NoMemory => f.write_str(
                "the operating system gives no memory for another service: \
                 check the process's address-space limit (ulimit -v) and the system's overcommit setting",
            ),
        }
    }
}

impl std::error::Error for RegisterError {}

/// Whether a service may have that name.
pub(crate) fn check_name(name: &str) -> Result<(), RegisterError> {
    match name.len() {
        0 => Err(RegisterError::NoName),
        len if len > MAX_NAME_LEN => Err(name_too_long(name, len)),
        _ => Ok(()),
    }
}

/// Of a name that has so many bytes, and of which this is the beginning, or all.
pub(crate) fn name_too_long(name: &str, len: usize) -> RegisterError {
    /// Bytes of it.
    const SHOWN: usize = 60;

    RegisterError::NameTooLong { beginning: beginning(name, SHOWN).to_owned(), len }
}

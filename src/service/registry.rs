//! Who is who: name to service and handle to service.
//!
//! Two dashmaps. They may allocate and they lock, so nothing that runs inside
//! an allocation enters this room. What they allocate is nobody's but the
//! process's own: it is charged to the unattributed service.

use crate::ledger::slots::{self, AddError, Record};
use crate::service::scope::Scope;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Why a service could not be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegisterError {
    /// The name is registered already, with another handle than the one asked for.
    NameTaken {
        /// The name.
        name: String,
        /// The handle that the living service has.
        handle: u32,
        /// The handle that was asked for.
        requested: u32,
    },
    /// The handle is registered already, with another name.
    HandleTaken {
        /// The handle.
        handle: u32,
        /// The name of the service that has it.
        name: String,
    },
    /// All slots (over 16 million) are in use.
    Full,
    /// The operating system gives no memory for the table of services.
    NoMemory,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameTaken { name, handle, requested } => write!(
                f,
                "service {name:?} is registered with handle {handle:#010x}, not {requested:#010x}: \
                 ask for that handle or for none, or choose another name",
            ),
            Self::HandleTaken { handle, name } => write!(
                f,
                "handle {handle:#010x} belongs to service {name:?}: choose another, or let one be assigned",
            ),
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

pub(super) fn register(name: &str, handle: Option<u32>) -> Result<&'static Record, RegisterError> {
    // To find a name again is the common case, and needs a shared lock only.
    if let Some(record) = by_name(name) {
        return unless_other_handle(record, handle);
    }
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    match REGISTRY.names.entry(name.into()) {
        Entry::Occupied(entry) => unless_other_handle(entry.get(), handle),
        Entry::Vacant(entry) => {
            // The name is locked until its handle is; nobody locks the two in
            // the other order.
            let record = match handle {
                Some(handle) => add(name, handle)?,
                None => add_with_any_handle(name)?,
            };
            entry.insert(record);
            Ok(record)
        }
    }
}

pub(super) fn by_name(name: &str) -> Option<&'static Record> {
    REGISTRY.names.get(name).map(|entry| *entry)
}

pub(super) fn by_handle(handle: u32) -> Option<&'static Record> {
    REGISTRY.handles.get(&handle).map(|entry| *entry)
}

struct Registry {
    names: DashMap<Box<str>, &'static Record>,
    handles: DashMap<u32, &'static Record>,
}

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let registry = Registry { names: DashMap::new(), handles: DashMap::new() };
    let unattributed = &slots::UNATTRIBUTED;
    registry.names.insert(unattributed.name().into(), unattributed);
    registry.handles.insert(unattributed.handle(), unattributed);
    registry
});

/// The name is taken; is it by whom the caller means?
fn unless_other_handle(
    record: &'static Record,
    requested: Option<u32>,
) -> Result<&'static Record, RegisterError> {
    match requested {
        Some(requested) if requested != record.handle() => Err(RegisterError::NameTaken {
            name: record.name().to_owned(),
            handle: record.handle(),
            requested,
        }),
        _ => Ok(record),
    }
}

fn add(name: &str, handle: u32) -> Result<&'static Record, RegisterError> {
    match REGISTRY.handles.entry(handle) {
        Entry::Occupied(entry) => {
            Err(RegisterError::HandleTaken { handle, name: entry.get().name().to_owned() })
        }
        Entry::Vacant(entry) => {
            let record = slots::add(name.into(), handle).map_err(|error| match error {
                AddError::Full => RegisterError::Full,
                AddError::NoMemory => RegisterError::NoMemory,
            })?;
            entry.insert(record);
            Ok(record)
        }
    }
}

/// Assigns the next free handle of the upper half, where few number their own.
fn add_with_any_handle(name: &str) -> Result<&'static Record, RegisterError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const UPPER_HALF: u32 = 1 << 31;

    // Ends: the upper half has more handles than there can be services.
    loop {
        let handle = UPPER_HALF | NEXT.fetch_add(1, Ordering::Relaxed);
        match add(name, handle) {
            Err(RegisterError::HandleTaken { .. }) => {}
            result => return result,
        }
    }
}

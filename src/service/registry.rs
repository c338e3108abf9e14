//! The registry: maps from name to service and from handle to service.
//!
//! Two dashmaps. They may allocate and they lock, so nothing that runs inside
//! an allocation calls this module. What they allocate is charged to the unattributed service.
//!
//! A service whose last clone was dropped stays in for a moment, until the thread that
//! dropped it takes it out. It is as good as gone: it is not found, and a new
//! one may take its place. No clone is dropped here while a map is locked, since
//! it might be the last.

use super::fork;
use super::scope::Scope;
use crate::ledger::slots::{self, Record};
use crate::sync::{AtomicU32, Ordering};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::ptr;
use std::sync::LazyLock;

/// A record that is retained for whoever gets this, who has to release it.
#[must_use = "the service is retained"]
pub(super) struct Retained(pub(super) &'static Record);

/// The living service of that name.
pub(super) fn by_name(name: &str) -> Option<Retained> {
    // A thread that waits for a map may have to allocate a queue first.
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let _gate = fork::gate();
    REGISTRY.names.get(name).and_then(|entry| living(entry.key().0))
}

/// The living service with that handle.
pub(super) fn by_handle(handle: u32) -> Option<Retained> {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let _gate = fork::gate();
    REGISTRY.handles.get(&handle).and_then(|entry| living(entry.value()))
}

/// Takes out a service whose last clone was dropped.
pub(super) fn remove(record: &'static Record) {
    let _gate = fork::gate();
    REGISTRY.names.remove_if(record.name(), |known, ()| ptr::eq(known.0, record));
    REGISTRY.handles.remove_if(&record.handle(), |_, known| ptr::eq(*known, record));
}

struct Registry {
    names: DashMap<ByName, ()>,
    handles: DashMap<u32, &'static Record, HandleHashes>,
}

/// Hashes handles, which are numbers of few kinds: one multiplication, by what no one outside can know, so that nobody
/// can choose numbers that collide.
#[derive(Clone)]
struct HandleHashes {
    keys: [u64; 2],
}

impl HandleHashes {
    fn random() -> Self {
        let random = RandomState::new();
        Self { keys: [0, 1].map(|number| random.hash_one(number)) }
    }
}

impl BuildHasher for HandleHashes {
    type Hasher = HandleHasher;

    #[inline]
    fn build_hasher(&self) -> HandleHasher {
        HandleHasher { keys: self.keys, hash: 0 }
    }
}

struct HandleHasher {
    keys: [u64; 2],
    hash: u64,
}

impl Hasher for HandleHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    #[inline]
    fn write_u32(&mut self, handle: u32) {
        let [first, second] = self.keys;
        let product = u128::from(self.hash ^ u64::from(handle) ^ first) * u128::from(second | 1);
        self.hash = product as u64 ^ (product >> 64) as u64;
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.hash
    }
}

/// Made while somebody has the gate, so that no child finds it half made.
static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let _scope = Scope::enter(&slots::UNATTRIBUTED);
    let registry = Registry { names: DashMap::new(), handles: DashMap::with_hasher(HandleHashes::random()) };
    let unattributed = &slots::UNATTRIBUTED;
    registry.names.insert(ByName(unattributed), ());
    registry.handles.insert(unattributed.handle(), unattributed);
    registry
});

/// A service under the name that stands in its record, and only there.
struct ByName(&'static Record);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for ByName {}

/// Retains a service that is in a map which the caller has locked; `None` if it is retired, or cancelled,
/// and about to be taken out.
fn living(record: &'static Record) -> Option<Retained> {
    (!record.family().is_cancelled() && record.lifecycle().try_hold()).then_some(Retained(record))
}

/// Who has the name or the handle already.
pub(super) enum Conflict {
    Name(Retained),
    Handle(Retained),
}

/// Puts a new service into the maps.
pub(super) fn publish(record: &'static Record) -> Result<(), Conflict> {
    let _gate = fork::gate();
    // The name is locked until its handle is; nobody locks the two in the other
    // order.
    match REGISTRY.names.entry(ByName(record)) {
        Entry::Occupied(entry) => {
            if let Some(living) = living(entry.key().0) {
                return Err(Conflict::Name(living));
            }
            publish_handle(record)?;
            entry.replace_entry(());
        }
        Entry::Vacant(entry) => {
            publish_handle(record)?;
            entry.insert(());
        }
    }
    Ok(())
}

fn publish_handle(record: &'static Record) -> Result<(), Conflict> {
    match REGISTRY.handles.entry(record.handle()) {
        Entry::Occupied(mut entry) => {
            if let Some(living) = living(entry.get()) {
                return Err(Conflict::Handle(living));
            }
            entry.insert(record);
        }
        Entry::Vacant(entry) => {
            entry.insert(record);
        }
    }
    Ok(())
}

/// The next handle of the upper half, where few number their own. After the last of them comes
/// the first again, and those that are in use are passed over.
pub(super) fn next_handle() -> u32 {
    const UPPER_HALF: u32 = 1 << 31;

    UPPER_HALF | NEXT_HANDLE.fetch_add(1, Ordering::Relaxed)
}

pub(super) static NEXT_HANDLE: AtomicU32 = AtomicU32::new(0);

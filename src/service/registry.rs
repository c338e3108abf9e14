//! The registry: from name to service, and from handle to service.
//!
//! Names, and handles that the program chose, stand in hash tables: each has some [shards](Shards) with a lock. Handles that
//! dogtag assigned have a table [of their own](assigned_handles), without a lock. The tables may allocate, so nothing that
//! runs inside an allocation calls this module. What they allocate is charged to the unattributed service,
//! which is in no table.
//!
//! A service whose last clone was dropped stays in for a moment, until the thread that
//! dropped it takes it out. It is as good as gone: it is not found, and a new
//! one may take its place. No clone is dropped here while a table is locked, since
//! it might be the last.
//!
//! A fork takes the locks ([`lock_all`]), so callers have it [prepared](super::fork::prepare).

use super::assigned_handles::{self, UPPER_HALF};
use super::chosen_or_assigned::AnyChosen;
use super::slot_table::SlotTable;
use crate::ledger::slots::{Record, UNATTRIBUTED};
use crate::sync::{Ordering, fence};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ptr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(super) use assigned_handles::next as next_handle;

/// A record that is retained for whoever gets this, who has to release it.
#[must_use = "the service is retained"]
pub(super) struct Retained(pub(super) &'static Record);

/// The living service of that name.
pub(super) fn by_name(name: &str) -> Option<Retained> {
    by_name_and_hash(name, hash_of_name(name))
}

/// Variant of [`by_name`] for a name whose hash is known.
#[inline]
pub(super) fn by_name_and_hash(name: &str, hash: u32) -> Option<Retained> {
    if name == UNATTRIBUTED.name() {
        return living(&UNATTRIBUTED);
    }
    let names = NAMES.read(hash);
    names.find(hash, |known| known.name() == name).and_then(living)
}

/// The living service in the place of that handle, if it may be an assigned one. It may have lost the handle just now, to
/// another one, or have it for a moment only: the caller, who can release it, has to look, once it
/// [is published](is_published).
pub(super) fn in_place_of(handle: u32) -> Option<Retained> {
    if handle & UPPER_HALF == 0 {
        return None;
    }
    assigned_handles::find(handle).and_then(living)
}

/// The living service that has chosen that handle.
pub(super) fn by_chosen_handle(handle: u32) -> Option<Retained> {
    if handle == UNATTRIBUTED.handle() {
        return living(&UNATTRIBUTED);
    }
    let hash = hash_of_handle(handle);
    let chosen = CHOSEN.read(hash);
    chosen.find(hash, |known| known.handle() == handle).and_then(living)
}

/// Whether a service, which the caller holds, can be found by its name. If it is being published just now, waits for the
/// end of that: from then on it keeps its handle.
pub(super) fn is_published(record: &'static Record) -> bool {
    let hash = record.name_hash();
    NAMES.read(hash).find(hash, |known| ptr::eq(known, record)).is_some()
}

/// Takes out a service whose last clone was dropped, or that is cancelled.
pub(super) fn remove(record: &'static Record) {
    NAMES.remove(record.name_hash(), record);
    let handle = record.handle();
    if handle & UPPER_HALF != 0 {
        assigned_handles::give_up(record);
    }
    if handle & UPPER_HALF == 0 || ANY_CHOSEN.get() {
        CHOSEN.remove(hash_of_handle(handle), record);
    }
}

/// Retains a service that is in a table; `None` if it is retired, or cancelled,
/// and about to be taken out.
fn living(record: &'static Record) -> Option<Retained> {
    (!record.family().is_cancelled() && record.lifecycle().try_hold()).then_some(Retained(record))
}

/// Why a service cannot be known by its name or its handle.
pub(super) enum Conflict {
    /// Somebody has the name already.
    Name(Retained),
    /// Somebody has, or had just now, the handle.
    Handle(Retained),
    NoMemory,
}

/// Whether a new service's handle was chosen by the program, or is to be assigned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HandleIs {
    Chosen,
    ToAssign,
    /// By [`reserve_handle`].
    Reserved,
}

/// Makes a new service known, under its name, which has that hash.
pub(super) fn publish(record: &'static Record, hash: u32, handle: HandleIs) -> Result<(), Conflict> {
    let name = record.name();
    if name == UNATTRIBUTED.name()
        && let Some(living) = living(&UNATTRIBUTED)
    {
        return Err(Conflict::Name(living));
    }
    record.note_name_hash(hash);
    // The name is locked until its handle is; nobody locks the two in the other
    // order.
    let mut names = NAMES.write(hash);
    let place = names.place(hash, |known| known.name() == name).map_err(|_| Conflict::NoMemory)?;
    if let Some(living) = place.taken_by().and_then(living) {
        return Err(Conflict::Name(living));
    }
    publish_handle(record, handle)?;
    place.put(record);
    Ok(())
}

#[inline]
fn publish_handle(record: &'static Record, handle: HandleIs) -> Result<(), Conflict> {
    match handle {
        HandleIs::Chosen => publish_chosen(record),
        HandleIs::ToAssign => {
            assigned_handles::assign(record).ok_or(Conflict::NoMemory)?;
            assign_another_if_chosen(record)
        }
        HandleIs::Reserved => {
            // It has begun meanwhile, perhaps after somebody has looked who chose the same.
            fence(Ordering::SeqCst);
            assign_another_if_chosen(record)
        }
    }
}

/// Assigns a handle to a slot whose service begins later.
pub(super) fn reserve_handle(record: &'static Record) -> Option<()> {
    record.set_handle(next_handle());
    assigned_handles::assign(record)
}

/// Assigns other handles until it is one that nobody has chosen.
#[inline]
fn assign_another_if_chosen(record: &'static Record) -> Result<(), Conflict> {
    let assign_another = || {
        assigned_handles::give_up(record);
        record.set_handle(next_handle());
        assigned_handles::assign(record)
    };
    ANY_CHOSEN.pass_over(|| is_chosen(record.handle()), assign_another).ok_or(Conflict::NoMemory)
}

#[inline(never)]
fn publish_chosen(record: &'static Record) -> Result<(), Conflict> {
    let handle = record.handle();
    if handle == UNATTRIBUTED.handle()
        && let Some(living) = living(&UNATTRIBUTED)
    {
        return Err(Conflict::Handle(living));
    }
    let hash = hash_of_handle(handle);
    let mut chosen = if handle & UPPER_HALF == 0 {
        CHOSEN.write(hash)
    } else {
        let assigned = || assigned_handles::find(handle).and_then(living).map(Conflict::Handle);
        ANY_CHOSEN.choose(|| CHOSEN.write(hash), assigned)?
    };
    let place = chosen.place(hash, |known| known.handle() == handle).map_err(|_| Conflict::NoMemory)?;
    if let Some(living) = place.taken_by().and_then(living) {
        return Err(Conflict::Handle(living));
    }
    place.put(record);
    Ok(())
}

fn is_chosen(handle: u32) -> bool {
    let hash = hash_of_handle(handle);
    CHOSEN.read(hash).find(hash, |known| known.handle() == handle).is_some()
}

static ANY_CHOSEN: AnyChosen = AnyChosen::none();

static NAMES: Shards = Shards::new();

/// Handles that programs chose.
static CHOSEN: Shards = Shards::new();

/// A hash table in parts, each with a lock of its own.
struct Shards([Shard; SHARDS]);

const SHARDS: usize = 64;

/// Alone in its cache line.
#[repr(align(64))]
struct Shard(RwLock<SlotTable>);

impl Shards {
    const fn new() -> Self {
        Self([const { Shard(RwLock::new(SlotTable::new())) }; SHARDS])
    }

    #[inline]
    fn of(&self, hash: u32) -> &RwLock<SlotTable> {
        &self.0[shard_of(hash)].0
    }

    #[inline]
    fn read(&self, hash: u32) -> RwLockReadGuard<'_, SlotTable> {
        self.of(hash).read().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn write(&self, hash: u32) -> RwLockWriteGuard<'_, SlotTable> {
        self.of(hash).write().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, hash: u32, record: &'static Record) {
        self.write(hash).remove(hash, record);
    }

    fn lock_all(&'static self) -> Locked {
        self.0.each_ref().map(|shard| shard.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// By bits at which hashbrown's tables do not look: those have the seven highest ones, and the lowest.
#[inline]
fn shard_of(hash: u32) -> usize {
    (hash >> 19) as usize % SHARDS
}

type Locked = [RwLockWriteGuard<'static, SlotTable>; SHARDS];

/// All locks of the registry, for a fork.
pub(super) struct AllLocked {
    _chosen: Locked,
    _names: Locked,
    _key: MutexGuard<'static, ()>,
}

pub(super) fn lock_all() -> AllLocked {
    let key = MAKING_KEY.lock().unwrap_or_else(PoisonError::into_inner);
    let names = NAMES.lock_all();
    AllLocked { _key: key, _names: names, _chosen: CHOSEN.lock_all() }
}

/// Hashes names and numbers with SipHash and a key that no one outside knows, so that strangers who choose names, or see
/// how long looking them up takes, cannot make them collide. (Faster ones, foldhash for one, do not promise that.)
static HASHER: OnceLock<RandomState> = OnceLock::new();

/// Held by who makes the key, for whom a child would wait for ever. (A fork does not make it: that takes a system call
/// which a sandbox need not allow.) It comes before the tables.
static MAKING_KEY: Mutex<()> = Mutex::new(());

#[inline]
fn hasher() -> &'static RandomState {
    HASHER.get().unwrap_or_else(make_key)
}

#[cold]
#[inline(never)]
fn make_key() -> &'static RandomState {
    let _making = MAKING_KEY.lock().unwrap_or_else(PoisonError::into_inner);
    HASHER.get_or_init(RandomState::new)
}

#[inline]
fn hash_of_handle(handle: u32) -> u32 {
    hasher().hash_one(handle) as u32
}

pub(super) fn hash_of_name(name: &str) -> u32 {
    let mut hasher = hasher().build_hasher();
    // `str` would add a byte, for what is hashed after it.
    hasher.write(name.as_bytes());
    hasher.finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{RegisterError, Service, retirement};
    use std::collections::{HashMap, HashSet};
    use std::sync::Barrier;

    /// Of each length, with every byte changed, and numbers at the end: no more collisions than chance has,
    /// in the whole hash and in the bits that choose a lock and a place.
    #[test]
    fn hashes_of_names_are_spread() {
        let mut names: Vec<String> = (0..50_000).map(|i| format!("service {i}")).collect();
        for length in 1..=255 {
            let name = "-".repeat(length);
            for place in 0..length {
                for byte in ["a", "b"] {
                    let mut changed = name.clone();
                    changed.replace_range(place..=place, byte);
                    names.push(changed);
                }
            }
            names.push(name);
        }
        let spread = |hashes: &mut dyn Iterator<Item = u32>, places: usize| {
            let mut by_hash: HashMap<u32, usize> = HashMap::new();
            hashes.for_each(|hash| *by_hash.entry(hash).or_default() += 1);
            let most = by_hash.values().copied().max().unwrap_or(0);
            let expected = names.len() / places;
            assert!(most <= expected * 2 + 20, "{most} of {places} places, {expected} expected");
            by_hash.len()
        };
        let whole = spread(&mut names.iter().map(|name| hash_of_name(name)), usize::MAX);
        // Of 115,000 hashes of 32 bits one or two pairs are the same by chance.
        assert!(names.len() - whole < 20, "{} collide", names.len() - whole);
        spread(&mut names.iter().map(|name| shard_of(hash_of_name(name)) as u32), SHARDS);
        spread(&mut names.iter().map(|name| hash_of_name(name) & 0xfff), 4096);
        // Within a shard, by the bits that hashbrown compares first.
        let (tags, by_tag) = (128, |hash| (hash >> 25) as usize * SHARDS + shard_of(hash));
        spread(&mut names.iter().map(|name| by_tag(hash_of_name(name)) as u32), tags * SHARDS);
        let handles = || (0..names.len() as u32).flat_map(|i| [i, i << 15]).take(names.len());
        spread(&mut handles().map(|handle| shard_of(hash_of_handle(handle)) as u32), SHARDS);
        spread(&mut handles().map(|handle| hash_of_handle(handle) & 0xfff), 4096);
        spread(&mut handles().map(|handle| by_tag(hash_of_handle(handle)) as u32), tags * SHARDS);
    }

    /// One thread chooses the very numbers that another one is assigned.
    #[test]
    fn a_handle_that_is_chosen_is_not_assigned_meanwhile() {
        const EACH: u32 = 20;

        let (mut taken, mut passed_over) = (0, 0);
        for round in 0..200 {
            let first = Service::register(format!("before round {round}")).unwrap().handle() + 1;
            let choose_all = || -> Vec<Result<Service, RegisterError>> {
                let choose = |i| {
                    // Half of them meet whoever is assigned numbers.
                    let handle = first + if round % 2 == 0 { i } else { EACH - i };
                    let name = format!("chooses {i} in round {round}");
                    Service::builder(name).handle(handle | UPPER_HALF).register()
                };
                (0..EACH).map(choose).collect()
            };
            let assign_all = || -> Vec<Service> {
                let assign = |i| Service::register(format!("assigned {i} in round {round}")).unwrap();
                (0..EACH).map(assign).collect()
            };
            let barrier = Barrier::new(2);
            let (assigned, chosen) = match round % 4 {
                0 => {
                    let chosen = choose_all();
                    (assign_all(), chosen)
                }
                1 => (assign_all(), choose_all()),
                _ => std::thread::scope(|threads| {
                    let chooses = threads.spawn(|| {
                        barrier.wait();
                        choose_all()
                    });
                    barrier.wait();
                    (assign_all(), chooses.join().unwrap())
                }),
            };
            let chosen: Vec<Service> = chosen
                .into_iter()
                .filter_map(|chosen| match chosen {
                    Ok(service) => Some(service),
                    Err(RegisterError::HandleTaken { handle, name, .. }) => {
                        assert!(!name.is_empty() && handle & UPPER_HALF != 0);
                        taken += 1;
                        None
                    }
                    Err(error) => panic!("{error}"),
                })
                .collect();
            passed_over += assigned.iter().filter(|service| service.handle() >= first + EACH).count();
            let all = || assigned.iter().chain(&chosen);
            let handles: HashSet<u32> = all().map(Service::handle).collect();
            assert_eq!(handles.len(), all().count(), "two have the same handle");
            for service in all() {
                assert_eq!(Service::by_handle(service.handle()).as_ref(), Some(service));
                assert_eq!(Service::by_name(service.name()).as_ref(), Some(service));
            }
        }
        assert!(taken > 0 && passed_over > 0, "they do not meet: {taken}, {passed_over}");
    }

    /// It is about to see that, and to give the handle up.
    #[cfg(target_os = "linux")]
    #[test]
    fn who_chooses_a_handle_waits_for_who_is_just_assigned_it() {
        let sleeps = |thread: i32| {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
            stat.rsplit(')').next().unwrap().trim_start().starts_with('S')
        };

        let record = retirement::claim_slot().unwrap_or_else(|_| panic!("there are slots"));
        record.begin("is just assigned a handle".into(), 0);
        // The first number that has a free place.
        let is_free = |&handle: &u32| {
            record.set_handle(handle);
            assert!(assigned_handles::assign(record).is_some());
            let is_it = record.handle() == handle;
            if !is_it {
                assigned_handles::give_up(record);
            }
            is_it
        };
        let handle = (0xf800_0000..).find(is_free).unwrap();
        let hash = hash_of_name(record.name());
        record.note_name_hash(hash);
        // As long as it is being published.
        let names = NAMES.write(hash);
        let is_elsewhere = |name: &String| shard_of(hash_of_name(name)) != shard_of(hash);
        let name = (0..).map(|number| format!("chooses the handle {number}")).find(is_elsewhere).unwrap();
        let (tell, is_told) = std::sync::mpsc::channel();
        let chooses = std::thread::spawn(move || {
            // SAFETY: asks for a number.
            tell.send(unsafe { libc::gettid() }).unwrap();
            Service::builder(name).handle(handle).register()
        });
        let thread = is_told.recv().unwrap();
        while !(chooses.is_finished() || sleeps(thread)) {
            std::thread::yield_now();
        }
        assigned_handles::give_up(record);
        record.set_handle(next_handle());
        drop(names);
        let chosen = chooses.join().unwrap();
        assert_eq!(chosen.as_ref().map(Service::handle), Ok(handle));
        assert_eq!(Service::by_handle(handle), chosen.ok());
        assert!(record.lifecycle().release());
        retirement::retire(record);
    }
}

//! Parents and children: what a service is asked for beyond its own figures.
//!
//! A child holds its parent from its beginning to its end, so chains of parents
//! can be walked by whoever holds the child. The list of a parent's children
//! changes under a lock, which nothing inside an allocation takes. The threshold reads
//! it without: each link says which service of its slot is meant, and
//! who finds another one there begins again.
//!
//! Families may be as deep as there are services. So each knows the nearest limit above it, and
//! nothing walks all the way up.

use crate::ledger::budget::{self, Budget};
use crate::ledger::pending_events::Due;
use crate::ledger::slots::{self, Record};
use crate::owner::Slot;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering, const_unless_loom, shared};
use crate::usage::Usage;
use std::iter;
use std::ptr;
use std::sync::PoisonError;

/// A service's place in its family.
#[derive(Debug)]
pub(crate) struct Family {
    parent: AtomicLink,
    next: AtomicLink,
    /// The slot of the child before; 0 for the first.
    previous: AtomicU32,
    /// The nearest service from this one upwards that has a limit: one more than its slot; 0 for
    /// none. Changed under the lock.
    limited: AtomicU32,
    /// What only parents and limited services have.
    limit_group: AtomicPtr<LimitGroup>,
}

/// What a service's descendants share with it.
#[derive(Debug)]
pub(crate) struct LimitGroup {
    pub(crate) budget: Budget,
    first_child: AtomicLink,
    /// What descendants had that have ended.
    past_bytes: AtomicU64,
    past_blocks: AtomicU64,
    past_denied: AtomicU64,
    pub(super) due: Due,
}

impl Family {
    const_unless_loom! {
        pub(crate) fn none() -> Self {
            Self {
                parent: AtomicLink(AtomicU64::new(0)),
                next: AtomicLink(AtomicU64::new(0)),
                previous: AtomicU32::new(0),
                limited: AtomicU32::new(0),
                limit_group: AtomicPtr::new(ptr::null_mut()),
            }
        }
    }

    /// By whoever holds the child.
    pub(crate) fn parent(&self) -> Option<&'static Record> {
        Some(self.parent.load()?.record)
    }

    /// Who the parent is, by its [identity](Record::identity). By whoever has the
    /// child pinned.
    pub(crate) fn parent_identity(&self) -> Option<(u32, u64)> {
        let Link { record, generation } = self.parent.load()?;
        Some((record.index(), generation))
    }

    /// The nearest service that has a limit: this one, or one above it. By whoever holds this one.
    pub(crate) fn limited(&self) -> Option<&'static Record> {
        slots::any_record(Slot::new(self.limited.load(Ordering::Acquire).checked_sub(1)?)?)
    }

    /// Notes whether this service has a limit, which is that record's, when all above have.
    fn note_limited(&self, record: &'static Record) {
        let is_limited = self.limit_group().is_some_and(|limit_group| limit_group.budget.is_limited());
        let limited = match self.parent() {
            _ if is_limited => record.index() + 1,
            Some(parent) => parent.family().limited.load(Ordering::Relaxed),
            None => 0,
        };
        self.limited.store(limited, Ordering::Release);
    }

    #[inline]
    pub(crate) fn limit_group(&self) -> Option<&'static LimitGroup> {
        // SAFETY: households are never freed: they stay with their slot.
        unsafe { self.limit_group.load(Ordering::Acquire).as_ref() }
    }

    /// What descendants have allocated and freed that have ended.
    pub(crate) fn past(&self) -> Usage {
        self.limit_group().map(LimitGroup::past).unwrap_or_default()
    }

    /// Allocates, the first time that this slot needs one.
    pub(crate) fn limit_group_or_new(&self) -> &'static LimitGroup {
        if let Some(known) = self.limit_group() {
            return known;
        }
        let new = Box::into_raw(Box::new(LimitGroup {
            budget: Budget::new(),
            first_child: AtomicLink(AtomicU64::new(0)),
            past_bytes: AtomicU64::new(0),
            past_blocks: AtomicU64::new(0),
            past_denied: AtomicU64::new(0),
            due: Due::new(),
        }));
        let first = ptr::null_mut();
        match self.limit_group.compare_exchange(first, new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: it stays for ever.
            Ok(_) => unsafe { &*new },
            // SAFETY: nobody has seen the new one; the first one stays.
            Err(first) => unsafe {
                drop(Box::from_raw(new));
                &*first
            },
        }
    }

    /// For a new service in a slot that is claimed.
    pub(crate) fn begin(&self) {
        self.parent.store(None);
        self.limited.store(0, Ordering::Relaxed);
        if let Some(LimitGroup { budget, past_bytes, past_blocks, past_denied, .. }) = self.limit_group() {
            budget.set(budget::NONE, budget::NONE);
            for past in [past_bytes, past_blocks, past_denied] {
                past.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl LimitGroup {
    fn past(&self) -> Usage {
        let bytes = self.past_bytes.load(Ordering::Relaxed);
        let blocks = self.past_blocks.load(Ordering::Relaxed);
        Usage {
            allocated_bytes: bytes,
            allocated_blocks: blocks,
            freed_bytes: bytes,
            freed_blocks: blocks,
            denied: self.past_denied.load(Ordering::Relaxed),
            peak_bytes: 0,
        }
    }

    fn add_past(&self, ended: Usage) {
        self.past_bytes.fetch_add(ended.freed_bytes, Ordering::Relaxed);
        self.past_blocks.fetch_add(ended.freed_blocks, Ordering::Relaxed);
        self.past_denied.fetch_add(ended.denied, Ordering::Relaxed);
    }
}

/// A service and those above it, from below. By whoever holds the service.
pub(crate) fn ancestors(record: &'static Record) -> impl Iterator<Item = &'static Record> {
    iter::successors(Some(record), |record| record.family().parent())
}

/// Those of them that have limits, in as many steps as there are.
pub(crate) fn limited_ancestors(record: &'static Record) -> impl Iterator<Item = &'static Record> {
    iter::successors(record.family().limited(), |limited| limited.family().parent()?.family().limited())
}

/// Keeps all families as they are.
pub(crate) struct Tree {
    _lock: MutexGuard<'static, ()>,
}

impl Tree {
    pub(crate) fn lock() -> Self {
        shared! {
            static LOCK: Mutex<()> = Mutex::new(());
        }

        Self { _lock: LOCK.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Makes a new service a child of `parent`, which it holds from now on by
    /// the clone that the caller gives away.
    pub(crate) fn adopt(&self, parent: &'static Record, child: &'static Record) {
        let first = &parent.family().limit_group_or_new().first_child;
        let next = first.load();
        let family = child.family();
        family.parent.store(Some(Link::to(parent)));
        family.note_limited(child);
        family.previous.store(0, Ordering::Relaxed);
        family.next.store(next);
        if let Some(next) = next {
            next.record.family().previous.store(child.index(), Ordering::Relaxed);
        }
        first.store(Some(Link::to(child)));
    }

    /// A service has got a limit, or has none any more: tells all below.
    pub(crate) fn note_limits(&self, record: &'static Record) {
        descendants(record, Some(self), |member| member.family().note_limited(member));
    }

    /// Takes a service that has ended out of its family. Returns its parent,
    /// with the clone that the child had.
    pub(crate) fn part(&self, child: &'static Record) -> Option<&'static Record> {
        let family = child.family();
        let parent = family.parent()?;
        let next = family.next.load();
        if let Some(next) = next {
            let previous = family.previous.load(Ordering::Relaxed);
            next.record.family().previous.store(previous, Ordering::Relaxed);
        }
        let limit_group = parent.family().limit_group_or_new();
        let previous =
            Slot::new(family.previous.load(Ordering::Relaxed)).filter(|slot| *slot != Slot::UNATTRIBUTED);
        match previous.and_then(slots::any_record) {
            Some(previous) => previous.family().next.store(next),
            None => limit_group.first_child.store(next),
        }
        limit_group.add_past(child.last_usage());
        limit_group.add_past(family.past());
        Some(parent)
    }
}

/// Calls `each` for a service and all its descendants. `false` if the family
/// changed meanwhile, which it cannot while it is locked. By whoever holds the
/// service.
///
/// Goes from link to link, depth first. Each record is pinned before the one that
/// led to it is let go, so it is the one that was meant, or the way ends.
pub(crate) fn descendants(
    root: &'static Record,
    tree: Option<&Tree>,
    mut each: impl FnMut(&'static Record),
) -> bool {
    let first_child = |record: &'static Record| record.family().limit_group()?.first_child.load();
    each(root);
    let mut next = first_child(root);
    let mut at = None;
    loop {
        if let Some(link) = next {
            let Some(member) = link.follow() else { return false };
            let record = member.0;
            at = Some(member);
            each(record);
            next = first_child(record).or_else(|| record.family().next.load());
            continue;
        }
        // All below are done: up, and on.
        let Some(done) = at.take() else { return true };
        let Some(parent) = done.0.family().parent() else { return false };
        if ptr::eq(parent, root) {
            return true;
        }
        let parent = Pinned::new(parent);
        // Then it has held its parent until now.
        if tree.is_none() && !done.0.lifecycle().is_in_use() {
            return false;
        }
        let Some(parent) = parent else { return false };
        next = parent.0.family().next.load();
        at = Some(parent);
    }
}

/// A record whose slot is not given to another service meanwhile.
struct Pinned(&'static Record);

impl Pinned {
    fn new(record: &'static Record) -> Option<Self> {
        // Not `then_some`: what is made in vain would unpin.
        record.lifecycle().pin().then(|| Self(record))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.lifecycle().unpin();
    }
}

/// Which service of which slot.
#[derive(Clone, Copy)]
struct Link {
    record: &'static Record,
    generation: u64,
}

impl Link {
    fn to(record: &'static Record) -> Self {
        Self { record, generation: record.generation() }
    }

    fn follow(self) -> Option<Pinned> {
        let pinned = Pinned::new(self.record)?;
        (self.record.generation() == self.generation).then_some(pinned)
    }
}

/// A link: the slot, and above it the generation, which is never 0. Or 0 for none.
#[derive(Debug)]
struct AtomicLink(AtomicU64);

const SLOT_BITS: u32 = Slot::COUNT.trailing_zeros();

impl AtomicLink {
    fn load(&self) -> Option<Link> {
        let bits = self.0.load(Ordering::Acquire);
        if bits == 0 {
            return None;
        }
        let slot = Slot::new(bits as u32 & (Slot::COUNT - 1))?;
        Some(Link { record: slots::any_record(slot)?, generation: bits >> SLOT_BITS })
    }

    fn store(&self, link: Option<Link>) {
        let bits =
            link.map_or(0, |Link { record, generation }| generation << SLOT_BITS | u64::from(record.index()));
        self.0.store(bits, Ordering::Release);
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_to_one_service_of_a_slot() {
        let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
        record.begin("first".into(), 1);
        let link = AtomicLink(AtomicU64::new(0));
        assert!(link.load().is_none());
        link.store(Some(Link::to(record)));
        let follow = || link.load().and_then(Link::follow).map(|pinned| pinned.0.name().to_owned());
        assert_eq!(follow().as_deref(), Some("first"));
        assert!(record.lifecycle().release());
        assert!(record.end());
        assert!(record.lifecycle().claim());
        assert_eq!(follow(), None);
        record.begin("second".into(), 2);
        assert_eq!(follow(), None);
        link.store(Some(Link::to(record)));
        assert_eq!(follow().as_deref(), Some("second"));
        // As many as there can be, and one that had the same lower bits.
        record.preset_incarnation(slots::LAST_INCARNATION);
        assert_eq!(follow(), None);
        link.store(Some(Link::to(record)));
        assert_eq!(follow().as_deref(), Some("second"));
        record.preset_incarnation(slots::LAST_INCARNATION - (1 << 32));
        assert_eq!(follow(), None);
        // Another test may look at free slots.
        assert!(record.lifecycle().release());
        assert!(record.end());
        assert!(record.lifecycle().claim());
    }
}

#[cfg(all(test, dogtag_loom))]
mod model {
    use super::*;
    use crate::sync::{model, whole_model};
    use loom::thread;

    fn begin(name: &str) -> &'static Record {
        let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
        record.begin(name.into(), 0);
        record
    }

    fn adopt(parent: &'static Record, child: &'static Record) {
        parent.lifecycle().retain();
        Tree::lock().adopt(parent, child);
    }

    fn leave(child: &'static Record) {
        assert!(child.lifecycle().release());
        assert!(child.end());
        assert!(Tree::lock().part(child).is_some_and(|parent| !parent.lifecycle().release()));
    }

    /// One child ends, and a stranger gets its slot, while somebody goes through the family
    /// without a lock.
    fn one_leaves(is_first: bool) {
        whole_model(move || {
            let [root, stays, goes] = ["root", "stays", "goes"].map(begin);
            let children = if is_first { [stays, goes] } else { [goes, stays] };
            children.into_iter().for_each(|child| adopt(root, child));
            let family = [root, stays, goes].map(Record::identity);
            let other = thread::spawn(move || {
                leave(goes);
                if goes.lifecycle().claim() {
                    goes.begin("stranger".into(), 0);
                }
            });
            // Else loom, who keeps one access in mind, would not try what comes before.
            thread::yield_now();
            let mut seen = Vec::new();
            let is_whole = descendants(root, None, |member| seen.push(member.identity()));
            assert!(seen.iter().all(|member| family.contains(member)), "a stranger");
            assert!(!is_whole || seen.contains(&stays.identity()), "one was passed over");
            other.join().unwrap();
            // Nobody changes it any more.
            let mut seen = Vec::new();
            assert!(descendants(root, None, |member| seen.push(member.identity())));
            assert_eq!(seen, [root, stays].map(Record::identity));
        });
    }

    #[test]
    fn the_first_child_leaves_while_the_family_is_read() {
        one_leaves(true);
    }

    #[test]
    fn the_last_child_leaves_while_the_family_is_read() {
        one_leaves(false);
    }

    /// A child and its own child end, and another family gets the child's slot.
    #[test]
    fn nobody_goes_up_into_another_family() {
        model(|| {
            let [root, child, grandchild] = ["root", "child", "grandchild"].map(begin);
            adopt(root, child);
            adopt(child, grandchild);
            let [stranger, theirs] = ["stranger", "theirs"].map(begin);
            adopt(stranger, theirs);
            let family = [root, child, grandchild].map(Record::identity);
            let other = thread::spawn(move || {
                leave(grandchild);
                leave(child);
                if child.lifecycle().claim() {
                    child.begin("theirs, too".into(), 0);
                    adopt(stranger, child);
                }
            });
            thread::yield_now();
            let mut seen = Vec::new();
            descendants(root, None, |member| seen.push(member.identity()));
            assert!(seen.iter().all(|member| family.contains(member)), "a stranger");
            other.join().unwrap();
        });
    }
}

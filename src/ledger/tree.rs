//! Parents and children: the walks from service to service, and the lock that changes them.
//!
//! A child retains its parent from its beginning to its end, so chains of parents
//! can be walked as long as the child is retained. The list of a parent's children
//! changes under a lock, which nothing inside an allocation takes. The threshold reads
//! it without: each link says which service of its slot is meant, and
//! a reader that finds another one there begins again.
//!
//! Families may be as deep as there are services. So each service knows the nearest limit above
//! it, and nothing walks all the way up.

use crate::ledger::family::Link;
use crate::ledger::slots::{self, Record};
use crate::owner::Slot;
use crate::sync::{Mutex, MutexGuard, Ordering, shared};
use std::iter;
use std::ptr;
use std::sync::PoisonError;

impl Record {
    /// Returns the parent. The caller holds this service.
    pub(crate) fn parent(&self) -> Option<&'static Self> {
        self.family().parent.load()?.record()
    }

    /// Returns the nearest service that has a limit: this one, or one above it. The caller holds this
    /// one.
    pub(crate) fn nearest_limited(&self) -> Option<&'static Self> {
        slots::any_record(Slot::new(self.family().limited.load(Ordering::Acquire).checked_sub(1)?)?)
    }

    /// Notes the nearest service that has a limit, when all above have.
    fn note_limited(&self) {
        let family = self.family();
        let is_limited = family.limit_group().is_some_and(|limit_group| limit_group.budget.is_limited());
        let limited = match self.parent() {
            _ if is_limited => self.index() + 1,
            Some(parent) => parent.family().limited.load(Ordering::Relaxed),
            None => 0,
        };
        family.limited.store(limited, Ordering::Release);
    }
}

/// Iterates over a service, which the caller holds, and those above it, from below.
pub(crate) fn ancestors(record: &'static Record) -> impl Iterator<Item = &'static Record> {
    iter::successors(Some(record), |record| record.parent())
}

/// Iterates over those of them that have limits, in as many steps as there are.
pub(crate) fn limited_ancestors(record: &'static Record) -> impl Iterator<Item = &'static Record> {
    iter::successors(record.nearest_limited(), |limited| limited.parent()?.nearest_limited())
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
        child.note_limited();
        if parent.family().is_cancelled() {
            family.cancel();
        }
        family.previous.store(0, Ordering::Relaxed);
        family.next.store(next);
        if let Some(next) = next.and_then(Link::record) {
            next.family().previous.store(child.index(), Ordering::Relaxed);
        }
        first.store(Some(Link::to(child)));
    }

    /// Notes in all services below that this one has got a limit, or has none any more.
    pub(crate) fn note_limits(&self, record: &'static Record) {
        descendants(record, Some(self), |member| member.note_limited());
    }

    /// Cancels a service, which the caller holds, and its descendants. Calls `each` for those that were
    /// not cancelled before.
    #[cfg_attr(not(feature = "guard"), allow(dead_code))]
    pub(crate) fn cancel(&self, record: &'static Record, mut each: impl FnMut(&'static Record)) {
        descendants(record, Some(self), |member| {
            if member.family().cancel() {
                each(member);
            }
        });
    }

    /// Takes a service that has ended out of its family. Returns its parent,
    /// with the clone that the child had.
    pub(crate) fn part(&self, child: &'static Record) -> Option<&'static Record> {
        let family = child.family();
        let parent = child.parent()?;
        let next = family.next.load();
        if let Some(next) = next.and_then(Link::record) {
            let previous = family.previous.load(Ordering::Relaxed);
            next.family().previous.store(previous, Ordering::Relaxed);
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

/// Calls `each` for a service, which the caller holds, and all its descendants. `false` if the family
/// changed meanwhile, which it cannot while it is locked.
///
/// Follows the links depth first. Each record is pinned before the one that led to it is unpinned, so
/// it is the one that was meant, or the walk ends.
pub(crate) fn descendants(
    root: &'static Record,
    tree: Option<&Tree>,
    mut each: impl FnMut(&'static Record),
) -> bool {
    let first_child = |record: &'static Record| record.family().limit_group()?.first_child.load();
    each(root);
    let mut next: Option<Link> = first_child(root);
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
        let Some(parent) = done.0.parent() else { return false };
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

impl Link {
    fn to(record: &Record) -> Self {
        Self { slot: record.slot(), generation: record.generation() }
    }

    /// The slot's record, whichever service has it now.
    fn record(self) -> Option<&'static Record> {
        slots::any_record(self.slot)
    }

    /// The service that is meant, pinned; `None` if its slot is claimed, or another's.
    fn follow(self) -> Option<Pinned> {
        let pinned = Pinned::new(self.record()?)?;
        (pinned.0.generation() == self.generation).then_some(pinned)
    }
}

#[cfg(all(test, not(dogtag_loom)))]
mod tests {
    use super::*;
    use crate::ledger::family::AtomicLink;

    #[test]
    fn a_link_is_to_one_service_of_a_slot() {
        let record = slots::fresh().unwrap_or_else(|_| panic!("there are slots"));
        record.begin("first".into(), 1);
        let link = AtomicLink::none();
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
        record.preset_generation(slots::LAST_GENERATION);
        assert_eq!(follow(), None);
        link.store(Some(Link::to(record)));
        assert_eq!(follow().as_deref(), Some("second"));
        record.preset_generation(slots::LAST_GENERATION - (1 << 32));
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

    /// A child is adopted while its parent is cancelled by two threads: it is cancelled in either order, and
    /// each of both services once.
    #[test]
    fn a_child_that_comes_meanwhile_is_cancelled_and_each_service_once() {
        use crate::sync::AtomicUsize;
        use loom::sync::Arc;

        whole_model(|| {
            let [root, child] = ["root", "child"].map(begin);
            let firsts = Arc::new(AtomicUsize::new(0));
            let others = [(); 2].map(|()| {
                let firsts = Arc::clone(&firsts);
                thread::spawn(move || {
                    Tree::lock().cancel(root, |member| {
                        if ptr::eq(member, root) {
                            firsts.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                })
            });
            adopt(root, child);
            others.into_iter().for_each(|other| other.join().unwrap());
            assert!(root.family().is_cancelled() && child.family().is_cancelled());
            assert_eq!(firsts.load(Ordering::Relaxed), 1);
        });
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

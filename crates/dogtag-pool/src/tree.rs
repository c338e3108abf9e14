//! The tree of pools: who is below whom, how much they hold together, and in which order they
//! end.

use crate::node::{Node, Refusal};
use dogtag::__private::{Payload, discard};
use std::cell::Cell;
use std::panic;
use std::ptr::NonNull;

/// A node's place in the tree.
pub(crate) struct Branch {
    parent: Option<NonNull<Node>>,
    /// The youngest; the others follow as siblings.
    children: Cell<Option<NonNull<Node>>>,
    next: Cell<Option<NonNull<Node>>>,
    previous: Cell<Option<NonNull<Node>>>,
    /// Whether it is its parent that ends it. Otherwise somebody has it, who may forget it.
    is_lasting: bool,
    /// Set where nothing may run any more, since what it is about may be gone.
    is_forgotten: Cell<bool>,
    /// Bytes of the pool's blocks and large allocations.
    held: Cell<usize>,
    held_with_children: Cell<usize>,
    limit: Option<usize>,
}

impl Branch {
    /// The place of a node that is about to be there, the youngest of its parent's children.
    ///
    /// # Safety
    ///
    /// The node must be there before anybody looks at its parent.
    pub(crate) unsafe fn new(
        this: NonNull<Node>,
        parent: Option<&Node>,
        is_lasting: bool,
        limit: Option<usize>,
    ) -> Self {
        let sibling = parent.and_then(|parent| parent.branch.children.replace(Some(this)));
        if let Some(sibling) = sibling {
            // SAFETY: children are there.
            unsafe { sibling.as_ref() }.branch.previous.set(Some(this));
        }
        Self {
            parent: parent.map(NonNull::from),
            children: Cell::new(None),
            next: Cell::new(sibling),
            previous: Cell::new(None),
            is_lasting,
            is_forgotten: Cell::new(false),
            held: Cell::new(0),
            held_with_children: Cell::new(0),
            limit,
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.held.get()
    }

    pub(crate) fn held_with_children(&self) -> usize {
        self.held_with_children.get()
    }

    pub(crate) fn limit(&self) -> Option<usize> {
        self.limit
    }
}

impl Node {
    fn parent(&self) -> Option<&Self> {
        // SAFETY: a parent is there as long as its children.
        self.branch.parent.map(|parent| unsafe { parent.as_ref() })
    }

    /// The node and those above it.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |node| node.parent())
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = &Self> {
        // SAFETY: children are there, and nobody takes one out meanwhile.
        let follow = |link: &Cell<Option<NonNull<Self>>>| link.get().map(|node| unsafe { node.as_ref() });
        std::iter::successors(follow(&self.branch.children), move |node| follow(&node.branch.next))
    }

    /// The node and those below it, each before those below it.
    pub(crate) fn descendants(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |node| {
            if let Some(child) = node.children().next() {
                return Some(child);
            }
            let mut node = *node;
            while !std::ptr::eq(node, self) {
                if let Some(sibling) = node.branch.next.get() {
                    // SAFETY: siblings are there.
                    return Some(unsafe { sibling.as_ref() });
                }
                node = node.parent()?;
            }
            None
        })
    }

    /// Bytes that limits allow for, and whose limit it is that allows for no more.
    pub(crate) fn headroom(&self) -> (usize, Option<NonNull<Self>>) {
        let limited = self.ancestors().filter_map(|node| {
            let limit = node.branch.limit?;
            Some((limit.saturating_sub(node.branch.held_with_children.get()), Some(NonNull::from(node))))
        });
        limited.min_by_key(|(room, _)| *room).unwrap_or((usize::MAX, None))
    }

    /// Bytes that limits allow for: no fewer than these.
    pub(crate) fn allowance(&self, bytes: usize) -> Result<usize, Refusal> {
        match self.headroom() {
            (room, Some(limiting)) if room < bytes => Err(Refusal::Limit(limiting)),
            (room, _) => Ok(room),
        }
    }

    pub(crate) fn grow_held(&self, bytes: usize) {
        self.change_held(|held| held + bytes);
    }

    pub(crate) fn shrink_held(&self, bytes: usize) {
        self.change_held(|held| held - bytes);
    }

    fn change_held(&self, change: impl Fn(usize) -> usize) {
        self.branch.held.set(change(self.branch.held.get()));
        for node in self.ancestors() {
            node.branch.held_with_children.set(change(node.branch.held_with_children.get()));
        }
    }

    /// Ends what is below a pool, and runs what is to be run in it: pre-cleanups from the top
    /// down, the youngest child before the others, cleanups from the bottom up. Returns
    /// the first panic that there was. Not by recursion, since trees may be deep.
    ///
    /// # Safety
    ///
    /// Nobody must use a pool below, or memory of theirs. All that the cleanups in the tree need
    /// must be there, but for those of pools that do not last, and of what is below these.
    pub(crate) unsafe fn run_down(this: NonNull<Self>) -> Option<Payload> {
        let mut first_panic = None;
        let mut node = this;
        // SAFETY: the caller's promise; nodes are there until they have ended.
        unsafe {
            // Before the values are dropped, so that none is found that is not there.
            node.as_ref().data.clear();
            node.as_ref().pre_cleanups.run_all(&mut first_panic);
            loop {
                if let Some(child) = node.as_ref().branch.children.get() {
                    let (branch, above) = (&child.as_ref().branch, &node.as_ref().branch);
                    branch.is_forgotten.set(!branch.is_lasting || above.is_forgotten.get());
                    child.as_ref().data.clear();
                    if !branch.is_forgotten.get() {
                        child.as_ref().pre_cleanups.run_all(&mut first_panic);
                    }
                    node = child;
                    continue;
                }
                if !node.as_ref().branch.is_forgotten.get() {
                    node.as_ref().cleanups.run_all(&mut first_panic);
                }
                if node == this {
                    return first_panic;
                }
                let parent = node.as_ref().branch.parent;
                Self::leave_tree_and_end(node, &mut first_panic);
                // Only the topmost may have none.
                node = parent.unwrap_unchecked();
            }
        }
    }

    /// Ends a pool of which all has been run.
    ///
    /// # Safety
    ///
    /// As for [`run_down`](Self::run_down), which must have been called; nobody must use the
    /// node any more.
    pub(crate) unsafe fn leave_tree_and_end(this: NonNull<Self>, first_panic: &mut Option<Payload>) {
        // SAFETY: the caller's promise; parent and siblings are there.
        unsafe {
            let Branch { parent, next, previous, .. } = &this.as_ref().branch;
            if let Some(next) = next.get() {
                next.as_ref().branch.previous.set(previous.get());
            }
            match (previous.get(), parent) {
                (Some(previous), _) => previous.as_ref().branch.next.set(next.get()),
                (None, Some(parent)) => parent.as_ref().branch.children.set(next.get()),
                (None, None) => {}
            }
            Self::end(this, first_panic);
        }
    }
}

/// Goes on with a panic, unless there is one already.
pub(crate) fn resume(first_panic: Option<Payload>) {
    match first_panic {
        Some(payload) if std::thread::panicking() => discard(payload),
        Some(payload) => panic::resume_unwind(payload),
        None => {}
    }
}

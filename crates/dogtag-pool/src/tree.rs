//! The tree of pools: the links between nodes, and how many bytes they hold together. It knows
//! nothing of a node but its [`Branch`].

use std::cell::Cell;
use std::ptr::{self, NonNull};

/// A node's links, and its sums.
pub(crate) struct Branch<N> {
    parent: Option<NonNull<N>>,
    /// The youngest child, whose siblings follow by `next`.
    children: Cell<Option<NonNull<N>>>,
    next: Cell<Option<NonNull<N>>>,
    previous: Cell<Option<NonNull<N>>>,
    /// The number of bytes that the node holds.
    held: Cell<usize>,
    held_with_children: Cell<usize>,
    limit: Option<usize>,
}

/// A node of a tree.
///
/// # Safety
///
/// Each call must return the same branch, which was made by [`Branch::new`] for this node. A node must
/// stay where it is and be valid from then on until [`unlink`](Self::unlink), and its parent as long
/// as itself.
pub(crate) unsafe trait InTree: Sized {
    fn branch(&self) -> &Branch<Self>;

    fn parent(&self) -> Option<&Self> {
        // SAFETY: a parent is valid as long as its children.
        self.branch().parent.map(|parent| unsafe { parent.as_ref() })
    }

    /// Returns the youngest child.
    fn first_child(&self) -> Option<NonNull<Self>> {
        self.branch().children.get()
    }

    /// Returns the node and those above it.
    fn ancestors(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |node| node.parent())
    }

    /// Returns the node and those below it, each parent before its children.
    fn descendants(&self) -> impl Iterator<Item = &Self> {
        // SAFETY: nodes are valid until they are unlinked.
        let follow = |link: &Cell<Option<NonNull<Self>>>| link.get().map(|node| unsafe { node.as_ref() });
        std::iter::successors(Some(self), move |node| {
            if let Some(child) = follow(&node.branch().children) {
                return Some(child);
            }
            let mut node = *node;
            while !ptr::eq(node, self) {
                if let Some(sibling) = follow(&node.branch().next) {
                    return Some(sibling);
                }
                node = node.parent()?;
            }
            None
        })
    }

    /// Returns how many bytes the limits of this node and of those above it still allow, and the
    /// node whose limit that is.
    fn headroom(&self) -> (usize, Option<NonNull<Self>>) {
        let limited = self.ancestors().filter_map(|node| {
            let limit = node.branch().limit?;
            Some((limit.saturating_sub(node.branch().held_with_children.get()), Some(NonNull::from(node))))
        });
        limited.min_by_key(|(bytes, _)| *bytes).unwrap_or((usize::MAX, None))
    }

    /// Returns the headroom if it is at least so many bytes, or else the node whose limit it is.
    fn headroom_for(&self, bytes: usize) -> Result<usize, NonNull<Self>> {
        match self.headroom() {
            (allowed, Some(limiting)) if allowed < bytes => Err(limiting),
            (allowed, _) => Ok(allowed),
        }
    }

    /// Adds to the bytes that the node holds.
    fn grow_held(&self, bytes: usize) {
        self.change_held(|held| held + bytes);
    }

    /// Subtracts from the bytes that the node holds.
    fn shrink_held(&self, bytes: usize) {
        self.change_held(|held| held - bytes);
    }

    fn change_held(&self, change: impl Fn(usize) -> usize) {
        self.branch().held.set(change(self.branch().held.get()));
        for node in self.ancestors() {
            node.branch().held_with_children.set(change(node.branch().held_with_children.get()));
        }
    }

    /// Takes the node, which must have no children any more, out of the tree.
    fn unlink(&self) {
        let Branch { parent, children, next, previous, .. } = self.branch();
        debug_assert!(children.get().is_none());
        // SAFETY: siblings are valid until they are unlinked, and a parent as long as its children.
        unsafe {
            if let Some(next) = next.get() {
                next.as_ref().branch().previous.set(previous.get());
            }
            match (previous.get(), parent) {
                (Some(previous), _) => previous.as_ref().branch().next.set(next.get()),
                (None, Some(parent)) => parent.as_ref().branch().children.set(next.get()),
                (None, None) => {}
            }
        }
    }
}

impl<N: InTree> Branch<N> {
    /// Makes the branch of a node that is about to be written to `this`, as the youngest child of its
    /// parent.
    ///
    /// # Safety
    ///
    /// The node must be valid before anybody looks at its parent.
    pub(crate) unsafe fn new(this: NonNull<N>, parent: Option<&N>, limit: Option<usize>) -> Self {
        let sibling = parent.and_then(|parent| parent.branch().children.replace(Some(this)));
        if let Some(sibling) = sibling {
            // SAFETY: children of a node are valid until they are unlinked.
            unsafe { sibling.as_ref() }.branch().previous.set(Some(this));
        }
        Self {
            parent: parent.map(NonNull::from),
            children: Cell::new(None),
            next: Cell::new(sibling),
            previous: Cell::new(None),
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

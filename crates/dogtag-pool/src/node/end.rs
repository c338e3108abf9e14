//! How a pool is cleared, and how it ends.

use super::{Node, START, Source, grown};
use crate::block::Block;
use crate::records::catch;
use crate::store;
use crate::tree::InTree;
use dogtag::__private::{Payload, discard};
use std::panic;
use std::ptr::NonNull;

impl Node {
    /// Ends the pools below this one, and runs what is to run in them and in it: pre-cleanups from
    /// the top down, the youngest child first, and cleanups from the bottom up. Returns the first
    /// panic. There is no recursion, since trees may be deep.
    ///
    /// # Safety
    ///
    /// Nobody may use a pool below this one, or memory of theirs. All that the cleanups of the tree
    /// use must be alive, but for those of pools that do not last, and of the pools below these.
    pub(crate) unsafe fn run_down(this: NonNull<Self>) -> Option<Payload> {
        let mut first_panic = None;
        let mut node = this;
        // SAFETY: nodes are valid until they end. What runs here uses only what is alive, as this
        // function demands, too: nothing runs of a forgotten node. Each node that ends has had
        // all its children end before.
        unsafe {
            // Before its values are dropped, so that none is found that is gone.
            node.as_ref().data.clear();
            node.as_ref().pre_cleanups.run_all(&mut first_panic);
            loop {
                if let Some(child) = node.as_ref().first_child() {
                    let (below, above) = (child.as_ref(), node.as_ref());
                    below.is_forgotten.set(!below.is_lasting || above.is_forgotten.get());
                    below.data.clear();
                    if !below.is_forgotten.get() {
                        below.pre_cleanups.run_all(&mut first_panic);
                    }
                    node = child;
                    continue;
                }
                if !node.as_ref().is_forgotten.get() {
                    node.as_ref().cleanups.run_all(&mut first_panic);
                }
                if node == this {
                    return first_panic;
                }
                let parent = node.as_ref().parent().map(|parent| parent.this);
                Self::end(node, &mut first_panic);
                // Only the topmost node may have no parent, and that is not reached.
                node = parent.unwrap_unchecked();
            }
        }
    }

    /// Makes all memory free again. Of what is not needed, at most `max_free` spare bytes stay in
    /// the store.
    ///
    /// # Safety
    ///
    /// Nobody may use the pool's memory any more, and nothing may be left to run.
    pub(crate) unsafe fn release_blocks(&self, max_free: usize) {
        // SAFETY: nobody uses the memory. Each block but the first is in one list or the active
        // one, and then in the full ones; the first one stays the pool's.
        unsafe {
            let large = self.larges.free_all();
            let blocks = self.branch.held() - large - Block::size(self.first);
            if blocks > 0 {
                self.open.drain().for_each(|block| self.pass_over(block));
                self.pass_over(self.active.get());
                self.store().give_all(&self.full, blocks, max_free);
            }
            self.shrink_held(large + blocks);
            self.is_first_full.set(false);
            self.first.as_ref().failures.set(0);
            self.first.as_ref().position.set(self.first.cast::<u8>().add(START));
            self.activate(self.first);
        }
        self.store().trim(max_free);
        self.next_size.set(grown(self.block_size, self.block_size));
    }

    /// Takes a pool of which all has run out of the tree, and gives back its memory, the node's own
    /// included.
    ///
    /// # Safety
    ///
    /// [`run_down`](Self::run_down) must have been called. Nobody may use the node, or the pool's
    /// memory, any more.
    pub(crate) unsafe fn end(this: NonNull<Self>, first_panic: &mut Option<Payload>) {
        // SAFETY: the node has no children, and nobody uses its memory. It is moved out of its
        // block before that is freed, and not used there again. A shared store is part of a node
        // above, which is still there.
        unsafe {
            let node = this.as_ref();
            node.unlink();
            node.release_blocks(node.store().max_free());
            let first = node.first;
            node.shrink_held(Block::size(first));
            let Self { source, name, on_failure, .. } = this.read();
            match source {
                Source::Own(store) => {
                    store.trim(0);
                    store::free_block(first);
                }
                Source::Shared(store) => store.as_ref().give(first, store.as_ref().max_free()),
            }
            drop(name);
            catch(first_panic, || drop(on_failure));
        }
    }
}

/// Goes on with a panic, unless the thread is already in one.
pub(crate) fn resume(first_panic: Option<Payload>) {
    match first_panic {
        Some(payload) if std::thread::panicking() => discard(payload),
        Some(payload) => panic::resume_unwind(payload),
        None => {}
    }
}

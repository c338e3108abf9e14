//! Services as a tree: tenants and their queries, modules and their parts.

use super::fork;
use super::handle::Service;
use crate::ledger;
use crate::ledger::tree::{self, Tree};
use crate::usage::Usage;

impl Service {
    /// Returns the parent that this service was registered with.
    ///
    /// ```
    /// use dogtag::Service;
    ///
    /// let tenant = Service::register("tenant")?;
    /// let query = Service::builder("query-17").parent(&tenant).register()?;
    /// assert_eq!(query.parent(), Some(tenant));
    /// # Ok::<(), dogtag::RegisterError>(())
    /// ```
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let record = self.record().parent()?;
        // The child holds it.
        record.lifecycle().revive().then(|| Self::of(record))
    }

    /// Returns what this service and its descendants have allocated and freed, including those that
    /// have ended.
    ///
    /// The peak is the sum of their peaks, which need not have been at the
    /// same time.
    ///
    /// It takes a lock that registering and dropping children take too, and reads a
    /// cell for each of these services and each thread.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
    /// # fn main() -> Result<(), dogtag::RegisterError> {
    /// use dogtag::Service;
    ///
    /// let tenant = Service::register("tenant")?;
    /// let query = Service::builder("query-17").parent(&tenant).register()?;
    /// let rows = query.run(|| vec![0_u8; 1000]);
    /// assert_eq!(tenant.usage().bytes(), 0);
    /// assert_eq!(tenant.usage_with_children().bytes(), 1000);
    /// # drop(rows);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn usage_with_children(&self) -> Usage {
        fork::prepare();
        let families = Tree::lock();
        let mut sum = Usage::default();
        tree::descendants(self.record(), Some(&families), |member| {
            sum = sum.and(ledger::usage(member)).and(member.family().past());
        });
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(name: &str, parent: &Service) -> Service {
        Service::builder(name).parent(parent).register().unwrap()
    }

    /// While a family is walked without its lock, a branch of it ends, and its
    /// slots go to another family.
    #[test]
    fn a_walk_does_not_stray_into_another_family() {
        // Other tests take slots, too, and may have these; with memory-check slots wait.
        let rounds = if cfg!(feature = "memory-check") { 1 } else { 10_000 };
        let is_shown = (0..rounds).any(|_| branchs_slots_are_used_again_amid_a_walk());
        assert!(is_shown || rounds == 1, "the slots were never used again, and nothing is shown");
    }

    fn branchs_slots_are_used_again_amid_a_walk() -> bool {
        let (root, other) = (Service::register("root").unwrap(), Service::register("other parent").unwrap());
        let branch = child("branch", &root);
        let leaf = child("leaf", &branch);
        let slots = [&branch, &leaf].map(|service| service.record().index());
        let mut branch = Some((branch, leaf));
        // A sibling for whoever gets the branch's slot.
        let mut others = vec![child("other", &other)];
        let mut met = Vec::new();
        let is_whole = tree::descendants(root.record(), None, |member| {
            met.push(member.index());
            if met.len() == 3 {
                branch.take();
                others.extend((0..3).map(|i| child(&format!("other {i}"), &other)));
            }
        });
        assert!(!is_whole, "it goes on with a service that has ended");
        assert_eq!(met, [root.record().index(), slots[0], slots[1]]);
        others.iter().any(|other| slots.contains(&other.record().index()))
    }
}

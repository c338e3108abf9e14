use super::*;
use crate::ledger::cell::Cell;
use crate::ledger::shard::ShardList;
use crate::owner::Slot;
use crate::sync::model;
use loom::sync::Arc;
use loom::thread;

const SLOT: Slot = Slot::UNATTRIBUTED;
const LIMIT: u64 = 100 << 10;
const SIZE: u64 = 60 << 10;

struct Setup {
    budget: Budget,
    list: ShardList,
    shared: Cell,
}

impl Setup {
    fn new() -> Arc<Self> {
        let setup = Self { budget: Budget::new(), list: ShardList::new(), shared: Cell::shared(SLOT.mark()) };
        setup.budget.set(LIMIT, NONE);
        Arc::new(setup)
    }

    fn cell(&self) -> &'static Cell {
        self.list.acquire().unwrap().claim(SLOT).unwrap()
    }

    fn allocate(&self, cell: &Cell) -> bool {
        let granted = self.budget.draw(SIZE, SIZE, |_| Some(self.list.live(SLOT, &self.shared)));
        if granted.is_some() {
            cell.charge(SIZE as usize);
            self.budget.land(SIZE);
        }
        granted.is_some()
    }
}

/// The limit allows for one; so one gets it, and not both.
#[test]
fn two_that_want_the_rest() {
    model(|| {
        let setup = Setup::new();
        let other = thread::spawn({
            let setup = Arc::clone(&setup);
            move || setup.allocate(setup.cell())
        });
        let own = setup.allocate(setup.cell());
        let other = other.join().unwrap();
        assert!(own || other, "both were denied");
        assert!(!(own && other), "both were granted");
    });
}

/// What is freed can be had, from the moment that it is, and not before.
#[test]
fn one_that_frees_and_one_that_wants() {
    model(|| {
        let setup = Setup::new();
        let cell = setup.cell();
        assert!(setup.allocate(cell));
        let other = thread::spawn({
            let setup = Arc::clone(&setup);
            move || {
                let cell = setup.cell();
                let is_granted = setup.allocate(cell);
                if is_granted {
                    let live = setup.list.live(SLOT, &setup.shared);
                    assert!(live.at_least <= LIMIT, "past the limit");
                    cell.refund(SIZE as usize);
                }
            }
        });
        cell.refund(SIZE as usize);
        other.join().unwrap();
        assert!(setup.allocate(cell), "denied though nothing is live");
    });
}

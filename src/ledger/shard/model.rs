//! The shards under loom, which runs a model once for each way in which its
//! threads can interleave: `RUSTFLAGS="--cfg dogtag_loom" cargo test --release --lib`.

use super::*;
use crate::sync::model;
use loom::sync::Arc;
use loom::thread;

const SLOT: Slot = Slot::UNATTRIBUTED;

fn new_list() -> (Arc<ShardList>, Arc<Cell>) {
    (Arc::new(ShardList::new()), Arc::new(Cell::shared(SLOT.mark())))
}

#[test]
fn nothing_is_lost_when_shards_change_hands() {
    model(|| {
        let (list, shared) = new_list();
        let work = |list: &ShardList, size| {
            let shard = list.acquire().unwrap();
            shard.claim(SLOT).unwrap().charge(size);
            list.release(shard);
        };
        let other = thread::spawn({
            let list = Arc::clone(&list);
            move || {
                work(&list, 10);
                work(&list, 20);
            }
        });
        work(&list, 3);
        work(&list, 4);
        other.join().unwrap();

        let usage = list.sum(SLOT, &shared).usage;
        assert_eq!((usage.allocated_bytes, usage.allocated_blocks), (37, 4));
        assert!(list.shards().count() <= 2, "more shards than threads");
    });
}

#[test]
fn a_shard_has_one_owner_at_a_time() {
    model(|| {
        let (list, _) = new_list();
        // Two shards on the stack, so that the one below the top matters.
        let (a, b) = (list.acquire().unwrap(), list.acquire().unwrap());
        let owned = Arc::new([AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false)]);
        let index = move |shard: &Shard| {
            if ptr::eq(shard, a) {
                0
            } else if ptr::eq(shard, b) {
                1
            } else {
                2
            }
        };
        list.release(a);
        list.release(b);
        let take = move |list: &ShardList, owned: &[AtomicBool; 3]| {
            let shard = list.acquire().unwrap();
            // A third shard can only be one's own.
            let flag = (index(shard) < 2).then(|| &owned[index(shard)]);
            if let Some(flag) = flag {
                assert!(!flag.swap(true, Ordering::AcqRel), "two owners");
            }
            (shard, flag.is_some())
        };
        let put = move |list: &ShardList, owned: &[AtomicBool; 3], (shard, known): (&'static Shard, bool)| {
            if known {
                owned[index(shard)].store(false, Ordering::Release);
            }
            list.release(shard);
        };
        let other = thread::spawn({
            let (list, owned) = (Arc::clone(&list), Arc::clone(&owned));
            move || {
                // Both are taken and only the first is put back: the top
                // looks untouched, and what was below it is in use.
                let first = take(&list, &owned);
                let second = take(&list, &owned);
                put(&list, &owned, first);
                second
            }
        });
        let mine = [take(&list, &owned), take(&list, &owned)];
        let second = other.join().unwrap();
        for shard in mine.into_iter().chain([second]) {
            put(&list, &owned, shard);
        }
    });
}

#[test]
fn a_reader_never_sees_a_free_without_its_allocation() {
    model(|| {
        let (list, shared) = new_list();
        let handed_over = Arc::new(AtomicBool::new(false));
        let allocates = thread::spawn({
            let (list, handed_over) = (Arc::clone(&list), Arc::clone(&handed_over));
            move || {
                let shard = list.acquire().unwrap();
                shard.claim(SLOT).unwrap().charge(100);
                handed_over.store(true, Ordering::Release);
            }
        });
        let frees = thread::spawn({
            let (list, handed_over) = (Arc::clone(&list), Arc::clone(&handed_over));
            move || {
                let cell = list.acquire().unwrap().claim(SLOT).unwrap();
                if handed_over.load(Ordering::Acquire) {
                    cell.refund(100);
                }
            }
        });
        let usage = list.sum(SLOT, &shared).usage;
        assert!(usage.freed_bytes <= usage.allocated_bytes, "{usage:?}");
        assert!(usage.freed_blocks <= usage.allocated_blocks, "{usage:?}");
        allocates.join().unwrap();
        frees.join().unwrap();
    });
}

#[test]
fn threads_without_a_shard_count_exactly_too() {
    model(|| {
        let (list, shared) = new_list();
        let other = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                shared.charge_shared(10);
                shared.refund_shared(10);
            }
        });
        shared.charge_shared(5);
        let usage = list.sum(SLOT, &shared).usage;
        assert!(usage.freed_bytes <= usage.allocated_bytes, "{usage:?}");
        other.join().unwrap();
        let usage = list.sum(SLOT, &shared).usage;
        assert_eq!((usage.bytes(), usage.blocks(), usage.allocated_bytes), (5, 1, 15));
    });
}

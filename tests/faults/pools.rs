//! Random programs of pools, whose memory is refused now and then.

use crate::backend::{self, Plan};
use crate::random::{Random, seed};
use dogtag::Service;
use dogtag_pool::{Pool, PoolError};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const POOLS: usize = 300;
const STEPS: usize = 300;

/// Counts what lives.
struct Alive<'a>(&'a AtomicUsize);

impl<'a> Alive<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[test]
fn pools_say_so_and_go_on() {
    alone!();
    let mut random = Random::nth(seed(), 3);
    let service = Service::register("pools").unwrap();
    let (alive, cleanups) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (mut registered, mut refusals) = (0, 0);
    for round in 0..POOLS {
        let plan = [Plan::Every(2), Plan::OneIn(3), Plan::OneIn(20), Plan::All][round % 4];
        // Who has a name is named in errors, without memory too.
        let build = || Pool::builder().service(&service).name(format!("pool {round}"));
        let builder = build();
        let (refused, _) = backend::with(Plan::All, || builder.build().map(drop));
        assert!(matches!(refused, Err(PoolError::NoMemory { .. })), "{refused:?}");
        let mut pool = build().build().unwrap();
        for _ in 0..STEPS {
            let most = [40, 3000, 100_000][random.below(3)];
            let size = 1 + random.below(most);
            let byte = random.next() as u8;
            let what = random.below(12);
            let (result, refused) = backend::with(plan, || match what {
                0 => pool.try_child().map(|child| {
                    // It has what the pool has kept, or nothing.
                    let _ = child.try_alloc_bytes(size);
                    let _ = child.try_alloc(Alive::new(&alive));
                }),
                1 => pool.try_lasting_child().map(drop),
                2 => pool.try_cleanup(|| _ = cleanups.fetch_add(1, Relaxed)).map(|_| registered += 1),
                3 => pool.try_alloc(Alive::new(&alive)).map(drop),
                4 => {
                    pool.clear();
                    Ok(())
                }
                _ => pool.try_alloc_bytes(size).map(|bytes| {
                    bytes.fill(MaybeUninit::new(byte));
                }),
            });
            if let Err(error) = result {
                assert!(refused > 0 && matches!(error, PoolError::NoMemory { .. }), "{error}");
                refusals += 1;
            }
        }
        let held = pool.stats_with_children();
        assert_eq!((held.held + held.spare) as u64, service.usage().bytes());
        backend::with(Plan::All, || drop(pool));
        assert_eq!(service.usage().bytes(), 0);
        assert_eq!((alive.load(Relaxed), cleanups.load(Relaxed)), (0, registered));
    }
    println!("{} steps, {refusals} refused", POOLS * STEPS);
    assert!(refusals > 1000, "{refusals}");
}

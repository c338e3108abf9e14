//! The heap profiler meanwhile: it is started, changed, stopped and asked, by any thread at any time.

use crate::profiles::{expect_exact_sums, in_child};
use crate::random::Random;
use crate::watch;
use dogtag::__private::profile::{Tables, tables};
use dogtag::profile::{self, ProfileError, Profiler};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// From every allocation to some.
const INTERVALS: [u64; 5] = [1, 200, 4 << 10, 64 << 10, 512 << 10];

/// Blocks that there ever are at once, and more: all of them may be sampled.
const MOST: u64 = 1 << 17;

static TURNS: AtomicU64 = AtomicU64::new(0);
static PROFILES: AtomicU64 = AtomicU64::new(0);
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Does something about the profiler.
pub fn turn(random: &mut Random) {
    let interval = INTERVALS[random.below(INTERVALS.len())];
    match (random.below(10), Profiler::running()) {
        (0, Some(profiler)) => profiler.stop(),
        // If it has not been stopped meanwhile.
        (1..4, Some(profiler)) => profiler.set_interval(interval).unwrap(),
        (0..4, None) => match Profiler::builder().interval(interval).start() {
            Ok(_) | Err(ProfileError::Running) => {}
            Err(error) => panic!("{error}"),
        },
        _ => {
            PROFILES.fetch_add(1, Relaxed);
            let take = if random.once_in(2) { profile::live } else { profile::allocated };
            let first = take();
            expect_exact_sums(&first);
            if random.once_in(4) {
                expect_exact_sums(&take().difference(&first));
            }
            return;
        }
    }
    TURNS.fetch_add(1, Relaxed);
}

/// A child samples with what it has inherited, and loses no more entries than other threads may have in hand.
pub fn fork(random: &mut Random) {
    /// Threads of this test, beside the one that forks.
    const OTHERS: u64 = 24;

    FORKS.fetch_add(1, Relaxed);
    in_child(|| {
        expect_exact_sums(&profile::live());
        let before = tables();
        assert!(before.used - before.live - before.free <= OTHERS, "{before:?}");
        for _ in 0..3 {
            let blocks: Vec<_> = (0..50).map(|_| vec![1_u8; random.size()]).collect();
            expect_exact_sums(&profile::live());
            drop(blocks);
        }
        let after = tables();
        let lost = |tables: Tables| tables.used - tables.live - tables.free;
        assert_eq!(lost(after), lost(before), "{before:?}, {after:?}");
    });
}

/// What the profiler has in memory.
#[derive(Default)]
pub struct Watch {
    tables: Option<Tables>,
    stacks: usize,
    dropped: u64,
}

impl Watch {
    /// While nobody works.
    pub fn look(&mut self) {
        // Dogtag's own thread may be about to allocate or free.
        let (tables, live) = watch::eventually(|| {
            let (live, tables) = (profile::live(), tables());
            expect_exact_sums(&live);
            for service in live.services.iter().filter(|service| service.name.starts_with("soak ")) {
                let is_its = |row: &&profile::ProfileRow| row.service == service.name;
                let samples: u64 = live.rows.iter().filter(is_its).map(|row| row.samples).sum();
                // No sample is left of what was freed.
                if samples > service.objects as u64 {
                    return Err(format!("{samples} samples of {service:?}"));
                }
            }
            let blocks = dogtag::totals().blocks();
            match tables.live + tables.free == tables.used && tables.orphaned == 0 && tables.live <= blocks {
                true => Ok((tables, live)),
                false => Err(format!("{tables:?} of {blocks} blocks")),
            }
        });
        assert!(tables.used <= MOST, "the table grows: {tables:?}");
        let mut stacks: Vec<_> = profile::allocated().rows.into_iter().map(|row| row.origin).collect();
        stacks.sort_unstable();
        stacks.dedup();
        *self = Self { tables: Some(tables), stacks: stacks.len(), dropped: live.dropped };
    }

    /// When all was freed that anybody has allocated.
    pub fn end(&mut self) {
        Profiler::running().into_iter().for_each(Profiler::stop);
        self.look();
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [turns, profiles, forks] = [&TURNS, &PROFILES, &FORKS].map(|count| count.load(Relaxed));
        let Some(Tables { used, live, .. }) = self.tables else { return Ok(()) };
        write!(
            f,
            "; {live} samples, {used} entries, {} stacks, {} dropped; {turns} turns of the profiler, \
             {profiles} profiles, {forks} forks",
            self.stacks, self.dropped
        )
    }
}

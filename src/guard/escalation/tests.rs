use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const CEILING: u64 = 1024 * MIB;
const LINE: u64 = CEILING - CEILING / 16;
const GRACE: Duration = Duration::from_millis(200);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn look(milliseconds: u64, used: u64) -> Look {
    Look { now: ms(milliseconds), used, ceiling: CEILING, line: LINE }
}

fn nobody(_: &usize) -> u64 {
    unreachable!("nobody was cancelled")
}

fn escalation() -> Escalation<usize> {
    Escalation::new(GRACE)
}

#[test]
fn what_costs_least_comes_first() {
    let mut steps = escalation();
    assert_eq!(steps.next(look(0, LINE - 1), Callbacks::Idle, nobody), Step::Rest);
    assert_eq!(steps.next(look(1, LINE), Callbacks::Idle, nobody), Step::Purge);
    steps.purged(ms(2), ms(1));
    assert_eq!(steps.next(look(2, LINE), Callbacks::Idle, nobody), Step::Ask);
    assert_eq!(steps.next(look(3, CEILING - 1), Callbacks::AtWork, nobody), Step::Rest);
    // They are still at work, and are not waited for.
    assert_eq!(steps.next(look(4, CEILING), Callbacks::AtWork, nobody), Step::Rest);
    assert_eq!(steps.next(look(6, CEILING), Callbacks::AtWork, nobody), Step::Rest);
    assert_eq!(steps.next(look(7, CEILING), Callbacks::AtWork, nobody), Step::Cancel);
    // If that is long ago, free pages are given back once more.
    let at = look(60, CEILING);
    assert_eq!(steps.next(at, Callbacks::Idle, nobody), Step::Purge);
    steps.purged(ms(61), ms(1));
    assert_eq!(steps.next(look(61, CEILING), Callbacks::Idle, nobody), Step::Cancel);
}

#[test]
fn where_it_stays_high_it_is_done_ever_more_rarely() {
    let mut steps = escalation();
    let (mut purges, mut asks) = (Vec::new(), Vec::new());
    for now in 0..20_000 {
        match steps.next(look(now, LINE), Callbacks::Idle, nobody) {
            Step::Rest => {}
            Step::Purge => {
                purges.push(now);
                steps.purged(ms(now), Duration::ZERO);
            }
            Step::Ask => asks.push(now),
            step => panic!("{step:?}"),
        }
    }
    assert_eq!(purges, [0, 100, 300, 700, 1500, 3100, 6300, 12_700]);
    assert_eq!(asks, [1, 1001, 3001, 7001, 15_001]);
    // What takes long is not repeated soon.
    let mut steps = escalation();
    steps.purged(ms(300), ms(300));
    assert_eq!(steps.next(look(6299, LINE), Callbacks::None, nobody), Step::Rest);
    assert_eq!(steps.next(look(6300, LINE), Callbacks::None, nobody), Step::Purge);
}

/// At the ceiling, when all has been done that costs less.
fn at_the_ceiling(now: u64) -> Escalation<usize> {
    let mut steps = escalation();
    steps.purged(ms(now), Duration::ZERO);
    assert_eq!(steps.next(look(now, CEILING), Callbacks::None, nobody), Step::Cancel);
    steps
}

#[test]
fn one_that_lets_go_is_waited_for_and_the_system_too() {
    let mut steps = at_the_ceiling(0);
    steps.cancelled(ms(0), 7, 400 * MIB, |_| false);
    assert!(steps.waits());
    assert_eq!(steps.next(look(1, CEILING + MIB), Callbacks::None, |_| 401 * MIB), Step::Rest);
    // It is freed, and is not seen yet.
    let freed = |_: &usize| 0;
    assert_eq!(steps.next(look(4, CEILING + 2 * MIB), Callbacks::None, freed), Step::Rest);
    assert_eq!(steps.next(look(5, CEILING + 2 * MIB), Callbacks::None, freed), Step::Purge);
    steps.purged(ms(6), ms(1));
    assert_eq!(steps.next(look(6, CEILING + 2 * MIB), Callbacks::None, freed), Step::Rest);
    assert_eq!(steps.take_given_back(), 400 * MIB);
    // That takes so long at most: a quarter of the grace, and 400 MiB at 4 GiB a second.
    assert_eq!(steps.next(look(151, CEILING + 2 * MIB), Callbacks::None, freed), Step::Rest);
    assert_eq!(steps.next(look(152, CEILING + 2 * MIB), Callbacks::None, freed), Step::Purge);
    steps.purged(ms(153), ms(1));
    assert_eq!(steps.next(look(153, CEILING + 2 * MIB), Callbacks::None, nobody), Step::Cancel);
    assert!(!steps.waits());
    assert_eq!(steps.take_given_back(), 0);
}

#[test]
fn one_is_not_enough() {
    let mut steps = at_the_ceiling(0);
    steps.cancelled(ms(0), 1, 10 * MIB, |_| false);
    assert_eq!(steps.next(look(1, CEILING + 10 * MIB), Callbacks::None, |_| 10 * MIB), Step::Cancel);
    steps.cancelled(ms(1), 2, 10 * MIB, |_| false);
    assert_eq!(steps.next(look(2, CEILING + 10 * MIB), Callbacks::None, |_| 10 * MIB), Step::Rest);
}

/// What is below one that is cancelled ends with it, and is not counted a second time.
#[test]
fn what_was_cancelled_below_another_one_counts_there() {
    let mut steps = at_the_ceiling(0);
    steps.cancelled(ms(0), 1, 10 * MIB, |_| false);
    steps.cancelled(ms(1), 2, 10 * MIB, |_| false);
    steps.cancelled(ms(2), 3, 30 * MIB, |below| *below == 1);
    let holds = |who: &usize| match who {
        2 => 10 * MIB,
        3 => 30 * MIB,
        _ => unreachable!("it counts as 3's"),
    };
    assert_eq!(steps.next(look(3, CEILING + 39 * MIB), Callbacks::None, holds), Step::Rest);
    assert_eq!(steps.next(look(4, CEILING + 40 * MIB), Callbacks::None, holds), Step::Cancel);
    assert_eq!(steps.next(look(5, CEILING), Callbacks::None, |_| 0), Step::Purge);
    assert_eq!(steps.take_given_back(), 40 * MIB);
}

#[test]
fn one_that_does_not_let_go_is_told_once_and_the_next_one_taken() {
    let mut steps = at_the_ceiling(0);
    steps.cancelled(ms(0), 1, 400 * MIB, |_| false);
    let never = |_: &usize| 400 * MIB;
    assert_eq!(steps.next(look(49, CEILING), Callbacks::None, never), Step::Rest);
    assert_eq!(steps.next(look(200, CEILING), Callbacks::None, never), Step::Tell(1));
    assert_eq!(steps.next(look(200, CEILING), Callbacks::None, nobody), Step::Purge);
    steps.purged(ms(200), ms(0));
    assert_eq!(steps.next(look(200, CEILING), Callbacks::None, nobody), Step::Cancel);
    // Who is slow, but goes on, is given the time.
    steps.cancelled(ms(200), 2, 640 * MIB, |_| false);
    for tenth in 1..=7 {
        let slow = |_: &usize| 640 * MIB - tenth * 20 * MIB;
        assert_eq!(steps.next(look(200 + tenth * 199, LINE - 1), Callbacks::None, slow), Step::Rest);
    }
    let stays = |_: &usize| 500 * MIB;
    assert_eq!(steps.next(look(200 + 7 * 199 + 200, 0), Callbacks::None, stays), Step::Tell(2));
    // But not for ever, if it allocates as well.
    steps.cancelled(ms(5000), 4, 640 * MIB, |_| false);
    let told = (5001..10_000).find(|now| {
        let holds = (640 + 30 * (now / 100 % 2)) * MIB;
        steps.next(look(*now, 0), Callbacks::None, |_| holds) == Step::Tell(4)
    });
    assert_eq!(told, Some(5000 + 8 * 200));
    // Of one that has let go of half nothing is said.
    steps.cancelled(ms(13_000), 3, 100 * MIB, |_| false);
    assert_eq!(steps.next(look(13_200, 0), Callbacks::None, |_| 50 * MIB), Step::Rest);
    assert_eq!(steps.next(look(13_400, 0), Callbacks::None, |_| 50 * MIB), Step::Rest);
    assert!(!steps.waits());
}

#[test]
fn where_nobody_can_be_cancelled_it_is_tried_again() {
    let mut steps = at_the_ceiling(0);
    assert!(steps.helpless(ms(0)));
    assert_eq!(steps.next(look(10, CEILING), Callbacks::None, nobody), Step::Rest);
    assert_eq!(steps.next(look(100, CEILING), Callbacks::None, nobody), Step::Purge);
    steps.purged(ms(100), ms(0));
    assert_eq!(steps.next(look(100, CEILING), Callbacks::None, nobody), Step::Cancel);
    assert!(!steps.helpless(ms(100)), "that is known");
    assert_eq!(steps.next(look(270, CEILING), Callbacks::None, nobody), Step::Rest);
    // Until it was better in between.
    assert_eq!(steps.next(look(280, CEILING - 1), Callbacks::None, nobody), Step::Rest);
    assert_eq!(steps.next(look(281, CEILING), Callbacks::None, nobody), Step::Purge);
    steps.purged(ms(281), ms(0));
    assert_eq!(steps.next(look(281, CEILING), Callbacks::None, nobody), Step::Cancel);
    assert!(steps.helpless(ms(281)));
    assert_eq!(steps.next(look(380, CEILING), Callbacks::None, nobody), Step::Rest);
}

/// A service of the model.
#[derive(Clone, Debug)]
struct Service {
    bytes: u64,
    /// Bytes each millisecond, until it lets go.
    growth: u64,
    /// How long after its cancelling it lets go, and how long that takes, in milliseconds; or never.
    lets_go: Option<(u64, u64)>,
}

fn service(growth: std::ops::Range<u64>) -> impl Strategy<Value = Service> {
    let lets_go = prop_oneof![4 => (0_u64..150, 1_u64..300).prop_map(Some), 1 => Just(None)];
    (0_u64..160, growth, lets_go).prop_map(|(mib, growth, lets_go)| Service {
        bytes: mib * MIB,
        growth: growth * 1024,
        lets_go,
    })
}

/// What the model knows of one that was cancelled.
#[derive(Debug)]
struct Cancelled {
    who: usize,
    at: u64,
    had: u64,
    step: u64,
    told: bool,
}

struct World {
    services: Vec<Service>,
    cancelled: Vec<Cancelled>,
    /// Freed, but not given back.
    free: u64,
    purged_at: Option<u64>,
    asked_at: Option<u64>,
}

impl World {
    fn used(&self) -> u64 {
        self.services.iter().map(|one| one.bytes).sum::<u64>() + self.free
    }

    fn advance(&mut self, now: u64) {
        for (who, one) in self.services.iter_mut().enumerate() {
            let cancelled = self.cancelled.iter().find(|cancelled| cancelled.who == who);
            match (cancelled, one.lets_go) {
                (Some(cancelled), Some((after, _))) if now >= cancelled.at + after => {
                    let freed = one.bytes.min(cancelled.step);
                    one.bytes -= freed;
                    self.free += freed;
                }
                _ => one.bytes += one.growth,
            }
        }
    }

    /// What is still to come, from those whose time is surely not over.
    fn to_come(&self, now: u64) -> u64 {
        let grace = GRACE.as_millis() as u64;
        let in_time = |one: &&Cancelled| now < one.at + grace;
        self.cancelled.iter().filter(in_time).map(|one| self.services[one.who].bytes).sum()
    }

    /// The one that holds most and was not cancelled.
    fn heaviest(&self) -> Option<usize> {
        let free = |who: &usize| !self.cancelled.iter().any(|one| one.who == *who);
        (0..self.services.len())
            .filter(free)
            .filter(|who| self.services[*who].bytes >= MIB)
            .max_by_key(|who| self.services[*who].bytes)
    }
}

/// Lets the steps and the world go on, each millisecond, and returns the world.
fn run(services: Vec<Service>, free: u64, has_callbacks: bool, length: u64) -> Result<World, TestCaseError> {
    let mut steps = escalation();
    let mut world = World { services, cancelled: Vec::new(), free, purged_at: None, asked_at: None };
    for now in 0..length {
        world.advance(now);
        for turn in 0.. {
            prop_assert!(turn < 40, "it never rests");
            let used = world.used();
            let callbacks = if has_callbacks { Callbacks::Idle } else { Callbacks::None };
            let step = {
                let services = &world.services;
                steps.next(look(now, used), callbacks, |who| services[*who].bytes)
            };
            if used < LINE {
                world.asked_at = None;
                prop_assert!(matches!(step, Step::Rest | Step::Tell(_)), "{step:?} below the line");
            }
            match step {
                Step::Rest => break,
                Step::Purge => {
                    world.free = 0;
                    world.purged_at = Some(now);
                    steps.purged(ms(now), Duration::ZERO);
                }
                Step::Ask => {
                    prop_assert!(has_callbacks && world.purged_at.is_some());
                    world.asked_at = Some(now);
                }
                Step::Cancel => {
                    prop_assert!(used >= CEILING, "below the ceiling");
                    prop_assert!(
                        world.purged_at.is_some_and(|at| now - at < 50),
                        "what is free was not given back"
                    );
                    prop_assert!(used - world.to_come(now).min(used) >= CEILING, "what is to come is enough");
                    match world.heaviest() {
                        Some(who) => {
                            let had = world.services[who].bytes;
                            let takes = world.services[who].lets_go.map_or(1, |(_, takes)| takes);
                            let step = (had / takes).max(1);
                            world.cancelled.push(Cancelled { who, at: now, had, step, told: false });
                            steps.cancelled(ms(now), who, had, |_| false);
                        }
                        None => _ = steps.helpless(ms(now)),
                    }
                }
                Step::Tell(who) => {
                    let one = world.cancelled.iter_mut().find(|one| one.who == who).unwrap();
                    prop_assert!(!one.told, "told twice");
                    one.told = true;
                    prop_assert!(now - one.at >= GRACE.as_millis() as u64, "too early");
                    prop_assert!(world.services[who].bytes > one.had / 2, "it has let go");
                }
            }
        }
    }
    Ok(world)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever services do: nobody is cancelled in vain, nobody who does not react is forgotten, and where
    /// the ceiling stays passed there is nobody left to be cancelled.
    #[test]
    fn nobody_is_cancelled_in_vain_and_nobody_forgotten(
        services in prop::collection::vec(service(0..2000), 1..10),
        free in 0_u64..500,
        has_callbacks: bool,
    ) {
        let world = run(services, free * MIB, has_callbacks, 4000)?;
        for one in &world.cancelled {
            let never = world.services[one.who].lets_go.is_none();
            let is_over = 4000 - one.at > 2 * GRACE.as_millis() as u64;
            prop_assert!(!(never && is_over && !one.told), "{one:?} is forgotten");
        }
        let last = world.cancelled.last().map_or(0, |one| one.at);
        if world.used() >= CEILING && 4000 - last > 1000 {
            prop_assert_eq!(world.heaviest(), None, "the ceiling is passed, and somebody is left");
        }
    }

    /// Eight services, one of which grows: it alone is cancelled.
    #[test]
    fn one_that_grows_is_the_only_one(
        others in prop::collection::vec(0_u64..80, 7),
        growth in 200_u64..4000,
        lets_go in (0_u64..150, 1_u64..300),
        free in 0_u64..500,
        has_callbacks: bool,
    ) {
        let others = others.iter().map(|mib| Service { bytes: mib * MIB, growth: 0, lets_go: None });
        let mut services: Vec<_> = others.collect();
        services.push(Service { bytes: 0, growth: growth * 1024, lets_go: Some(lets_go) });
        let world = run(services, free * MIB, has_callbacks, 6000)?;
        prop_assert_eq!(world.cancelled.iter().map(|one| one.who).collect::<Vec<_>>(), [7]);
        prop_assert!(world.used() < CEILING);
    }
}

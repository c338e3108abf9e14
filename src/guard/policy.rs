//! Who is cancelled first.

use crate::contained::contain;
use crate::service::Service;
use crate::service::cancellable::Cancellable;
use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Says which service a [`Guard`](super::Guard) cancels first, of those that
/// [may be cancelled](Service::set_cancellable).
///
/// ```
/// use dogtag::guard::Policy;
///
/// let heaviest = Policy::most_bytes();
/// let oldest = Policy::choose(|candidates| {
///     // Handles are assigned upwards.
///     (0..candidates.len()).min_by_key(|index| candidates[*index].service.handle())
/// });
/// ```
#[derive(Clone)]
pub struct Policy(Kind);

#[derive(Clone)]
enum Kind {
    MostBytes,
    MostGrowth,
    LowestPriority,
    Choose(Arc<Choose>),
}

type Choose = dyn Fn(&[Candidate]) -> Option<usize> + Send + Sync;

/// A service that may be cancelled, and what is known of it: [`Policy::choose`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// The service.
    pub service: Service,
    /// The bytes that it and its descendants hold, without those that may be cancelled themselves.
    pub bytes: u64,
    /// By how much that has grown in the last second. (In half a second at least; a service that is younger
    /// has grown by all that it holds.)
    pub growth: u64,
    /// The priority that it was given: [`Service::set_cancellable`].
    pub priority: i32,
}

impl Policy {
    /// Cancels the service that holds most. This is the default.
    #[must_use]
    pub const fn most_bytes() -> Self {
        Self(Kind::MostBytes)
    }

    /// Cancels the service that has grown most in the last second; if none has, the one that holds most.
    ///
    /// From half of the ceiling on, the bytes of all services are added up twice a second for it.
    #[must_use]
    pub const fn most_growth() -> Self {
        Self(Kind::MostGrowth)
    }

    /// Cancels the service with the lowest [priority](Service::set_cancellable), and of several the one that
    /// holds most.
    #[must_use]
    pub const fn lowest_priority() -> Self {
        Self(Kind::LowestPriority)
    }

    /// Cancels the service whose index `choose` returns; if it returns none, nobody for now.
    ///
    /// A thread of dogtag's own calls it, on which everything waits then: it should not wait for anything.
    /// If it panics, or there is no such index, the service that holds most is cancelled. As with
    /// [`most_growth`](Self::most_growth), bytes are added up from half of the ceiling on.
    #[must_use]
    pub fn choose(choose: impl Fn(&[Candidate]) -> Option<usize> + Send + Sync + 'static) -> Self {
        Self(Kind::Choose(Arc::new(choose)))
    }

    /// Whether it asks how much services have grown.
    pub(super) fn needs_growth(&self) -> bool {
        matches!(self.0, Kind::MostGrowth | Kind::Choose(_))
    }

    /// Chooses one; `None` for nobody.
    pub(super) fn pick(&self, all: &[Cancellable], history: &History) -> Option<usize> {
        let growth = |one: &Cancellable| history.growth(one);
        let most = || (0..all.len()).max_by_key(|index| all[*index].bytes);
        match &self.0 {
            Kind::MostBytes => most(),
            Kind::MostGrowth => (0..all.len()).max_by_key(|index| (growth(&all[*index]), all[*index].bytes)),
            Kind::LowestPriority => {
                (0..all.len()).max_by_key(|index| (Reverse(all[*index].priority), all[*index].bytes))
            }
            Kind::Choose(choose) => {
                // Those that have ended meanwhile are none.
                let (places, candidates): (Vec<usize>, Vec<Candidate>) = (0..all.len())
                    .filter_map(|index| {
                        let Cancellable { bytes, priority, .. } = all[index];
                        let service = all[index].hold()?;
                        Some((index, Candidate { service, bytes, growth: growth(&all[index]), priority }))
                    })
                    .unzip();
                match contain(|| choose(&candidates)) {
                    Some(None) => None,
                    Some(Some(index)) if index < places.len() => Some(places[index]),
                    _ => most(),
                }
            }
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::most_bytes()
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::MostBytes => "Policy::most_bytes()",
            Kind::MostGrowth => "Policy::most_growth()",
            Kind::LowestPriority => "Policy::lowest_priority()",
            Kind::Choose(_) => "Policy::choose(..)",
        })
    }
}

/// What services held between half a second and a second ago.
#[derive(Debug, Default)]
pub(super) struct History {
    older: Vec<Held>,
    newer: Vec<Held>,
    newer_at: Option<Duration>,
    is_long: bool,
}

/// A service, and what it held.
type Held = ((u32, u64), u64);

const HALF: Duration = Duration::from_millis(500);

impl History {
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.newer_at.is_none_or(|at| now.saturating_sub(at) >= HALF)
    }

    /// Notes what they hold, who are in the order of their identities.
    pub(super) fn note(&mut self, now: Duration, all: &[Cancellable]) {
        if !self.is_due(now) {
            return;
        }
        // Nobody has looked for long.
        let is_old = self.newer_at.is_none_or(|at| now.saturating_sub(at) >= 4 * HALF);
        std::mem::swap(&mut self.older, &mut self.newer);
        self.newer.clear();
        self.newer.extend(all.iter().map(|one| (one.identity(), one.bytes)));
        self.newer_at = Some(now);
        self.is_long = !is_old;
    }

    fn growth(&self, one: &Cancellable) -> u64 {
        let then = if self.is_long { &self.older } else { &self.newer };
        let held = then.binary_search_by_key(&one.identity(), |(identity, _)| *identity);
        one.bytes.saturating_sub(held.map_or(0, |place| then[place].1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::thread;
    use crate::service::cancellable::list;

    fn register(name: &str, priority: i32) -> Service {
        Service::builder(name).cancellable(priority).register().unwrap()
    }

    /// (The tests of the library itself have another allocator.)
    fn hold(service: &Service, bytes: usize) {
        thread::account(service.record()).charge(bytes);
    }

    /// Of those two, whom other tests' services are not heavier than.
    fn picked(policy: &Policy, history: &History, of: &[&Service]) -> Option<Service> {
        let mut all = Vec::new();
        list(&mut all);
        all.retain(|one| one.hold().is_some_and(|service| of.contains(&&service)));
        policy.pick(&all, history).map(|index| all[index].hold().unwrap())
    }

    #[test]
    fn each_policy_has_its_order() {
        let (large, growing, idle) = (register("large", 5), register("growing", 0), register("idle", -1));
        let services = [&large, &growing, &idle];
        hold(&large, 5000);
        hold(&growing, 1000);
        let mut history = History::default();
        let note = |history: &mut History, milliseconds| {
            let mut all = Vec::new();
            list(&mut all);
            history.note(Duration::from_millis(milliseconds), &all);
        };
        let pick = |policy: &Policy, history: &History| picked(policy, history, &services).unwrap();
        assert_eq!(pick(&Policy::most_bytes(), &history), large);
        assert_eq!(pick(&Policy::lowest_priority(), &history), idle);
        assert_eq!(pick(&Policy::most_growth(), &history), large, "nothing is known of before");
        note(&mut history, 0);
        hold(&growing, 500);
        assert_eq!(pick(&Policy::most_growth(), &history), growing);
        note(&mut history, 499);
        assert_eq!(pick(&Policy::most_growth(), &history), growing, "it was too soon");
        note(&mut history, 500);
        assert_eq!(pick(&Policy::most_growth(), &history), growing, "half a second ago it held less");
        note(&mut history, 1000);
        assert_eq!(pick(&Policy::most_growth(), &history), large, "nobody has grown");
        hold(&idle, 1);
        assert_eq!(pick(&Policy::most_growth(), &history), idle);
        // Of long ago nothing is said.
        note(&mut history, 10_000);
        assert_eq!(pick(&Policy::most_growth(), &history), large);
    }

    #[test]
    fn a_closure_has_the_last_word() {
        let (one, other) = (register("one of two", 1), register("other of two", 2));
        hold(&one, 100);
        hold(&other, 200);
        let history = History::default();
        let pick = |policy: Policy| picked(&policy, &history, &[&one, &other]);
        let lightest = |all: &[Candidate]| (0..all.len()).min_by_key(|index| all[*index].bytes);
        assert_eq!(pick(Policy::choose(lightest)), Some(one.clone()));
        let known = |all: &[Candidate]| all.iter().position(|one| (one.growth, one.priority) == (200, 2));
        assert_eq!(pick(Policy::choose(known)), Some(other.clone()));
        assert_eq!(pick(Policy::choose(|_| None)), None);
        assert_eq!(pick(Policy::choose(|all| Some(all.len()))), Some(other.clone()));
        assert_eq!(pick(Policy::choose(|_| panic!("on purpose"))), Some(other.clone()));
        assert_eq!(format!("{:?}", Policy::choose(|_| None)), "Policy::choose(..)");
    }
}

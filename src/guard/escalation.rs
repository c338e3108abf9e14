//! What is to be done at which use of memory, one step after the other; and who of those who were cancelled
//! has still something to give back.
//!
//! This decides, and does nothing itself: it knows neither threads nor services, so that it can be held
//! against a model.
//!
//! | used | steps, each time in this order |
//! | --- | --- |
//! | below the line | none |
//! | from the line on | free pages are given back, then those who registered are asked; ever more rarely |
//! | from the ceiling on | free pages are given back again; then somebody is cancelled |
//!
//! Nobody is cancelled while what others who were cancelled have still to give back would be enough. That
//! is what they hold, until their time is over, and what they have freed a moment ago: the system takes pages
//! back more slowly than a ledger counts.

use std::time::Duration;

/// What the process is at, at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) now: Duration,
    pub(super) used: u64,
    pub(super) ceiling: u64,
    /// From here on what is free is given back.
    pub(super) line: u64,
}

impl Look {
    /// How much has to be let go of.
    pub(super) fn wanted(&self) -> u64 {
        self.used.saturating_sub(self.line)
    }
}

/// Whether those who registered are at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callbacks {
    /// There are none.
    None,
    /// They can be asked.
    Idle,
    /// They were asked, and have not returned.
    AtWork,
}

/// What is to be done next. Afterwards one looks again, but for [`Rest`](Self::Rest).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<S> {
    /// Nothing, until there is a reason to look again.
    Rest,
    /// Have free pages given back; then call [`purged`](Escalation::purged).
    Purge,
    /// Ask those who registered.
    Ask,
    /// Cancel somebody; then call [`cancelled`](Escalation::cancelled), or [`helpless`](Escalation::helpless).
    Cancel,
    /// Tell that this one has not let go.
    Tell(S),
}

/// Where the steps have got to.
#[derive(Debug)]
pub(super) struct Escalation<S> {
    grace: Duration,
    pending: Vec<Pending<S>>,
    purge: Pace,
    ask: Pace,
    purged_at: Option<Duration>,
    /// Whether something was freed since by those who were cancelled.
    has_freed: bool,
    /// When those who registered were asked, since the line was passed.
    asked_at: Option<Duration>,
    /// Whether nobody could be cancelled, since the ceiling was passed; and when it is tried again.
    is_helpless: bool,
    retry: Pace,
    given_back: u64,
}

/// One who was cancelled.
#[derive(Debug)]
struct Pending<S> {
    who: S,
    /// What it held when it was cancelled.
    had: u64,
    holds: u64,
    /// The least that it held since.
    least: u64,
    cancelled_at: Duration,
    /// When it was cancelled, or had given back a good part last; and the most that it held since.
    moved_at: Duration,
    moved_to: u64,
    /// What it has freed, and the system perhaps not taken back.
    unsettled: u64,
    settles_at: Duration,
}

/// How long those who were just asked may take before somebody is cancelled.
const PATIENCE: Duration = Duration::from_millis(5);
/// How old a purge may be when somebody is cancelled.
const FRESH: Duration = Duration::from_millis(50);
/// How long it takes until freed pages are given back: a part of the grace, since the thread that frees counts
/// first, and may then wait for a core; so long at least; and a second for so many bytes.
const SETTLE: u32 = 4;
const LEAST_SETTLE: Duration = Duration::from_millis(20);
const SETTLE_RATE: u64 = 4 << 30;
/// How long one is given that goes on letting go, in graces.
const MOST_GRACES: u32 = 8;

impl<S: Clone> Escalation<S> {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            pending: Vec::new(),
            purge: Pace::new(Duration::from_millis(100), Duration::from_secs(10)),
            ask: Pace::new(Duration::from_secs(1), Duration::from_secs(60)),
            purged_at: None,
            has_freed: false,
            asked_at: None,
            is_helpless: false,
            retry: Pace::new(Duration::from_millis(100), Duration::from_secs(1)),
            given_back: 0,
        }
    }

    /// Whether somebody is to give something back.
    pub(super) fn waits(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What those who were cancelled have given back since this was called last.
    pub(super) fn take_given_back(&mut self) -> u64 {
        std::mem::take(&mut self.given_back)
    }

    /// Decides what is to be done. `holds` says what one who was cancelled holds.
    pub(super) fn next(&mut self, look: Look, callbacks: Callbacks, holds: impl FnMut(&S) -> u64) -> Step<S> {
        let Look { now, used, ceiling, line } = look;
        if let Some(who) = self.follow(now, holds) {
            return Step::Tell(who);
        }
        if used < ceiling {
            self.is_helpless = false;
            // What is free by now was seen.
            self.pending.iter_mut().for_each(|one| one.unsettled = 0);
        }
        if used < line {
            self.purge.begin_anew();
            self.ask.begin_anew();
            self.asked_at = None;
            return Step::Rest;
        }
        if self.purge.is_due(now) {
            return Step::Purge;
        }
        if callbacks == Callbacks::Idle && self.ask.is_due(now) {
            self.ask.done(now, Duration::ZERO);
            self.asked_at = Some(now);
            return Step::Ask;
        }
        if used < ceiling {
            return Step::Rest;
        }
        let is_fresh = self.purged_at.is_some_and(|at| now.saturating_sub(at) < FRESH);
        if self.has_freed && self.purged_at.is_none_or(|at| now.saturating_sub(at) >= PATIENCE) {
            return Step::Purge;
        }
        if callbacks == Callbacks::AtWork && self.asked_at.is_some_and(|at| now.saturating_sub(at) < PATIENCE)
        {
            return Step::Rest;
        }
        if used.saturating_sub(self.expected(now)) < ceiling {
            return Step::Rest;
        }
        if self.is_helpless && !self.retry.is_due(now) {
            return Step::Rest;
        }
        if is_fresh { Step::Cancel } else { Step::Purge }
    }

    /// Free pages were given back, which took so long.
    pub(super) fn purged(&mut self, now: Duration, took: Duration) {
        self.purge.done(now, took);
        self.purged_at = Some(now);
        self.has_freed = false;
    }

    /// Somebody was cancelled, who holds so much with all that is below. What was cancelled before and is below
    /// counts there.
    pub(super) fn cancelled(&mut self, now: Duration, who: S, bytes: u64, is_below: impl Fn(&S) -> bool) {
        self.is_helpless = false;
        self.pending.retain(|one| !is_below(&one.who));
        self.pending.push(Pending {
            who,
            had: bytes,
            holds: bytes,
            least: bytes,
            cancelled_at: now,
            moved_at: now,
            moved_to: bytes,
            unsettled: 0,
            settles_at: now,
        });
    }

    /// Nobody can be cancelled. `true` if that is new.
    pub(super) fn helpless(&mut self, now: Duration) -> bool {
        if !self.is_helpless {
            self.retry.begin_anew();
        }
        self.retry.done(now, Duration::ZERO);
        !std::mem::replace(&mut self.is_helpless, true)
    }

    /// What is still to come of those who were cancelled.
    fn expected(&self, now: Duration) -> u64 {
        let unsettled = |one: &Pending<S>| if now < one.settles_at { one.unsettled } else { 0 };
        self.pending.iter().map(|one| one.holds + unsettled(one)).sum()
    }

    /// Looks at what those hold who were cancelled. Returns one whose time is over and who has not let go of
    /// half.
    fn follow(&mut self, now: Duration, mut holds: impl FnMut(&S) -> u64) -> Option<S> {
        let mut late = None;
        let Self { pending, grace, has_freed, given_back, .. } = self;
        pending.retain_mut(|one| {
            let held = std::mem::replace(&mut one.holds, holds(&one.who));
            *given_back += one.least.saturating_sub(one.holds);
            one.least = one.least.min(one.holds);
            let freed = held.saturating_sub(one.holds);
            if freed > 0 {
                *has_freed = true;
                if now >= one.settles_at {
                    one.unsettled = 0;
                }
                one.unsettled += freed;
                let takes = Duration::from_secs_f64(one.unsettled as f64 / SETTLE_RATE as f64);
                one.settles_at = now + (*grace / SETTLE).max(LEAST_SETTLE) + takes;
            }
            // Who goes on letting go is given the time for it.
            one.moved_to = one.moved_to.max(one.holds);
            if one.moved_to - one.holds >= (one.had / 64).max(1) {
                (one.moved_at, one.moved_to) = (now, one.holds);
            }
            if one.holds == 0 {
                return now < one.settles_at && one.unsettled > 0;
            }
            let is_over = now.saturating_sub(one.moved_at) >= *grace
                || now.saturating_sub(one.cancelled_at) >= grace.saturating_mul(MOST_GRACES);
            if is_over && one.holds > one.had / 2 {
                if late.is_some() {
                    // At the next look.
                    return true;
                }
                late = Some(one.who.clone());
            }
            !is_over
        });
        late
    }
}

/// When a step is due that is repeated ever more rarely.
#[derive(Debug)]
struct Pace {
    first: Duration,
    most: Duration,
    /// How long after the last time it is due, and after the next one.
    gap: Duration,
    next: Duration,
    last: Option<Duration>,
}

impl Pace {
    fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, gap: first, next: first, last: None }
    }

    fn is_due(&self, now: Duration) -> bool {
        self.last.is_none_or(|last| now.saturating_sub(last) >= self.gap)
    }

    /// A step that takes long is not repeated soon.
    fn done(&mut self, now: Duration, took: Duration) {
        self.last = Some(now);
        self.gap = self.next.max(took * 20);
        self.next = (self.next * 2).min(self.most);
    }

    fn begin_anew(&mut self) {
        (self.gap, self.next) = (self.first, self.first);
    }
}

#[cfg(test)]
mod tests;

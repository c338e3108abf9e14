//! What is known of a process whose services are too many to be asked for each time: each time those on the
//! screen, and some of the others, in turn.

use crate::figures::{Figures, Service};
use crate::process::held;
use dogtag::Usage;
use std::collections::BTreeMap;
use std::time::Duration;

/// The least slots that are asked for in turn: those that the process adds up together.
pub const LEAST: u32 = 64;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    All,
    /// The slots from the first one to the one before the second, and others.
    Part(u32, u32, Vec<u32>),
}

/// The latest figures of each service, and whose turn it is.
#[derive(Debug, Default)]
pub struct Rounds {
    services: BTreeMap<u32, Service>,
    totals: Usage,
    /// The slot whose turn it is, and the number of slots.
    next: u32,
    end: u32,
    /// Slots in turn that may be asked for at once; at first all.
    many: Option<u32>,
}

impl Rounds {
    /// Returns what to ask for, with as many of those that are seen as a request holds.
    pub fn question(&self, seen: &[u32]) -> Question {
        match self.many {
            Some(many) if many < self.end => {
                let first = if self.next < self.end { self.next } else { 0 };
                let end = first.saturating_add(many);
                let mut others: Vec<u32> =
                    seen.iter().copied().filter(|slot| !(first..end).contains(slot)).collect();
                // The others come in turn.
                others.truncate(held(first, end, &others));
                Question::Part(first, end, others)
            }
            _ => Question::All,
        }
    }

    /// Heeds what the answer to a question has cost: with the next ones it shall be so much.
    pub fn heed(&mut self, question: &Question, cost: Duration, wanted: Duration) {
        let asked = match question {
            Question::All => self.end,
            Question::Part(first, end, _) => end - first,
        };
        let many = u128::from(asked) * wanted.as_nanos() / cost.as_nanos().max(1);
        let many = u32::try_from(many).unwrap_or(u32::MAX);
        // One answer may have been disturbed.
        let most = if *question == Question::All { u32::MAX } else { asked.saturating_mul(2) };
        self.many = Some(many.min(most).max(LEAST) / LEAST * LEAST);
    }

    /// Takes an answer, and returns the latest figures of all services.
    pub fn take(&mut self, question: &Question, figures: Figures) -> Figures {
        self.end = figures.slots;
        let Question::Part(first, end, others) = question else {
            self.totals = figures.totals;
            self.services = figures.services.iter().map(|service| (service.id.0, service.clone())).collect();
            return figures;
        };
        self.next = *end;
        // Whoever is not among them has ended.
        self.services.retain(|slot, _| !(*first..*end).contains(slot) && !others.contains(slot));
        for service in figures.services {
            self.services.insert(service.id.0, service);
        }
        let services: Vec<Service> = self.services.values().cloned().collect();
        let sum = |figure: fn(&Usage) -> u64| {
            services.iter().map(|service| figure(&service.usage)).fold(0, u64::saturating_add)
        };
        // What those have allocated that have ended is known of the beginning only; what is live is
        // somebody's.
        let totals = &mut self.totals;
        totals.allocated_bytes = totals.freed_bytes.saturating_add(sum(Usage::bytes));
        totals.allocated_blocks = totals.freed_blocks.saturating_add(sum(Usage::blocks));
        totals.denied = figures.totals.denied;
        totals.peak_bytes = totals.peak_bytes.max(totals.bytes());
        Figures { totals: self.totals, services, ..figures }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::sent;

    fn answer(time: u64, services: &[(u32, u64)], slots: u32) -> Figures {
        let services: Vec<_> = services.iter().map(|(slot, live)| ("a", *slot, None, *live)).collect();
        let mut figures = Figures::parse(&sent(time, &services)).unwrap();
        figures.slots = slots;
        figures
    }

    fn live(figures: &Figures) -> Vec<(u32, u64)> {
        figures.services.iter().map(|service| (service.id.0, service.usage.bytes())).collect()
    }

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn all_are_asked_for_while_that_is_cheap() {
        let mut rounds = Rounds::default();
        for cost in [MILLISECOND / 2, MILLISECOND] {
            assert_eq!(rounds.question(&[1]), Question::All);
            let services = [(1, 10), (200, 20)];
            assert_eq!(live(&rounds.take(&Question::All, answer(1, &services, 256))), services);
            rounds.heed(&Question::All, cost, MILLISECOND);
        }
        rounds.heed(&Question::All, MILLISECOND * 2, MILLISECOND);
        assert_eq!(rounds.question(&[1, 130]), Question::Part(0, 128, vec![130]));
    }

    #[test]
    fn those_that_are_seen_come_each_time_and_the_others_in_turn() {
        let mut rounds = Rounds::default();
        rounds.take(&Question::All, answer(1, &[(1, 10), (70, 20), (71, 5), (130, 30)], 131));
        rounds.heed(&Question::All, MILLISECOND * 2, MILLISECOND);
        let first = rounds.question(&[130, 1]);
        assert_eq!(first, Question::Part(0, 64, vec![130]));
        let figures = rounds.take(&first, answer(2, &[(1, 11), (130, 31)], 131));
        assert_eq!(live(&figures), [(1, 11), (70, 20), (71, 5), (130, 31)]);
        assert_eq!(figures.totals.bytes(), 67);
        assert_eq!(figures.services.iter().map(|service| service.read_at).collect::<Vec<_>>(), [2, 1, 1, 2]);
        // One of these has ended, one is new, and one came with them.
        let second = rounds.question(&[130, 1]);
        assert_eq!(second, Question::Part(64, 128, vec![130, 1]));
        let figures = rounds.take(&second, answer(3, &[(1, 12), (70, 21), (100, 1), (129, 2)], 140));
        assert_eq!(live(&figures), [(1, 12), (70, 21), (100, 1), (129, 2)]);
        assert_eq!((figures.totals.bytes(), figures.totals.blocks()), (36, 4));
        // To the end, which is another now, and from the beginning.
        let third = rounds.question(&[]);
        assert_eq!(third, Question::Part(128, 192, vec![]));
        rounds.take(&third, answer(4, &[(129, 2)], 140));
        assert_eq!(rounds.question(&[]), Question::Part(0, 64, vec![]));
    }

    #[test]
    fn who_does_not_fit_into_a_request_has_not_ended() {
        let services: Vec<(u32, u64)> = (1000..1100).map(|slot| (slot, 10)).collect();
        let mut rounds = Rounds::default();
        rounds.take(&Question::All, answer(1, &services, 1100));
        rounds.heed(&Question::All, MILLISECOND * 20, MILLISECOND);
        let seen: Vec<u32> = (1000..1100).collect();
        let question = rounds.question(&seen);
        let Question::Part(0, 64, others) = &question else { panic!("{question:?}") };
        assert_eq!(others[..], seen[..others.len()]);
        assert!((20..60).contains(&others.len()), "{}", others.len());
        let figures = rounds.take(&question, answer(2, &services[..others.len()], 1100));
        assert_eq!((figures.services.len(), figures.totals.bytes()), (100, 1000));
    }

    #[test]
    fn as_many_are_asked_for_as_their_cost_allows() {
        let mut rounds = Rounds { end: 10_000, ..Rounds::default() };
        let part = |many| Question::Part(0, many, vec![]);
        for (question, cost, expected) in [
            (Question::All, 7, 1408),
            (part(1408), 1, 1408),
            (part(1408), 2, 704),
            (part(1408), 100, 64),
            (part(64), 1000, 64),
        ] {
            rounds.heed(&question, MILLISECOND * cost, MILLISECOND);
            assert_eq!(rounds.many, Some(expected), "{question:?} {cost}");
        }
        // Not at once, should one be cheap by chance.
        rounds.heed(&part(640), Duration::ZERO, MILLISECOND);
        assert_eq!(rounds.many, Some(1280));
        rounds.heed(&part(6400), MILLISECOND / 2, MILLISECOND);
        assert_eq!(rounds.question(&[]), Question::All);
    }
}

//! The figures of all services at one moment, as a process sends them.

use dogtag::Usage;
use serde::Serialize;

/// What a process sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Milliseconds since 1970.
    pub time: u64,
    /// Nanoseconds of processor time that the process's answers have taken so far.
    #[serde(rename = "answers_nanoseconds")]
    pub cost: u64,
    pub totals: Usage,
    pub lost_bytes: u64,
    pub lost_blocks: u64,
    /// How many slots there are.
    #[serde(skip)]
    pub slots: u32,
    pub services: Vec<Service>,
}

/// What no other service of the process has: a slot and a generation.
pub type Id = (u32, u64);

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Service {
    pub id: Id,
    pub parent: Option<Id>,
    pub handle: u32,
    pub is_retired: bool,
    pub usage: Usage,
    pub hard_limit: Option<u64>,
    pub soft_limit: Option<u64>,
    pub name: String,
    /// The time of its figures.
    #[serde(skip)]
    pub read_at: u64,
}

/// What is left to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn bytes<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn usage(&mut self) -> Option<Usage> {
        let mut usage = Usage::default();
        usage.allocated_bytes = self.u64()?;
        usage.allocated_blocks = self.u64()?;
        usage.freed_bytes = self.u64()?;
        usage.freed_blocks = self.u64()?;
        usage.denied = self.u64()?;
        usage.peak_bytes = self.u64()?;
        Some(usage)
    }

    fn limit(&mut self) -> Option<Option<u64>> {
        self.u64().map(|bytes| (bytes != u64::MAX).then_some(bytes))
    }

    fn service(&mut self, read_at: u64) -> Option<Service> {
        let id = (self.u32()?, self.u64()?);
        let parent = (self.u32()?, self.u64()?);
        let handle = self.u32()?;
        let [is_retired] = self.bytes()?;
        let usage = self.usage()?;
        let (hard_limit, soft_limit) = (self.limit()?, self.limit()?);
        let length = usize::from(self.bytes().map(u16::from_le_bytes)?);
        let (name, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Service {
            id,
            parent: (parent.0 != u32::MAX).then_some(parent),
            handle,
            is_retired: is_retired != 0,
            usage,
            hard_limit,
            soft_limit,
            name: String::from_utf8_lossy(name).into_owned(),
            read_at,
        })
    }
}

impl Figures {
    /// Reads an answer; `None` if it is of another length.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut rest = Rest(body);
        let (time, cost, totals) = (rest.u64()?, rest.u64()?, rest.usage()?);
        let (lost_bytes, lost_blocks) = (rest.u64()?, rest.u64()?);
        let slots = rest.u32()?;
        let services = (0..rest.u32()?).map(|_| rest.service(time)).collect::<Option<Vec<_>>>()?;
        // Those that have ended, but for what is done then.
        let services = services
            .into_iter()
            .filter(|service| !service.is_retired || service.usage.blocks() > 0)
            .collect();
        rest.0.is_empty().then_some(Self { time, cost, totals, lost_bytes, lost_blocks, slots, services })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Figures as a process sends them: of services by name, with their places, parents and live bytes.
    pub fn sent(time: u64, services: &[(&str, u32, Option<u32>, u64)]) -> Vec<u8> {
        let mut body = Vec::new();
        let total: u64 = services.iter().map(|(.., live)| *live).sum();
        let usage = |live: u64| [live + 5, 2, 5, 1, 0, live + 9];
        for number in [time, time * 1000].into_iter().chain(usage(total)).chain([0, 0]) {
            body.extend(number.to_le_bytes());
        }
        let end = services.iter().map(|(_, slot, ..)| slot + 1).max().unwrap_or(0);
        body.extend(end.to_le_bytes());
        body.extend((services.len() as u32).to_le_bytes());
        for (name, slot, parent, live) in services {
            body.extend(slot.to_le_bytes());
            body.extend(1_u64.to_le_bytes());
            body.extend(parent.unwrap_or(u32::MAX).to_le_bytes());
            body.extend(1_u64.to_le_bytes());
            body.extend((slot + 100).to_le_bytes());
            body.push(0);
            let limits = [if parent.is_some() { 1 << 20 } else { u64::MAX }, u64::MAX];
            usage(*live).into_iter().chain(limits).for_each(|number| body.extend(number.to_le_bytes()));
            body.extend((name.len() as u16).to_le_bytes());
            body.extend(name.as_bytes());
        }
        body
    }

    #[test]
    fn figures_are_read_and_cuts_are_seen() {
        let body = sent(7, &[("a", 1, None, 100), ("b", 2, Some(1), 50)]);
        let figures = Figures::parse(&body).unwrap();
        assert_eq!((figures.time, figures.cost, figures.totals.bytes()), (7, 7000, 150));
        assert_eq!((figures.slots, figures.services[0].read_at), (3, 7));
        let b = &figures.services[1];
        assert_eq!((b.name.as_str(), b.id, b.parent, b.handle), ("b", (2, 1), Some((1, 1)), 102));
        assert_eq!(
            (b.usage.bytes(), b.usage.peak_bytes, b.hard_limit, b.soft_limit),
            (50, 59, Some(1 << 20), None)
        );
        for end in 0..body.len() {
            assert_eq!(Figures::parse(&body[..end]), None, "{end}");
        }
        assert_eq!(Figures::parse(&[body, vec![0]].concat()), None);
    }

    #[test]
    fn services_that_have_ended_are_there_while_they_hold_something() {
        let mut body = sent(7, &[("a", 1, None, 100), ("b", 2, None, 50)]);
        let names = |body: &[u8]| {
            let services = Figures::parse(body).unwrap().services;
            services.into_iter().map(|service| service.name).collect::<Vec<_>>()
        };
        // The first one's letter, behind the head, its places and its handle.
        let retired = 88 + 4 + 8 + 4 + 8 + 4;
        body[retired] = 1;
        assert_eq!(names(&body), ["a", "b"]);
        // As many blocks are freed as were allocated.
        body[retired + 1 + 3 * 8] = 2;
        assert_eq!(names(&body), ["b"]);
    }
}

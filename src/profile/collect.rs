//! From the tables of samples and the ledger's figures to what reports are made of.

use super::buckets::{self, ENDED, Sums};
use super::profiler::{self, Baseline};
use super::stacks;
use crate::ledger::samples;
use crate::ledger::{self, interval};
use crate::usage::Usage;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

/// Says what the figures of a [`Profile`](super::Profile) count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Kind {
    /// What was allocated and not freed yet.
    #[default]
    Live,
    /// What was allocated since sampling began, freed or not.
    Allocated,
}

/// What was sampled, before names are looked up and figures calibrated.
#[derive(Clone, Debug)]
pub(crate) struct Collected {
    pub(crate) kind: Kind,
    pub(crate) rows: Vec<CollectedRow>,
    pub(crate) services: Vec<ServiceTotal>,
    /// Mean distance of sampled bytes; 0 while nothing is sampled.
    pub(crate) interval: u64,
    /// Samples that there was no space for.
    pub(crate) dropped: u64,
    pub(crate) began: SystemTime,
    pub(crate) taken: SystemTime,
}

/// What was sampled of one service and call stack, as estimates of what there was.
#[derive(Clone, Debug)]
pub(crate) struct CollectedRow {
    /// Its index among the services.
    pub(crate) service: usize,
    /// Return addresses, the innermost first; none where the stack is not known.
    pub(crate) stack: Arc<[usize]>,
    pub(crate) samples: u64,
    pub(crate) objects: f64,
    pub(crate) bytes: f64,
    pub(crate) objects_variance: f64,
    pub(crate) bytes_variance: f64,
}

/// A service's exact figures, from the ledger.
#[derive(Clone, Debug)]
pub(crate) struct ServiceTotal {
    pub(crate) name: Arc<str>,
    pub(crate) handle: u32,
    pub(crate) bytes: u64,
    pub(crate) blocks: u64,
    /// At most so many of these were allocated before sampling began.
    pub(crate) bytes_before: u64,
    pub(crate) blocks_before: u64,
}

/// Collects what is live.
pub(super) fn live() -> Collected {
    let mut rows = HashMap::new();
    samples::for_each(|sample| {
        let of_row: &mut Sums =
            rows.entry((sample.slot.index() as u32, sample.generation, sample.stack)).or_default();
        of_row.add(&Sums::of(&sample));
    });
    collect(Kind::Live, rows)
}

/// Collects what was allocated since sampling began.
pub(super) fn allocated() -> Collected {
    let mut rows: HashMap<_, Sums> = HashMap::new();
    buckets::for_each(|bucket| {
        rows.entry((bucket.slot, bucket.generation, bucket.stack)).or_default().add(&bucket.sums);
    });
    collect(Kind::Allocated, rows)
}

/// The slot and the generation.
type Service = (u32, u64);

/// All services that have ended.
const ENDED_SERVICES: Service = (ENDED, 0);

fn collect(kind: Kind, sums: HashMap<(u32, u64, u32), Sums>) -> Collected {
    profiler::with_baseline(|baseline| {
        let (services, indices) = totals(kind, baseline);
        let ended = indices.get(&ENDED_SERVICES).copied();
        let mut by_row: HashMap<(usize, u32), Sums> = HashMap::new();
        for ((slot, generation, stack), sums) in sums {
            // Live blocks of an ended service have been freed meanwhile.
            let Some(service) = indices.get(&(slot, generation)).copied().or(ended) else { continue };
            by_row.entry((service, stack)).or_default().add(&sums);
        }
        let rows = by_row.into_iter().map(|((service, stack), sums)| CollectedRow {
            service,
            stack: stacks::get(stack).collect(),
            samples: sums.samples,
            objects: sums.objects,
            bytes: sums.bytes,
            objects_variance: sums.objects_variance,
            bytes_variance: sums.bytes_variance,
        });
        Collected {
            kind,
            rows: rows.collect(),
            services,
            interval: interval::wanted(),
            dropped: samples::dropped()
                + stacks::dropped()
                + if kind == Kind::Allocated { buckets::dropped() } else { 0 },
            began: baseline.began,
            taken: SystemTime::now(),
        }
    })
}

/// The exact figures of all services, and where each is in the list.
fn totals(kind: Kind, baseline: &Baseline) -> (Vec<ServiceTotal>, HashMap<Service, usize>) {
    let mut services = Vec::new();
    let mut indices = HashMap::new();
    let mut living = Usage::default();
    let mut before_of_living = Usage::default();
    let all = ledger::usages(|record, usage| {
        let before = baseline.services.get(&record.identity()).copied().unwrap_or_default();
        living = living.and(usage);
        before_of_living = before_of_living.and(before);
        let (bytes, blocks, bytes_before, blocks_before) = match kind {
            Kind::Live => (usage.bytes(), usage.blocks(), before.bytes(), before.blocks()),
            Kind::Allocated => {
                let bytes = usage.allocated_bytes.wrapping_sub(before.allocated_bytes);
                (bytes, usage.allocated_blocks.wrapping_sub(before.allocated_blocks), 0, 0)
            }
        };
        indices.insert(record.identity(), services.len());
        services.push(ServiceTotal {
            name: record.name().into(),
            handle: record.handle(),
            bytes,
            blocks,
            bytes_before,
            blocks_before,
        });
    });
    if kind == Kind::Allocated {
        // All that was ever allocated, less what the living have; of that, what was before.
        let since = |all: u64, all_before: u64, living: u64, living_before: u64| {
            let since = all.wrapping_sub(all_before).wrapping_sub(living.wrapping_sub(living_before));
            // Sums are of slightly different moments.
            if since > u64::MAX / 2 { 0 } else { since }
        };
        indices.insert(ENDED_SERVICES, services.len());
        services.push(ServiceTotal {
            name: "[ended services]".into(),
            handle: 0,
            bytes: since(
                all.allocated_bytes,
                baseline.all.allocated_bytes,
                living.allocated_bytes,
                before_of_living.allocated_bytes,
            ),
            blocks: since(
                all.allocated_blocks,
                baseline.all.allocated_blocks,
                living.allocated_blocks,
                before_of_living.allocated_blocks,
            ),
            bytes_before: 0,
            blocks_before: 0,
        });
    }
    (services, indices)
}

//! Exports the figures of [dogtag](https://docs.rs/dogtag), an allocator that knows which service owns
//! every byte, as metrics of Prometheus' own client library, [`prometheus-client`](prometheus_client).
//!
//! ```
//! use dogtag_prometheus::ServiceCollector;
//! use prometheus_client::{encoding::text::encode, registry::Registry};
//!
//! #[global_allocator]
//! static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let auth = dogtag::Service::register("auth")?;
//! let tokens = auth.run(|| vec![0_u8; 1000]);
//!
//! let mut registry = Registry::default();
//! registry.register_collector(Box::new(ServiceCollector::new()));
//!
//! let mut text = String::new();
//! encode(&mut text, &registry)?;
//! assert!(text.contains("dogtag_service_live_bytes{service=\"auth\"} 1000"));
//! # drop(tokens);
//! # Ok(())
//! # }
//! ```
//!
//! The collector reads the figures when it is scraped. It has no thread of its own, and nothing to
//! configure but how many services have series of their own.
//!
//! This crate follows `prometheus-client`, whose version is part of its interface: the registry that
//! takes the collector must be of that version.

#![deny(missing_docs)]

use dogtag::{Row, Service, Usage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::collections::HashMap;
use std::fmt;

/// Collects the figures of all services and of the process, for a
/// [`Registry`](prometheus_client::registry::Registry).
///
/// Each scrape takes a [`dogtag::snapshot`] and a [`dogtag::balance`], so that figures are those of
/// that moment. What the collector allocates meanwhile is charged to the service `unattributed`.
///
/// # Metrics
///
/// With a label `service`, the service's name:
///
/// | metric | type | what it is |
/// | --- | --- | --- |
/// | `dogtag_service_live_bytes`, `_live_blocks` | gauge | what the service holds |
/// | `dogtag_service_allocated_bytes_total`, `_allocated_blocks_total`, `_freed_bytes_total`, `_freed_blocks_total` | counter | what it has allocated, and freed, so far |
/// | `dogtag_service_peak_bytes` | gauge | the most that it has held |
/// | `dogtag_service_hard_limit_bytes`, `_soft_limit_bytes` | gauge | its limits, where it has them |
/// | `dogtag_service_denied_allocations_total` | counter | its allocations that a limit has denied |
///
/// Without a label, of the process: `dogtag_live_bytes` and so on for each of the metrics above but the
/// limits, `dogtag_services` (the number of services), `dogtag_lost_blocks_total`
/// ([`Lost`](dogtag::Lost)), and `dogtag_resident_bytes`, which is the sum of `dogtag_balance_bytes`
/// with a label `part` (the lines of [`Balance`](dogtag::Balance)).
///
/// # Which services
///
/// The 100 services that hold the most have series of their own, or
/// [as many as you choose](Self::most_services). The others are summed as `(other)`. The blocks of
/// services that were dropped are summed as `name (retired)`. These two have gauges only, since a
/// counter that services join and leave would go down.
///
/// A label has 265 bytes at most ([`Service::MAX_NAME_LEN`] and `" (retired)"`). Prometheus drops a
/// scrape with a label over its `label_value_length_limit`, so keep that above.
#[derive(Clone, Debug)]
pub struct ServiceCollector {
    most_services: usize,
}

impl ServiceCollector {
    /// Makes a collector that has series of their own for the 100 services that hold the most.
    #[must_use]
    pub fn new() -> Self {
        Self { most_services: 100 }
    }

    /// Sets how many services have series of their own: those that hold the most. Use 0 to have all
    /// services summed as `(other)`.
    #[must_use]
    pub fn most_services(mut self, number: usize) -> Self {
        self.most_services = number;
        self
    }
}

impl Default for ServiceCollector {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector for ServiceCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let unattributed = Service::unattributed();
        let scope = unattributed.enter();
        let snapshot = dogtag::snapshot();
        let balance = dogtag::balance();
        let services = self.choose(&snapshot.rows);
        // The text that is written belongs to the service of the caller.
        drop(scope);
        let mut writer = Writer(encoder);

        for figure in &FIGURES {
            let name = format!("dogtag_service_{}", figure.name);
            let help = format!("{}, of each service", figure.help);
            let shown = services.iter().filter(|series| figure.of_many || series.living.is_some());
            let samples = shown.map(|series| (&*series.label, (figure.value)(&series.usage)));
            writer.metric(&name, &help, figure.unit(), figure.kind, "service", samples)?;
        }
        for (name, help, limit) in LIMITS {
            let name = format!("dogtag_service_{name}");
            let limits = services.iter().filter_map(|series| Some((&*series.label, limit(series.living?)?)));
            writer.metric(&name, help, Some(&Unit::Bytes), MetricType::Gauge, "service", limits)?;
        }
        for figure in &FIGURES {
            let name = format!("dogtag_{}", figure.name);
            let help = format!("{}, of the process", figure.help);
            writer.single(&name, &help, figure.unit(), figure.kind, (figure.value)(&snapshot.totals))?;
        }
        let help = "Services that live, or have left blocks behind";
        writer.single("dogtag_services", help, None, MetricType::Gauge, snapshot.rows.len() as u64)?;
        let help = "Blocks that were freed with an overwritten owner, so that nobody was refunded";
        writer.single("dogtag_lost_blocks", help, None, MetricType::Counter, snapshot.lost.blocks)?;

        let Some(resident) = balance.resident else { return Ok(()) };
        let help = "Physical memory of the process (RSS)";
        writer.single("dogtag_resident", help, Some(&Unit::Bytes), MetricType::Gauge, resident)?;
        let help = "Where the physical memory of the process is; the parts add up to dogtag_resident_bytes";
        let lines = balance.lines();
        let parts = lines.iter().map(|line| (line.part, line.bytes));
        writer.metric("dogtag_balance", help, Some(&Unit::Bytes), MetricType::Gauge, "part", parts)
    }
}

/// A metric of each service, and of the process.
struct Figure {
    name: &'static str,
    help: &'static str,
    is_bytes: bool,
    kind: MetricType,
    /// Whether it has a meaning as a sum over services that come and go.
    of_many: bool,
    value: fn(&Usage) -> u64,
}

impl Figure {
    const fn gauge(name: &'static str, help: &'static str, is_bytes: bool, value: fn(&Usage) -> u64) -> Self {
        Self { name, help, is_bytes, kind: MetricType::Gauge, of_many: true, value }
    }

    const fn counter(
        name: &'static str,
        help: &'static str,
        is_bytes: bool,
        value: fn(&Usage) -> u64,
    ) -> Self {
        Self { name, help, is_bytes, kind: MetricType::Counter, of_many: false, value }
    }

    fn unit(&self) -> Option<&Unit> {
        self.is_bytes.then_some(&Unit::Bytes)
    }
}

/// The metrics of services, without the suffixes `_bytes` and `_total`, which the library adds.
static FIGURES: [Figure; 8] = [
    Figure::gauge("live", "Bytes that were requested and not freed", true, |usage| usage.bytes()),
    Figure::gauge("live_blocks", "Blocks that were allocated and not freed", false, |usage| usage.blocks()),
    Figure::counter("allocated", "Bytes that were allocated so far", true, |usage| usage.allocated_bytes),
    Figure::counter("allocated_blocks", "Blocks that were allocated so far", false, |usage| {
        usage.allocated_blocks
    }),
    Figure::counter("freed", "Bytes that were freed so far, by whomever", true, |usage| usage.freed_bytes),
    Figure::counter("freed_blocks", "Blocks that were freed so far, by whomever", false, |usage| {
        usage.freed_blocks
    }),
    Figure {
        of_many: false,
        ..Figure::gauge("peak", "The most bytes that were live at once", true, |usage| usage.peak_bytes)
    },
    Figure::counter("denied_allocations", "Allocations that a hard limit has denied", false, |usage| {
        usage.denied
    }),
];

type Limit = fn(&Row) -> Option<u64>;

const LIMITS: [(&str, &str, Limit); 2] = [
    ("hard_limit", "The most bytes that a service and those below it may hold", |row| row.hard_limit),
    ("soft_limit", "The bytes past which an event tells what a service and those below it hold", |row| {
        row.soft_limit
    }),
];

/// The values with one label: those of a service, or the sum of several.
struct Series<'a> {
    label: String,
    usage: Usage,
    /// The service, if the series is that of one living service. Only then do counters never fall.
    living: Option<&'a Row>,
}

impl ServiceCollector {
    /// Chooses the services that have series of their own, and sums the others. No two series have the
    /// same label.
    fn choose<'a>(&self, rows: &'a [Row]) -> Vec<Series<'a>> {
        const OTHERS: &str = "(other)";

        let mut chosen: Vec<Series<'a>> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut others = Usage::default();
        let mut add = |label: String, usage, living| match places.get(&label) {
            Some(place) => {
                let known = &mut chosen[*place];
                add_live(&mut known.usage, &usage);
                known.living = None;
            }
            None => {
                places.insert(label.clone(), chosen.len());
                chosen.push(Series { label, usage, living });
            }
        };
        for (place, row) in rows.iter().enumerate() {
            if place >= self.most_services {
                add_live(&mut others, &row.usage);
            } else if row.is_retired {
                add(format!("{} (retired)", row.name), row.usage, None);
            } else {
                add(row.name.clone(), row.usage, Some(row));
            }
        }
        if rows.len() > self.most_services {
            add(OTHERS.to_owned(), others, None);
        }
        chosen
    }
}

/// Adds what is live: of a sum of services nothing else is shown. Figures of one process wrap together.
fn add_live(sum: &mut Usage, usage: &Usage) {
    sum.allocated_bytes = sum.allocated_bytes.wrapping_add(usage.allocated_bytes);
    sum.allocated_blocks = sum.allocated_blocks.wrapping_add(usage.allocated_blocks);
    sum.freed_bytes = sum.freed_bytes.wrapping_add(usage.freed_bytes);
    sum.freed_blocks = sum.freed_blocks.wrapping_add(usage.freed_blocks);
}

/// Writes metrics in the library's encoding.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn single(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        value: u64,
    ) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, unit, kind)?;
        write(metric, kind, value)
    }

    fn metric<'a, V: TryInto<i64>>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        label: &str,
        samples: impl Iterator<Item = (&'a str, V)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, unit, kind)?;
        for (value_of, value) in samples {
            write(metric.encode_family(&[(label, value_of)])?, kind, value)?;
        }
        Ok(())
    }
}

fn write(mut metric: MetricEncoder<'_>, kind: MetricType, value: impl TryInto<i64>) -> fmt::Result {
    // Gauges of the library are signed.
    let value = value.try_into().unwrap_or(i64::MAX);
    match kind {
        MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value.unsigned_abs(), None),
        _ => metric.encode_gauge(&value),
    }
}

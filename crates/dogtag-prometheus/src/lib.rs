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

pub use dogtag::__private::series::LabelError;

use dogtag::__private::series::{Kind, Label, METRICS, Names, Reading, Sample, Unit as Counted, check_label};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::borrow::Cow;
use std::fmt;

/// Collects the figures of all services and of the process, for a
/// [`Registry`](prometheus_client::registry::Registry).
///
/// Each scrape takes a [`dogtag::snapshot`] and a [`dogtag::balance`], so that figures are those of
/// that moment. What the collector allocates meanwhile is charged to the service `unattributed`.
///
/// # Metrics
///
/// With a label `service`, the service's name (dogtag's guide, chapter "Metrics", has all in one table):
///
/// | metric | type | what it is |
/// | --- | --- | --- |
/// | `dogtag_service_live_bytes`, `_live_blocks` | gauge | what the service holds |
/// | `dogtag_service_allocated_bytes_total`, `_allocated_blocks_total`, `_freed_bytes_total`, `_freed_blocks_total` | counter | what it has allocated, and freed, so far |
/// | `dogtag_service_peak_bytes` | gauge | the most that it has held |
/// | `dogtag_service_hard_limit_bytes`, `_soft_limit_bytes` | gauge | its limits, where it has them |
/// | `dogtag_service_live_with_children_bytes` | gauge | what its limits bound, where it has them: its live bytes and those of the services below it |
/// | `dogtag_service_denied_allocations_total` | counter | its allocations that a limit has denied |
///
/// Without a label, of the process: `dogtag_live_bytes` and so on for each of the metrics above but the
/// limits, `dogtag_services` (the number of services), `dogtag_lost_blocks_total`
/// ([`Lost`](dogtag::Lost)), and `dogtag_resident_bytes`, which is the sum of `dogtag_balance_bytes`
/// with a label `part` (the lines of [`Balance`](dogtag::Balance)).
///
/// With the feature `guard` of dogtag there are six more: `dogtag_cancelled_services_total` with a label `by`
/// (`program`, `budget`, `guard`), `dogtag_refused_allocations_total`, and of
/// [those that let go](dogtag::Cancellations) `dogtag_unreleased_services`, `dogtag_unreleased_bytes`,
/// `dogtag_last_release_seconds` and `dogtag_longest_release_seconds`. Once a sampled guard was started (feature
/// `sampled-guard`), there are `dogtag_sampled_guard_violations_total` and six more.
///
/// # Which services
///
/// The 100 services that hold the most have series of their own, or
/// [as many as you choose](Self::most_services), and within an hour
/// [ten times as many names](Self::most_names). The others are summed as `(other)`. The blocks of
/// services that were dropped are summed as `name (retired)`, and of those that were cancelled as
/// `name (cancelled)`. These three have gauges only, since a counter that services join and leave would go
/// down.
///
/// A value of the label has 267 bytes at most ([`Service::MAX_NAME_LEN`](dogtag::Service::MAX_NAME_LEN) and
/// `" (cancelled)"`). Prometheus drops a scrape with one over its `label_value_length_limit`, so keep that above.
///
/// # The label's name
///
/// It is `service`, or [as you choose](Self::label). Choose another one
///
/// - where the target has a label `service` already, as Prometheus' discovery in Kubernetes and its operator
///   make it: Prometheus calls ours `exported_service` there (or with `honor_labels` it overwrites the
///   target's);
/// - in a [sub-registry with a label](prometheus_client::registry::Registry::sub_registry_with_label)
///   `service`: each series would have two of that name, and Prometheus drops the whole scrape.
///
/// # promtool
///
/// `promtool check metrics` reads the older text format, in which a counter's description has its whole name. The
/// library writes OpenMetrics, in which it has not, so promtool 2.42 says of every counter, of whichever
/// collector: `counter metrics should have "_total" suffix`. Prometheus itself reads both.
#[derive(Clone, Debug)]
pub struct ServiceCollector {
    most_services: usize,
    most_names: Option<usize>,
    names: Names,
    label: Cow<'static, str>,
}

impl ServiceCollector {
    /// Makes a collector that has series of their own for the 100 services that hold the most.
    #[must_use]
    pub fn new() -> Self {
        Self { most_services: 100, most_names: None, names: Names::default(), label: "service".into() }
    }

    /// Sets how many services have series of their own: those that hold the most. Use 0 to have all
    /// services summed as `(other)`.
    #[must_use]
    pub fn most_services(mut self, number: usize) -> Self {
        self.most_services = number;
        self
    }

    /// Sets how many names of services have series of their own within an hour: ten for each of the
    /// [services at a time](Self::most_services) by default. Services with other names are part of `(other)`
    /// meanwhile. So services that come and go, each with a name of its own, do not fill up whoever stores the
    /// series.
    #[must_use]
    pub fn most_names(mut self, number: usize) -> Self {
        self.most_names = Some(number);
        self
    }

    /// Sets the name of the label that has the service's name.
    ///
    /// ```
    /// use dogtag_prometheus::ServiceCollector;
    ///
    /// let collector = ServiceCollector::new().label("dogtag_service")?;
    /// assert!(ServiceCollector::new().label("dogtag-service").is_err());
    /// # drop(collector);
    /// # Ok::<(), dogtag_prometheus::LabelError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`LabelError`] if Prometheus would not take it.
    pub fn label(mut self, name: impl Into<Cow<'static, str>>) -> Result<Self, LabelError> {
        let name = name.into();
        check_label(&name)?;
        self.label = name;
        Ok(self)
    }
}

impl Default for ServiceCollector {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector for ServiceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let reading = Reading::take_named(
            self.most_services,
            self.most_names.unwrap_or(self.most_services.saturating_mul(10)),
            &self.names,
        );
        for metric in &METRICS {
            let mut samples = reading.samples(metric).peekable();
            if samples.peek().is_none() {
                continue;
            }
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Sum | Kind::Gauge => MetricType::Gauge,
            };
            let unit = match metric.unit {
                Counted::Bytes => Some(&Unit::Bytes),
                Counted::Seconds => Some(&Unit::Seconds),
                _ => None,
            };
            let label = metric.label().map(|label| match label {
                Label::Service => &*self.label,
                Label::Part => "part",
                Label::By => "by",
            });
            let name = metric.base_name();
            let mut family = encoder.encode_descriptor(&name, metric.help, unit, kind)?;
            let Some(label) = label else {
                if let Some(sample) = samples.next() {
                    write(family, metric.unit, kind, sample)?;
                }
                continue;
            };
            for sample in samples {
                write(family.encode_family(&[(label, sample.label)])?, metric.unit, kind, sample)?;
            }
        }
        Ok(())
    }
}

fn write(mut metric: MetricEncoder<'_>, unit: Counted, kind: MetricType, sample: Sample<'_>) -> fmt::Result {
    match (kind, unit) {
        (MetricType::Counter, _) => {
            metric.encode_counter::<NoLabelSet, _, u64>(&sample.value.unsigned_abs(), None)
        }
        (_, Counted::Seconds) => metric.encode_gauge(&sample.seconds()),
        _ => metric.encode_gauge(&sample.value),
    }
}

//! Exports the figures of [dogtag](https://docs.rs/dogtag), an allocator that knows which service owns
//! every byte, as metrics of tikv's Prometheus library, the crate [`prometheus`] 0.13 or 0.14.
//!
//! ```
//! use dogtag_tikv_prometheus::ServiceCollector;
//! use prometheus::{Registry, TextEncoder};
//!
//! #[global_allocator]
//! static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let auth = dogtag::Service::register("auth")?;
//! let tokens = auth.run(|| vec![0_u8; 1000]);
//!
//! let registry = Registry::new();                 // Or `prometheus::default_registry()`.
//! registry.register(Box::new(ServiceCollector::new()))?;
//!
//! let text = TextEncoder::new().encode_to_string(&registry.gather())?;
//! assert!(text.contains("dogtag_service_live_bytes{service=\"auth\"} 1000"));
//! # drop(tokens);
//! # Ok(())
//! # }
//! ```
//!
//! The metrics are those of the table in dogtag's guide (chapter "Metrics"), with the names that all of dogtag's exporters have. The
//! collector reads the figures when it is asked for them; services that have ended are gone then.
//!
//! The library keeps all values as floating-point numbers: above 2⁵³ bytes, which is 8 PiB, counters are
//! rounded.

#![deny(missing_docs)]

pub use dogtag::__private::series::LabelError;

use dogtag::__private::series::{Kind, Label, METRICS, Metric, Names, Reading, Unit, check_label};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts};
use std::borrow::Cow;
use std::collections::HashMap;

/// Collects the figures of all services and of the process, for a
/// [`Registry`](prometheus::Registry).
///
/// The 100 services that hold the most have series of their own, or [as many as you choose](Self::most_services). The
/// others are summed as `(other)`. The blocks of services that were dropped are summed as `name (retired)`,
/// and of those that were cancelled as `name (cancelled)`.
#[derive(Debug)]
pub struct ServiceCollector {
    most_services: usize,
    most_names: Option<usize>,
    names: Names,
    label: Cow<'static, str>,
    descriptions: Vec<Desc>,
}

impl ServiceCollector {
    /// Makes a collector that has series of their own for the 100 services that hold the most.
    #[must_use]
    pub fn new() -> Self {
        Self::with("service".into())
    }

    fn with(label: Cow<'static, str>) -> Self {
        let description = |metric: &Metric| {
            let labels = labels(metric, &label).map(str::to_owned);
            Desc::new(metric.full_name(), metric.help.into(), Vec::from_iter(labels), HashMap::new())
        };
        // Names and labels are such as the library takes, so none is left out.
        let descriptions = METRICS.iter().filter_map(|metric| description(metric).ok()).collect();
        Self { most_services: 100, most_names: None, names: Names::default(), label, descriptions }
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

    /// Sets the name of the label that has the service's name, which is `service` by default. Choose another one
    /// where the registry or, as in Kubernetes, the target has a label of that name already.
    ///
    /// ```
    /// # use dogtag_tikv_prometheus::ServiceCollector;
    /// let collector = ServiceCollector::new().label("dogtag_service")?;
    /// # drop(collector);
    /// # Ok::<(), dogtag_tikv_prometheus::LabelError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`LabelError`] if Prometheus would not take it.
    pub fn label(self, name: impl Into<Cow<'static, str>>) -> Result<Self, LabelError> {
        let name = name.into();
        check_label(&name)?;
        let Self { most_services, most_names, names, .. } = self;
        Ok(Self { most_services, most_names, names, ..Self::with(name) })
    }

    /// One metric, as the library has it. It is made anew each time, so that nothing is left of services
    /// that have ended.
    fn family(&self, metric: &Metric, reading: &Reading) -> prometheus::Result<Vec<MetricFamily>> {
        let options = Opts::new(metric.full_name(), metric.help);
        let label = labels(metric, &self.label);
        let has_label = label.is_some();
        match metric.kind {
            Kind::Counter => {
                let counters = IntCounterVec::new(options, label.as_slice())?;
                for sample in reading.samples(metric) {
                    let labels = has_label.then_some(sample.label);
                    counters
                        .get_metric_with_label_values(labels.as_slice())?
                        .inc_by(sample.value.unsigned_abs());
                }
                Ok(counters.collect())
            }
            Kind::Sum | Kind::Gauge if metric.unit == Unit::Seconds => {
                let gauges = GaugeVec::new(options, label.as_slice())?;
                for sample in reading.samples(metric) {
                    let labels = has_label.then_some(sample.label);
                    gauges.get_metric_with_label_values(labels.as_slice())?.set(sample.seconds());
                }
                Ok(gauges.collect())
            }
            Kind::Sum | Kind::Gauge => {
                let gauges = IntGaugeVec::new(options, label.as_slice())?;
                for sample in reading.samples(metric) {
                    let labels = has_label.then_some(sample.label);
                    gauges.get_metric_with_label_values(labels.as_slice())?.set(sample.value);
                }
                Ok(gauges.collect())
            }
        }
    }
}

fn labels<'a>(metric: &Metric, service: &'a str) -> Option<&'a str> {
    metric.label().map(|label| match label {
        Label::Service => service,
        Label::Part => "part",
        Label::By => "by",
    })
}

impl Default for ServiceCollector {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector for ServiceCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let reading = Reading::take_named(
            self.most_services,
            self.most_names.unwrap_or(self.most_services.saturating_mul(10)),
            &self.names,
        );
        let families = METRICS.iter().filter_map(|metric| self.family(metric, &reading).ok());
        families.flatten().filter(|family| !family.get_metric().is_empty()).collect()
    }
}

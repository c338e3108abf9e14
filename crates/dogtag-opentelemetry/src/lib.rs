//! Exports the figures of [dogtag](https://docs.rs/dogtag), an allocator that knows which service owns
//! every byte, as observable instruments of [OpenTelemetry](opentelemetry) 0.33.
//!
//! ```
//! use dogtag_opentelemetry::ServiceExporter;
//! use opentelemetry::metrics::MeterProvider;
//!
//! #[global_allocator]
//! static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//!
//! # let provider = opentelemetry_sdk::metrics::SdkMeterProvider::builder().build();
//! // Once, with the program's meter provider, or `opentelemetry::global::meter("dogtag")`.
//! ServiceExporter::new().observe(&provider.meter("dogtag"));
//! ```
//!
//! # Instruments
//!
//! By the semantic conventions, names have dots and no unit: `dogtag.service.live` with the unit `By` is
//! `dogtag_service_live_bytes` in Prometheus, and so all are those of the table in dogtag's guide (chapter "Metrics").
//!
//! | what | instrument | unit |
//! | --- | --- | --- |
//! | `dogtag.service.live`, `dogtag.live`, `dogtag.resident`, `dogtag.balance` | up-down counter | `By` |
//! | `dogtag.service.live_blocks`, `dogtag.live_blocks` | up-down counter | `{block}` |
//! | `dogtag.service.allocated`, `.freed`, and of the process | counter | `By` |
//! | `dogtag.service.allocated_blocks`, `.freed_blocks`, and of the process; `dogtag.lost_blocks` | counter | `{block}` |
//! | `dogtag.service.denied_allocations`, `dogtag.denied_allocations` | counter | `{allocation}` |
//! | `dogtag.service.peak`, `.hard_limit`, `.soft_limit`, `.live_with_children`, `dogtag.peak` | gauge | `By` |
//! | `dogtag.services` | up-down counter | `{service}` |
//!
//! The attribute `service` has the service's name, and `part` of `dogtag.balance` the line's.
//!
//! # Which services
//!
//! The 100 services that hold the most have series of their own, or as many as you choose, up to
//! [`ServiceExporter::MOST_SERVICES`]. The others are summed as `(other)`, so that the SDK's limit of
//! 2000 series for an instrument is never reached. (Beyond that limit the SDK of 0.33 shows of all
//! further series one value, not the sum.) Services that have ended are not observed any more.
//!
//! # Counters, with either temporality
//!
//! A service may leave the largest and come back. The SDK, where it exports deltas, takes what comes back for new, and counts
//! all of it again. So a counter goes on at 0 then, as one does after a restart: what backends show as a rate
//! or an increase is right, with deltas and with cumulative values.

#![deny(missing_docs)]

use dogtag::__private::series::{Kind, Label, METRICS, Metric, Names, Reading, Sample, Unit};
use dogtag::__private::{call, discard, service::unattributed};
use opentelemetry::metrics::Meter;
use opentelemetry::{Key, KeyValue};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Observes the figures of all services and of the process, each time that the SDK's readers collect.
///
/// What it allocates meanwhile is unattributed.
#[derive(Clone, Debug)]
pub struct ServiceExporter {
    most_services: usize,
    most_names: Option<usize>,
    names: Names,
    attribute: Cow<'static, str>,
}

impl ServiceExporter {
    /// The most services that have series of their own. The SDK keeps the series of one collection until the
    /// next one is over, so it has room for twice as many.
    pub const MOST_SERVICES: usize = 900;

    /// Makes an exporter that has series of their own for the 100 services that hold the most.
    #[must_use]
    pub fn new() -> Self {
        Self { most_services: 100, most_names: None, names: Names::default(), attribute: "service".into() }
    }

    /// Sets how many services have series of their own: those that hold the most, and no more than
    /// [`MOST_SERVICES`](Self::MOST_SERVICES). Use 0 to have all services summed as `(other)`.
    #[must_use]
    pub fn most_services(mut self, number: usize) -> Self {
        self.most_services = number.min(Self::MOST_SERVICES);
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

    /// Sets the name of the attribute that has the service's name, which is `service` by default.
    ///
    /// ```
    /// # use dogtag_opentelemetry::ServiceExporter;
    /// let exporter = ServiceExporter::new().attribute("dogtag.service");
    /// # drop(exporter);
    /// ```
    #[must_use]
    pub fn attribute(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.attribute = name.into();
        self
    }

    fn reading(&self) -> Reading {
        let most_names = self.most_names.unwrap_or(self.most_services.saturating_mul(10));
        Reading::take_named(self.most_services, most_names, &self.names)
    }

    /// Makes the instruments. They are observed as long as the meter's provider lives: call this once
    /// for each provider.
    pub fn observe(self, meter: &Meter) {
        let readings = Arc::new(Readings { exporter: self, state: Mutex::default() });
        for (number, metric) in METRICS.iter().enumerate() {
            let readings = Arc::clone(&readings);
            let (name, unit) = (metric.dotted_name(), unit(metric.unit));
            match metric.kind {
                Kind::Counter => {
                    let observe =
                        move |value: u64,
                              attributes: &[KeyValue],
                              to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
                            to.observe(value, attributes);
                        };
                    meter
                        .u64_observable_counter(name)
                        .with_unit(unit)
                        .with_description(metric.help)
                        .with_callback(move |to| {
                            readings.counts(number, |value, attributes| observe(value, attributes, to))
                        })
                        .build();
                }
                Kind::Sum | Kind::Gauge if metric.unit == Unit::Seconds => {
                    meter
                        .f64_observable_gauge(name)
                        .with_unit(unit)
                        .with_description(metric.help)
                        .with_callback(move |to| {
                            readings
                                .values(number, |sample, attributes| to.observe(sample.seconds(), attributes))
                        })
                        .build();
                }
                Kind::Sum => {
                    meter
                        .i64_observable_up_down_counter(name)
                        .with_unit(unit)
                        .with_description(metric.help)
                        .with_callback(move |to| {
                            readings.values(number, |sample, attributes| to.observe(sample.value, attributes))
                        })
                        .build();
                }
                Kind::Gauge => {
                    meter
                        .i64_observable_gauge(name)
                        .with_unit(unit)
                        .with_description(metric.help)
                        .with_callback(move |to| {
                            readings.values(number, |sample, attributes| to.observe(sample.value, attributes))
                        })
                        .build();
                }
            }
        }
    }
}

impl Default for ServiceExporter {
    fn default() -> Self {
        Self::new()
    }
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "By",
        Unit::Blocks => "{block}",
        Unit::Allocations => "{allocation}",
        Unit::Services => "{service}",
        Unit::Events => "{event}",
        Unit::Seconds => "s",
    }
}

/// What the callbacks of all instruments share.
struct Readings {
    exporter: ServiceExporter,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reading: Option<Arc<Reading>>,
    /// The metrics that have been observed of this reading.
    observed: HashSet<usize>,
    /// How many readings there were.
    number: u64,
    counters: HashMap<(usize, String), Counted>,
}

/// What has been observed of a counter.
#[derive(Clone, Copy)]
struct Counted {
    /// The value at which the series began.
    from: u64,
    last: u64,
    /// The reading in which that was.
    reading: u64,
}

impl Readings {
    /// The SDK's readers call for one instrument after the other: one reading is for all of them, until one comes
    /// the second time.
    fn reading(&self, metric: usize, state: &mut State) -> Arc<Reading> {
        if let Some(reading) = &state.reading
            && state.observed.insert(metric)
        {
            return Arc::clone(reading);
        }
        let reading = Arc::new(self.exporter.reading());
        state.reading = Some(Arc::clone(&reading));
        state.observed = HashSet::from([metric]);
        state.number += 1;
        reading
    }

    fn values(&self, metric: usize, mut observe: impl FnMut(Sample<'_>, &[KeyValue])) {
        contained(|| {
            let reading =
                self.reading(metric, &mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
            for sample in reading.samples(&METRICS[metric]) {
                observe(sample, self.attributes(&METRICS[metric], sample.label).as_slice());
            }
        });
    }

    fn counts(&self, metric: usize, mut observe: impl FnMut(u64, &[KeyValue])) {
        contained(|| {
            let mut observed = Vec::new();
            {
                let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let reading = self.reading(metric, state);
                let now = state.number;
                for sample in reading.samples(&METRICS[metric]) {
                    let value = sample.value.unsigned_abs();
                    let counted = state
                        .counters
                        .entry((metric, sample.label.to_owned()))
                        .or_insert(Counted { from: 0, last: 0, reading: now });
                    let is_another = value < counted.last;
                    if is_another {
                        // Another service of that name. Left out once, its series begins anew.
                        *counted = Counted { from: 0, last: 0, reading: now };
                        continue;
                    }
                    if counted.reading + 1 < now {
                        counted.from = counted.last;
                    }
                    *counted = Counted { last: value, reading: now, ..*counted };
                    observed.push((value - counted.from, self.attributes(&METRICS[metric], sample.label)));
                }
                forget(metric, &reading, state);
            }
            for (value, attributes) in observed {
                observe(value, attributes.as_slice());
            }
        });
    }

    fn attributes(&self, metric: &Metric, label: &str) -> Option<KeyValue> {
        let name = match metric.label()? {
            Label::Service => Key::from(self.exporter.attribute.clone().into_owned()),
            Label::Part => Key::from_static_str("part"),
            Label::By => Key::from_static_str("by"),
        };
        Some(KeyValue::new(name, label.to_owned()))
    }
}

/// Forgets the counters of services that have ended.
fn forget(metric: usize, reading: &Reading, state: &mut State) {
    let now = state.number;
    let is_missing = |of: usize, counted: &Counted| of == metric && counted.reading != now;
    if state.counters.iter().any(|((of, _), counted)| is_missing(*of, counted)) {
        let living: HashSet<&str> = reading.living().collect();
        state.counters.retain(|(of, label), counted| !is_missing(*of, counted) || living.contains(&**label));
    }
}

/// Calls, unattributed. A panic in a callback would end the SDK's reader for good: it ends here.
fn contained(work: impl FnOnce()) {
    unattributed(|| {
        if let Err(payload) = call(work) {
            discard(payload);
        }
    });
}

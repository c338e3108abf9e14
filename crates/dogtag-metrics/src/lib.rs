//! Exports the figures of [dogtag](https://docs.rs/dogtag), an allocator that knows which service owns
//! every byte, by the facade [`metrics`] 0.24, to whichever recorder the program has installed.
//!
//! ```
//! use dogtag_metrics::ServiceExporter;
//!
//! #[global_allocator]
//! static ALLOC: dogtag::Dogtag = dogtag::Dogtag::new();
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
//! # let handle = recorder.handle();
//! # metrics::set_global_recorder(recorder)?;
//! let auth = dogtag::Service::register("auth")?;
//! let tokens = auth.run(|| vec![0_u8; 1000]);
//!
//! let exporter = ServiceExporter::new();
//! exporter.update();                          // Before each scrape, or now and then;
//!                                             // or `exporter.update_every(Duration::from_secs(10))?`.
//! # let text = handle.render();
//! assert!(text.contains("dogtag_service_live_bytes{service=\"auth\"} 1000"));
//! # drop(tokens);
//! # Ok(())
//! # }
//! ```
//!
//! The metrics are those of the table in dogtag's guide (chapter "Metrics"), with the names that all of dogtag's
//! exporters have.
//!
//! # Services that end
//!
//! The facade has no means to take a series back: a recorder keeps it until it is idle for too long, if it has such a
//! limit (`idle_timeout` of `metrics-exporter-prometheus`). What a service that ended, or no longer is among the largest,
//! holds is set to 0 then, once, since it is no longer its own or is part of `(other)`; its peak and limits are set to NaN. So that names that come and go do not pile up,
//! only so many names [have series at all](ServiceExporter::most_names).

#![deny(missing_docs)]

pub use dogtag::__private::series::LabelError;

use dogtag::__private::series::{
    Kind, Label as Tells, METRICS, Metric, Reading, Unit as Counted, check_label,
};
use dogtag::__private::{call, discard, service::unattributed};
use metrics::{Key, Label, Level, Metadata, Recorder, Unit};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

/// Sets gauges and counters of the program's recorder to the figures of all services and of the process.
///
/// The 100 services that hold the most have series of their own, or [as many as you choose](Self::most_services). The
/// others are summed as `(other)`. The blocks of services that were dropped are summed as `name (retired)`,
/// and of those that were cancelled as `name (cancelled)`.
///
/// What the exporter and the recorder allocate in an update is unattributed.
#[derive(Debug)]
pub struct ServiceExporter {
    most_services: usize,
    most_names: Option<usize>,
    label: Cow<'static, str>,
    shown: Mutex<Shown>,
}

/// What the recorder has been told.
#[derive(Debug, Default)]
struct Shown {
    /// All that have ever had a series.
    names: HashSet<String>,
    /// The last values of counters, by metric and label.
    counters: HashMap<(usize, String), u64>,
    /// The gauges of the last update.
    gauges: HashSet<(usize, String)>,
}

impl ServiceExporter {
    /// Makes an exporter that has series of their own for the 100 services that hold the most.
    #[must_use]
    pub fn new() -> Self {
        Self { most_services: 100, most_names: None, label: "service".into(), shown: Mutex::default() }
    }

    /// Sets how many services have series of their own at a time: those that hold the most. Use 0 to have all
    /// services summed as `(other)`.
    #[must_use]
    pub fn most_services(mut self, number: usize) -> Self {
        self.most_services = number;
        self
    }

    /// Sets how many names have series of their own as long as the exporter lives: ten for each of the
    /// [services at a time](Self::most_services) by default. Services with later names are part of `(other)`.
    #[must_use]
    pub fn most_names(mut self, number: usize) -> Self {
        self.most_names = Some(number);
        self
    }

    /// Sets the name of the label that has the service's name, which is `service` by default. Choose another one
    /// where the recorder or, as in Kubernetes, the target has a label of that name already.
    ///
    /// ```
    /// # use dogtag_metrics::ServiceExporter;
    /// let exporter = ServiceExporter::new().label("dogtag_service")?;
    /// # drop(exporter);
    /// # Ok::<(), dogtag_metrics::LabelError>(())
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

    /// Reads all figures, and tells them to the recorder: the thread's own, if it has one, or the global one.
    pub fn update(&self) {
        unattributed(|| {
            let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            metrics::with_recorder(|recorder| self.tell(recorder, &mut shown));
        });
    }

    /// Updates now and each time that the interval has passed, on a thread of its own, for as long as the process
    /// lives. A recorder's panic ends one update, not the thread.
    ///
    /// # Errors
    ///
    /// If the system gives no thread.
    pub fn update_every(self, interval: Duration) -> io::Result<()> {
        let update = move || {
            loop {
                if let Err(payload) = call(|| self.update()) {
                    discard(payload);
                }
                thread::sleep(interval);
            }
        };
        unattributed(|| thread::Builder::new().name("dogtag-metrics".into()).spawn(update))?;
        Ok(())
    }

    fn tell(&self, recorder: &dyn Recorder, shown: &mut Shown) {
        let most_names = self.most_names.unwrap_or(self.most_services.saturating_mul(10));
        let reading = Reading::take_admitted(self.most_services, |name| {
            let is_admitted = shown.names.contains(name) || shown.names.len() < most_names;
            if is_admitted {
                shown.names.insert(name.to_owned());
            }
            is_admitted
        });
        let mut gauges = HashSet::new();
        for (number, metric) in METRICS.iter().enumerate() {
            self.describe(recorder, metric);
            for sample in reading.samples(metric) {
                let key = self.key(metric, sample.label);
                let place = (number, sample.label.to_owned());
                if metric.kind == Kind::Counter {
                    let (value, counter) =
                        (sample.value.unsigned_abs(), recorder.register_counter(&key, &METADATA));
                    let last = shown.counters.insert(place, value).unwrap_or(0);
                    // Less than before is another service of that name.
                    counter.increment(value.checked_sub(last).unwrap_or(value));
                } else {
                    let value = match metric.unit {
                        Counted::Seconds => sample.seconds(),
                        _ => sample.value as f64,
                    };
                    recorder.register_gauge(&key, &METADATA).set(value);
                    gauges.insert(place);
                }
            }
        }
        for (number, label) in shown.gauges.difference(&gauges) {
            let metric = &METRICS[*number];
            let left = if metric.kind == Kind::Sum { 0.0 } else { f64::NAN };
            recorder.register_gauge(&self.key(metric, label), &METADATA).set(left);
        }
        shown.gauges = gauges;
    }

    fn describe(&self, recorder: &dyn Recorder, metric: &Metric) {
        let name = metric.full_name().into();
        let unit = Some(match metric.unit {
            Counted::Bytes => Unit::Bytes,
            Counted::Seconds => Unit::Seconds,
            _ => Unit::Count,
        });
        match metric.kind {
            Kind::Counter => recorder.describe_counter(name, unit, metric.help.into()),
            Kind::Sum | Kind::Gauge => recorder.describe_gauge(name, unit, metric.help.into()),
        }
    }

    fn key(&self, metric: &Metric, label: &str) -> Key {
        let name = match metric.label() {
            Some(Tells::Service) => self.label.clone().into_owned(),
            Some(Tells::Part) => "part".to_owned(),
            Some(Tells::By) => "by".to_owned(),
            None => return Key::from_name(metric.full_name()),
        };
        Key::from_parts(metric.full_name(), vec![Label::new(name, label.to_owned())])
    }
}

static METADATA: Metadata<'static> = Metadata::new("dogtag", Level::INFO, Some(module_path!()));

impl Default for ServiceExporter {
    fn default() -> Self {
        Self::new()
    }
}

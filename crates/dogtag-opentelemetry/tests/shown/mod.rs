//! What OpenTelemetry's SDK exports of this process.

use dogtag::Dogtag;
use dogtag_opentelemetry::ServiceExporter;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
use opentelemetry_sdk::metrics::{InMemoryMetricExporterBuilder, PeriodicReader, SdkMeterProvider};
use std::collections::BTreeMap;
use std::time::Duration;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// A reader of its own: the function collects, and returns all counters and gauges of seconds, by their names and,
/// where there is one, an attribute: `dogtag.cancelled_services by=guard`.
pub fn reader() -> impl Fn() -> BTreeMap<String, f64> {
    let exported = InMemoryMetricExporterBuilder::new().build();
    // Collects when it is told to.
    let reader =
        PeriodicReader::builder(exported.clone()).with_interval(Duration::from_secs(100_000)).build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    ServiceExporter::new().observe(&provider.meter("dogtag"));
    move || {
        exported.reset();
        provider.force_flush().unwrap();
        let mut points = BTreeMap::new();
        for resource in exported.get_finished_metrics().unwrap() {
            for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
                match metric.data() {
                    AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                        for point in sum.data_points() {
                            let label = point.attributes().next();
                            let label = label.map_or(String::new(), |it| format!(" {}={}", it.key, it.value));
                            points.insert(format!("{}{label}", metric.name()), point.value() as f64);
                        }
                    }
                    AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                        assert_eq!(metric.unit(), "s");
                        for point in gauge.data_points() {
                            points.insert(metric.name().to_owned(), point.value());
                        }
                    }
                    _ => {}
                }
            }
        }
        points
    }
}

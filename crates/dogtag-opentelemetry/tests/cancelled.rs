//! Metrics of cancelled services, as OpenTelemetry's SDK exports them. One test: the counts are the
//! process's.

use dogtag::{Dogtag, Service};
use dogtag_opentelemetry::ServiceExporter;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
use opentelemetry_sdk::metrics::{InMemoryMetricExporterBuilder, PeriodicReader, SdkMeterProvider};
use std::collections::BTreeMap;
use std::time::Duration;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[test]
fn cancelled_services_are_counted_and_told_apart() {
    let exported = InMemoryMetricExporterBuilder::new().build();
    // Collects when it is told to.
    let reader =
        PeriodicReader::builder(exported.clone()).with_interval(Duration::from_secs(100_000)).build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    ServiceExporter::new().observe(&provider.meter("dogtag"));
    let collect = || {
        exported.reset();
        provider.force_flush().unwrap();
        let mut points = BTreeMap::new();
        for resource in exported.get_finished_metrics().unwrap() {
            for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
                match metric.data() {
                    AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                        for point in sum.data_points() {
                            let label = point.attributes().next().map(|label| label.to_owned());
                            let label = label.map_or(String::new(), |it| format!("{}={}", it.key, it.value));
                            points.insert(format!("{} {label}", metric.name()), point.value() as f64);
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
    };
    assert_eq!(collect().get("dogtag.longest_release"), None);
    let query = Service::register("query").unwrap();
    let rows = query.run(|| vec![0_u8; 1000]);
    query.cancel("too slow");
    drop((query, rows));
    let points = collect();
    assert_eq!(points.get("dogtag.cancelled_services by=program"), Some(&1.0), "{points:#?}");
    assert_eq!(points.get("dogtag.cancelled_services by=guard"), Some(&0.0), "{points:#?}");
    let longest = dogtag::snapshot().cancellations.unwrap().longest_release.unwrap().as_secs_f64();
    assert_eq!(points.get("dogtag.longest_release"), Some(&longest), "{points:#?}");
    assert_eq!(points.get("dogtag.refused_allocations "), Some(&0.0), "{points:#?}");
    assert!(!points.keys().any(|name| name.starts_with("dogtag.guard")), "there is no guard");
}

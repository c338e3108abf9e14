//! Metrics of the sampled guard, as OpenTelemetry's SDK exports them. One test: they are the process's.

#[path = "../../../tests/guarded/mod.rs"]
mod guarded;

use dogtag::Dogtag;
use dogtag_opentelemetry::ServiceExporter;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
use opentelemetry_sdk::metrics::{InMemoryMetricExporterBuilder, PeriodicReader, SdkMeterProvider};
use std::collections::BTreeMap;
use std::time::Duration;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[test]
fn the_sampled_guard_has_series_once_it_was_started() {
    let exported = InMemoryMetricExporterBuilder::new().build();
    // Collects when it is told to.
    let reader =
        PeriodicReader::builder(exported.clone()).with_interval(Duration::from_secs(100_000)).build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    ServiceExporter::new().observe(&provider.meter("dogtag"));
    let collect = || {
        exported.reset();
        provider.force_flush().unwrap();
        let mut counters = BTreeMap::new();
        for resource in exported.get_finished_metrics().unwrap() {
            for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
                if let AggregatedMetrics::U64(MetricData::Sum(sum)) = metric.data() {
                    counters.extend(sum.data_points().map(|it| (metric.name().to_owned(), it.value())));
                }
            }
        }
        counters
    };
    assert_eq!(collect().get("dogtag.sampled_guard_violations"), None);
    let Some(figures) = guarded::catches_one() else { return };
    let counters = collect();
    assert_eq!(counters.get("dogtag.sampled_guard_violations"), Some(&1), "{counters:#?}");
    assert_eq!(counters.get("dogtag.sampled_guard_blocks"), Some(&figures.ever), "{counters:#?}");
}

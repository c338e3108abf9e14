//! What OpenTelemetry's SDK exports. One at a time: all services of the process are in it.

use dogtag::{Dogtag, Service};
use dogtag_opentelemetry::ServiceExporter;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, InMemoryMetricExporterBuilder, PeriodicReader, SdkMeterProvider, Temporality,
};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

static ALONE: Mutex<()> = Mutex::new(());

struct Sdk {
    provider: SdkMeterProvider,
    exported: InMemoryMetricExporter,
}

/// By metric and attribute.
type Points = BTreeMap<(String, String), i64>;

impl Sdk {
    fn new(exporter: ServiceExporter, temporality: Temporality) -> Self {
        let exported = InMemoryMetricExporterBuilder::new().with_temporality(temporality).build();
        // Collects when it is told to.
        let reader =
            PeriodicReader::builder(exported.clone()).with_interval(Duration::from_secs(100_000)).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        exporter.observe(&provider.meter("dogtag"));
        Self { provider, exported }
    }

    fn collect(&self) -> Points {
        self.exported.reset();
        self.provider.force_flush().unwrap();
        let mut points = Points::new();
        for resource in self.exported.get_finished_metrics().unwrap() {
            for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
                let mut add = |attributes: Vec<&KeyValue>, value| {
                    let label = attributes.first().map_or(String::new(), |attribute| text(&attribute.value));
                    let former = points.insert((metric.name().to_owned(), label.clone()), value);
                    assert_eq!(former, None, "{} of {label} is there twice", metric.name());
                    assert!(attributes.iter().all(|one| one.key.as_str() != "otel.metric.overflow"));
                };
                match metric.data() {
                    AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                        assert!(sum.is_monotonic());
                        for point in sum.data_points() {
                            add(point.attributes().collect(), point.value().try_into().unwrap());
                        }
                    }
                    AggregatedMetrics::I64(MetricData::Sum(sum)) => {
                        assert!(!sum.is_monotonic());
                        sum.data_points().for_each(|point| add(point.attributes().collect(), point.value()));
                    }
                    AggregatedMetrics::I64(MetricData::Gauge(gauge)) => {
                        gauge
                            .data_points()
                            .for_each(|point| add(point.attributes().collect(), point.value()));
                    }
                    other => panic!("{}: {other:?}", metric.name()),
                }
            }
        }
        points
    }
}

fn text(value: &Value) -> String {
    value.as_str().into_owned()
}

fn of(metric: &str, service: &str) -> (String, String) {
    (format!("dogtag.service.{metric}"), service.to_owned())
}

#[test]
fn all_instruments_are_taken_and_ended_services_leave() {
    let _alone = ALONE.lock();
    let sdk = Sdk::new(ServiceExporter::new(), Temporality::Cumulative);
    let service = Service::builder("query").hard_limit(1 << 30).soft_limit(1 << 29).register().unwrap();
    let kept = service.run(|| {
        drop(vec![0_u8; 500]);
        vec![0_u8; 1 << 20]
    });
    let points = sdk.collect();
    for (metric, value) in [
        ("live", 1 << 20),
        ("live_blocks", 1),
        ("allocated", (1 << 20) + 500),
        ("allocated_blocks", 2),
        ("freed", 500),
        ("freed_blocks", 1),
        ("denied_allocations", 0),
        ("hard_limit", 1 << 30),
        ("soft_limit", 1 << 29),
    ] {
        assert_eq!(points.get(&of(metric, "query")), Some(&value), "{metric}: {points:#?}");
    }
    assert!(points.contains_key(&of("peak", "query")));
    // None is without effect, which is what a name or a unit does that the SDK does not like.
    let metrics: std::collections::BTreeSet<&String> = points.keys().map(|(metric, _)| metric).collect();
    let of_system = if cfg!(target_os = "linux") { 2 } else { 0 };
    let of_cancelled = if dogtag::snapshot().cancellations.is_some() { 4 } else { 0 };
    assert_eq!(metrics.len(), 21 + of_system + of_cancelled, "{metrics:#?}");
    // One moment for all.
    let services: i64 = points
        .iter()
        .filter(|((metric, _), _)| metric == "dogtag.service.live")
        .map(|(_, value)| value)
        .sum();
    assert_eq!(services, points[&("dogtag.live".to_owned(), String::new())]);

    drop(kept);
    drop(service);
    let points = sdk.collect();
    assert!(points.keys().all(|(_, label)| label != "query"), "{points:#?}");
}

/// Far more services than the SDK's limit, and others each time.
#[test]
fn the_limit_of_series_is_not_reached() {
    let _alone = ALONE.lock();
    let sdk = Sdk::new(ServiceExporter::new().most_services(usize::MAX), Temporality::Cumulative);
    for round in 0..3 {
        let services: Vec<Service> =
            (0..2500).map(|i| Service::register(format!("{round} of many {i}")).unwrap()).collect();
        let blocks: Vec<Vec<u8>> =
            services.iter().zip(0..).map(|(service, i)| service.run(|| vec![0; 1000 + i])).collect();
        // No point is an overflow: `collect` looks.
        let points = sdk.collect();
        let live: Vec<&i64> = points
            .iter()
            .filter(|((metric, _), _)| metric == "dogtag.service.live")
            .map(|(_, value)| value)
            .collect();
        assert_eq!(live.len(), ServiceExporter::MOST_SERVICES + 1);
        assert_eq!(live.into_iter().sum::<i64>(), points[&("dogtag.live".to_owned(), String::new())]);
        drop(blocks);
    }
}

/// Deltas add up, whether a service is among the largest or not.
#[test]
fn what_comes_back_is_not_counted_again() {
    let _alone = ALONE.lock();
    let sdk = Sdk::new(ServiceExporter::new().most_services(1), Temporality::Delta);
    let (first, second) = (Service::register("first").unwrap(), Service::register("second").unwrap());
    let allocated = |points: &Points, service| points.get(&of("allocated", service)).copied();

    let of_first = first.run(|| vec![0_u8; 100 << 20]);
    assert_eq!(allocated(&sdk.collect(), "first"), Some(100 << 20));
    let of_second = second.run(|| vec![0_u8; 200 << 20]);
    let points = sdk.collect();
    assert_eq!((allocated(&points, "first"), allocated(&points, "second")), (None, Some(200 << 20)));
    let more = first.run(|| vec![0_u8; 300 << 20]);
    let points = sdk.collect();
    assert_eq!((allocated(&points, "first"), allocated(&points, "second")), (Some(300 << 20), None));
    assert_eq!(allocated(&sdk.collect(), "first"), Some(0));

    // Another service of the same name, which has allocated less: nothing falls, nothing panics.
    drop((of_first, more, first));
    drop(of_second);
    let first = Service::register("first").unwrap();
    let again = first.run(|| vec![0_u8; 50 << 20]);
    assert_eq!(allocated(&sdk.collect(), "first"), None);
    let more = first.run(|| vec![0_u8; 1 << 20]);
    assert_eq!(allocated(&sdk.collect(), "first"), Some(51 << 20));
    assert_eq!(allocated(&sdk.collect(), "first"), Some(0));
    drop((again, more));
}

//! Metrics of cancelled services, as `metrics-exporter-prometheus` shows them. One test: the counts are
//! the process's.

use dogtag::{Dogtag, Service};
use dogtag_metrics::ServiceExporter;
use metrics_exporter_prometheus::PrometheusBuilder;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[test]
fn cancelled_services_are_counted_and_told_apart() {
    let recorder = PrometheusBuilder::new().with_recommended_naming(true).build_recorder();
    let (handle, exporter) = (recorder.handle(), ServiceExporter::new());
    let show = || {
        metrics::with_local_recorder(&recorder, || exporter.update());
        handle.render()
    };
    assert!(!show().contains("\ndogtag_longest_release_seconds "));
    let query = Service::register("query").unwrap();
    let rows = query.run(|| vec![0_u8; 1000]);
    query.cancel("too slow");
    let text = show();
    for line in [
        "# TYPE dogtag_cancelled_services_total counter",
        "dogtag_cancelled_services_total{by=\"program\"} 1",
        "dogtag_cancelled_services_total{by=\"guard\"} 0",
        "dogtag_unreleased_bytes 1000",
        "dogtag_service_live_bytes{service=\"query (cancelled)\"} 1000",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
    drop((query, rows));
    let text = show();
    let longest = dogtag::snapshot().cancellations.unwrap().longest_release.unwrap().as_secs_f64();
    let line = format!("\ndogtag_longest_release_seconds {longest}\n");
    assert!(text.contains(&line), "{line}\n{text}");
    assert!(text.contains("\ndogtag_service_live_bytes{service=\"query (cancelled)\"} 0\n"), "{text}");
}

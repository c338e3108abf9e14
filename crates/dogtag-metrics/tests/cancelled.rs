//! Metrics of cancelled services, as `metrics-exporter-prometheus` shows them. One test: the counts are
//! the process's.

#[path = "../../../tests/cancelled/mod.rs"]
mod cancelled;

use dogtag::Dogtag;
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
    cancelled::is_shown(show, "# TYPE dogtag_cancelled_services_total counter");
    // A recorder forgets no series.
    let text = show();
    assert!(text.contains("\ndogtag_service_live_bytes{service=\"query (cancelled)\"} 0\n"), "{text}");
}

//! What `metrics-exporter-prometheus` shows of this process.

use dogtag::Dogtag;
use dogtag_metrics::ServiceExporter;
use metrics_exporter_prometheus::PrometheusBuilder;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

/// A recorder of its own, which forgets no series: the function updates it, and returns what it shows.
pub fn recorder() -> impl Fn() -> String {
    let recorder = PrometheusBuilder::new().with_recommended_naming(true).build_recorder();
    let (handle, exporter) = (recorder.handle(), ServiceExporter::new());
    move || {
        metrics::with_local_recorder(&recorder, || exporter.update());
        handle.render()
    }
}

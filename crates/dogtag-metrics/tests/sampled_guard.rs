//! Metrics of the sampled guard, as `metrics-exporter-prometheus` shows them. One test: they are the process's.

#[path = "../../../tests/guarded/mod.rs"]
mod guarded;

use dogtag::Dogtag;
use dogtag_metrics::ServiceExporter;
use metrics_exporter_prometheus::PrometheusBuilder;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[test]
fn the_sampled_guard_has_series_once_it_was_started() {
    let recorder = PrometheusBuilder::new().with_recommended_naming(true).build_recorder();
    let (handle, exporter) = (recorder.handle(), ServiceExporter::new());
    let show = || {
        metrics::with_local_recorder(&recorder, || exporter.update());
        handle.render()
    };
    assert!(!show().contains("\ndogtag_sampled_guard_violations_total "));
    let Some(figures) = guarded::catches_one() else { return };
    let text = show();
    for line in [
        "dogtag_sampled_guard_violations_total 1",
        "dogtag_sampled_guard_slots 200",
        &format!("dogtag_sampled_guard_blocks_total {}", figures.ever),
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
}

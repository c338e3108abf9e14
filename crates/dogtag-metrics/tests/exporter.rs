//! What `metrics-exporter-prometheus` shows of it. All in one test: the recorder is of one thread.

use dogtag::{Dogtag, Service};
use dogtag_metrics::ServiceExporter;
use metrics_exporter_prometheus::PrometheusBuilder;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|there| there == line)
}

fn names(text: &str, prefix: &str) -> usize {
    text.lines()
        .filter(|line| line.starts_with("dogtag_service_live_bytes{") && line.contains(prefix))
        .count()
}

#[test]
fn figures_are_those_of_the_last_update() {
    let recorder = PrometheusBuilder::new().with_recommended_naming(true).build_recorder();
    let handle = recorder.handle();
    let exporter = ServiceExporter::new().most_services(1000).label("owner").unwrap();
    assert!(ServiceExporter::new().label("no-label").is_err());
    let show = || {
        metrics::with_local_recorder(&recorder, || exporter.update());
        handle.render()
    };

    let service = Service::builder("query").soft_limit(1 << 20).register().unwrap();
    let kept = service.run(|| {
        drop(vec![0_u8; 500]);
        vec![0_u8; 1000]
    });
    let text = show();
    for line in [
        "dogtag_service_live_bytes{owner=\"query\"} 1000",
        "dogtag_service_live_blocks{owner=\"query\"} 1",
        "dogtag_service_allocated_bytes_total{owner=\"query\"} 1500",
        "dogtag_service_soft_limit_bytes{owner=\"query\"} 1048576",
        "# TYPE dogtag_service_allocated_bytes_total counter",
        "# TYPE dogtag_service_live_bytes gauge",
    ] {
        assert!(has(&text, line), "{line}\n{text}");
    }
    assert!(text.contains("# HELP dogtag_live_bytes Bytes that were requested"), "{text}");
    // Counters are not counted twice.
    assert!(has(&show(), "dogtag_service_allocated_bytes_total{owner=\"query\"} 1500"));

    // The next one of that name goes on where the first ended.
    drop(kept);
    drop(service);
    let text = show();
    assert!(has(&text, "dogtag_service_live_bytes{owner=\"query\"} 0"), "{text}");
    assert!(has(&text, "dogtag_service_peak_bytes{owner=\"query\"} NaN"), "{text}");
    let service = Service::register("query").unwrap();
    let kept = service.run(|| vec![0_u8; 100]);
    let text = show();
    assert!(has(&text, "dogtag_service_live_bytes{owner=\"query\"} 100"), "{text}");
    assert!(has(&text, "dogtag_service_allocated_bytes_total{owner=\"query\"} 1600"), "{text}");

    // Names that come and go do not pile up.
    let bounded = ServiceExporter::new().most_services(3).most_names(5);
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    for number in 0..20 {
        let brief = Service::register(format!("brief {number}")).unwrap();
        let block = brief.run(|| vec![0_u8; 100 << 20]);
        metrics::with_local_recorder(&recorder, || bounded.update());
        drop(block);
    }
    let text = handle.render();
    assert!(names(&text, "brief") <= 5 && names(&text, "") <= 6, "{text}");
    assert!(names(&text, "(other)") == 1, "{text}");
    drop(kept);
}

//! The metrics, as tikv's Prometheus library writes them.

use dogtag::{Dogtag, Service};
use dogtag_tikv_prometheus::ServiceCollector;
use prometheus::{Registry, TextEncoder};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

fn scrape(registry: &Registry) -> String {
    TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|there| there == line)
}

#[test]
fn figures_are_those_of_the_moment() {
    let registry = Registry::new();
    registry.register(Box::new(ServiceCollector::new().most_services(1000))).unwrap();
    assert!(registry.register(Box::new(ServiceCollector::new())).is_err(), "one is enough");
    let service = Service::builder("query").hard_limit(1 << 30).register().unwrap();
    let kept = service.run(|| {
        drop(vec![0_u8; 500]);
        vec![0_u8; 1000]
    });
    let quoted = Service::register("a \"quoted\"\nname\\").unwrap();
    let of_quoted = quoted.run(|| vec![0_u8; 10]);
    let text = scrape(&registry);
    for line in [
        "dogtag_service_live_bytes{service=\"query\"} 1000",
        "dogtag_service_live_blocks{service=\"query\"} 1",
        "dogtag_service_allocated_bytes_total{service=\"query\"} 1500",
        "dogtag_service_freed_blocks_total{service=\"query\"} 1",
        "dogtag_service_hard_limit_bytes{service=\"query\"} 1073741824",
        "dogtag_service_live_bytes{service=\"a \\\"quoted\\\"\\nname\\\\\"} 10",
        "# TYPE dogtag_service_allocated_bytes_total counter",
        "# TYPE dogtag_live_bytes gauge",
    ] {
        assert!(has(&text, line), "{line}\n{text}");
    }
    if cfg!(target_os = "linux") {
        assert!(text.contains("dogtag_balance_bytes{part="), "{text}");
    }

    drop(kept);
    assert!(has(&scrape(&registry), "dogtag_service_live_bytes{service=\"query\"} 0"));
    // Who has ended has no series any more.
    drop(service);
    let text = scrape(&registry);
    assert!(!text.contains("service=\"query"), "{text}");
    drop(of_quoted);
}

#[test]
fn the_others_are_summed_and_the_label_can_be_chosen() {
    let registry = Registry::new();
    let collector = ServiceCollector::new().most_services(0).label("dogtag_name").unwrap();
    registry.register(Box::new(collector)).unwrap();
    let text = scrape(&registry);
    let lines: Vec<&str> =
        text.lines().filter(|line| line.starts_with("dogtag_service_live_bytes{")).collect();
    assert!(lines.len() == 1 && lines[0].contains("dogtag_name=\"(other)\""), "{text}");
    assert!(!text.contains("dogtag_service_allocated_bytes_total{"), "{text}");
    assert!(ServiceCollector::new().label("no-label").is_err());
}

//! Metrics of cancelled services, as tikv's Prometheus library writes them. One test: the counts are the
//! process's.

use dogtag::{Dogtag, Service};
use dogtag_tikv_prometheus::ServiceCollector;
use prometheus::{Registry, TextEncoder};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[test]
fn cancelled_services_are_counted_and_told_apart() {
    let registry = Registry::new();
    registry.register(Box::new(ServiceCollector::new())).unwrap();
    let scrape = || TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(!scrape().contains("release_seconds"));
    let query = Service::register("query").unwrap();
    let rows = query.run(|| vec![0_u8; 1000]);
    query.cancel("too slow");
    let text = scrape();
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
    let text = scrape();
    let longest = dogtag::snapshot().cancellations.unwrap().longest_release.unwrap().as_secs_f64();
    let line =
        format!("# TYPE dogtag_longest_release_seconds gauge\ndogtag_longest_release_seconds {longest}\n");
    assert!(text.contains(&line), "{line}\n{text}");
}

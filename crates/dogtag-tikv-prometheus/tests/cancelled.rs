//! Metrics of cancelled services, as tikv's Prometheus library writes them. One test: the counts are the
//! process's.

#[path = "../../../tests/cancelled/mod.rs"]
mod cancelled;

use dogtag::Dogtag;
use dogtag_tikv_prometheus::ServiceCollector;
use prometheus::{Registry, TextEncoder};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

#[test]
fn cancelled_services_are_counted_and_told_apart() {
    let registry = Registry::new();
    registry.register(Box::new(ServiceCollector::new())).unwrap();
    let scrape = || TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    cancelled::is_shown(scrape, "# TYPE dogtag_cancelled_services_total counter");
}

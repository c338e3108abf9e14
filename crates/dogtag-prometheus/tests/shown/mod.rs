//! What Prometheus' own library writes of this process.

use dogtag::Dogtag;
use dogtag_prometheus::ServiceCollector;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

pub fn scrape() -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ServiceCollector::new()));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

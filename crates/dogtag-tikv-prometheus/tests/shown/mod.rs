//! What tikv's Prometheus library writes of this process.

use dogtag::Dogtag;
use dogtag_tikv_prometheus::ServiceCollector;
use prometheus::{Registry, TextEncoder};

#[global_allocator]
static ALLOC: Dogtag = Dogtag::new();

pub fn scrape() -> String {
    let registry = Registry::new();
    registry.register(Box::new(ServiceCollector::new())).unwrap();
    TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
}

//! Metrics of cancelled services, as tikv's Prometheus library writes them. One test: the counts are the
//! process's.

#[path = "../../../tests/cancelled/mod.rs"]
mod cancelled;
mod shown;

use shown::scrape;

#[test]
fn cancelled_services_are_counted_and_told_apart() {
    cancelled::is_shown(scrape, "# TYPE dogtag_cancelled_services_total counter");
}

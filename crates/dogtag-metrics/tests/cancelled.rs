//! Metrics of cancelled services, as `metrics-exporter-prometheus` shows them. One test: the counts are
//! the process's.

#[path = "../../../tests/cancelled/mod.rs"]
mod cancelled;
mod shown;

#[test]
fn cancelled_services_are_counted_and_told_apart() {
    let show = shown::recorder();
    cancelled::is_shown(&show, "# TYPE dogtag_cancelled_services_total counter");
    // A recorder forgets no series.
    let text = show();
    assert!(text.contains("\ndogtag_service_live_bytes{service=\"query (cancelled)\"} 0\n"), "{text}");
}

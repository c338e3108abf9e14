//! A query that is cancelled, as exporters show it in Prometheus's text format.

use dogtag::Service;

/// Cancels a query that holds a thousand bytes, and checks what an exporter shows before, meanwhile and when it has
/// let go of them. `kind` is the line in which it says that cancelled services are counted.
pub fn is_shown(show: impl Fn() -> String, kind: &str) {
    let longest = |text: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix("dogtag_longest_release_seconds "))?;
        Some(value.parse::<f64>().unwrap())
    };
    assert_eq!(longest(&show()), None);
    let query = Service::register("query").unwrap();
    let rows = query.run(|| vec![0_u8; 1000]);
    query.cancel("too slow");
    let text = show();
    for line in [
        kind,
        "dogtag_cancelled_services_total{by=\"program\"} 1",
        "dogtag_cancelled_services_total{by=\"budget\"} 0",
        "dogtag_cancelled_services_total{by=\"guard\"} 0",
        "dogtag_unreleased_services 1",
        "dogtag_unreleased_bytes 1000",
        "dogtag_service_live_bytes{service=\"query (cancelled)\"} 1000",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
    assert_eq!(longest(&text), None, "{text}");
    drop((query, rows));
    let text = show();
    assert!(text.lines().any(|line| line == "dogtag_unreleased_services 0"), "{text}");
    assert!(text.lines().any(|line| line == "# TYPE dogtag_longest_release_seconds gauge"), "{text}");
    let known = dogtag::snapshot().cancellations.unwrap().longest_release.unwrap().as_secs_f64();
    assert!(longest(&text).is_some_and(|shown| shown == known && shown > 0.0), "{known}\n{text}");
}
